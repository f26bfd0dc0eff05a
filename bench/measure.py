"""What the benchmarks share: options, spreads, processes, one table, one JSON file."""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.release import Estimate
from slmops.runtimes.speed import machine_fingerprint
from slmops.wire import codec

_DOUBT = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of one process, MiB."""

    rss_mib: float
    """Resident."""
    pss_mib: float
    """Resident, with shared pages divided among those who share them."""
    private_mib: float
    """Resident in this process alone: what ending it would give back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the table."""

    title: str
    """Its head."""
    width: int
    """Characters."""


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return the options every benchmark has: ``--rounds`` and ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path)
    return parser


def spread(values: Sequence[float]) -> Estimate:
    """Return the median with minimum and maximum."""
    return Estimate(value=statistics.median(values), low=min(values), high=max(values))


def median_interval(values: Sequence[float]) -> Estimate:
    """Return the median with its 95 % confidence interval (order statistics).

    No shape is assumed: disturbances by other processes only ever come from one side.

    >>> median_interval(list(range(1, 12)))
    Estimate(value=6, low=2, high=10)
    """
    ordered, count = sorted(values), len(values)
    below, outside = 0, 0.5**count
    while below < (count - 1) // 2 and 2 * outside <= _DOUBT:
        below += 1
        outside += math.comb(count, below) * 0.5**count
    place = max(below - 1, 0)
    return Estimate(
        value=statistics.median(ordered),
        low=ordered[place],
        high=ordered[count - 1 - place],
    )


def shown(estimate: Estimate, digits: int = 1) -> str:
    """Write a median and its range: ``12.3 (11.9–14.0)``."""
    value, low, high = (
        f"{number:.{digits}f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low}–{high})"


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column goes left, the others right."""
    heads = [column.title for column in columns]
    for row in (heads, *rows):
        cells = [f"{row[0]:<{columns[0].width}}"]
        pairs = zip(row[1:], columns[1:], strict=True)
        cells += [f"{cell:>{column.width}}" for cell, column in pairs]
        print("  ".join(cells).rstrip())


def write_json(path: Path | None, results: object) -> None:
    """Write results and where they were measured, if a file was asked for."""
    if path is None:
        return
    document = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine_fingerprint("llamacpp"),
        "load_average": os.getloadavg()[0],
        "results": codec.to_plain(results),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def memory_of(pid: int) -> Memory:
    """Read a process's memory (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, rest in (x.split(":") for x in lines)}
    return Memory(
        rss_mib=kib["Rss"] / 1024,
        pss_mib=kib["Pss"] / 1024,
        private_mib=(kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
    )


def peak_mib(status: str) -> float:
    """Return the peak memory that a ``/proc/PID/status`` tells, MiB (Linux).

    Not `getrusage`: its figure remembers the process that started this one.
    """
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children (Linux)."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def cpu_ms(pid: int) -> float:
    """Return the CPU time of a process's living threads so far, ms (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def main_thread_cpu_ms(pid: int) -> float:
    """Return the CPU time of a process's main thread so far, ms (Linux)."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e6
