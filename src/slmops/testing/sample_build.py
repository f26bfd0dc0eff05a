"""Finished builds with made-up figures, chosen by the real rules, for tests without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmops.domain.blueprint import Blueprint, QualityFloor
from slmops.domain.device import Budget, DeviceClass
from slmops.domain.ids import Digest
from slmops.domain.release import Card, Estimate, Speed, Variant
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.registry.blobs import BlobStore
from slmops.testing.sample_release import digest_of, sample_release
from slmops.workshop.build_result import BuildResult, Candidate, SettingResult
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.select import select_variants
from slmops.workshop.steps import Step, StepRecord

MB = 1_000_000

SAMPLE_BUILD_CLASSES = (
    DeviceClass(name="small", budget=Budget(disk_mib=90, memory_mib=230)),
    DeviceClass(name="large"),
)
"""Classes of a sample build; only the first has a budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFigures:
    """What one made-up candidate measured."""

    name: str
    """llama.cpp name."""
    kld: float
    """Mean KL divergence, nats; bounds are a tenth off."""
    mb: float
    """Size, millions of bytes."""
    decode: float = 50.0
    """Tokens per second; bounds are a tenth off."""
    same_top1: float = 0.9
    """Share; bounds are 0.02 off."""
    eligible: bool = True
    """Whether it may be chosen."""
    on_reference_grid: bool = False
    """Whether its figures are flattered."""


SAMPLE_FIGURES = (
    SampleFigures(name="Q8_0", kld=0.0036, mb=144.8, decode=44, same_top1=0.96),
    SampleFigures(name="Q4_K_M", kld=0.045, mb=105.5, decode=46, same_top1=0.85),
    SampleFigures(name="Q3_K_M", kld=0.110, mb=93.5, decode=48, same_top1=0.78),
    SampleFigures(name="Q2_K", kld=0.370, mb=88.2, decode=52, same_top1=0.60),
)
"""About what SmolLM2-135M-Instruct measures."""


def sample_candidate(
    figures: SampleFigures, *, classes: Sequence[DeviceClass] = SAMPLE_BUILD_CLASSES
) -> Candidate:
    """Return a candidate, measured at every class's settings."""
    card = _card()
    settings = dict.fromkeys((c.threads, c.context_tokens) for c in classes)
    return Candidate(
        digest=digest_of(candidate_content(figures.name)),
        card=replace(
            card,
            quantization=figures.name,
            bytes=round(figures.mb * MB),
            bits_per_weight=8 * figures.mb * MB / card.parameters,
            fidelity=replace(
                card.fidelity,
                mean_kld=_around(figures.kld, 0.1 * figures.kld),
                p99_kld=_around(10 * figures.kld, figures.kld),
                same_top1=_around(figures.same_top1, 0.02),
            ),
            speed=tuple(
                _speed(figures, threads, context) for threads, context in settings
            ),
        ),
        eligible=figures.eligible,
        on_reference_grid=figures.on_reference_grid,
    )


def candidate_content(name: str) -> bytes:
    """Return the bytes of a sample candidate's artefact."""
    return f"artefact {name}".encode()


def sample_build(
    figures: Sequence[SampleFigures] = SAMPLE_FIGURES,
    *,
    classes: Sequence[DeviceClass] = SAMPLE_BUILD_CLASSES,
    quality: QualityFloor | None = None,
    below_floor: bool = False,
    blobs: BlobStore | None = None,
) -> BuildResult:
    """Return a finished build.

    Args:
        figures: of its candidates; the first is the 8-bit control.
        classes: of its devices.
        quality: its floor.
        below_floor: whether selection may choose below it.
        blobs: takes the candidates' artefacts.

    Raises:
        OverBudgetError: nothing fits a class.
    """
    release = sample_release()
    candidates = tuple(sample_candidate(each, classes=classes) for each in figures)
    control = candidates[0]
    blueprint = Blueprint(
        name="sample",
        model=release.model.name,
        classes=tuple(classes),
        candidates=tuple(each.name for each in figures),
        quality=quality or QualityFloor(),
    )
    rules = SelectionRules(
        floor=blueprint.quality,
        control_kld=control.card.fidelity.mean_kld.value,
        below_floor=below_floor,
    )
    selection = select_variants(classes, candidates, rules)
    variants = {
        c.digest: tuple(s.device_class for s in selection if s.digest == c.digest)
        for c in candidates
    }
    if blobs is not None:
        for each in figures:
            blobs.put_bytes(candidate_content(each.name))
    return BuildResult(
        blueprint=blueprint,
        below_floor=below_floor,
        model=release.model,
        reference=_reference(),
        control=control,
        candidates=candidates,
        selection=selection,
        variants=tuple(
            _variant(candidate, variants[candidate.digest])
            for candidate in candidates
            if variants[candidate.digest]
        ),
        golden=release.golden,
        machine="sample machine",
        provenance=(_step(release.model.id, control.digest),),
    )


