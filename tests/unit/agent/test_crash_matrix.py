"""Whatever a kill, a power cut or a full disk leaves, a verified model serves."""

import errno
import logging
import random
from collections.abc import Iterator

import pytest

from slmops.domain.installation import TRANSITIONS, State
from slmops.registry import durable
from slmops.testing.crash_matrix import (
    LIFE,
    Cut,
    Phase,
    Theatre,
    cuts_of,
    different,
    kills_of,
    outlive,
    record,
    refuse,
    theatre,
)
from slmops.testing.power_cut import Moment
from slmops.testing.random_kills import random_kills

pytestmark = pytest.mark.slow  # hundreds of agents

Moments = list[tuple[Phase, float, Moment]]
_SAMPLE = 120
"""Power cuts tried here; ``python -m slmops.testing.random_kills --all`` tries all."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Theatre]:
    logging.disable(logging.ERROR)
    with theatre() as built:
        yield built
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def moments(stage: Theatre) -> Moments:
    return list(record(stage))


def test_the_recorded_life_acts_in_every_state(moments: Moments) -> None:
    seen = {moment.label.partition(":")[0] for _, _, moment in moments}
    states = {state.value for pair in TRANSITIONS for state in (pair[0],)}
    assert states <= seen
    steps = {
        moment.label.partition(": ")[2].partition(" ")[0] for _, _, moment in moments
    }
    assert {"open", "write", "fsync", "rename", "remove", "commit", "inside"} <= steps


def test_a_kill_before_any_step_leaves_a_model_serving_and_the_update_ends(
    stage: Theatre, moments: Moments
) -> None:
    kills = different(kills_of(moments))
    assert len(kills) > 100
    for cut in kills:
        check(stage, cut)


def test_a_power_cut_at_any_step_leaves_a_model_serving_and_the_update_ends(
    stage: Theatre, moments: Moments
) -> None:
    cuts = list(different(cuts_of(moments, most=12, seed=1)))
    assert len(cuts) > 1000
    random.Random(1).shuffle(cuts)
    for cut in cuts[:_SAMPLE]:
        check(stage, cut)


def test_without_flushed_names_a_power_cut_takes_the_model(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix finds what it is there to find."""
    monkeypatch.setattr(durable, "sync_folder", lambda _: None)
    cuts = list(different(cuts_of(record(stage), most=12, seed=1)))
    monkeypatch.undo()
    random.Random(1).shuffle(cuts)
    found = []
    for cut in cuts[:_SAMPLE]:
        try:
            outlive(stage, cut)
        except AssertionError as error:
            found.append(str(error))
        if any("no model" in said for said in found):
            return
    raise AssertionError(f"no cut took the model; found instead: {found}")


def test_300_random_kills_in_a_row_are_survived(stage: Theatre) -> None:
    tally = random_kills(stage, 300, seed=7)
    assert tally.kills == 300
    assert {State.OFFERED, State.STAGED, State.PROBATION} <= tally.at.keys()
    assert tally.outcomes["committed"] > 10
    assert tally.outcomes["rolled_back"] > 0


@pytest.mark.parametrize("phase", ["first", "update", "bad"])
@pytest.mark.parametrize(
    ("error", "steps"), [(errno.ENOSPC, 1), (errno.ENOSPC, 30), (errno.EROFS, 30)]
)
def test_a_disk_that_refuses_any_step_for_a_while_stops_no_model(
    stage: Theatre, moments: Moments, phase: str, error: int, steps: int
) -> None:
    begin = next(cut for cut in kills_of(moments) if cut.phase.name == phase)
    at, refused = 0, []
    while (said := refuse(stage, begin, at=at, steps=steps, error=error)) is not None:
        refused.append(said)
        at += 3 if steps == 1 else 9
    assert len(refused) > (10 if steps == 1 else 3)


def check(stage: Theatre, cut: Cut) -> None:
    try:
        served = outlive(stage, cut)
    except AssertionError as error:
        raise AssertionError(
            f"{cut.phase.name}, {cut.how}, {cut.label}: {error}"
        ) from error
    assert served != "none" or cut.phase == LIFE[0]
