"""Energy counters in a folder, as Linux shows them, for machines that have none.

`CountingZone` counts while time passes, in a thread, and starts again at its range.
"""

import threading
import time
from pathlib import Path

_STEP_S = 0.002
RANGE_UJ = 262_143_328_850
"""What a package of many Intel processors counts to."""


def write_zone(
    folder: Path, name: str, count_uj: int, *, range_uj: int = RANGE_UJ
) -> None:
    """Write a counter that stands still.

    Args:
        folder: ``…/intel-rapl:0``; made when missing.
        name: ``package-0``, ``dram``, ``core`` …
        count_uj: its count.
        range_uj: largest count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    _replace(folder / "energy_uj", count_uj)


class CountingZone:
    """A counter of a package that draws the same power all the time."""

    def __init__(self, folder: Path, *, watts: float, range_uj: int = RANGE_UJ) -> None:
        self._folder, self._watts, self._range_uj = folder, watts, range_uj
        self._passed_s = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def wraps(self) -> int:
        """How often it started again."""
        return self._total_uj() // self._range_uj

    def pass_s(self, seconds: float) -> None:
        """Let so much time pass at once, in the counter's own clock."""
        with self._lock:
            self._passed_s += seconds
            self._write()

    def run(self) -> "CountingZone":
        """Count real time from now on."""
        self._thread.start()
        return self

    def __enter__(self) -> "CountingZone":
        write_zone(self._folder, "package-0", 0, range_uj=self._range_uj)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        last = time.perf_counter()
        while not self._ended.wait(_STEP_S):
            now = time.perf_counter()
            self.pass_s(now - last)
            last = now

    def _total_uj(self) -> int:
        return round(self._passed_s * self._watts * 1e6)

    def _write(self) -> None:
        _replace(self._folder / "energy_uj", self._total_uj() % self._range_uj)


def _replace(path: Path, count: int) -> None:
    """Write so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(f"{count}\n")
    beside.replace(path)
