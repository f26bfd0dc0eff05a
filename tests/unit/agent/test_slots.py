"""Slots: the pointer always names a whole deployment, and only whole bytes are served."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.records import Deployment, Slots
from slmops.agent.slots import POINTER, SlotStore
from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.domain.ids import digest_hex
from slmops.testing.sample_deployment import sample_deployment


@pytest.fixture
def slots(tmp_path: Path) -> SlotStore:
    return SlotStore(tmp_path)


def deployment(slots: SlotStore, number: int) -> Deployment:
    content = f"artefact {number}".encode()
    return replace(
        sample_deployment(slots.blobs.put_bytes(content), len(content)),
        release=f"sample-{number}",
        release_digest=slots.blobs.put_bytes(b"release"),
        memory_limit_mib=100.0,
        assignment=number,
    )


def spoil(slots: SlotStore, which: Deployment) -> Path:
    path = slots.blobs.path(which.variant)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return path


def test_a_new_device_has_nothing(slots: SlotStore) -> None:
    assert slots.read() == Slots()
    assert slots.heal() == (Slots(), None)


def test_activating_keeps_what_was_and_may_be_repeated(slots: SlotStore) -> None:
    one, two = deployment(slots, 1), deployment(slots, 2)
    assert slots.activate(one) == Slots(active=one)
    for _ in range(2):
        assert slots.activate(two) == Slots(active=two, previous=one)
    assert slots.read() == Slots(active=two, previous=one)


def test_rolling_back_returns_to_what_was_and_may_be_repeated(
    slots: SlotStore,
) -> None:
    one, two = deployment(slots, 1), deployment(slots, 2)
    slots.activate(one)
    slots.activate(two)
    for _ in range(2):
        assert slots.roll_back(two) == Slots(active=one)


def test_rolling_back_what_was_never_activated_changes_nothing(
    slots: SlotStore,
) -> None:
    one = deployment(slots, 1)
    slots.activate(one)
    assert slots.roll_back(deployment(slots, 2)) == Slots(active=one)


def test_rolling_back_the_first_installation_leaves_no_model(slots: SlotStore) -> None:
    one = deployment(slots, 1)
    slots.activate(one)
    assert slots.roll_back(one) == Slots()


def test_a_failed_write_leaves_the_old_pointer(
    slots: SlotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = deployment(slots, 1)
    slots.activate(one)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        slots.activate(replace(one, release="sample-2"))
    assert slots.read() == Slots(active=one)
    assert [path.name for path in slots.blobs.root.glob(".partial*")] == []


def test_the_pointer_is_for_the_owner_only(slots: SlotStore, tmp_path: Path) -> None:
    slots.activate(deployment(slots, 1))
    assert (tmp_path / POINTER).stat().st_mode & 0o777 == 0o600


def test_a_damaged_pointer_is_said_not_guessed(
    slots: SlotStore, tmp_path: Path
) -> None:
    (tmp_path / POINTER).write_bytes(b'{"active": 3}')
    with pytest.raises(InvalidInputError, match="active"):
        slots.read()


def test_damaged_bytes_are_never_served_and_are_removed(slots: SlotStore) -> None:
    one = deployment(slots, 1)
    path = spoil(slots, one)
    with pytest.raises(UntrustedError, match="damaged"):
        slots.verified(one)
    assert not path.exists()
    with pytest.raises(NotFoundError):
        slots.verified(one)


def test_damage_is_seen_though_size_and_time_are_unchanged(slots: SlotStore) -> None:
    one = deployment(slots, 1)
    slots.verified(one)
    path = slots.blobs.path(one.variant)
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(UntrustedError):
        slots.verified(one)


def test_healing_falls_back_to_the_previous_artefact(slots: SlotStore) -> None:
    one, two = deployment(slots, 1), deployment(slots, 2)
    slots.activate(one)
    slots.activate(two)
    spoil(slots, two)
    found, mended = slots.heal()
    assert found == Slots(active=one)
    assert slots.read() == found
    assert mended is not None
    assert "sample-2" in mended
    assert "serving sample-1" in mended


def test_healing_with_nothing_whole_left_serves_nothing(slots: SlotStore) -> None:
    one, two = deployment(slots, 1), deployment(slots, 2)
    slots.activate(one)
    slots.activate(two)
    spoil(slots, one)
    slots.blobs.remove(two.variant)
    found, mended = slots.heal()
    assert found == Slots()
    assert mended is not None
    assert "no model" in mended


def test_garbage_is_what_no_slot_and_no_installation_needs(slots: SlotStore) -> None:
    one, two, three = (deployment(slots, number) for number in (1, 2, 3))
    four = deployment(slots, 4)
    slots.activate(one)
    slots.activate(two)
    removed = slots.collect_garbage([three.variant])
    assert removed == 2  # the fourth, and the release document
    assert all(slots.blobs.has(each.variant) for each in (one, two, three))
    assert not slots.blobs.has(four.variant)
    assert digest_hex(one.variant) in {p.name for p in slots.blobs.folder.iterdir()}
