"""What the agent costs a device: resident memory when idle, and import time.

    python bench/agent_footprint.py [--rounds 5] [--skip-model] [--idle-s 60]
        [--install] [--json FILE]

Memory: real agents, enrolled to a real control plane, idle for some seconds; first with
no model, then after an echo release and SmolLM2-135M (Q4_K_M) were really installed, and
after a restart, when the update client is not loaded. The model's process is counted
apart. Baselines in the same run: `python -c pass`, and `import httpx`, as sleeping
processes.

CPU: of the agent alone over `--idle-s`, while an echo release is served and nobody asks
for anything, with the control plane's default poll of 30 s.

Install, with `--install` (asks a package index): the base package, its requirements and
their bytecode into an empty folder; pip itself is not counted.

Import time: new processes with compiled bytecode, interleaved; the first round only
warms up. Fails if a heavy library is loaded into the agent.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device import install, publish_model
from measure import (
    Column,
    Memory,
    children_of,
    cpu_ms,
    memory_of,
    options,
    print_table,
    shown,
    spread,
    write_json,
)
from model import import_smollm2, quantized

from slmops.domain.release import Estimate
from slmops.testing.stage import Stage, echo_artefact, stage

HEAVY = ("torch", "numpy", "pandas", "sqlalchemy", "alembic", "altair", "gguf", "rich")
"""Not to be found in an agent."""
SETTLE_S = 3.0
IMPORTS: Mapping[str, Sequence[str]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import httpx": (sys.executable, "-c", "import httpx"),
    "import slmops.agent.app": (sys.executable, "-c", "import slmops.agent.app"),
    "slmops --help": (sys.executable, "-m", "slmops", "--help"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One command, started anew several times."""

    wall_ms: Estimate
    """Start to end of the process."""
    cpu_ms: Estimate
    """User and system time."""
    modules: int
    """Modules imported, the interpreter's own included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Everything measured."""

    idle: dict[str, Memory]
    """Process → memory."""
    starts: dict[str, Start]
    """Command → time."""
    idle_cpu_percent: float
    """Of one core, at rest."""
    install_mb: float | None
    """Bytes of all files installed, MB; None when not asked for."""


def measure_starts(rounds: int) -> dict[str, Start]:
    """Time every command in turn, round after round."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        times = [
            [_timed(command, environment) for command in IMPORTS.values()]
            for _ in range(rounds + 1)
        ][1:]
        return {
            name: Start(
                wall_ms=spread([row[index][0] for row in times]),
                cpu_ms=spread([row[index][1] for row in times]),
                modules=_modules(command, environment),
            )
            for index, (name, command) in enumerate(IMPORTS.items())
        }


def _timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return 1000 * wall, 1000 * (used.ru_utime + used.ru_stime)


def _modules(command: Sequence[str], environment: dict[str, str]) -> int:
    traced = [command[0], "-X", "importtime", *command[1:]]
    done = subprocess.run(traced, env=environment, capture_output=True, check=True)
    return done.stderr.count(b"import time:") - 1


def refuse_heavy() -> None:
    """Fail if importing the agent imports what a device cannot afford."""
    code = f"import sys, slmops.agent.app; print(*set({HEAVY}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert not done.stdout.strip(), f"the agent imports {done.stdout}"


def refuse_heavy_maps(pid: int) -> None:
    """Fail if a running process has mapped an extension of a heavy library."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = [name for name in HEAVY if f"/site-packages/{name}/" in maps]
    assert not found, f"agent {pid} has loaded {found}"


def measure_idle(folder: Path, *, with_model: bool) -> dict[str, Memory]:
    """Bring agents to rest in every situation and read their memory."""
    found = {
        "python -c pass": _sleeper("pass"),
        "import httpx": _sleeper("import httpx"),
    }
    with stage(folder / "echo") as fleet:
        fleet.serve()
        state = fleet.enrol("device")
        found["agent, no model"] = _idle(fleet, state)
        label = fleet.publish(1, echo_artefact()).label
        install(fleet, state, label)
        found |= _installed(fleet, state, "echo")
    if with_model:
        found |= _with_model(folder)
    return found


