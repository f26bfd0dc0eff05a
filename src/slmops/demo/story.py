"""The demo: a real model to a healthy fleet, then a bad release that stops by itself.

Every figure it prints comes from the processes it started: the build's measurements,
the control plane's records, the devices' own reports. It checks what it claims and
lists whatever did not happen.
"""

import dataclasses
import importlib.resources
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmops.demo import fleet
from slmops.demo.fleet import Fleet
from slmops.demo.load import RequestLoad
from slmops.demo.processes import Processes, shown_command
from slmops.demo.source_model import fetch_smollm2
from slmops.demo.summary import Summary
from slmops.domain.errors import UnavailableError
from slmops.domain.release import Release
from slmops.wire import codec

QUESTION = "What is the capital of France? Answer in one short sentence."
BAD_TYPE = "Q2_K_PURE"
"""Over-quantized on purpose: it loads, answers fast, and answers badly."""
FORCE_REASON = "demo: rushed to save disk, nobody looked at the card"
DONE = "done"
HALTED = "halted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrator:
    """How the story reaches the terminal; handed in by the command line."""

    chapter: Callable[[str], None]
    """A heading."""
    line: Callable[[str], None]
    """A line of the story."""
    table: Callable[[list[str], list[list[object]]], None]
    """Figures."""


@dataclass(slots=True)
class Story:
    """Plays the demo once; `play` returns the summary, whatever happened."""

    output: Path
    """Folder for the workspace, logs, devices and ``summary.json``; made anew."""
    narrator: Narrator
    keep: bool = False
    """Leave control plane and devices running at the end."""

    def play(self) -> Summary:
        """Run all chapters; processes are stopped unless `keep`."""
        began = time.monotonic()
        processes = Processes(
            workspace=self.output / "workspace", logs=self.output / "logs"
        )
        group = Fleet(processes=processes, folder=self.output / "devices")
        load = RequestLoad(pause_s=1.0)
        finished = False
        try:
            self._build(processes)
            release_1 = self._release(processes, forced=False)
            self._start_fleet(group)
            first = self._roll_out(group, release_1.label, load, DONE)
            answer = self._ask(group)
            release_2 = self._bad_release(processes)
            second = self._roll_out(group, release_2.label, load, HALTED)
            back = self._wait_until_back(group, release_1.label)
            counts = load.stop()
            summary = _summary(
                group, (first, second), (release_1, release_2), back, answer
            )
            summary = _with_load(summary, counts.sent, counts.failed, began)
            if counts.failed:
                for reason in counts.reasons[:5]:
                    self.narrator.line(f"failed request: {reason}")
            finished = True
            return summary
        finally:
            load.stop()
            if not (finished and self.keep):
                processes.stop_all()

    def _build(self, processes: Processes) -> None:
        tell = self.narrator
        tell.chapter("1  Import, plan and build")
        model = fetch_smollm2()
        blueprint = self.output / "blueprint.yaml"
        sample = importlib.resources.files("slmops.demo") / "blueprint.yaml"
        blueprint.write_bytes(sample.read_bytes())
        self._run(
            processes, "model", "import", str(model), "--name", "smollm2-135m-instruct"
        )
        plan = self._run(processes, "plan", str(blueprint))
        tell.line(f"the plan: {len(plan['candidates'])} candidates, sizes exact")
        self._run(processes, "build", str(blueprint))

    def _release(self, processes: Processes, *, forced: bool) -> Release:
        arguments = ["release", "create"]
        if forced:
            arguments += ["--force", "--reason", FORCE_REASON]
        else:
            self.narrator.chapter("2  Sign and publish release 1")
        created = self._run(processes, *arguments)
        release = codec.convert(
            self._run(processes, "release", "show", created["label"]),
            Release,
            where=created["label"],
        )
        self.narrator.table(*fleet.variant_table(release))
        return release

    def _start_fleet(self, group: Fleet) -> None:
        self.narrator.chapter("3  A control plane and six devices")
        group.start_control()
        self.narrator.line(f"control plane at {group.control_url}")
        for name, memory_mib in fleet.DEVICES:
            group.start_device(name, memory_mib=memory_mib)
        self.narrator.line(f"{len(fleet.DEVICES)} agents enrolled and running")

    def _roll_out(
        self, group: Fleet, label: str, load: RequestLoad, expected: str
    ) -> Any:  # noqa: ANN401
        tell = self.narrator
        number = "4" if expected == DONE else "7"
        tell.chapter(f"{number}  Roll out {label} in waves")
        rollout = group.start_rollout(label)
        seen: set[str] = set()
        deadline = time.monotonic() + fleet.ROLLOUT_TIMEOUT_S
        while True:
            rollout = group.rollout(rollout["id"])
            for line in fleet.news(rollout, seen):
                tell.line(line)
            for url in group.newly_serving():
                load.add(url)
            if rollout["state"] in {DONE, HALTED, "aborted"}:
                return rollout
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"rollout of {label} is still {rollout['state']} after"
                    f" {fleet.ROLLOUT_TIMEOUT_S:g} s; logs are in {group.processes.logs}"
                )
            time.sleep(0.5)

    def _ask(self, group: Fleet) -> str:
        tell = self.narrator
        tell.chapter("5  Ask a device, through the openai client")
        answer = group.ask(QUESTION)
        tell.line(f"you:    {QUESTION}")
        tell.line(f"device: {answer}")
        return answer

    def _bad_release(self, processes: Processes) -> Release:
        self.narrator.chapter("6  Force through a bad release 2")
        blueprint = self.output / "blueprint.yaml"
        arguments = ["build", str(blueprint), "--candidates", BAD_TYPE]
        self._run(processes, *arguments, "--below-floor")
        return self._release(processes, forced=True)

    def _wait_until_back(self, group: Fleet, label: str) -> int:
        self.narrator.chapter("8  Back on release 1, and still answering")
        back = group.wait_until_serving(label)
        self.narrator.line(f"{back} of {len(fleet.DEVICES)} devices answer on {label}")
        return back

    def _run(self, processes: Processes, *arguments: str) -> Any:  # noqa: ANN401
        self.narrator.line(f"$ {shown_command(arguments)}")
        return processes.run_json(*arguments)


