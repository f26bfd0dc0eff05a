"""The stage that tries settings of the runtime on what was chosen.

Each variant is measured at every setting, at the threads and context of every class it
serves: fidelity with the cache's type, speed of all settings asked in turn, and the
memory that a full context adds with that cache and draft. `tuning` decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slmops.domain.device import DeviceClass
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.recipe import RuntimePlan
from slmops.domain.release import Card, Speed
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.workshop.artefacts import Artefact, Making
from slmops.workshop.build_context import BuildContext
from slmops.workshop.build_result import Candidate, ClassSelection, SettingResult
from slmops.workshop.evaluate import Scoring, score_reference
from slmops.workshop.feasibility import SelectionRules
from slmops.workshop.gguf_file import read_header
from slmops.workshop.memory import (
    ContextGrowth,
    MemoryFigures,
    PeakSpread,
    measure_growth,
    with_full_context,
    with_memory,
)
from slmops.workshop.model_shape import read_shape
from slmops.workshop.models import reference_path
from slmops.workshop.scored import Scored, scoring_of
from slmops.workshop.setting_trials import (
    SettingTrial,
    expand_settings,
    try_settings,
)
from slmops.workshop.speed_setting import SpeedSetting
from slmops.workshop.tuning import (
    TriedSetting,
    Verdict,
    judge_settings,
    tuned_card,
)

_CACHE_BLOCK = 32
"""Numbers of one head that share a scale in a cache of few bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What the stage found."""

    cards: Mapping[Digest, Card] = field(default_factory=dict)
    """Artefact → card of what is to run at other settings than the defaults."""
    results: tuple[SettingResult, ...] = ()
    """Everything that was tried, by variant."""


def check_runtime_plan(build: BuildContext, makings: Sequence[Making]) -> None:
    """Refuse settings that cannot be tried, before anything is computed for them.

    Raises:
        InvalidInputError: a draft that is no candidate, or a cache of few bits for heads
            that its blocks do not divide.
    """
    plan = build.blueprint.recipe.runtime
    if plan is None:
        return
    labels = [making.label for making in makings]
    for draft in plan.drafts:
        if draft not in labels:
            raise InvalidInputError(
                f"recipe.runtime.drafts: {draft!r} is no candidate of this build;"
                f" there are {', '.join(labels)}"
            )
    if any(kv_cache != UNCHANGED.kv_cache for kv_cache in plan.kv_cache):
        shape = read_shape(read_header(reference_path(build.workspace, build.model)))
        for width in (shape.key_width, shape.value_width):
            if width % _CACHE_BLOCK:
                raise InvalidInputError(
                    "recipe.runtime.kv_cache: the width of a head must be a multiple of"
                    f" {_CACHE_BLOCK} for caches of few bits, {build.model.name} has {width}"
                )


def tune_settings(
    build: BuildContext,
    scored: Scored,
    candidates: Sequence[Candidate],
    selection: Sequence[ClassSelection],
    rules: SelectionRules,
) -> Tuned:
    """Try the recipe's settings on every chosen variant.

    Args:
        build: whose recipe asks for settings.
        scored: its artefacts.
        candidates: all of them.
        selection: which of them serve whom.
        rules: that they were chosen by.

    Raises:
        InvalidInputError: the runtime refuses a setting.
        UnavailableError: a worker died.
    """
    plan = build.blueprint.recipe.runtime
    if plan is None:
        return Tuned()
    artefacts = {artefact.digest: artefact for artefact in scored.artefacts}
    chosen = [
        _Chosen(
            candidate=candidate,
            artefact=artefacts[candidate.digest],
            classes=_served(build, selection, candidate.digest),
            drafts=tuple(a for a in scored.artefacts if a.label in plan.drafts),
        )
        for candidate in candidates
        if any(each.digest == candidate.digest for each in selection)
    ]
    build.board.expect(1 + sum(each.tasks(plan) for each in chosen))
    scoring = scoring_of(build)
    reference = score_reference(scoring, build.model.id)
    cards: dict[Digest, Card] = {}
    results: list[SettingResult] = []
    for each in chosen:
        tried = _measure(build, scoring, reference, each, plan)
        verdicts = judge_settings(each.candidate, each.classes, rules, tried)
        results += each.results(verdicts)
        for verdict in verdicts:
            if verdict.adopted and not verdict.tried.settings.is_default:
                cards[each.candidate.digest] = tuned_card(
                    each.candidate.card, verdict.tried, each.classes
                )
    return Tuned(cards=cards, results=tuple(results))


def _served(
    build: BuildContext, selection: Sequence[ClassSelection], digest: Digest
) -> tuple[DeviceClass, ...]:
    names = {each.device_class for each in selection if each.digest == digest}
    return tuple(each for each in build.blueprint.classes if each.name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """A variant, whom it serves, and what the recipe lets draft."""

    candidate: Candidate
    artefact: Artefact
    classes: tuple[DeviceClass, ...]
    drafts: tuple[Artefact, ...]

    def objection(self, draft: Artefact) -> str | None:
        """Say why something cannot draft for it; None when it can."""
        if draft.digest == self.artefact.digest:
            return "it would draft for itself"
        if draft.making.token_map != self.artefact.making.token_map:
            return "the draft has another vocabulary"
        return None

    def settings(self, plan: RuntimePlan) -> tuple[RuntimeSettings, ...]:
        """Return what it is measured at, the defaults first."""
        drafts = [
            (draft.digest, draft.file.bytes)
            for draft in self.drafts
            if self.objection(draft) is None
        ]
        return expand_settings(plan.kv_cache, drafts, draft_tokens=plan.draft_tokens)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return threads and contexts of its classes, each once."""
        return tuple(dict.fromkeys((c.threads, c.context_tokens) for c in self.classes))

    def spread(self, place: SpeedSetting) -> PeakSpread | None:
        """Return how peaks of the variant's processes differ, at the defaults."""
        for speed in self.candidate.card.speed:
            known = speed.peak_memory
            if known is not None and speed.threads == place.threads:
                return PeakSpread(
                    processes=known.processes, deviation_mib=known.deviation_mib
                )
        return None

    def tasks(self, plan: RuntimePlan) -> int:
        """Return how many steps measuring it takes."""
        settings = self.settings(plan)
        caches = len({each.kv_cache for each in settings})
        return len(self.places) * (caches + 1 + len(settings))

    def results(self, verdicts: Sequence[Verdict]) -> list[SettingResult]:
        """Return all that was tried on it, and what could not be."""
        labels: dict[Digest | None, str] = {d.digest: d.label for d in self.drafts}
        found = [
            SettingResult(
                variant=self.candidate.label,
                settings=verdict.tried.settings,
                draft=labels.get(verdict.tried.settings.draft),
                fidelity=verdict.tried.fidelity,
                speed=verdict.tried.speed,
                adopted=verdict.adopted,
                reason=verdict.reason,
            )
            for verdict in verdicts
        ]
        for draft in self.drafts:
            reason = self.objection(draft)
            if reason is not None:
                found.append(self._not_tried(draft, reason))
        return found

    def _not_tried(self, draft: Artefact, reason: str) -> SettingResult:
        return SettingResult(
            variant=self.candidate.label,
            settings=RuntimeSettings(draft=draft.digest, draft_bytes=draft.file.bytes),
            draft=draft.label,
            fidelity=None,
            speed=(),
            adopted=False,
            reason=f"not tried: {reason}",
        )


