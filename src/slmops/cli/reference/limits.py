"""Limits of numbers in blueprints and settings, as the pages say them.

The documents themselves refuse what is outside; a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.agent.settings import AgentSettings
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import (
    EvaluationPlan,
    GoldenPlan,
    QualityFloor,
    RolloutPolicy,
    WavePlan,
)
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.energy import Power
from slmops.domain.levers import (
    Distill,
    Finetune,
    PruneDepth,
    PruneWidth,
    Sparsify,
    TrimVocabulary,
)
from slmops.domain.recipe import (
    CalibrationPlan,
    MixedPlan,
    Recipe,
    RecoverPlan,
    SearchPlan,
)
from slmops.domain.tasks import TaskPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """An interval; a missing end is open."""

    above: float | None = None
    """Smallest value is larger than this."""
    least: float | None = None
    """Smallest value."""
    below: float | None = None
    """Largest value is smaller than this."""
    most: float | None = None
    """Largest value."""

    def __str__(self) -> str:
        parts = (
            (">", self.above),
            ("≥", self.least),
            ("<", self.below),
            ("≤", self.most),
        )
        return " and ".join(
            f"{sign} {value:g}" if value < 1e6 else f"{sign} {value:.0f}"  # noqa: PLR2004
            for sign, value in parts
            if value is not None
        )


_POSITIVE = Limit(above=0)
_CHANCE = Limit(above=0, below=1)
_PORT = Limit(least=0, most=65_535)

LIMITS: Mapping[type, Mapping[str, Limit]] = {
    QualityFloor: {
        "max_kld_times_8bit": Limit(above=1),
        "min_same_top1": Limit(least=0, most=1),
        "max_task_loss": Limit(above=0, most=1),
    },
    TaskPlan: {
        "search_share": Limit(least=0, most=1),
        "max_tokens": Limit(least=1),
        "limit": Limit(least=1),
    },
    CalibrationPlan: {"tokens": Limit(least=256)},
    MixedPlan: {"tokens": Limit(least=128)},
    TrimVocabulary: {"tokens": Limit(least=256)},
    PruneDepth: {"layers": Limit(least=1)},
    PruneWidth: {"feed_forward": Limit(least=0), "kv_heads": Limit(least=0)},
    Sparsify: {"sparsity": _CHANCE},
    Finetune: {
        "epochs": _POSITIVE,
        "learning_rate": _POSITIVE,
        "rank": _POSITIVE,
        "accumulation": _POSITIVE,
        "patience": Limit(least=0),
        "max_tokens": Limit(least=2),
    },
    Distill: {
        "steps": _POSITIVE,
        "learning_rate": _POSITIVE,
        "temperature": _POSITIVE,
    },
    RecoverPlan: {"steps": _POSITIVE, "learning_rate": _POSITIVE},
    Recipe: {"seed": Limit(least=0)},
    SearchPlan: {
        "exhaustive": Limit(least=1),
        "trials": Limit(least=1),
        "keep": Limit(least=1),
        "probe_tokens": Limit(least=128),
        "recovery_share": Limit(above=0, most=1),
    },
    # `max_tokens` has no limit of its own: it must not be less than `window_tokens`.
    EvaluationPlan: {
        "search_share": Limit(least=0, below=1),
        "window_tokens": Limit(least=32),
        "speed_runs": Limit(least=3),
        "memory_runs": Limit(least=2),
    },
    GoldenPlan: {
        "answer_tokens": _POSITIVE,
        "max_card_delta": _POSITIVE,
        "max_paired_loss": _POSITIVE,
        "min_decode_ratio": Limit(least=0),
    },
    WavePlan: {"count": Limit(least=1), "share": Limit(above=0, most=1)},
    RolloutPolicy: {
        "tolerated_failure_rate": _CHANCE,
        "alpha": _CHANCE,
        "soak_s": Limit(least=0),
        "deadline_s": _POSITIVE,
        "min_per_class": Limit(least=0),
        "probation_s": Limit(least=0),
        "max_per_site": Limit(least=1),
        "holdback": Limit(least=0, below=0.5),
        "approvals": Limit(least=0),
    },
    DeviceClass: {"threads": Limit(least=1), "context_tokens": Limit(least=64)},
    Budget: dict.fromkeys(
        (
            *("memory_mib", "disk_mib", "first_token_ms", "decode_tokens_per_s"),
            "decode_joules_per_token",
        ),
        _POSITIVE,
    ),
    Power: {
        "busy_watts": _POSITIVE,
        "watts_per_thread": Limit(least=0),
        "idle_watts": Limit(least=0),
        "uncertainty": Limit(least=0, below=1),
    },
    AgentSettings: {
        "memory_mib": Limit(least=1),
        "port": _PORT,
        "min_battery": Limit(least=0, most=1),
        "blob_mirror_wait_s": _POSITIVE,
        "disk_reserve_mib": Limit(least=0),
        "download_bytes_per_s": Limit(least=1024),
        "hold_s": _POSITIVE,
        "sync_longest_s": _POSITIVE,
        "window_s": _POSITIVE,
    },
    ControlSettings: {
        "port": _PORT,
        **dict.fromkeys(
            (
                *("poll_s", "session_s", "engine_s", "timestamp_s", "seen_flush_s"),
                *("device_burst", "device_rate_per_s"),
                *("device_news_burst_bytes", "device_news_bytes_per_s"),
            ),
            _POSITIVE,
        ),
    },
}
"""Document → field → what it may be, the other fields at their defaults."""
