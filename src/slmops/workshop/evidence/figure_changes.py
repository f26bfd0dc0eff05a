"""How one card's figures differ from another's, and what that shows.

A difference counts as shown only when the two figures' bounds do not overlap; figures
that were not measured alike (another text, machine, runtime or set of examples) are not
subtracted at all: the reason stands in place of the difference.
"""

from dataclasses import dataclass
from enum import StrEnum

from slmops.domain.energy import Power
from slmops.domain.ids import Digest
from slmops.domain.release import Card, Estimate
from slmops.workshop.build_result import BuildResult
from slmops.workshop.evidence.figures import Bounds, Figure, Nature, card_figures


class Verdict(StrEnum):
    """What one figure's change shows."""

    BETTER = "better"
    """Changed for the better, bounds apart."""
    WORSE = "worse"
    """Changed for the worse, bounds apart."""
    CHANGED = "changed"
    """Changed, bounds apart; neither direction is better."""
    EQUAL = "equal"
    """The same value."""
    UNCLEAR = "bounds overlap"
    """May be chance."""
    UNBOUNDED = "no bounds"
    """Differs, but was observed once each: how far it varies is not known."""
    INCOMPARABLE = "not comparable"
    """Measured on other texts, machines or examples."""
    ONE_SIDED = "in one only"
    """Only one of the two has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureChange:
    """One figure before and after."""

    name: str
    """As `Figure.name`: with its unit."""
    of: str
    """As `Figure.of`: threads and context, or the task; empty for the whole."""
    nature: Nature
    """Counted, measured or modelled."""
    bounds: Bounds
    """What low and high are."""
    before: Estimate | None
    """In the first; None when it has none."""
    after: Estimate | None
    """In the second; None when it has none."""
    difference: float | None
    """After minus before, in the figure's unit; None when they cannot be subtracted."""
    is_overlapping: bool | None
    """Whether the bounds overlap; None without bounds on both sides."""
    verdict: Verdict
    """What that shows."""
    reason: str = ""
    """Why the two are not comparable."""


def compare_figures(
    before: tuple[BuildResult, Card], after: tuple[BuildResult, Card]
) -> tuple[FigureChange, ...]:
    """Compare two cards figure by figure.

    Args:
        before: the first card, with the build whose machine measured it.
        after: the second.
    """
    one = {figure.key: figure for figure in card_figures(before[1])}
    two = {figure.key: figure for figure in card_figures(after[1])}
    keys = [*one, *(key for key in two if key not in one)]
    return tuple(
        _change(one.get(key), two.get(key), _obstacle(key, before, after))
        for key in keys
    )


def _change(before: Figure | None, after: Figure | None, obstacle: str) -> FigureChange:
    shown = before or after
    assert shown is not None  # noqa: S101 - keys come from the two
    verdict, overlapping = Verdict.ONE_SIDED, None
    difference = None
    if before and after:
        difference = after.estimate.value - before.estimate.value
        verdict, overlapping = _verdict(before, after)
    if before and after and obstacle:
        verdict, difference, overlapping = Verdict.INCOMPARABLE, None, None
    return FigureChange(
        name=shown.name,
        of=shown.of,
        nature=shown.nature,
        bounds=shown.bounds,
        before=before.estimate if before else None,
        after=after.estimate if after else None,
        difference=difference,
        is_overlapping=overlapping,
        verdict=verdict,
        reason=obstacle if before and after else "",
    )


def _verdict(before: Figure, after: Figure) -> tuple[Verdict, bool | None]:
    one, two = before.estimate, after.estimate
    if one == two:
        return Verdict.EQUAL, None
    exact = before.nature is after.nature is Nature.EXACT
    if before.bounds is Bounds.NONE and not exact:
        return Verdict.UNBOUNDED, None
    overlapping = one.low <= two.high and two.low <= one.high
    if overlapping and not exact:
        return Verdict.UNCLEAR, True
    known = None if exact else False
    if before.is_lower_better is None:
        return Verdict.CHANGED, known
    fell = two.value < one.value
    return (Verdict.BETTER if fell == before.is_lower_better else Verdict.WORSE), known


def _obstacle(
    key: tuple[str, str],
    before: tuple[BuildResult, Card],
    after: tuple[BuildResult, Card],
) -> str:
    """Say why two figures of one key may not be subtracted; empty when they may."""
    of, name = key
    (first, one), (second, two) = before, after
    if of.startswith("task "):
        digests = [_examples(card, of.removeprefix("task ")) for card in (one, two)]
        return "" if digests[0] == digests[1] else "other examples or prompts"
    if of.startswith("threads "):
        return _other_machine(first, second, one, two)
    if of.startswith("class "):
        named = of.removeprefix("class ")
        powers = [_power(build, named) for build in (first, second)]
        same = powers[0] == powers[1]
        return _other_machine(first, second, one, two) if same else "another power"
    if name in {"bytes", "bits_per_weight", "parameters"}:
        return ""
    return _other_text(one, two)


def _other_machine(
    first: BuildResult, second: BuildResult, one: Card, two: Card
) -> str:
    if first.machine != second.machine:
        return "another machine"
    return "" if one.runtime == two.runtime else "another runtime"


def _power(build: BuildResult, name: str) -> Power | None:
    return next((c.power for c in build.blueprint.classes if c.name == name), None)


def _other_text(one: Card, two: Card) -> str:
    if one.reference != two.reference:
        return "another reference"
    same = (
        one.fidelity.text_digest == two.fidelity.text_digest
        and one.fidelity.tokens == two.fidelity.tokens
    )
    return "" if same else "another text, or another part of it"


def _examples(card: Card, name: str) -> Digest | None:
    return next((t.examples_digest for t in card.tasks if t.name == name), None)
