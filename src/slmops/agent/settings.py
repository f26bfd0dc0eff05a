"""Settings of the agent: ``config.json`` in the state folder, and ``SLMOPS_AGENT_…``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmops.agent.hosts import is_loopback, normal_name
from slmops.agent.windows import parse_window, read_zone
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.registry.blobs import write_atomically
from slmops.wire import codec, settings

CONFIG = "config.json"
PREFIX = "SLMOPS_AGENT_"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SLOWEST = 1024
"""Slower, and a download would be taken for a sender that drips."""
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """What enrolment wrote and the owner may change."""

    server: str
    """Base address of the control plane."""
    device: str
    """Id of this device."""
    director_key: str
    """Ed25519 public key that signs assignments, 64 hex digits."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Set by the owner; blueprints and waves may ask for them."""
    memory_mib: int | None = None
    """Memory the owner gives to models; None for what the system allows."""
    host: str = "127.0.0.1"
    """Address of the endpoint; loopback, because it has no authentication. Another one
    needs `allowed_hosts`."""
    port: int = 8765
    """TCP port of the endpoint; 0 takes a free one, see ``endpoint.json``."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that clients may use beside the address itself; "*" allows every name,
    and so web pages that make theirs resolve to this device."""
    min_battery: float = 0.2
    """Charge, 0 to 1, below which a discharging device defers updates."""
    windows: tuple[str, ...] = ()
    """When an update may start: ``22:00-05:00``, ``sat,sun 00:00-24:00``; local time.
    Empty for always. One that began goes on when its window closes."""
    time_zone: str | None = None
    """IANA name of the zone that windows are in; the system's own by default."""
    mains_only: bool = False
    """Start updates on mains only, however full a battery is."""
    metered_links: tuple[str, ...] = ()
    """Interfaces over which nothing is downloaded while the default route leads there:
    names (``wwan0``, ``ppp*``) or kinds (``wwan``, ``wlan``, ``ethernet``)."""
    max_celsius: float | None = None
    """Start no update while a thermal zone is hotter; None asks nothing."""
    download_bytes_per_s: int | None = None
    """Most that a download takes of the link; None for all."""
    blob_mirror: str | None = None
    """Address of the site's cache (`slmops agent cache`), asked for blobs before the
    control plane; not trusted. None asks nobody else."""
    blob_mirror_wait_s: float = 600.0
    """Longest wait while the mirror fetches a blob itself; then the control plane is
    asked."""
    disk_reserve_mib: int = 64
    """Free disk that a download leaves: logs and journals need room."""
    hold_s: float = 60.0
    """Longest wait of a request while one model must go before the next can come."""
    sync_longest_s: float = 60.0
    """Longest wait between two tries while the control plane is gone."""
    window_s: float = 60.0
    """Length of one telemetry window."""
    test_runtimes: bool = False
    """Offer the runtime echo, which answers without a model, as installed: for tests."""

    def __post_init__(self) -> None:
        for name in ("server", "blob_mirror"):
            address = getattr(self, name)
            if address is not None and not address.startswith(("http://", "https://")):
                raise InvalidInputError(
                    f"{name} must begin with http:// or https://, got {address[:80]!r}"
                )
        if not 0 <= self.port <= 65_535:  # noqa: PLR2004 - TCP
            raise InvalidInputError(f"port must be in 0..65535, got {self.port}")
        self._check_hosts()
        self._check_constraints()
        self._check_windows()
        if self.memory_mib is not None and self.memory_mib < 1:
            raise InvalidInputError(f"memory_mib must be >= 1, got {self.memory_mib}")
        for name in ("blob_mirror_wait_s", "hold_s", "sync_longest_s", "window_s"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"{name} must be > 0, got {getattr(self, name)}"
                )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the names that requests may be addressed to."""
        if is_loopback(self.host):
            own: tuple[str, ...] = tuple(dict.fromkeys((*_LOOPBACK, self.host)))
        elif self.host in _EVERY_ADDRESS:
            own = _LOOPBACK
        else:
            own = (self.host,)
        return (*own, *self.allowed_hosts)

    def _check_constraints(self) -> None:
        if not 0 <= self.min_battery <= 1:
            raise InvalidInputError(
                f"min_battery must be in 0..1, got {self.min_battery:g}"
            )
        if self.disk_reserve_mib < 0:
            raise InvalidInputError(
                f"disk_reserve_mib must be >= 0, got {self.disk_reserve_mib}"
            )
        most = self.download_bytes_per_s
        if most is not None and most < _SLOWEST:
            raise InvalidInputError(
                f"download_bytes_per_s must be >= {_SLOWEST}, got {most}"
            )

    def _check_windows(self) -> None:
        for text in self.windows:
            parse_window(text)
        if self.time_zone is not None:
            read_zone(self.time_zone)

    def _check_hosts(self) -> None:
        for index, host in enumerate(self.allowed_hosts):
            if normal_name(host) is None:
                raise InvalidInputError(
                    f"allowed_hosts[{index}] must be a host name or address without a"
                    f" port, got {host[:80]!r}"
                )
        if not is_loopback(self.host) and not self.allowed_hosts:
            raise InvalidInputError(
                f"host {self.host[:80]!r} can be reached from other machines, and the"
                " endpoint asks for no password: allowed_hosts must list the host names"
                ' that clients use, or hold "*" for any'
            )


def load_agent_settings(state: Path, environment: Mapping[str, str]) -> AgentSettings:
    """Read the settings of an enrolled device.

    Raises:
        NotFoundError: not enrolled.
        InvalidInputError: a setting is wrong.
    """
    try:
        return settings.load_settings(
            AgentSettings,
            path=state / CONFIG,
            environment=environment,
            prefix=PREFIX,
        )
    except NotFoundError:
        raise NotFoundError(
            f"{state} holds no enrolled device; run `slmops agent enrol` first"
        ) from None


def save_agent_settings(state: Path, chosen: AgentSettings) -> None:
    """Write the settings; readable by the owner only."""
    text = codec.encode_json_pretty(chosen) + "\n"
    write_atomically(state / CONFIG, text.encode(), mode=0o600)
