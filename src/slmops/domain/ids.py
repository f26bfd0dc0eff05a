"""Names and digests: how things are identified, and what a valid one looks like."""

import re
from typing import NewType

from slmops.domain.errors import InvalidInputError

Digest = NewType("Digest", str)
"""Content address, ``sha256:`` and 64 lower-case hex digits (OCI image spec, descriptor)."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_LABEL = re.compile(rf"{_NAME.pattern}-[0-9]{{1,9}}")


def parse_digest(text: str) -> Digest:
    """Check that `text` is a SHA-256 content address.

    Raises:
        InvalidInputError: it is not.

    >>> parse_digest("sha256:" + "0" * 64)[:12]
    'sha256:00000'
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidInputError(
            f"digest must be 'sha256:' and 64 lower-case hex digits, got {text[:80]!r}"
        )
    return Digest(text)


def digest_hex(digest: Digest) -> str:
    """Return the hex part of `digest`.

    >>> len(digest_hex(Digest("sha256:" + "ab" * 32)))
    64
    """
    return digest.removeprefix("sha256:")


def check_name(text: str, *, where: str) -> str:
    """Check a name used in files, URLs and labels: lower case, digits, ``. _ -``, at most 64.

    Raises:
        InvalidInputError: naming `where`, what was expected and what came.

    >>> check_name("till-4g", where="classes[0].name")
    'till-4g'
    """
    if not _NAME.fullmatch(text):
        raise InvalidInputError(
            f"{where} must be 1 to 64 of a-z 0-9 . _ - and start and end with a letter"
            f" or digit, got {text[:80]!r}"
        )
    return text


def check_label(text: str, *, where: str) -> str:
    """Check a release's label: its name, a hyphen, its version.

    Raises:
        InvalidInputError: naming `where`, what was expected and what came.

    >>> check_label("assistant-2", where="active.release")
    'assistant-2'
    """
    if not _LABEL.fullmatch(text):
        raise InvalidInputError(
            f"{where} must be a release's name, a hyphen and its version,"
            f" got {text[:80]!r}"
        )
    return text


def label_version(label: str) -> int:
    """Return the version at the end of a release's label.

    Raises:
        InvalidInputError: it is no label.

    >>> label_version("assistant-12")
    12
    """
    return int(check_label(label, where="release label").rpartition("-")[2])