def with_settings(build: BuildResult) -> BuildResult:
    """Return a build that tried settings of the runtime on the first class's variant.

    One of them was adopted, and one could not be tried.
    """
    name = build.blueprint.classes[0].name
    own = next(v for v in build.variants if name in v.classes)
    settings = RuntimeSettings(kv_cache="q8_0")
    speed = tuple(replace(each, peak_rss_mib=99.5) for each in own.card.speed)
    card = replace(own.card, settings=settings, speed=speed)
    default = SettingResult(
        variant=own.card.label,
        settings=UNCHANGED,
        draft=None,
        fidelity=own.card.fidelity,
        speed=own.card.speed,
        adopted=False,
        reason="another setting wins",
    )
    return replace(
        build,
        variants=tuple(
            replace(each, card=card, settings=settings) if each is own else each
            for each in build.variants
        ),
        setting_results=(
            default,
            replace(
                default,
                settings=settings,
                speed=speed,
                adopted=True,
                reason=f"{name}: saves memory",
            ),
            replace(
                default,
                settings=RuntimeSettings(
                    draft=build.control.digest, draft_bytes=build.control.card.bytes
                ),
                draft="Q2_K",
                fidelity=None,
                speed=(),
                reason="not tried: too small",
            ),
        ),
    )


def _card() -> Card:
    return sample_release().variants[0].card


def _reference() -> Candidate:
    release = sample_release()
    card = _card()
    fidelity = replace(
        card.fidelity,
        mean_kld=_around(1e-8, 1e-9),
        p99_kld=_around(1e-7, 1e-8),
        same_top1=Estimate(value=1.0, low=1.0, high=1.0),
    )
    return Candidate(
        digest=release.model.id,
        card=replace(
            card,
            quantization="F16",
            bytes=release.model.bytes,
            bits_per_weight=16.0,
            tensor_types={"F32": 61, "F16": 211},
            fidelity=fidelity,
            speed=(),
        ),
        eligible=False,
        on_reference_grid=False,
    )


def _speed(figures: SampleFigures, threads: int, context_tokens: int) -> Speed:
    return replace(
        _card().speed[0],
        threads=threads,
        context_tokens=context_tokens,
        decode_tokens_per_s=_around(figures.decode, 0.1 * figures.decode),
        peak_rss_mib=115 + figures.mb,
        rss_file_mib=figures.mb,
    )


def _variant(candidate: Candidate, classes: tuple[str, ...]) -> Variant:
    return Variant(
        digest=candidate.digest,
        bytes=candidate.card.bytes,
        format="gguf",
        runtime="echo",
        classes=classes,
        card=candidate.card,
        golden_logprobs=(-0.2, -0.1),
    )


def _step(reference: Digest, artefact: Digest) -> StepRecord:
    step = Step(
        kind="quantize",
        tool="sample 1",
        inputs={"reference": reference},
        parameters={"quantization": "Q8_0"},
    )
    return StepRecord(step=step, outputs={"artefact": artefact}, seconds=1.0)


def _around(value: float, off: float) -> Estimate:
    return Estimate(value=value, low=value - off, high=value + off)
