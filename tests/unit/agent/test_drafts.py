"""A variant that is served with a draft needs both artefacts whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.records import Deployment
from slmops.agent.slots import SlotStore
from slmops.domain.errors import NotFoundError, UntrustedError
from slmops.domain.runtime_settings import RuntimeSettings
from slmops.testing.sample_deployment import sample_deployment

OWN, DRAFT = b"the variant", b"its draft"


@pytest.fixture
def slots(tmp_path: Path) -> SlotStore:
    return SlotStore(tmp_path)


@pytest.fixture
def deployment(slots: SlotStore) -> Deployment:
    settings = RuntimeSettings(
        draft=slots.blobs.put_bytes(DRAFT), draft_bytes=len(DRAFT)
    )
    plain = sample_deployment(slots.blobs.put_bytes(OWN), len(OWN))
    return replace(plain, settings=settings)


def draft_path(slots: SlotStore, deployment: Deployment) -> Path:
    assert deployment.settings.draft is not None
    return slots.blobs.path(deployment.settings.draft)


def test_the_pointer_keeps_the_settings(
    slots: SlotStore, deployment: Deployment
) -> None:
    slots.activate(deployment)
    assert slots.read().active == deployment


def test_a_draft_is_kept_as_long_as_its_variant(
    slots: SlotStore, deployment: Deployment
) -> None:
    slots.blobs.put_bytes(b"of nobody")
    slots.activate(deployment)
    assert slots.collect_garbage() == 1
    assert slots.verified(deployment).read_bytes() == OWN
    assert draft_path(slots, deployment).read_bytes() == DRAFT


def test_a_variant_whose_draft_rotted_is_not_served(
    slots: SlotStore, deployment: Deployment
) -> None:
    slots.activate(deployment)
    draft_path(slots, deployment).write_bytes(b"its drift")
    with pytest.raises(UntrustedError):
        slots.verified(deployment)
    # Removed, so that it is fetched anew.
    with pytest.raises(NotFoundError):
        slots.verified(deployment)
    healed, mended = slots.heal()
    assert healed.active is None
    assert mended is not None
