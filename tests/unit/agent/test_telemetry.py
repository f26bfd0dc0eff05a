"""Counts: nothing is lost or doubled, and nothing but numbers is kept."""

import threading

import pytest

from slmops.agent.telemetry import Answered, Telemetry
from slmops.domain.errors import UnavailableError
from slmops.domain.report import GRID_CELLS, GRID_MS, GRID_PER_S, grid_cell
from slmops.domain.soak import LiveCounts
from slmops.domain.sync import Report
from slmops.testing.clock import SimulatedClock


class Collected:
    """Telemetry with a clock and numbered reports."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.telemetry = Telemetry(self.clock.now)
        self._number = 0

    def reports(self) -> tuple[Report, ...]:
        closed: list[Report] = []
        self.telemetry.close_windows(self._next, closed.append)
        return tuple(closed)

    def _next(self) -> int:
        self._number += 1
        return self._number


def test_a_window_holds_what_happened_in_it() -> None:
    made = Collected()
    begun = made.clock.now()
    made.telemetry.answered(
        "sample-1",
        Answered(output_tokens=7, first_token_ms=120.0, decode_tokens_per_s=40.0),
    )
    made.clock.advance(10)
    made.telemetry.answered("sample-1", Answered(output_tokens=1))
    made.telemetry.failed("sample-1")
    made.telemetry.restarted("sample-1")
    made.telemetry.used_memory("sample-1", 200.0)
    made.telemetry.used_memory("sample-1", 150.0)
    (report,) = made.reports()
    assert (report.sequence, report.release) == (1, "sample-1")
    assert (report.started_at, report.ended_at) == (begun, begun + 10)
    assert (report.requests, report.failures, report.restarts) == (3, 1, 1)
    assert report.output_tokens == 8
    assert report.peak_rss_mib == 200.0
    assert sum(report.first_token_ms) == 1
    assert report.first_token_ms[grid_cell(GRID_MS, 120.0)] == 1
    assert report.decode_tokens_per_s[grid_cell(GRID_PER_S, 40.0)] == 1
    assert len(report.first_token_ms) == GRID_CELLS


def test_each_release_has_a_window_of_its_own_and_a_number_of_its_own() -> None:
    made = Collected()
    made.telemetry.answered("sample-1", Answered())
    made.telemetry.failed("sample-2")
    made.telemetry.failed(None)
    reports = {report.release: report for report in made.reports()}
    assert set(reports) == {"sample-1", "sample-2", None}
    assert sorted(report.sequence for report in reports.values()) == [1, 2, 3]
    assert reports["sample-1"].failures == 0


def test_empty_histograms_are_left_out() -> None:
    made = Collected()
    made.telemetry.failed("sample-1")
    (report,) = made.reports()
    assert report.first_token_ms == report.decode_tokens_per_s == ()


def test_a_quiet_window_is_reported_once_for_its_memory_and_then_no_more() -> None:
    made = Collected()
    for _ in range(3):
        made.telemetry.used_memory("sample-1", 200.0)
    (report,) = made.reports()
    assert (report.requests, report.peak_rss_mib) == (0, 200.0)
    made.telemetry.used_memory("sample-1", 210.0)
    assert made.reports() == ()
    made.telemetry.answered("sample-1", Answered())
    made.telemetry.used_memory("sample-1", 205.0)
    (report,) = made.reports()
    assert report.peak_rss_mib == 205.0
    assert made.reports() == ()


def test_live_counts_go_on_over_windows() -> None:
    made = Collected()
    made.telemetry.failed("sample-1")
    before = made.telemetry.live("sample-1")
    made.reports()
    made.telemetry.answered("sample-1", Answered())
    made.telemetry.restarted("sample-1")
    since = made.telemetry.live("sample-1").since(before)
    assert since == LiveCounts(requests=1, failures=0, restarts=1)
    assert made.telemetry.live("sample-2") == LiveCounts()


def test_no_count_is_lost_between_threads() -> None:
    made = Collected()
    reports: list[Report] = []

    def count() -> None:
        for _ in range(2000):
            made.telemetry.answered("sample-1", Answered(output_tokens=1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        reports += made.reports()
    reports += made.reports()
    assert sum(report.requests for report in reports) == 8000
    assert sum(report.output_tokens for report in reports) == 8000
    numbers = [report.sequence for report in reports]
    assert numbers == sorted(set(numbers))


def test_figures_beyond_the_grid_land_in_its_outer_cells() -> None:
    made = Collected()
    for value in (0.0, 1e-9, 1e12):
        made.telemetry.answered("r-1", Answered(first_token_ms=value))
    (report,) = made.reports()
    assert (report.first_token_ms[0], report.first_token_ms[-1]) == (2, 1)


def test_what_could_not_be_kept_is_counted_in_the_next_window() -> None:
    made = Collected()
    begun = made.clock.now()
    for release in ("sample-1", "sample-2", None):
        made.telemetry.answered(release, Answered(output_tokens=1, first_token_ms=5.0))
    made.telemetry.used_memory("sample-2", 100.0)
    kept: list[Report] = []

    def keep_one(report: Report) -> None:
        if kept:
            raise UnavailableError("journal: full")
        kept.append(report)

    made.clock.advance(1)
    with pytest.raises(UnavailableError):
        made.telemetry.close_windows(made._next, keep_one)
    made.telemetry.answered("sample-2", Answered(output_tokens=1))
    kept += made.reports()
    assert sum(report.requests for report in kept) == 4
    assert sum(sum(report.first_token_ms) for report in kept) == 3
    assert {report.started_at for report in kept} == {begun}
    assert max(report.peak_rss_mib for report in kept) == 100.0
    assert len({report.sequence for report in kept}) == 3
