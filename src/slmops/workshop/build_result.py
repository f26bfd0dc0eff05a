"""What a build found: a document that says everything a release needs and why."""

from dataclasses import dataclass, replace

from slmops.domain.blueprint import Blueprint
from slmops.domain.ids import Digest
from slmops.domain.recipe import StructurePlan
from slmops.domain.release import (
    Card,
    Fidelity,
    GoldenSet,
    ModelRecord,
    Speed,
    Variant,
)
from slmops.domain.runtime_settings import RuntimeSettings
from slmops.domain.tasks import TaskResult
from slmops.workshop.steps import StepRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One quantization, built and measured."""

    digest: Digest
    """Of the artefact."""
    card: Card
    """What was measured; `Card.speed` is empty for the 16-bit reference."""
    eligible: bool
    """Whether selection may choose it; controls that nobody asked for may not."""
    on_reference_grid: bool
    """Whether the reference was dequantized from its very types, by enough of its usual
    rounding error: its fidelity is flattered, and marked wherever it is shown."""
    search_tasks: tuple[TaskResult, ...] = ()
    """On the split of each task that candidates are chosen by; the card has the other."""
    test_fidelity: Fidelity | None = None
    """On the part of the evaluation text that nothing was chosen by: of what was chosen,
    or was and failed there, and of both controls. The card has the other part's, which all
    candidates are compared by. None for all others, and in builds of one text."""
    grid_bytes_share: float = 0.0
    """Share of the bytes of its matrices that have the type the reference's source had;
    0 as well in builds from before it was kept."""
    grid_error_share: float = 0.0
    """Share of its usual rounding error that it is spared by that; likewise."""

    @property
    def flattery(self) -> str:
        """Why its fidelity looks better than it is, in a few words; empty if it does not.

        ``flattered: 98% of its bytes have the source's type``.
        """
        if not self.on_reference_grid:
            return ""
        if self.grid_bytes_share:
            share = f"{self.grid_bytes_share:.0%}"
            return f"flattered: {share} of its bytes have the source's type"
        grid = self.card.reference_grid
        return f"flattered: {grid} grid" if grid else "flattered"

    @property
    def reported(self) -> Card:
        """The card by the test text, where that was scored: no choice has flattered it."""
        if self.test_fidelity is None:
            return self.card
        return replace(self.card, fidelity=self.test_fidelity)

    @property
    def quantization(self) -> str:
        """llama.cpp name, or ours of a mix."""
        return self.card.quantization

    @property
    def label(self) -> str:
        """Its name in this build."""
        return self.card.label


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One structure that was tried or dropped."""

    name: str
    """Of the structure."""
    plan: StructurePlan
    """What it is."""
    bytes: int
    """Of its 16-bit model: predicted, or real once it was made."""
    kld: float | None
    """Mean KL divergence after a short recovery, nats; None when it was not made."""
    kept: bool
    """Whether it is built in full."""
    reason: str
    """Why, or why not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """Why one candidate was not chosen for one class."""

    quantization: str
    """Label of the candidate."""
    reason: str
    """With figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSelection:
    """The variant chosen for one device class, and why no other was."""

    device_class: str
    """Name of the class."""
    quantization: str
    """Label of the choice."""
    digest: Digest
    """Its artefact."""
    reason: str
    """Why it won, with figures."""
    runner_up: str | None
    """What would be chosen if it were not there; None when nothing else fits."""
    rejected: tuple[Rejection, ...]
    """All other candidates, controls included."""
    violations: tuple[str, ...] = ()
    """What the quality floor says against the choice by its reported figures, in a build
    below the floor; what fails in any other is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingResult:
    """One chosen variant at one setting of the runtime."""

    variant: str
    """Label of the candidate."""
    settings: RuntimeSettings
    """Of the runtime; the defaults are what all others are compared with."""
    draft: str | None
    """Label of the candidate that drafts; None for none."""
    fidelity: Fidelity | None
    """With it; None when it was not measured."""
    speed: tuple[Speed, ...]
    """With it, one for each distinct (threads, context) of the classes it serves."""
    adopted: bool
    """Whether the variant runs so."""
    reason: str
    """Why, or why not, with figures."""

    @property
    def name(self) -> str:
        """For people: ``kv q8_0, draft slim/Q4_0 of 3``; ``defaults``."""
        cache = RuntimeSettings(kv_cache=self.settings.kv_cache).label
        draft = f"draft {self.draft} of {self.settings.draft_tokens}"
        parts = [cache, draft if self.draft else ""]
        return ", ".join(part for part in parts if part) or "defaults"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """The evidence of a release; its digest is the build's identity."""

    blueprint: Blueprint
    """As it was built: its `candidates` are the ones that were tried."""
    below_floor: bool
    """Whether candidates below the quality floor could be chosen."""
    model: ModelRecord
    """The reference."""
    reference: Candidate
    """Control row: the reference measured against itself, the noise of measuring."""
    control: Candidate
    """Control row: the near-lossless 8-bit variant that gates are relative to."""
    candidates: tuple[Candidate, ...]
    """All variants that were built, the 8-bit control included, largest first."""
    selection: tuple[ClassSelection, ...]
    """One per device class, in the blueprint's order."""
    variants: tuple[Variant, ...]
    """Chosen ones with their classes, ready for a release."""
    golden: GoldenSet
    """Prompts with the reference's answers."""
    machine: str
    """What measured the speeds."""
    provenance: tuple[StepRecord, ...]
    """Every step that led here."""
    trials: tuple[Trial, ...] = ()
    """Every structure the recipe stands for, and why it was built in full or not."""

    setting_results: tuple[SettingResult, ...] = ()
    """Every chosen variant at every setting the recipe asks for; empty when it asks for
    none."""

    def chosen_card(self, device_class: str) -> Card:
        """Return what was measured of a class's variant, as the runtime is to run it."""
        return next(v.card for v in self.variants if device_class in v.classes)

    def candidate(self, label: str) -> Candidate:
        """Return a candidate by its label."""
        return next(c for c in self.candidates if c.label == label)
