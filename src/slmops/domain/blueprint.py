"""Blueprint: what to build and how to run it, as one typed document."""

from dataclasses import dataclass, field
from enum import StrEnum

from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import check_name
from slmops.domain.recipe import Recipe
from slmops.domain.tasks import TaskPlan

CONTROL_QUANTIZATION = "Q8_0"
"""The near-lossless 8-bit control: always built, gates are relative to it."""

DEFAULT_CANDIDATES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
"""llama.cpp quantizations tried when a blueprint names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityFloor:
    """The worst a release may be; compared with pessimistic confidence bounds."""

    max_kld_times_8bit: float = 40.0
    """Upper bound of mean KL divergence, in multiples of the 8-bit variant's mean:
    absolute thresholds do not transfer between models."""
    min_same_top1: float = 0.7
    """Lower bound of the share of positions with the reference's most likely token."""
    max_task_loss: float = 0.05
    """Largest loss of a task's score against the reference's, 0 to 1: compared with the
    lower bound of the paired difference, so few examples fail."""

    def __post_init__(self) -> None:
        if not self.max_kld_times_8bit > 1:
            raise InvalidInputError(
                f"quality.max_kld_times_8bit must be > 1, got {self.max_kld_times_8bit:g}"
            )
        if not 0 <= self.min_same_top1 <= 1:
            raise InvalidInputError(
                f"quality.min_same_top1 must be in 0..1, got {self.min_same_top1:g}"
            )
        if not 0 < self.max_task_loss <= 1:
            raise InvalidInputError(
                f"quality.max_task_loss must be in (0, 1], got {self.max_task_loss:g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """What candidates are measured on."""

    text: str = "builtin"
    """Path of a UTF-8 text file, relative to the blueprint; ``builtin`` is our own prose."""
    search_share: float = 0.5
    """Share of the text, its end, that candidates are chosen by; the card and the quality
    floor take the rest. 0 takes the whole text for both: chosen figures then flatter."""
    max_tokens: int = 768
    """Tokens scored for fidelity, at least `window_tokens`; more narrow the confidence
    bounds."""
    window_tokens: int = 256
    """Each window is scored with fresh context; its first quarter only gives context."""
    speed_runs: int = 5
    """Timed requests per candidate, after one warm-up."""
    memory_runs: int = 3
    """Fresh processes per candidate whose peak memory is read; the bounds of the peak
    narrow with more: their factor is 15.6 deviations for 2, 5 for 3, 3 for 5."""

    def __post_init__(self) -> None:
        if not 0 <= self.search_share < 1:
            raise InvalidInputError(
                f"evaluation.search_share must be in [0, 1), got {self.search_share:g}"
            )
        if self.window_tokens < 32:  # noqa: PLR2004 - a quarter is context
            raise InvalidInputError(
                f"evaluation.window_tokens must be >= 32, got {self.window_tokens}"
            )
        if self.max_tokens < self.window_tokens:
            raise InvalidInputError(
                "evaluation.max_tokens must be >= evaluation.window_tokens"
                f" ({self.window_tokens}), got {self.max_tokens}"
            )
        if self.speed_runs < 3:  # noqa: PLR2004 - a spread needs three
            raise InvalidInputError(
                f"evaluation.speed_runs must be >= 3, got {self.speed_runs}"
            )
        if self.memory_runs < 2:  # noqa: PLR2004 - a spread needs two
            raise InvalidInputError(
                f"evaluation.memory_runs must be >= 2, got {self.memory_runs}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenPlan:
    """Prompts every device answers before it commits an update."""

    prompts: str = "builtin"
    """Path of a UTF-8 text file, one prompt a line; ``builtin`` is our own set."""
    answer_tokens: int = 8
    """Length of the compared greedy continuation."""
    max_card_delta: float = 0.25
    """Largest mean |Δ log p| of the first token, in nats, between the device's answers
    and the release card's for the same variant."""
    max_paired_loss: float = 0.15
    """δ: largest loss in mean log p of the reference's answer, in nats a token, of the
    new model against the one it replaces, on the same device and prompts."""
    min_decode_ratio: float = 0.25
    """Least decode speed, as a share of the class's budgeted decode speed."""

    def __post_init__(self) -> None:
        for name in ("answer_tokens", "max_card_delta", "max_paired_loss"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(
                    f"golden.{name} must be > 0, got {getattr(self, name):g}"
                )
        if self.min_decode_ratio < 0:
            raise InvalidInputError(
                f"golden.min_decode_ratio must be >= 0, got {self.min_decode_ratio:g}"
            )


class OnHalt(StrEnum):
    """What happens to devices that already run a release whose rollout halts."""

    REVERT = "revert"
    HOLD = "hold"


@dataclass(frozen=True, kw_only=True, slots=True)
class WavePlan:
    """Size of one wave; exactly one of the two is given."""

    count: int | None = None
    """Number of devices."""
    share: float | None = None
    """Share of the whole fleet, beside the waves before; the last takes all that is left."""

    def __post_init__(self) -> None:
        if (self.count is None) == (self.share is None):
            raise InvalidInputError("a wave needs exactly one of count, share")
        if self.count is not None and self.count < 1:
            raise InvalidInputError(f"wave count must be >= 1, got {self.count}")
        if self.share is not None and not 0 < self.share <= 1:
            raise InvalidInputError(f"wave share must be in (0, 1], got {self.share:g}")


class LabWave(StrEnum):
    """Whether devices with the label ``lab: "true"`` go first, in a wave of their own."""

    OFF = "off"
    """They are dealt like any other."""
    IF_ANY = "if-any"
    """They go first, where there are some."""
    REQUIRED = "required"
    """Every class of the fleet must have one, or the rollout does not start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPolicy:
    """How a release reaches the fleet, and what stops it."""

    waves: tuple[WavePlan, ...] = (
        WavePlan(share=0.01),
        WavePlan(share=0.05),
        WavePlan(share=0.25),
        WavePlan(share=1.0),
    )
    """Frozen cohorts, in order; whatever is left joins the last."""
    tolerated_failure_rate: float = 0.02
    """p0: share of devices that may fail an update per class before the rollout halts."""
    alpha: float = 0.01
    """Chance of a false halt over the whole rollout, all classes together."""
    soak_s: float = 3600.0
    """Watching time after the last device of a wave has committed: what its devices
    report of live traffic counts against the release. Each must be heard of in its last
    third or later, else the wave is held. Under two polls shows little; 0 asks nothing."""
    deadline_s: float = 86400.0
    """Silence this long after an offer, or of a device that committed, counts as a
    failure; at least twice `probation_s`."""
    min_per_class: int = 1
    """Devices of each class in a wave that must have succeeded before the next starts."""
    probation_s: float = 60.0
    """How long a device watches live traffic after its trial before it commits."""
    on_halt: OnHalt = OnHalt.REVERT
    """What happens to devices already on the halted release."""
    lab: LabWave = LabWave.IF_ANY
    """Devices labelled ``lab: "true"`` must pass before the first of the waves above."""
    max_per_site: int | None = None
    """Devices of one site (label ``site``) that may be at work on the release at once;
    None for no limit. A device that went silent frees its place at its deadline."""
    holdback: float = 0.0
    """Share of each class, 0 to below 0.5, that keeps the release it runs: the same
    devices in every rollout, to tell drift of the traffic from harm by a release. A
    device that runs none is not held back."""
    approvals: int = 0
    """Operators other than the one who started it that must approve before anything is
    offered."""

    def __post_init__(self) -> None:
        if not self.waves:
            raise InvalidInputError("rollout.waves must name at least one wave")
        self._check_reach()
        for name in ("tolerated_failure_rate", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidInputError(
                    f"rollout.{name} must be in (0, 1), got {getattr(self, name):g}"
                )
        for name in ("soak_s", "probation_s", "min_per_class"):
            if getattr(self, name) < 0:
                raise InvalidInputError(
                    f"rollout.{name} must be >= 0, got {getattr(self, name):g}"
                )
        if not self.deadline_s > 0:
            raise InvalidInputError(
                f"rollout.deadline_s must be > 0, got {self.deadline_s:g}"
            )
        # The other half is for hearing of the offer, the download, the trial and the
        # report. A shorter one calls every healthy device silent.
        if not self.deadline_s >= 2 * self.probation_s:
            raise InvalidInputError(
                "rollout.deadline_s must be at least twice rollout.probation_s: a device"
                f" cannot commit before its probation of {self.probation_s:g} s ends,"
                f" got {self.deadline_s:g}"
            )

    def _check_reach(self) -> None:
        if self.max_per_site is not None and self.max_per_site < 1:
            raise InvalidInputError(
                f"rollout.max_per_site must be >= 1, got {self.max_per_site}"
            )
        if not 0 <= self.holdback < 0.5:  # noqa: PLR2004 - else the rest is the minority
            raise InvalidInputError(
                f"rollout.holdback must be in [0, 0.5), got {self.holdback:g}"
            )
        if self.approvals < 0:
            raise InvalidInputError(
                f"rollout.approvals must be >= 0, got {self.approvals}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """One product: its model, the classes of devices it runs on, and its rules."""

    name: str
    """Name of the product; releases are called ``name-1``, ``name-2`` …"""
    model: str
    """Id or unambiguous prefix of an imported model, or its given name."""
    classes: tuple[DeviceClass, ...]
    """Device classes; the first whose predicate matches a device is its class."""
    candidates: tuple[str, ...] = DEFAULT_CANDIDATES
    """Quantizations to try; the 8-bit control is always added."""
    recipe: Recipe = field(default_factory=Recipe)
    """What is tried beside plain quantization."""
    quality: QualityFloor = field(default_factory=QualityFloor)
    """Worst acceptable fidelity."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    """Measuring."""
    golden: GoldenPlan = field(default_factory=GoldenPlan)
    """Trial on the device."""
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    """Waves and gates."""
    tasks: tuple[TaskPlan, ...] = ()
    """Tasks of your own that every variant must do about as well as the reference."""

    def __post_init__(self) -> None:
        check_name(self.name, where="name")
        if not self.model:
            raise InvalidInputError("model must name an imported model, got ''")
        if not self.classes:
            raise InvalidInputError("classes must name at least one device class")
        names = [device_class.name for device_class in self.classes]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"classes: name {name!r} is used twice")
        tasks = [task.name for task in self.tasks]
        for name in tasks:
            if tasks.count(name) > 1:
                raise InvalidInputError(f"tasks: name {name!r} is used twice")
        if not self.candidates:
            raise InvalidInputError("candidates must name at least one quantization")
        self.recipe.check_recovered(self.candidates)
