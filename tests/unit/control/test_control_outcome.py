"""What follows from a sync: outcomes, telemetry, bytes."""

from dataclasses import replace

from slmops.control.outcome import (
    downloaded_since,
    live_after,
    outcome_of_sync,
    telemetry_after,
)
from slmops.control.records import DeviceStatus, Telemetry
from slmops.domain.ids import Digest
from slmops.domain.installation import State
from slmops.domain.members import Member, Outcome
from slmops.domain.report import GRID_CELLS, GRID_PER_S, grid_cell
from slmops.domain.soak import LiveCounts
from slmops.domain.sync import (
    Assignment,
    InstallationReport,
    Installed,
    Report,
    TrialResult,
)

VARIANT = Digest("sha256:" + "1" * 64)
MEMBER = Member(device="a", device_class="small", wave=0, offered_at=1.0)
TARGET = Installed(release="sample-2", variant=VARIANT)


def assignment(*, revert: bool = False) -> Assignment:
    return Assignment(
        device="a",
        sequence=2,
        rollout="r-1",
        release="sample-2",
        release_digest=VARIANT,
        variant=VARIANT,
        device_class="small",
        probation_s=1.0,
        issued_at=1.0,
        revert=revert,
    )


def installed(state: State, number: int = 2, **more: object) -> InstallationReport:
    return InstallationReport(assignment=number, state=state, entered_at=0.0, **more)  # type: ignore[arg-type]


def outcome(status: DeviceStatus, *, member: Member = MEMBER) -> Member:
    return outcome_of_sync(member, assignment(), status)


def test_a_roll_back_takes_the_trials_reason_when_there_is_no_other() -> None:
    trial = TrialResult(passed=False, reason="too slow: 3 tok/s", paired_loss=0.4)
    said = outcome(DeviceStatus(installation=installed(State.ROLLED_BACK, trial=trial)))
    assert (said.outcome, said.reason) == (Outcome.FAILED, "too slow: 3 tok/s")
    assert said.paired_loss == 0.4


def test_an_older_installation_says_nothing_about_this_assignment() -> None:
    status = DeviceStatus(assignment=1, installation=installed(State.COMMITTED, 1))
    assert outcome(status) == MEMBER


def test_a_target_that_serves_already_counts_once_acknowledged() -> None:
    assert outcome(DeviceStatus(assignment=1, active=TARGET)) == MEMBER
    said = outcome(DeviceStatus(assignment=2, active=TARGET))
    assert said.outcome is Outcome.SUCCEEDED


def test_the_same_artefact_of_another_release_is_not_the_target() -> None:
    other = Installed(release="sample-1", variant=VARIANT)
    assert outcome(DeviceStatus(assignment=2, active=other)) == MEMBER


def test_a_quarantined_target_has_failed() -> None:
    said = outcome(DeviceStatus(assignment=2, quarantined=(VARIANT,)))
    assert said.outcome is Outcome.FAILED
    assert "quarantined" in said.reason


def test_a_revert_settles_nothing() -> None:
    status = DeviceStatus(assignment=2, installation=installed(State.ROLLED_BACK))
    assert outcome_of_sync(MEMBER, assignment(revert=True), status) == MEMBER


def test_silence_that_was_counted_stays_counted() -> None:
    silent = Member(
        device="a", device_class="small", wave=0, outcome=Outcome.SILENT, offered_at=1.0
    )
    status = DeviceStatus(installation=installed(State.COMMITTED))
    assert outcome(status, member=silent) is silent


def test_a_commit_that_is_rolled_back_later_has_failed() -> None:
    good = outcome(DeviceStatus(installation=installed(State.COMMITTED)))
    assert good.outcome is Outcome.SUCCEEDED
    later = DeviceStatus(installation=installed(State.ROLLED_BACK, reason="crashes"))
    assert outcome(later, member=good).outcome is Outcome.FAILED


def report(number: int, *, release: str = "sample-2", failures: int = 0) -> Report:
    """Return a window of ten seconds that ends at `number` times ten."""
    return Report(
        sequence=number,
        started_at=number * 10.0 - 10,
        ended_at=number * 10.0,
        release=release,
        requests=10,
        failures=failures,
        peak_rss_mib=200.0 + number,
    )


def test_traffic_of_the_release_counts_from_its_commit_on() -> None:
    trial = TrialResult(passed=True, reason="", peak_rss_mib=90.0)
    commit = InstallationReport(
        assignment=2, state=State.COMMITTED, entered_at=25.0, trial=trial
    )
    status = DeviceStatus(installation=commit)
    good = outcome(status)
    assert good.live == LiveCounts(peak_rss_mib=90.0)
    reports = (
        report(2, failures=10),
        report(3, failures=1),
        report(4, release="sample-1", failures=10),
        report(5),
    )
    after = live_after(good, assignment(), status, reports)
    assert after.live == LiveCounts(requests=20, failures=1, peak_rss_mib=205.0)
    reverting = assignment(revert=True)
    assert live_after(good, reverting, status, reports) == good


def test_a_device_that_runs_no_release_of_the_rollout_counts_nothing() -> None:
    assert live_after(MEMBER, assignment(), DeviceStatus(), (report(1),)) == MEMBER


def test_a_failure_is_final_whatever_the_device_says_again() -> None:
    status = DeviceStatus(installation=installed(State.COMMITTED))
    bad = replace(outcome(status), outcome=Outcome.FAILED, reason="restarts")
    assert outcome(status, member=bad) == bad
    back = DeviceStatus(installation=installed(State.ROLLED_BACK))
    assert outcome(back, member=bad).live is None


def test_reports_add_up_and_a_quiet_window_keeps_the_last_speed() -> None:
    speeds = [0] * GRID_CELLS
    speeds[grid_cell(GRID_PER_S, 40.0)] = 9
    busy = Report(
        sequence=1,
        started_at=0,
        ended_at=1,
        release=None,
        requests=9,
        failures=1,
        decode_tokens_per_s=tuple(speeds),
        peak_rss_mib=230.0,
    )
    quiet = Report(sequence=2, started_at=1, ended_at=2, release=None)
    now = telemetry_after(Telemetry(requests=1), (busy, quiet))
    assert (now.requests, now.failures, now.peak_rss_mib) == (10, 1, 230.0)
    assert now.decode_tokens_per_s is not None
    assert 30 < now.decode_tokens_per_s < 50


def test_bytes_count_once_per_installation() -> None:
    half = DeviceStatus(installation=installed(State.DOWNLOADING, bytes_downloaded=50))
    whole = DeviceStatus(installation=installed(State.VERIFIED, bytes_downloaded=100))
    following = DeviceStatus(
        installation=installed(State.DOWNLOADING, 3, bytes_downloaded=30)
    )
    steps = [DeviceStatus(), half, half, whole, following]
    total = sum(map(downloaded_since, steps, steps[1:]))
    assert total == 130