def _measure(
    build: BuildContext,
    scoring: Scoring,
    reference: Digest,
    chosen: _Chosen,
    plan: RuntimePlan,
) -> list[TriedSetting]:
    settings = chosen.settings(plan)
    rows: list[tuple[SettingTrial, ...]] = []
    for threads, context_tokens in chosen.places:
        place = SpeedSetting(
            build=build, threads=threads, context_tokens=context_tokens
        )
        trials = try_settings(place, scoring, reference, chosen.artefact, settings)
        rows.append(_with_memory(place, chosen, trials))
    return [
        TriedSetting(
            settings=each,
            fidelity=rows[0][index].fidelity,
            speed=tuple(row[index].speed for row in rows),
        )
        for index, each in enumerate(settings)
    ]


def _with_memory(
    place: SpeedSetting, chosen: _Chosen, trials: Sequence[SettingTrial]
) -> tuple[SettingTrial, ...]:
    """Add what a full context takes at each setting, measured on the variant itself."""
    spread = chosen.spread(place)
    with place.build.pool() as pool:
        growths = [
            pool.submit(
                measure_growth, replace(place, settings=trial.settings), chosen.artefact
            )
            for trial in trials
        ]
        return tuple(
            replace(trial, speed=_full(trial.speed, growth.result(), spread))
            for trial, growth in zip(trials, growths, strict=True)
        )


def _full(speed: Speed, growth: ContextGrowth, spread: PeakSpread | None) -> Speed:
    """Return a speed whose one process's memory has the variant's own bounds."""
    if spread is not None:
        own = MemoryFigures(
            peak_rss_mib=speed.peak_rss_mib,
            rss_anon_mib=speed.rss_anon_mib,
            rss_file_mib=speed.rss_file_mib,
        )
        speed = with_memory(speed, [own], spread)
    return with_full_context(speed, growth, is_own=True)
