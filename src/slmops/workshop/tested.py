"""What was chosen, measured on text and examples that nothing was chosen by.

The best of many looks better than it is on whatever it was chosen by. So the evaluation
text has two parts that share nothing: all candidates are scored on one, and compared; the
chosen ones, the 8-bit control and the reference are scored on the other, and that is what
cards report and the quality floor judges. Tasks have two splits in the same way.

A variant that does not hold there what it promised is refused with that reason, and
selection is made again without it. Every refusal is one more look at the test part, so a
lucky pass becomes likelier with each: reasons say who was refused before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slmops.domain.blueprint import CONTROL_QUANTIZATION
from slmops.domain.ids import Digest
from slmops.domain.release import Card, Fidelity
from slmops.domain.runtime_settings import UNCHANGED
from slmops.workshop.artefacts import Artefact
from slmops.workshop.build_context import BuildContext
from slmops.workshop.build_result import Candidate, ClassSelection, SettingResult
from slmops.workshop.evaluate import (
    Scoring,
    estimate_fidelity,
    score_candidate,
    score_reference,
)
from slmops.workshop.feasibility import SelectionRules, floor_violations
from slmops.workshop.scored import Scored, reported_scoring_of
from slmops.workshop.select import select_variants
from slmops.workshop.tuned import Tuned


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What was chosen, and what it holds."""

    candidates: tuple[Candidate, ...]
    """All of them; what was tested has its figures."""
    reference: Candidate
    """With its own figures on the test text."""
    selection: tuple[ClassSelection, ...]
    """One per class."""
    rules: SelectionRules
    """On the text that candidates were chosen by."""
    test_rules: SelectionRules
    """On the other."""

    @property
    def control(self) -> Candidate:
        """The 8-bit control."""
        return _control_of(self.candidates)

    @property
    def cards(self) -> Mapping[Digest, Card]:
        """Artefact → reported card, of everything that was chosen."""
        used = {each.digest for each in self.selection}
        return {c.digest: c.reported for c in self.candidates if c.digest in used}


@dataclass(kw_only=True, slots=True)
class ReportBench:
    """Scores on the test text; what was scored once is known."""

    build: BuildContext
    artefacts: Mapping[Digest, Artefact]
    scoring: Scoring
    reference: Digest
    """The reference's scores."""
    known: dict[tuple[Digest, str], Fidelity] = field(default_factory=dict)

    def measure(
        self, digests: Sequence[Digest], kv_cache: str = UNCHANGED.kv_cache
    ) -> None:
        """Score some artefacts, and the reference against itself, at the same time."""
        asked = [d for d in dict.fromkeys(digests) if (d, kv_cache) not in self.known]
        self.build.board.expect(len(asked))
        with self.build.pool() as pool:
            scores = {d: pool.submit(self._score, d, kv_cache) for d in asked}
            for digest, score in scores.items():
                self.known[digest, kv_cache] = estimate_fidelity(
                    self.scoring, self.reference, score.result()
                )

    def _score(self, digest: Digest, kv_cache: str) -> Digest:
        artefact = self.artefacts.get(digest)
        name = "reference" if artefact is None else artefact.label
        return score_candidate(
            self.scoring,
            f"{name}, test text",
            digest,
            self.reference,
            token_map=None if artefact is None else artefact.making.token_map,
            kv_cache=kv_cache,
        )

    def tested(self, candidate: Candidate) -> Candidate:
        """Return a candidate with what is known of it."""
        found = self.known.get((candidate.digest, UNCHANGED.kv_cache))
        return replace(candidate, test_fidelity=found)


def open_report_bench(build: BuildContext, scored: Scored) -> ReportBench:
    """Score the reference on the test text.

    Raises:
        InvalidInputError: the text is too short.
        UnavailableError: a child process was killed.
    """
    scoring = reported_scoring_of(build)
    build.board.expect(1)
    return ReportBench(
        build=build,
        artefacts={artefact.digest: artefact for artefact in scored.artefacts},
        scoring=scoring,
        reference=score_reference(scoring, build.model.id),
    )


def choose_and_test(
    bench: ReportBench,
    reference: Candidate,
    candidates: Sequence[Candidate],
    *,
    below_floor: bool,
) -> Chosen:
    """Choose a variant for each class, and hold each to what it promised.

    Args:
        bench: that scores on the test text.
        reference: its row.
        candidates: all of them, measured on what they are chosen by.
        below_floor: choose and keep what is below the floor too, and say so.

    Raises:
        OverBudgetError: nothing fits a class, or nothing that fits passes the test.
        UnavailableError: a child process was killed.
    """
    build = bench.build
    control = _control_of(candidates)
    rules = SelectionRules(
        floor=build.blueprint.quality,
        control_kld=control.card.fidelity.mean_kld.value,
        below_floor=below_floor,
    )
    bench.measure([reference.digest, control.digest])
    reported = bench.tested(control).reported.fidelity.mean_kld.value
    test_rules = replace(rules, control_kld=reported)
    refused: dict[str, tuple[str, ...]] = {}
    while True:
        selection = select_variants(build.blueprint.classes, candidates, rules, refused)
        chosen = [c for c in candidates if any(s.digest == c.digest for s in selection)]
        bench.measure([c.digest for c in chosen])
        found = {
            c.label: floor_violations(bench.tested(c).reported, test_rules)
            for c in chosen
        }
        failing = {label: texts for label, texts in found.items() if texts}
        if below_floor or not failing:
            break
        refused |= failing
    return Chosen(
        candidates=tuple(map(bench.tested, candidates)),
        reference=bench.tested(reference),
        selection=tuple(
            replace(each, violations=found[each.quantization]) for each in selection
        ),
        rules=rules,
        test_rules=test_rules,
    )


def hold_settings(bench: ReportBench, chosen: Chosen, tuned: Tuned) -> Tuned:
    """Report adopted settings by the test text; drop what does not hold there.

    A variant whose setting is dropped runs at the defaults.

    Raises:
        UnavailableError: a child process was killed.
    """
    cards: dict[Digest, Card] = {}
    results = list(tuned.results)
    for candidate in chosen.candidates:
        if candidate.digest not in tuned.cards:
            continue
        card = tuned.cards[candidate.digest]
        kv_cache = card.settings.kv_cache
        bench.measure([candidate.digest], kv_cache)
        card = replace(card, fidelity=bench.known[candidate.digest, kv_cache])
        against = floor_violations(card, chosen.test_rules)
        new = kv_cache != UNCHANGED.kv_cache
        if against and new and not chosen.test_rules.below_floor:
            reason = f"does not hold on the test text: {'; '.join(against)}"
            results = [_dropped(each, candidate.label, reason) for each in results]
        else:
            cards[candidate.digest] = card
    return Tuned(cards=cards, results=tuple(results))


def _dropped(result: SettingResult, variant: str, reason: str) -> SettingResult:
    if result.variant != variant:
        return result
    if result.settings.is_default:
        return replace(
            result, adopted=True, reason="the setting that won was dropped by a test"
        )
    if result.adopted:
        return replace(result, adopted=False, reason=reason)
    return result


def _control_of(candidates: Sequence[Candidate]) -> Candidate:
    return next(c for c in candidates if c.label == CONTROL_QUANTIZATION)
