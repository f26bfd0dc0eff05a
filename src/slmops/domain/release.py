"""Releases: variants, the cards that say what was measured, and golden prompts."""

from dataclasses import dataclass
from enum import StrEnum

from slmops.domain.blueprint import Blueprint
from slmops.domain.device import DeviceClass
from slmops.domain.energy import MeasuredEnergy, ModelledEnergy
from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.estimate import Estimate as Estimate  # as most import it
from slmops.domain.ids import Digest, check_name
from slmops.domain.memory import PeakMemory
from slmops.domain.recipe import BASE, Rounding
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.domain.tasks import TaskResult


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """One imported model: its 16-bit reference and where it came from."""

    id: Digest
    """Digest of the 16-bit reference GGUF: the model's identity."""
    name: str
    """Short name given at import, or derived from the model's own."""
    architecture: str
    """GGUF architecture: ``llama``, ``qwen3``, ``gemma3`` …"""
    parameters: int
    """Weights, tied ones once."""
    context_tokens: int
    """Longest context the model was trained for."""
    vocabulary: int
    """Tokens in its vocabulary."""
    tokenizer: str
    """Tokenizer model and pre-tokenizer, as GGUF names them: ``gpt2/smollm``."""
    chat_template: str | None
    """Jinja template for chat turns, as text; None when the model has none."""
    licence: str | None
    """SPDX id or name where the source says; None when it does not."""
    source: str
    """Where it came from: file or folder name, or Hub id and revision."""
    source_digest: Digest
    """Digest of what was read (a file, or the sorted list of a folder's files)."""
    source_quantization: str | None
    """Main type of a quantized source. The reference lies on that type's grid, which
    flatters variants of the same type; None when the source had 16 bits or more."""
    bytes: int
    """Size of the 16-bit reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """Closeness to the 16-bit reference on text held apart; measured in the runtime."""

    mean_kld: Estimate
    """Mean KL divergence of next-token distributions, nats."""
    p99_kld: Estimate
    """99th percentile of it, nats."""
    same_top1: Estimate
    """Share of positions with the reference's most likely token."""
    perplexity: Estimate
    """Perplexity on the text."""
    reference_perplexity: float
    """The reference's own perplexity on the same positions."""
    tokens: int
    """Scored positions."""
    text_digest: Digest
    """Digest of the evaluation text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What it costs to run; measured over the runtime's own HTTP interface."""

    threads: int
    """Threads the runtime used."""
    context_tokens: int
    """Context it was loaded with."""
    prompt_tokens: int
    """Length of the standard prompt."""
    first_token_ms: Estimate
    """Time to first token: median, with min and max."""
    first_token_tail_ms: float
    """Slow end of it: of fewer than 20 `runs` the slowest, else the 95th percentile."""
    prefill_tokens_per_s: Estimate
    """Prompt processing speed."""
    decode_tokens_per_s: Estimate
    """Generation speed."""
    load_ms: float
    """Process start to ready."""
    peak_rss_mib: float
    """VmHWM of the model's process with its context full: its own peak over the runs, and
    what filling the context adds, which is measured on one variant for all. The last
    `extrapolated_mib` of it were not measured."""
    rss_anon_mib: float
    """Part of it that is private: KV cache, scratch, code."""
    rss_file_mib: float
    """Part that is mapped from files: mostly weights."""
    machine: str
    """Fingerprint of the machine that measured: CPU model, cores, runtime version."""
    runs: int
    """Timed requests behind every time and speed here."""
    timed_context_tokens: int | None = None
    """Context at which the times were taken, when it is not `context_tokens`: with equal
    threads and prompt they do not depend on it, memory does. None: the same."""
    filled_tokens: int | None = None
    """Tokens that really filled the context when memory was measured; what a longer
    context adds was extrapolated. None: only the standard prompt was in it."""
    decode_median: Estimate | None = None
    """Decode speed with bounds that enclose the true median with 95 %: narrower than all
    runs from 9 runs on, all of them (of fewer than 6 with less certainty) before. What
    candidates are compared by. None: take `decode_tokens_per_s`."""
    extrapolated_mib: float = 0.0
    """Part of `peak_rss_mib` and `rss_anon_mib` that was not measured: what the context
    beyond `filled_tokens` would add."""
    peak_memory: PeakMemory | None = None
    """How far `peak_rss_mib` is known; None on cards of builds that ran one process."""
    measured_energy: MeasuredEnergy | None = None
    """Energy per token by the machine's own counters, taken with the times; None where
    it has none that can be read."""
    energy_unmeasured: str = ""
    """Why `measured_energy` is None; empty on cards of builds that did not try."""
    anchored: Estimate | None = None
    """Set when this candidate was timed in another group than the others, beside the
    8-bit control: times and speeds were brought onto the others' scale by what the
    control took in both. The factor of decode speed; its bounds are in those of the
    speed, which are wider for it. None: timed with the others."""

    @property
    def measured_peak_mib(self) -> float:
        """Part of the peak that was measured, with `filled_tokens` in the context."""
        return self.peak_rss_mib - self.extrapolated_mib

    @property
    def most_peak_mib(self) -> float:
        """Upper bound of the peak with the context full; the peak where none is known."""
        known = self.peak_memory
        return self.peak_rss_mib if known is None else known.full.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What one variant is and what was measured of it; every figure was measured."""

    quantization: str
    """llama.cpp name: ``Q4_K_M``; ``F16`` for the reference itself."""
    bytes: int
    """Exact size of the artefact."""
    bits_per_weight: float
    """Of the artefact as a whole, metadata included."""
    tensor_types: dict[str, int]
    """Type → number of tensors stored in it: shows block-size fallbacks."""
    parameters: int
    """Weights."""
    reference: Digest
    """The 16-bit model it is compared with."""
    reference_grid: str | None
    """Set when the reference itself was dequantized from this type: figures of
    variants of that type are flattered."""
    fidelity: Fidelity
    """Against the reference."""
    speed: tuple[Speed, ...]
    """One for each distinct (threads, context) the blueprint's classes ask for."""
    runtime: str
    """Runtime and version that measured it: ``llamacpp 2026.10.11549``."""
    tasks: tuple[TaskResult, ...] = ()
    """On the blueprint's tasks, test split, each against the reference."""
    structure: str = BASE
    """Shape of the model it was quantized from; ``base`` is the reference's own."""
    steps: tuple[str, ...] = ()
    """What was done to get that shape, in order."""
    calibration: Digest | None = None
    """Text that showed which weights matter; None when all were rounded alike."""
    rounding: Rounding = Rounding.NEAREST
    """How weights were rounded."""
    recovered: bool = False
    """Whether weights were trained for this quantization before they were rounded."""
    settings: RuntimeSettings = UNCHANGED
    """How the runtime ran it when this was measured."""
    modelled_energy: tuple[ModelledEnergy, ...] = ()
    """Energy per token that was not measured: one for each class that names its power."""

    @property
    def label(self) -> str:
        """What it is called among the candidates of one build: ``slim-2/Q4_0``."""
        name = self.quantization + ("+recovered" if self.recovered else "")
        return name if self.structure == BASE else f"{self.structure}/{name}"

    def speed_for(self, device_class: DeviceClass) -> Speed | None:
        """Return what was measured at a class's threads and context, or None."""
        wanted = (device_class.threads, device_class.context_tokens)
        for speed in self.speed:
            if (speed.threads, speed.context_tokens) == wanted:
                return speed
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedToken:
    """One token of the expected greedy answer."""

    text: str
    """The token as text."""
    logprob: float
    """Its log-probability, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenPrompt:
    """One prompt and the 16-bit reference's greedy answer to it."""

    prompt: str
    """User turn, sent through the chat path with the model's own template."""
    answer: tuple[ExpectedToken, ...]
    """The reference's greedy continuation, with its log-probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSet:
    """The prompts of a release, the same for all its variants."""

    prompts: tuple[GoldenPrompt, ...]
    """In the order they are asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One artefact of a release, for one or more classes, with its measured card."""

    digest: Digest
    """Of the artefact's bytes."""
    bytes: int
    """Size of the artefact."""
    format: str
    """Container: ``gguf``."""
    runtime: str
    """Runtime that serves it."""
    classes: tuple[str, ...]
    """Names of the device classes it was chosen for."""
    card: Card
    """What was measured."""
    golden_logprobs: tuple[float, ...]
    """This variant's own log p of each golden prompt's first expected token, measured
    at build: what a device should see."""
    settings: RuntimeSettings = UNCHANGED
    """How the runtime ran it when all this was measured, and is to run it."""

    @property
    def artefacts(self) -> tuple[tuple[Digest, int], ...]:
        """All that a device needs to serve it: digests and sizes, its own first."""
        own = (self.digest, self.bytes)
        if self.settings.draft is None:
            return (own,)
        return own, (self.settings.draft, self.settings.draft_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedRelease:
    """Why a release below its quality floor exists all the same."""

    reason: str
    """Given by the person who forced it."""
    violations: tuple[str, ...]
    """What the floor says against it."""

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise InvalidInputError("a forced release needs a reason, got ''")


class AttachmentKind(StrEnum):
    """What a document that goes with a release is."""

    PROVENANCE = "provenance"
    """Which inputs, tools and steps made it: a signed in-toto statement."""
    BOM = "bom"
    """Bill of materials: CycloneDX."""
    CARD = "card"
    """Model card: Markdown with the Hub's metadata."""
    BUILD = "build"
    """The build result itself: every candidate, figure and reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """One document of a release's evidence; a blob of the registry."""

    kind: AttachmentKind
    """What it is."""
    name: str
    """File name when it is written out; unique in a release."""
    media_type: str
    """Media type (RFC 6838) of its bytes."""
    digest: Digest
    """Of its bytes."""
    bytes: int
    """Its size."""

    def __post_init__(self) -> None:
        # Somebody's release must not write outside the folder its evidence goes to.
        if self.name != self.name.strip() or self.name.startswith("."):
            raise InvalidInputError(f"attachment name is no file's: {self.name!r}")
        if not self.name or {"/", "\\", "\0"} & set(self.name):
            raise InvalidInputError(f"attachment name is no file's: {self.name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """The immutable result of a blueprint; its digest is its identity."""

    name: str
    """The blueprint's name."""
    version: int
    """1, 2, 3 …"""
    created_at: float
    """Unix time, seconds."""
    blueprint: Blueprint
    """As it was built."""
    model: ModelRecord
    """The reference."""
    variants: tuple[Variant, ...]
    """One or more."""
    golden: GoldenSet
    """Prompts for the trial on the device."""
    build: Digest
    """Digest of the build's result document: the evidence."""
    previous: int | None = None
    """Version it follows; None for the first."""
    forced: ForcedRelease | None = None
    """Set when the quality floor was overruled."""
    attachments: tuple[Attachment, ...] = ()
    """Its evidence: provenance, bill of materials, cards. Devices need none of it."""

    def __post_init__(self) -> None:
        check_name(self.name, where="release name")
        if self.version < 1:
            raise InvalidInputError(f"release version must be >= 1, got {self.version}")
        if not self.variants:
            raise InvalidInputError("a release needs at least one variant")
        names = [attachment.name for attachment in self.attachments]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"attachments: name {name!r} is used twice")

    @property
    def label(self) -> str:
        """Name and version: ``assistant-2``."""
        return f"{self.name}-{self.version}"

    @property
    def classes(self) -> tuple[DeviceClass, ...]:
        """The blueprint's device classes, in the order they are matched."""
        return self.blueprint.classes

    def variant_for(self, class_name: str) -> Variant:
        """Return the variant chosen for a class.

        Raises:
            NotFoundError: the release has none for it.
        """
        for variant in self.variants:
            if class_name in variant.classes:
                return variant
        raise NotFoundError(
            f"release {self.label} has no variant for class {class_name!r}"
        )