def save_summary(summary: Summary, folder: Path) -> Path:
    """Write ``summary.json`` and return its path."""
    path = folder / "summary.json"
    path.write_text(codec.encode_json_pretty(summary) + "\n", encoding="utf-8")
    return path


def _summary(
    group: Fleet,
    rollouts: tuple[Any, Any],
    releases: tuple[Release, Release],
    back: int,
    answer: str,
) -> Summary:
    first, second = rollouts
    return Summary(
        devices=len(fleet.DEVICES),
        requests_sent=0,
        requests_failed=0,
        release_1=releases[0].label,
        release_1_done=first["state"] == DONE,
        release_2=releases[1].label,
        release_2_halted=second["state"] == HALTED,
        halt_reason=second["reason"],
        devices_exposed=fleet.exposed(second),
        devices_back_on_release_1=back,
        bytes_shipped=group.bytes_shipped(),
        variants=fleet.variant_summaries(releases[0]),
        question=QUESTION,
        answer=answer,
        seconds=0.0,
    )


def _with_load(summary: Summary, sent: int, failed: int, began: float) -> Summary:
    summary = dataclasses.replace(
        summary,
        requests_sent=sent,
        requests_failed=failed,
        seconds=round(time.monotonic() - began, 1),
    )
    return dataclasses.replace(summary, failures=tuple(_missing(summary)))


def _missing(summary: Summary) -> list[str]:
    """Return what the demo promised and this run did not show."""
    checks = {
        "the load sent requests": summary.requests_sent > 0,
        "no request failed": summary.requests_failed == 0,
        "release 1 reached the whole fleet": summary.release_1_done,
        "release 2 halted by itself": summary.release_2_halted,
        "the halt has a reason": bool(summary.halt_reason),
        "release 2 did not reach every device": (
            0 < summary.devices_exposed < summary.devices
        ),
        "every device is back on release 1": (
            summary.devices_back_on_release_1 == summary.devices
        ),
        "a device answered the question": bool(summary.answer.strip()),
        "artefacts were shipped": summary.bytes_shipped > 0,
    }
    return [what for what, holds in checks.items() if not holds]
