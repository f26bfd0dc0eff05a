"""Settings of the control plane: options of `slmops serve`, and ``SLMOPS_CONTROL_…``."""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError
from slmops.registry.workspace import Workspace
from slmops.wire import settings

PREFIX = "SLMOPS_CONTROL_"


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlSettings:
    """How the control plane serves."""

    workspace: Workspace
    """Its registry, keys and control folders."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback until a TLS proxy stands in front."""
    port: int = 8800
    """TCP port; 0 takes a free one."""
    poll_s: float = 30.0
    """Mean time between two syncs of a device; each answer jitters it by a fifth, so
    that a fleet started together spreads out."""
    session_s: float = 86_400.0
    """Life of a device's session token: a day costs one signature a day."""
    engine_s: float = 1.0
    """Longest time between two passes of the rollout engine; news wake it at once."""
    timestamp_s: float = 3_600.0
    """How often the age of the registry's TUF timestamp is looked at: it lives a week and
    is signed anew when half of that is over."""
    seen_flush_s: float = 5.0
    """How often last-seen times are written; a crash loses at most this much of them."""
    device_burst: int = 60
    """Requests a device may make at once before its rate limit holds."""
    device_rate_per_s: float = 10.0
    """Requests a device may make a second in the long run; 300 times the default poll."""
    device_news_burst_bytes: int = 1_048_576
    """What a device may tell that is new and stored, at once: more than all reports that
    its agent keeps through an outage."""
    device_news_bytes_per_s: float = 1_024.0
    """What a device may tell that is new and stored in the long run, bytes a second; some
    20 times what an agent with traffic tells."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:  # noqa: PLR2004 - TCP
            raise InvalidInputError(f"serve.port must be in 0..65535, got {self.port}")
        for name in (
            *("poll_s", "session_s", "engine_s", "timestamp_s", "seen_flush_s"),
            *("device_burst", "device_rate_per_s"),
            *("device_news_burst_bytes", "device_news_bytes_per_s"),
        ):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"serve.{name} must be > 0, got {getattr(self, name):g}"
                )


def load_control_settings(
    workspace: Workspace, environment: Mapping[str, str]
) -> ControlSettings:
    """Return the defaults with what variables say.

    Raises:
        InvalidInputError: a variable is wrong, or no setting.
    """
    return settings.override_settings(
        ControlSettings(workspace=workspace),
        environment=environment,
        prefix=PREFIX,
        fixed=("workspace",),
    )
