"""Host names as requests and settings write them; pure."""

import ipaddress

ANY = "*"
"""Allows every name."""


def host_name(written: str) -> str | None:
    """Return the name in a Host header (RFC 9110, section 7.2), None if it is none.

    Addresses come in one spelling, names in lower case, both without port.

    >>> host_name("[0:0:0:0:0:0:0:1]:8765"), host_name("LOCALHOST:80")
    ('::1', 'localhost')
    >>> host_name("::1"), host_name("a:b:c"), host_name("a:port"), host_name("")
    (None, None, None, None)
    """
    if written.startswith("["):
        name, closed, port = written[1:].partition("]")
        if not closed or not (port == "" or _is_port(port)):
            return None
        return _address(name) if ":" in name else None
    name, colon, port = written.partition(":")
    if not name or (colon and not _is_port(colon + port)):
        return None
    return _address(name) or name.lower()


def is_loopback(host: str) -> bool:
    """Tell whether an address, or the name localhost, is this machine's own.

    >>> [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0")]
    [True, True, True, False]
    """
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and ipaddress.ip_address(address).is_loopback


def normal_name(host: str) -> str | None:
    """Return a name or bare address of the settings as `host_name` gives it.

    >>> normal_name("::1"), normal_name("[::1]"), normal_name("a:80"), normal_name("*")
    ('::1', '::1', None, '*')
    """
    address = _address(host)
    if address is not None:
        return address
    name = host_name(host)
    plain = ":" not in host or host.endswith("]")
    return name if plain else None


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isdecimal() and text.isascii()
