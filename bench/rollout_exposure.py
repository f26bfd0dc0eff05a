"""A class of a twentieth of the fleet breaks: devices exposed, against a pooled 5 % rule.

    python bench/rollout_exposure.py [--simulated 2000] [--plays 1000] [--json FILE]

One control plane (`slmops serve`), ten real agents with the runtime echo, and thousands of
scripted devices that speak the real protocol over HTTP. Release 1 reaches everybody;
release 2 breaks on the small class: really on real agents, whose own trial refuses it,
and by chance (0.6) on scripted ones. Beside it stands what a rule would do that halts a
wave once over 5 % of it failed, all classes together, played on the same fleet.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

from slmops.control.simulation import simulate
from slmops.domain.blueprint import RolloutPolicy, WavePlan
from slmops.domain.device import DeviceClass, DeviceFacts, Predicate, Range
from slmops.registry.blobs import BlobStore
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.golden import ask_golden, record_golden
from slmops.runtimes.worker import start_worker
from slmops.testing.sample_release import publish_sample, sample_release
from slmops.testing.scripted_device import ScriptedDevice
from slmops.testing.stage import PROMPTS, Stage, echo_artefact, stage, wait_until

CLASSES = tuple(
    DeviceClass(name=name, where=where, context_tokens=256, runtime="echo")
    for name, where in (
        ("small", Predicate(memory_mib=Range(max=768))),
        ("large", Predicate(memory_mib=Range(min=768))),
    )
)
POLICY = RolloutPolicy(
    waves=(
        WavePlan(count=20),
        WavePlan(count=80),
        WavePlan(count=400),
        WavePlan(share=1.0),
    ),
    tolerated_failure_rate=0.02,
    alpha=0.01,
    soak_s=0.0,
    probation_s=0.5,
    deadline_s=3600.0,
)
REAL, REAL_SMALL, SMALL_SHARE, BREAKS = 10, 2, 0.05, 0.6
GOOD, BAD = echo_artefact(), echo_artefact(logprob=-3.0)


def publish(built: Stage, version: int, small: bytes) -> str:
    """Publish a release whose card promises what the good artefact answers."""
    blobs = BlobStore(built.folder / "scratch")
    path = blobs.path(blobs.put_bytes(GOOD))
    with start_worker("echo", path, WorkerSettings(context_tokens=256)) as worker:
        golden = record_golden(worker.address, PROMPTS, 4)
        scores = ask_golden(worker.address, golden).scores
    artefacts = {
        "small": small,
        "large": echo_artefact(start_delay_ms=version),
    }
    release = sample_release(
        version, classes=CLASSES, artefacts=artefacts, golden=golden
    )
    promised = tuple(score.logprobs[0] for score in scores)
    release = replace(
        release,
        blueprint=replace(release.blueprint, rollout=POLICY),
        variants=tuple(
            replace(one, golden_logprobs=promised) for one in release.variants
        ),
    )
    publish_sample(
        built.workspace.root,
        [release],
        artefacts=list(artefacts.values()),
        now=time.time(),
    )
    return release.label


def enrol_scripted(
    built: Stage, http: httpx.Client, count: int, dice: random.Random
) -> list[ScriptedDevice]:
    """Enrol devices of which a twentieth are small; some of those cannot run release 2."""
    devices = []
    for index in range(count):
        small = index < round(SMALL_SHARE * (count + REAL)) - REAL_SMALL
        broken = small and dice.random() < BREAKS
        device = ScriptedDevice(
            name=f"sim-{index}",
            facts=DeviceFacts(
                memory_mib=512 if small else 4096,
                disk_mib=4000,
                cpu_count=1,
                architecture="x86_64",
                runtimes=("echo",),
            ),
            bad_releases={"sample-2": "golden prompts: gibberish"} if broken else {},
        )
        token = built.operator("POST", "/v1/tokens", {"expires_in_s": 600})["token"]
        device.enrol(http, token)
        devices.append(device)
    return devices


def roll(
    built: Stage, http: httpx.Client, devices: Sequence[ScriptedDevice], label: str
) -> Mapping[str, object]:
    """Bring a release to its end and return the rollout."""
    rollout = built.roll_out(label)
    by_name = {device.name: device for device in devices}
    while True:
        found: Mapping[str, object] = built.operator("GET", f"/v1/rollouts/{rollout}")
        if found["state"] != "running":
            return found
        members = found["members"]
        assert isinstance(members, list)
        at_work = [
            by_name[one["device"]]
            for one in members
            if one["offered_at"] is not None
            and one["outcome"] == "pending"
            and one["device"] in by_name
        ]
        speak(http, at_work)
        if not at_work:
            time.sleep(0.2)


def speak(http: httpx.Client, devices: Sequence[ScriptedDevice]) -> None:
    """Let devices sync, a few at a time."""
    with ThreadPoolExecutor(8) as pool:
        for status in pool.map(lambda device: device.sync(http), devices):
            assert status in {200, 304}, status


def pooled(waves: Sequence[Mapping[str, int]], plays: int) -> tuple[float, float]:
    """Return completed share and mean exposure of the rule over all classes together."""
    dice = random.Random(0)  # noqa: S311 - a simulation
    completed = exposed = 0
    for _ in range(plays):
        for index, wave in enumerate(waves):
            size = sum(wave.values())
            exposed += size
            failed = sum(dice.random() < BREAKS for _ in range(wave.get("small", 0)))
            if failed > 0.05 * size:
                break
            completed += index == len(waves) - 1
    return completed / plays, exposed / plays


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=int, default=2000)
    parser.add_argument("--plays", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    dice = random.Random(7)  # noqa: S311 - a simulation
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        stage(Path(folder), policy=POLICY) as built,
    ):
        first = publish(built, 1, GOOD)
        built.serve()
        states = [
            built.enrol(f"real-{index}", memory_mib=512 if index < REAL_SMALL else 4096)
            for index in range(REAL)
        ]
        for state in states:
            built.start_agent(state)
        with httpx.Client(base_url=built.url, timeout=60) as http:
            devices = enrol_scripted(built, http, asked.simulated, dice)
            print(f"{len(devices)} scripted and {REAL} real devices enrolled")
            one = roll(built, http, devices, first)
            print(
                f"release 1: {one['state']} after {time.perf_counter() - begun:.0f} s"
            )
            second = publish(built, 2, BAD)
            two = roll(built, http, devices, second)
            members = two["members"]
            assert isinstance(members, list)
            back = {one["device"] for one in members if one["outcome"] == "succeeded"}
            for _ in range(5):
                speak(http, [device for device in devices if device.name in back])
            wait_until(
                lambda: {built.serving(state) for state in states} == {"sample-1"},
                "all real agents back on release 1",
                timeout_s=120,
            )
        waves = [
            Counter(one["device_class"] for one in members if one["wave"] == index)
            for index in range(len(POLICY.waves))
        ]
        after = Counter(device.active_release for device in devices)
    played = simulate(waves, POLICY, {"large": 0.0, "small": BREAKS}, runs=asked.plays)
    completes, exposes = pooled(waves, asked.plays)
    exposed = [one for one in members if one["offered_at"] is not None]
    result = {
        "fleet": asked.simulated + REAL,
        "small": sum(wave["small"] for wave in waves),
        "state": two["state"],
        "reason": two["reason"],
        "exposed": len(exposed),
        "exposed_real": sum(one["device"].startswith("real") for one in exposed),
        "broken": sum(one["outcome"] == "failed" for one in exposed),
        "release_after": dict(after),
        "played_completed": played.completed,
        "played_exposed": played.exposed_mean,
        "pooled_completed": completes,
        "pooled_exposed": exposes,
        "seconds": round(time.perf_counter() - begun),
    }
    for name, value in result.items():
        print(f"{name:18} {value}")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