def _with_model(folder: Path) -> dict[str, Memory]:
    workspace, record = import_smollm2(folder / "models")
    artefact = quantized(workspace, record, "Q4_K_M")
    with stage(folder / "real") as fleet:
        label = publish_model(fleet, record, artefact)
        fleet.serve()
        state = fleet.enrol("device")
        fleet.start_agent(state)
        install(fleet, state, label)
        return _installed(fleet, state, "SmolLM2")


def _installed(fleet: Stage, state: Path, name: str) -> dict[str, Memory]:
    after = _read(fleet.process(state.name).pid)
    fleet.stop(state.name)
    fleet.start_agent(state)
    pid = fleet.process(state.name).pid
    restarted = _read(pid)
    assert fleet.serving(state), f"{name} does not serve"
    (child,) = children_of(pid)
    return {
        f"agent, {name}, just installed": after,
        f"agent, {name}, restarted": restarted,
        f"  {name}'s own process": memory_of(child),
    }


def _idle(fleet: Stage, state: Path) -> Memory:
    fleet.start_agent(state)
    return _read(fleet.process(state.name).pid)


def _read(pid: int) -> Memory:
    time.sleep(SETTLE_S)
    refuse_heavy_maps(pid)
    return memory_of(pid)


def measure_idle_cpu(folder: Path, seconds: float) -> float:
    """Return the share of one core, in percent, of an agent that serves and waits."""
    with stage(folder / "cpu") as fleet:
        label = fleet.publish(1, echo_artefact()).label
        fleet.serve()
        state = fleet.enrol("device")
        fleet.start_agent(state)
        install(fleet, state, label)
        port = int(fleet.url.rpartition(":")[2])
        # The stage polls five times a second; the poll that ships is 30 s.
        fleet.stop("control")
        fleet.start("control", ["serve", "--port", str(port)])
        fleet.stop(state.name)
        fleet.start_agent(state)
        time.sleep(2 * SETTLE_S)
        pid = fleet.process(state.name).pid
        begun, before = time.perf_counter(), cpu_ms(pid)
        time.sleep(seconds)
        used = cpu_ms(pid) - before
        assert fleet.serving(state)
        return 0.1 * used / (time.perf_counter() - begun)


def measure_install(folder: Path) -> float:
    """Install the base package into a folder; return its bytes, MB."""
    root = Path(__file__).parents[1]
    target = folder / "install"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target))
    subprocess.run([*pip, "-c", str(root / "constraints.txt"), str(root)], check=True)
    files = (path for path in target.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / 1e6


def _sleeper(code: str) -> Memory:
    command = f"{code}; print(flush=True); import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return memory_of(process.pid)


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--skip-model", action="store_true", help="echo only")
    parser.add_argument("--idle-s", type=float, default=60.0, help="for the CPU")
    parser.add_argument("--install", action="store_true", help="install and weigh")
    chosen = parser.parse_args()
    refuse_heavy()
    starts = measure_starts(chosen.rounds)
    with tempfile.TemporaryDirectory() as folder:
        idle = measure_idle(Path(folder), with_model=not chosen.skip_model)
        cpu = measure_idle_cpu(Path(folder), chosen.idle_s)
        install_mb = measure_install(Path(folder)) if chosen.install else None
    print_table(
        (
            Column(title="idle", width=32),
            Column(title="RSS MiB", width=8),
            Column(title="PSS MiB", width=8),
            Column(title="private MiB", width=11),
        ),
        [
            (name, f"{m.rss_mib:.1f}", f"{m.pss_mib:.1f}", f"{m.private_mib:.1f}")
            for name, m in idle.items()
        ],
    )
    print()
    print_table(
        (
            Column(title="start and end", width=32),
            Column(title="wall ms", width=16),
            Column(title="CPU ms", width=16),
            Column(title="modules", width=7),
        ),
        [
            (name, shown(s.wall_ms, 0), shown(s.cpu_ms, 0), str(s.modules))
            for name, s in starts.items()
        ],
    )
    print(f"\nCPU at rest: {cpu:.2f} % of one core over {chosen.idle_s:g} s")
    if install_mb is not None:
        print(f"installed: {install_mb:.1f} MB")
    found = Footprint(
        idle=idle, starts=starts, idle_cpu_percent=cpu, install_mb=install_mb
    )
    write_json(chosen.json, found)


if __name__ == "__main__":
    main()
