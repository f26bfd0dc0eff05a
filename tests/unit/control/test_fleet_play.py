"""Whatever happens to a fleet: nothing unapproved runs, nothing goes on without evidence."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import WavePlan
from slmops.domain.rollout import ENDED
from slmops.testing.control_in_process import (
    QUICK_POLICY,
    control_in_process,
    quick_release,
)
from slmops.testing.fleet_play import FleetPlay

POLICY = replace(
    QUICK_POLICY,
    waves=(WavePlan(count=2), WavePlan(share=0.3), WavePlan(share=1.0)),
    max_per_site=3,
    deadline_s=70.0,
)
BAD = {"sample-2": (0.5, "golden prompts: gibberish")}


def play_for(folder: Path, seed: int, releases: int = 3) -> FleetPlay:
    made = [quick_release(n, policy=POLICY) for n in range(1, releases + 1)]
    control = control_in_process(folder, made)
    return FleetPlay(control=control, dice=random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_fleet_that_lives_by_chance_keeps_its_promises(
    tmp_path: Path, seed: int
) -> None:
    play = play_for(tmp_path, seed)
    with play.control as control:
        play.enrol(6, site="north", bad=BAD)
        play.enrol(4, memory_mib=4000, site="south", bad=BAD)
        for release in ("sample-1", "sample-2", "sample-3"):
            control.post("/v1/rollouts", {"release": release}, status=201)
            for _ in range(25):
                play.event()
            newest = control.get("/v1/rollouts")["rollouts"][0]
            if newest["state"] not in ENDED:
                command = play.dice.choice(("keep", "revert", "settle"))
                if command == "settle":
                    play.settle()
                else:
                    path = f"/v1/rollouts/{newest['id']}/abort"
                    control.post(path, {"keep": command == "keep"})
        play.settle()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_revert_reaches_everybody_whoever_was_away_and_whenever_the_engine_restarts(
    tmp_path: Path, seed: int
) -> None:
    play = play_for(tmp_path, seed, releases=2)
    with play.control as control:
        play.enrol(8)
        control.post("/v1/rollouts", {"release": "sample-1"}, status=201)
        play.settle()
        assert {one.active_release for one in play.devices.values()} == {"sample-1"}
        control.post("/v1/rollouts", {"release": "sample-2"}, status=201)
        for _ in range(15):
            play.event()
        stopped = control.post("/v1/emergency-stop", {"reason": "wrong prices"})
        for _ in range(10):
            play.event()
        play.settle()
        if stopped["rollouts"]:
            assert {one.active_release for one in play.devices.values()} == {"sample-1"}
