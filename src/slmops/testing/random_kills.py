"""An agent whose power is cut at random steps, again and again, also while it recovers.

``python -m slmops.testing.random_kills --kills 10000`` is the nightly run; ``--all``
tries every folder of the crash matrix instead of a sample.
"""

import logging
import random
from collections import Counter
from dataclasses import dataclass, field

import click

from slmops.domain.installation import State
from slmops.testing.agent_in_process import AgentInProcess
from slmops.testing.crash_matrix import (
    ARTEFACTS,
    LIFE,
    MOST_STEPS,
    Phase,
    RecordedJournal,
    Theatre,
    assign,
    cuts_of,
    different,
    kills_of,
    look_after,
    outlive,
    record,
    theatre,
)
from slmops.testing.power_cut import Image, Moment, Recorder
from slmops.testing.sample_release import SAMPLE_TIME

_CUTS = 12
"""Folders a power cut may leave, tried at each moment."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """What random kills did."""

    kills: int = 0
    """Cuts survived."""
    at: Counter[str] = field(default_factory=Counter)
    """State → cuts in it."""
    served: Counter[str] = field(default_factory=Counter)
    """What served at once."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How installations ended."""


def random_kills(stage: Theatre, count: int, *, seed: int) -> Tally:
    """Cut one agent's power at random steps, also while it recovers, `count` times.

    Raises:
        AssertionError: after a cut it had no model to serve, or a false one.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable
    tally = Tally()
    phase = LIFE[0]
    image: Image | None = None
    now = SAMPLE_TIME
    while tally.kills < count:
        agent = stage.agent(image, now)
        try:
            phase, moment = _until_cut(agent, phase, chance, tally, first=image is None)
        except AssertionError as error:
            raise AssertionError(
                f"seed {seed}, kill {tally.kills}, {phase.name}: {error}"
            ) from error
        finally:
            now = agent.clock.now() + 1.0
            stage.end(agent)
        tally.kills += 1
        tally.at[moment.label.partition(":")[0]] += 1
        image = moment.kill()
        if chance.random() < 0.7:  # noqa: PLR2004 - most are power cuts
            drawn = list(moment.cuts(chance, most=chance.randint(1, 12)))
            image = drawn[-1] if drawn else image
    return tally


def _until_cut(
    agent: AgentInProcess,
    phase: Phase,
    chance: random.Random,
    tally: Tally,
    *,
    first: bool,
) -> tuple[Phase, Moment]:
    """Let an agent live until a random step; return what its disk looked like then."""
    recorder = Recorder(folder=agent.folder, keep=False)
    assert isinstance(agent.journal, RecordedJournal)
    agent.journal.recorder = recorder
    left = chance.randint(1, 90)
    last: list[Moment] = []

    def count(label: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            last.append(recorder.moment(label))
            raise PowerCutError

    recorder.on_step = count
    has_model = agent.slots.read().active is not None or not first
    try:
        with recorder.recording():
            agent.loop.resume()
            look_after(agent)
            serves = agent.serves()
            if phase.before is not None and has_model:
                assert serves is not None, agent.models.gateway.reason
            tally.served[serves or "none"] += 1
            while True:
                assign(agent, phase)
                phase = _live_on(agent, phase, chance, tally)
    except PowerCutError:
        return phase, last[0]
    finally:
        recorder.close()


def _live_on(
    agent: AgentInProcess, phase: Phase, chance: random.Random, tally: Tally
) -> Phase:
    """End an installation, however; return the next assignment."""
    for _ in range(MOST_STEPS):
        wait_s = agent.loop.tried_step()
        look_after(agent)
        agent.clock.advance(min(max(wait_s, 0.1), 5.0))
        known = agent.loop._newest_sequence() >= phase.sequence
        found = agent.journal.installation()
        idle = found is None or found.state is State.IDLE
        outcome = agent.journal.outcome_of(phase.sequence)
        # Killed too often, it gives up; before the first model, that leaves none.
        gave_up = phase.before is None and outcome is not None
        if known and idle and (gave_up or agent.serves() is not None):
            if outcome is not None:
                tally.outcomes[str(outcome.state)] += 1
            break
    else:
        raise AssertionError(f"it does not end: {agent.journal.installation()}")
    serves = agent.serves()
    others = [version for version in ARTEFACTS if f"sample-{version}" != serves]
    return Phase(
        name="random",
        version=chance.choice(others),
        sequence=phase.sequence + 1,
        before=serves,
        after=serves or "",
    )


class PowerCutError(BaseException):
    """The power went; not an error that a program could handle."""


def whole_matrix(stage: Theatre, *, seed: int) -> Counter[tuple[str, str]]:
    """Start from every folder of the crash matrix; count (how, what served at once).

    Raises:
        AssertionError: one does not end well.
    """
    moments = record(stage)
    found: Counter[tuple[str, str]] = Counter()
    for cuts in (kills_of(moments), cuts_of(moments, most=_CUTS, seed=seed)):
        for cut in different(cuts):
            try:
                found[cut.how, outlive(stage, cut)] += 1
            except AssertionError as error:
                raise AssertionError(
                    f"{cut.phase.name}, {cut.label}: {error}"
                ) from error
    return found


@click.command()
@click.option("--kills", type=click.IntRange(min=0), default=300, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--all", "everything", is_flag=True, help="The whole matrix, too.")
def main(kills: int, seed: int, everything: bool) -> None:
    """Cut an agent's power at random steps, and say what it did."""
    logging.disable(logging.CRITICAL)
    with theatre() as stage:
        if everything:
            for (how, served), count in sorted(whole_matrix(stage, seed=seed).items()):
                click.echo(f"{how}: {count} times {served} served at once")
        tally = random_kills(stage, kills, seed=seed)
    click.echo(f"{tally.kills} random kills survived")
    for name, counts in (
        ("in state", tally.at),
        ("served at once", tally.served),
        ("installations", tally.outcomes),
    ):
        click.echo(
            f"  {name}: {', '.join(f'{k} {n}' for k, n in counts.most_common())}"
        )


if __name__ == "__main__":
    main()
