"""Devices, rollouts and syncs that the store's contract is tested with."""

from dataclasses import replace

from slmops.control.records import (
    Commit,
    DeviceRecord,
    DeviceStatus,
    Placed,
    StoredRollout,
    SyncChange,
)
from slmops.control.store import Store
from slmops.domain.blueprint import RolloutPolicy
from slmops.domain.device import DeviceFacts
from slmops.domain.ids import Digest
from slmops.domain.installation import State
from slmops.domain.members import Member
from slmops.domain.rollout import Rollout
from slmops.domain.sync import Assignment, InstallationReport, Installed, Report

FACTS = DeviceFacts(memory_mib=512, disk_mib=1000, cpu_count=1, architecture="x86_64")
VARIANT = Digest("sha256:" + "1" * 64)
BEFORE = Installed(release="sample-0", variant=Digest("sha256:" + "0" * 64))


def enrol(store: Store, *names: str) -> None:
    """Enrol devices at time 1."""
    for name in names:
        store.add_enrolment_token(f"token of {name}", expires_at=100.0)
        device = DeviceRecord(
            id=name, public_key="ab" * 32, enrolled_at=1.0, facts=FACTS
        )
        store.enrol(device, token_hash=f"token of {name}", now=1.0)


def start(store: Store, *devices: str) -> Rollout:
    """Start a rollout with these devices in wave 0 at time 2."""
    rollout = Rollout(
        id="r-0",
        release="sample-1",
        policy=RolloutPolicy(),
        classes=("small",),
        waves=4,
    )
    placed = [
        Placed(member=Member(device=device, device_class="small", wave=0))
        for device in devices
    ]
    stored = StoredRollout(rollout=rollout, product="sample", created_at=2.0)
    return store.create_rollout(stored, placed, [])


def offer(store: Store, rollout: Rollout, device: str, **changes: bool) -> Rollout:
    """Commit an assignment for a device at time 3."""
    assignment = Assignment(
        device=device,
        sequence=0,
        rollout=rollout.id,
        release=rollout.release,
        release_digest=VARIANT,
        variant=VARIANT,
        device_class="small",
        probation_s=1.0,
        issued_at=3.0,
        **changes,
    )
    member = Member(device=device, device_class="small", wave=0, offered_at=3.0)
    return store.commit(
        Commit(
            rollout=rollout,
            at=3.0,
            members=(Placed(member=member, before=BEFORE),),
            assignments=(assignment,),
        )
    )


def change(device: str, **status: object) -> SyncChange:
    """Return a sync at time 4."""
    return SyncChange(
        device=device,
        at=4.0,
        facts=FACTS,
        labels={},
        status=replace(DeviceStatus(), **status),  # type: ignore[arg-type]
    )


def report(sequence: int, *, requests: int = 0) -> Report:
    """Return a report."""
    return Report(
        sequence=sequence,
        started_at=0.0,
        ended_at=1.0,
        release=None,
        requests=requests,
    )


def installed(sequence: int, state: State, reason: str = "") -> InstallationReport:
    """Return where an installation stands."""
    return InstallationReport(
        assignment=sequence, state=state, entered_at=0.0, reason=reason
    )
