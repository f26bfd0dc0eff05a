"""What a sync says about a rollout's member and a device's telemetry: pure."""

import math
from collections.abc import Sequence
from dataclasses import replace

from slmops.control.records import DeviceStatus, Telemetry
from slmops.domain.installation import State
from slmops.domain.members import Member, Outcome
from slmops.domain.report import GRID_MS, GRID_PER_S, grid_quantile
from slmops.domain.soak import LiveCounts
from slmops.domain.sync import Assignment, InstallationReport, Installed, Report


def outcome_of_sync(
    member: Member, assignment: Assignment, status: DeviceStatus
) -> Member:
    """Return the member as it is after its device said `status`.

    Args:
        member: as stored.
        assignment: the device's newest; one that reverts settles nothing.
        status: what the device said.

    A deferral (WAITING) is not a failure: the member stays pending. A device that
    committed and later rolls the same assignment back has failed. A device that was
    silent past its deadline stays so: its silence has been counted; so does one that
    failed.
    """
    if assignment.revert or member.outcome is Outcome.SILENT:
        return member
    installation = status.installation
    if installation is not None and installation.assignment == assignment.sequence:
        return _from_installation(member, installation)
    if status.assignment < assignment.sequence:
        return member
    return _from_slots(member, assignment, status)


def _from_installation(member: Member, installation: InstallationReport) -> Member:
    trial = installation.trial
    loss = member.paired_loss if trial is None else trial.paired_loss
    if installation.state is State.COMMITTED:
        peak = None if trial is None else trial.peak_rss_mib
        return replace(_committed(member, peak), paired_loss=loss)
    if installation.state is State.ROLLED_BACK:
        said = installation.reason or ("" if trial is None else trial.reason)
        reason = said or "rolled back; the device gave no reason"
        return replace(
            member,
            outcome=Outcome.FAILED,
            reason=reason,
            paired_loss=loss,
            live=None,
        )
    return member


def _committed(member: Member, peak_rss_mib: float | None) -> Member:
    """Return the member on the release; what its traffic showed since then stands."""
    if member.outcome is Outcome.FAILED:
        return member
    live = member.live or LiveCounts(peak_rss_mib=peak_rss_mib)
    return replace(member, outcome=Outcome.SUCCEEDED, reason="", live=live)


def live_after(
    member: Member,
    assignment: Assignment,
    status: DeviceStatus,
    reports: Sequence[Report],
) -> Member:
    """Add what a device reported of a release since it committed it.

    Args:
        member: as `outcome_of_sync` left it.
        assignment: one that the sync is about; one that reverts counts nothing.
        status: what the device said.
        reports: each new.

    A window that began in probation and ended after the commit counts whole: the device
    judged the first part by the same rule, and what follows must not be lost.
    """
    if assignment.revert or member.live is None:
        return member
    installation = status.installation
    committed_at = (
        installation.entered_at
        if installation is not None
        and installation.assignment == assignment.sequence
        and installation.state is State.COMMITTED
        else -math.inf
    )
    live = member.live
    for report in reports:
        if report.release == assignment.release and report.ended_at > committed_at:
            live = live.plus(
                LiveCounts(
                    requests=report.requests,
                    failures=report.failures,
                    restarts=report.restarts,
                    peak_rss_mib=report.peak_rss_mib or None,
                )
            )
    return replace(member, live=live)


def _from_slots(member: Member, assignment: Assignment, status: DeviceStatus) -> Member:
    """Settle an acknowledged assignment that needed no installation."""
    target = Installed(release=assignment.release, variant=assignment.variant)
    if status.active == target:
        return _committed(member, None)
    if assignment.variant in status.quarantined:
        return replace(
            member,
            outcome=Outcome.FAILED,
            reason=f"variant {assignment.variant[:19]} is quarantined on the device",
        )
    return member


def telemetry_after(before: Telemetry, reports: Sequence[Report]) -> Telemetry:
    """Add reports, each new and oldest first, to a device's telemetry."""
    now = before
    for report in reports:
        first_token = grid_quantile(GRID_MS, report.first_token_ms, 0.5)
        decode = grid_quantile(GRID_PER_S, report.decode_tokens_per_s, 0.5)
        now = replace(
            now,
            requests=now.requests + report.requests,
            failures=now.failures + report.failures,
            output_tokens=now.output_tokens + report.output_tokens,
            restarts=now.restarts + report.restarts,
            first_token_ms=now.first_token_ms if first_token is None else first_token,
            decode_tokens_per_s=now.decode_tokens_per_s if decode is None else decode,
            peak_rss_mib=report.peak_rss_mib or now.peak_rss_mib,
        )
    return now


def downloaded_since(before: DeviceStatus, after: DeviceStatus) -> int:
    """Return the artefact bytes a device received between two things it said."""
    if after.installation is None:
        return 0
    bytes_now = after.installation.bytes_downloaded
    old = before.installation
    if old is not None and old.assignment == after.installation.assignment:
        return max(bytes_now - old.bytes_downloaded, 0)
    return max(bytes_now, 0)
