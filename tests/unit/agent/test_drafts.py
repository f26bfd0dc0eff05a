"""A variant that is served with a draft needs both artefacts whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.link import http_client
from slmops.agent.records import Deployment
from slmops.agent.slots import SlotStore
from slmops.domain.device import DeviceClass
from slmops.domain.errors import NotFoundError, UntrustedError
from slmops.domain.installation import State
from slmops.domain.runtime_settings import RuntimeSettings
from slmops.registry.trust import TrustedRegistry
from slmops.testing.agent_in_process import ARTEFACTS, GOLDEN, AgentInProcess
from slmops.testing.raw_server import RawServer
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    digest_of,
    publish_sample,
    sample_release,
)

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


def publish_with_draft(folder: Path, draft: bytes) -> PublishedSample:
    everybody = DeviceClass(name="any", context_tokens=256, runtime="echo")
    release = sample_release(
        1, classes=(everybody,), artefacts={"any": ARTEFACTS[1]}, golden=GOLDEN
    )
    settings = RuntimeSettings(
        kv_cache="q8_0", draft=digest_of(draft), draft_bytes=len(draft)
    )
    variants = tuple(
        replace(variant, settings=settings, golden_logprobs=(-0.1,))
        for variant in release.variants
    )
    return publish_sample(
        folder,
        [replace(release, variants=variants)],
        artefacts=[ARTEFACTS[1], draft],
        now=SAMPLE_TIME,
    )


@pytest.mark.slow
def test_a_device_fetches_the_draft_too_and_serves_with_it(tmp_path: Path) -> None:
    draft = ARTEFACTS[2]
    published = publish_with_draft(tmp_path / "workspace", draft)
    with RawServer(replies=[]) as server, http_client(server.url) as client:
        device = AgentInProcess(tmp_path, server, client, published)
        device.assign(1, 1)
        states = device.steps()
        assert states[-1] is State.IDLE
        assert device.serves() == "sample-1"
        outcome = device.journal.last_outcome()
        assert outcome is not None
        assert outcome.bytes_downloaded == len(ARTEFACTS[1]) + len(draft)
        serving = device.models.serving
        assert serving is not None
        started = device.models._worker_settings(serving.deployment)
        assert started.kv_cache == "q8_0"
        assert started.draft is not None
        assert Path(started.draft).read_bytes() == draft
        # A draft that rots is fetched again before anything is served with it.
        Path(started.draft).write_bytes(b"rotten")
        assert device.restart() is not None
        device.steps()
        assert device.slots.verified(serving.deployment).is_file()
        device.close()


def test_the_release_signer_vouches_for_the_draft(tmp_path: Path) -> None:
    published = publish_with_draft(tmp_path / "workspace", ARTEFACTS[2])
    release = published.releases[0]
    variant = release.variants[0]
    assert {digest_of(ARTEFACTS[1]), digest_of(ARTEFACTS[2])} == {
        digest for digest, _ in variant.artefacts
    }
    for digest, size in variant.artefacts:
        path = f"blobs/sha256/{digest.rpartition(':')[2]}"
        assert trusted(published, tmp_path).target(path)[0] == size


def trusted(published: PublishedSample, folder: Path) -> TrustedRegistry:
    registry = TrustedRegistry(
        folder / "trust",
        published.keys.root_json,
        published.workspace.registry,
        now=lambda: SAMPLE_TIME,
    )
    registry.refresh()
    return registry
