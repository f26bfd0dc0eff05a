"""What a device should run against what it says it runs: pure."""

from enum import StrEnum

from slmops.control.records import DeviceStatus
from slmops.domain.installation import State
from slmops.domain.sync import Assignment, InstallationReport, Installed


class Drift(StrEnum):
    """How far a device is from what the director wants of it."""

    NOTHING = "nothing"
    """Nothing was ever wanted of it."""
    IN_STEP = "in-step"
    """It runs what it should."""
    ON_ITS_WAY = "on-its-way"
    """It has not heard of the order yet, or works on it."""
    REFUSED = "refused"
    """Its own trial or quarantine spoke against it: a person must look."""
    ADRIFT = "adrift"
    """It ran it and does not any more; its agent installs it anew by itself."""


def drift_of(desired: Assignment | None, status: DeviceStatus) -> tuple[Drift, str]:
    """Compare the newest order with what a device said last.

    Returns:
        How it stands, and why, for people; the reason is empty when all is well.
    """
    if desired is None:
        return Drift.NOTHING, ""
    wanted = Installed(release=desired.release, variant=desired.variant)
    if status.active == wanted:
        return Drift.IN_STEP, ""
    if status.assignment < desired.sequence:
        return Drift.ON_ITS_WAY, "it has not taken the order yet"
    work = status.installation
    mine = work is not None and work.assignment == desired.sequence
    if work is not None and mine and work.state is not State.COMMITTED:
        return _unfinished(work)
    if desired.variant in status.quarantined:
        return Drift.REFUSED, "its variant is quarantined on the device"
    runs = status.active.release if status.active else "nothing"
    return Drift.ADRIFT, f"it runs {runs}; its agent installs {desired.release} anew"


def _unfinished(work: InstallationReport) -> tuple[Drift, str]:
    if work.state is State.ROLLED_BACK:
        return Drift.REFUSED, work.reason or "rolled back"
    why = f": {work.reason}" if work.reason else ""
    return Drift.ON_ITS_WAY, f"{work.state.value}{why}"
