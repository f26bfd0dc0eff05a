"""Attacks on a device: one signer turned traitor, and clocks that lie.

Attacks on the metadata themselves are in ``registry/test_trust.py``, on the way of an
artefact in ``test_download.py``, on assignments in ``test_agent_sync.py``.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Snapshot,
    TargetFile,
    Targets,
)

from slmops.agent.link import http_client
from slmops.agent.offers import Offers
from slmops.domain.device import DeviceClass, DeviceFacts, Predicate, Range
from slmops.domain.errors import NotFoundError, UnavailableError, UntrustedError
from slmops.domain.installation import State
from slmops.domain.release import Release
from slmops.domain.sync import Assignment
from slmops.registry.envelope import seal
from slmops.registry.key_changes import KeyChanges, Wanted
from slmops.registry.key_folder import KeyAccess, load_director, signed_bytes
from slmops.registry.trust import TrustedRegistry
from slmops.testing.agent_in_process import AgentInProcess, publish_echo
from slmops.testing.raw_server import RawServer
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    digest_of,
    publish_sample,
    sample_release,
)
from slmops.wire import codec

YEAR_1970, YEAR_2100 = 60.0, 4_102_444_800.0
CLASSES = (
    DeviceClass(name="small", where=Predicate(memory_mib=Range(max=768.0))),
    DeviceClass(
        name="large",
        where=Predicate(memory_mib=Range(min=768.0), labels={"site": "north"}),
    ),
)


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "workspace", [sample_release(classes=CLASSES)])


def offers(
    sample: PublishedSample,
    *,
    memory_mib: int = 512,
    labels: dict[str, str] | None = None,
) -> Offers:
    return Offers(
        device="till-1",
        director_key=sample.keys.director.public_hex,
        facts=DeviceFacts(
            memory_mib=memory_mib,
            disk_mib=100,
            cpu_count=1,
            architecture="x",
            runtimes=("echo",),
        ),
        open_registry=lambda: TrustedRegistry(
            sample.workspace.root / "trust",
            sample.keys.root_json,
            sample.workspace.registry,
            now=lambda: SAMPLE_TIME,
        ),
        disk_size_bytes=lambda: 1 << 30,
        labels=labels,
    )


def assignment(sample: PublishedSample, class_name: str) -> Assignment:
    release = sample.releases[0]
    return Assignment(
        device="till-1",
        sequence=7,
        rollout="r-1",
        release=release.label,
        release_digest=sample.catalog.load(release.label)[1],
        variant=release.variant_for(class_name).digest,
        device_class=class_name,
        probation_s=3.0,
        issued_at=SAMPLE_TIME,
    )


def test_a_director_alone_cannot_swap_variants_between_classes(
    sample: PublishedSample,
) -> None:
    small = offers(sample)
    assert small.check(assignment(sample, "small"))
    with pytest.raises(UntrustedError, match="memory_mib 512 is outside 768"):
        small.check(assignment(sample, "large"))
    # Nor by calling the class by another name.
    renamed = replace(assignment(sample, "large"), device_class="small")
    with pytest.raises(UntrustedError, match="made for other devices"):
        small.check(renamed)
    elsewhere = offers(sample, memory_mib=1024, labels={"site": "south"})
    with pytest.raises(UntrustedError, match="label site is 'south', not 'north'"):
        elsewhere.check(assignment(sample, "large"))
    north = offers(sample, memory_mib=1024, labels={"site": "north"})
    assert north.check(assignment(sample, "large"))


@pytest.mark.parametrize("change", ["release", "digest", "variant"])
def test_a_director_alone_cannot_make_a_device_run_what_was_not_released(
    sample: PublishedSample, change: str
) -> None:
    evil = digest_of(b"evil")
    lies = {
        "release": {"release": "sample-9"},
        "digest": {"release_digest": evil},
        "variant": {"variant": evil},
    }
    lie = replace(assignment(sample, "small"), **lies[change])  # type: ignore[arg-type]
    opened = offers(sample).read(seal(codec.encode_json(lie), sample.keys.director))
    with pytest.raises((UntrustedError, NotFoundError)):
        offers(sample).check(opened)


def forged_release(sample: PublishedSample) -> tuple[Release, bytes]:
    release = sample_release(2, classes=CLASSES)
    return release, codec.encode_json(release)


def test_a_release_key_alone_makes_no_device_install_anything(
    sample: PublishedSample,
) -> None:
    """He signs targets, writes into the registry, and has no other key."""
    metadata = sample.catalog.root / "metadata"
    release, document = forged_release(sample)
    targets = Metadata[Targets].from_file(str(metadata / "1.targets.json")).signed
    targets.version = 2
    path = f"releases/{release.label}.json"
    targets.targets[path] = TargetFile.from_data(path, document, ["sha256"])
    raw = signed_bytes(targets, [sample.keys.targets])
    honest = assignment(sample, "small")
    before = offers(sample).check(honest)

    # Beside what counts: nobody looks at it.
    (metadata / "2.targets.json").write_bytes(raw)
    wanted = replace(
        honest,
        release=release.label,
        release_digest=digest_of(document),
        variant=release.variant_for("small").digest,
    )
    with pytest.raises(NotFoundError, match="sample-2"):
        offers(sample).check(wanted)

    # In its place: the snapshot promises another length and hash. What was verified
    # before is still here, so a device that knew it goes on; a new one refuses.
    (metadata / "1.targets.json").write_bytes(raw)
    assert offers(sample).check(honest) == before
    newcomer = TrustedRegistry(
        sample.workspace.root / "new",
        sample.keys.root_json,
        sample.workspace.registry,
        now=lambda: SAMPLE_TIME,
    )
    with pytest.raises(UntrustedError):
        newcomer.refresh()

    # With a snapshot of his own, signed by the only key he has: not its role.
    snapshot = Metadata[Snapshot].from_file(str(metadata / "1.snapshot.json")).signed
    own = signed_bytes(snapshot, [sample.keys.targets])
    (metadata / "1.snapshot.json").write_bytes(own)
    with pytest.raises(UntrustedError):
        newcomer.refresh()


def test_release_and_director_keys_together_still_need_the_snapshot_and_timestamp(
    sample: PublishedSample,
) -> None:
    release, document = forged_release(sample)
    wanted = replace(
        assignment(sample, "small"),
        release=release.label,
        release_digest=digest_of(document),
        variant=release.variant_for("small").digest,
    )
    opened = offers(sample).read(seal(codec.encode_json(wanted), sample.keys.director))
    with pytest.raises(NotFoundError):
        offers(sample).check(opened)


@pytest.mark.slow
def test_a_clock_set_to_2100_serves_on_and_installs_again_once_it_is_right(
    device: AgentInProcess,
) -> None:
    device.assign(1, 1)
    device.steps()
    assert device.serves() == "sample-1"
    right = device.clock.now()
    device.clock.set_wall(YEAR_2100)
    device.assign(2, 2)
    device.clock.advance(60)
    states = device.steps(12)
    device.clock.advance(60)
    states += device.steps(12)
    assert device.serves() == "sample-1"
    assert set(states) <= {State.OFFERED, State.COMMITTED}
    said = json.dumps(device.syncs()[-1]["installation"])
    assert "has expired" in said
    device.clock.set_wall(right + 600)
    device.steps(120)
    assert device.serves() == "sample-2"


@pytest.mark.slow
def test_a_clock_set_to_1970_installs_what_is_newest_and_no_way_back_opens(
    device: AgentInProcess,
) -> None:
    device.clock.set_wall(YEAR_1970)
    device.assign(2, 2)
    device.steps()
    assert device.serves() == "sample-2"
    older = device.assign(1, 3)
    device.clock.advance(60)
    device.steps(10)
    assert older
    assert device.serves() == "sample-2"


@pytest.mark.slow
def test_a_stolen_director_cannot_use_up_all_sequences_for_ever(
    tmp_path: Path,
) -> None:
    """The highest number there is, signed by a key that is then taken away."""
    published = publish_echo(tmp_path / "workspace")
    with RawServer(replies=[]) as server, http_client(server.url) as client:
        device = AgentInProcess(tmp_path, server, client, published)
        device.assign(1, 2**53)
        device.steps()
        assert device.serves() == "sample-1"
        changes = KeyChanges(published.workspace.keys, published.catalog, KeyAccess())
        changes.rotate(Wanted(role="director"), now=SAMPLE_TIME)
        device.director = load_director(
            published.workspace.keys, changes.newest_root(), None
        )
        device.assign(2, 7)
        device.clock.advance(60)
        device.steps()
        assert device.serves() == "sample-2"
        device.assign(1, 7)  # and a replay is one again
        device.clock.advance(60)
        device.steps(6)
        assert device.serves() == "sample-2"
        device.close()


def test_a_clock_set_to_1970_revives_nothing_that_has_expired(
    sample: PublishedSample,
) -> None:
    metadata = sample.catalog.root / "metadata"
    old = (metadata / "timestamp.json").read_bytes()
    known = offers(sample)
    later = SAMPLE_TIME + 5 * 86_400
    sample.catalog.refresh_timestamp(sample.keys, later)

    def registry(now: float) -> TrustedRegistry:
        return TrustedRegistry(
            sample.workspace.root / "trust",
            sample.keys.root_json,
            sample.workspace.registry,
            now=lambda: now,
        )

    registry(later + 4 * 86_400).refresh()  # when the old one has expired
    for path in (sample.workspace.root / "trust").glob("*.json"):
        path.unlink()
    (metadata / "timestamp.json").write_bytes(old)
    with pytest.raises(UntrustedError, match="expired"):
        registry(YEAR_1970).refresh()
    with pytest.raises(UnavailableError, match="expired"):
        known.check(assignment(sample, "small"))
