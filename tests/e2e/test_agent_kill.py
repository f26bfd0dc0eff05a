"""Kill -9 the agent around the action of every state of the installation table."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from slmops.domain.installation import TRANSITIONS, State
from slmops.testing.crash import PHASES
from slmops.testing.stage import Stage, echo_artefact, stage, wait_until

pytestmark = pytest.mark.slow

GOOD = sorted(
    {state for pair in TRANSITIONS.items() for state in (pair[0][0], pair[1])}
)
"""Every state there is: a new one in the table is tested without a change here."""
_ACTING = [state for state in GOOD if state is not State.IDLE]
_VERSIONS = itertools.count(1)


@dataclass
class Till:
    """One device that lives through all the power cuts."""

    stage: Stage
    version: int = 0

    def __post_init__(self) -> None:
        self.state = self.stage.enrol("till-1")

    def publish_next(self, *, good: bool) -> str:
        version = next(_VERSIONS)
        artefact = echo_artefact(
            logprob=-0.1 if good else -3.0,
            start_delay_ms=version,  # other bytes, other digest
        )
        claims = None if good else echo_artefact(logprob=-0.1)
        return self.stage.publish(version, artefact, claims=claims).label

    def last(self) -> tuple[str, str]:
        """Return assignment's state and reason."""
        installation = self.stage.status(self.state)["installation"]
        return installation["state"], installation["reason"]


@pytest.fixture(scope="module")
def till(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    with stage(tmp_path_factory.mktemp("kill")) as built:
        built.publish(next(_VERSIONS), echo_artefact(logprob=-0.1))
        built.serve()
        till = Till(built)
        built.start_agent(till.state)
        rollout = built.roll_out("sample-1")
        wait_for_rollout(built, rollout, "done")
        built.stop("till-1")
        yield till


def wait_for_rollout(built: Stage, rollout: str, state: str) -> None:
    wait_until(
        lambda: built.operator("GET", f"/v1/rollouts/{rollout}")["state"] == state,
        f"rollout {state}",
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("at", [state.value for state in _ACTING])
def test_a_power_cut_leaves_a_model_serving_and_the_installation_ends(
    till: Till, at: str, phase: str
) -> None:
    built = till.stage
    good = State(at) is not State.ROLLED_BACK
    old = built.status(till.state)["active"]["release"]
    new = till.publish_next(good=good)

    built.start_agent(till.state, crash=["--at", at, "--phase", phase])
    rollout = built.roll_out(new)
    assert built.wait_for_end("till-1") == -9, built.log("till-1")

    built.start_agent(till.state)
    try:
        wait_until(lambda: built.serving(till.state), "a model serves again")
        assert built.serving(till.state) in {old, new}
        wait_for_rollout(built, rollout, "done" if good else "halted")
        final = new if good else old
        wait_until(lambda: built.serving(till.state) == final, f"{final} serves")
        state, reason = till.last()
        assert state == ("committed" if good else "rolled_back"), reason
    finally:
        built.stop("till-1")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("at", ["downloading", "staged", "switched", "probation"])
def test_a_power_cut_in_the_first_installation_of_all_is_survived(
    tmp_path_factory: pytest.TempPathFactory, at: str, phase: str
) -> None:
    with stage(tmp_path_factory.mktemp("first")) as built:
        built.publish(1, echo_artefact())
        built.serve()
        state = built.enrol("till-1")
        built.start_agent(state, crash=["--at", at, "--phase", phase])
        rollout = built.roll_out("sample-1")
        assert built.wait_for_end("till-1") == -9
        built.start_agent(state)
        wait_for_rollout(built, rollout, "done")
        assert built.serving(state) == "sample-1"
