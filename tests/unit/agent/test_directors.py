"""Directors: the root says whose assignments a device obeys."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.anchor import trust_root
from slmops.agent.directors import DIRECTORS, Directors
from slmops.agent.machine import ROOT
from slmops.agent.offers import Offers
from slmops.agent.settings import (
    AgentSettings,
    load_agent_settings,
    save_agent_settings,
)
from slmops.domain.device import DeviceFacts
from slmops.domain.errors import NotFoundError, UntrustedError
from slmops.domain.sync import Assignment
from slmops.registry.envelope import seal
from slmops.registry.key_changes import KeyChanges, Wanted
from slmops.registry.key_folder import KeyAccess, load_director
from slmops.registry.keys import SigningKey
from slmops.registry.trust import TrustedRegistry
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
)
from slmops.wire import codec

FACTS = DeviceFacts(
    memory_mib=512, disk_mib=100, cpu_count=1, architecture="x", runtimes=("echo",)
)


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "workspace")


def offers(sample: PublishedSample, state: Path, *, network: bool = True) -> Offers:
    place = sample.workspace.registry if network else Path("/nowhere")
    return Offers(
        device="till-1",
        director_key=Directors(sample.keys.director.public_hex, state / DIRECTORS),
        facts=FACTS,
        open_registry=lambda: TrustedRegistry(
            state / "trust", sample.keys.root_json, place, now=lambda: SAMPLE_TIME
        ),
        disk_size_bytes=lambda: 1 << 30,
    )


def sealed(sample: PublishedSample, key: SigningKey) -> str:
    release = sample.releases[0]
    assignment = Assignment(
        device="till-1",
        sequence=7,
        rollout="r-1",
        release=release.label,
        release_digest=sample.catalog.load(release.label)[1],
        variant=release.variants[0].digest,
        device_class="small",
        probation_s=3.0,
        issued_at=SAMPLE_TIME,
    )
    return seal(codec.encode_json(assignment), key)


def rotated(sample: PublishedSample) -> SigningKey:
    folder = sample.workspace.keys
    changes = KeyChanges(folder, sample.catalog, KeyAccess())
    assert changes.rotate(Wanted(role="director"), now=SAMPLE_TIME).published
    return load_director(folder, changes.newest_root(), None)


def test_a_device_follows_the_root_to_another_director_and_remembers_it(
    sample: PublishedSample, tmp_path: Path
) -> None:
    old = sealed(sample, sample.keys.director)
    own = offers(sample, tmp_path)
    own.check(own.read(old))
    new = sealed(sample, rotated(sample))
    assert own.read(new).sequence == 7  # unknown key: the root is asked
    with pytest.raises(UntrustedError, match="not signed by the director"):
        own.read(old)
    again = offers(sample, tmp_path, network=False)
    assert again.read(new).sequence == 7
    assert (again.holds(new), again.holds(old)) == (True, False)


def test_a_key_that_was_taken_away_is_refused_at_the_latest_before_installing(
    sample: PublishedSample, tmp_path: Path
) -> None:
    old = sealed(sample, sample.keys.director)
    own = offers(sample, tmp_path)
    rotated(sample)
    assignment = own.read(old)  # the device has not heard of it yet
    own.check(assignment)  # asks the registry
    with pytest.raises(UntrustedError, match="not signed by the director"):
        own.read(old)


def test_without_a_network_an_unknown_director_is_refused(
    sample: PublishedSample, tmp_path: Path
) -> None:
    new = sealed(sample, rotated(sample))
    with pytest.raises(UntrustedError, match="not signed by the director"):
        offers(sample, tmp_path, network=False).read(new)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"keys": 3}'])
def test_a_damaged_file_is_forgotten_and_learnt_anew(
    sample: PublishedSample, tmp_path: Path, damage: bytes
) -> None:
    new = sealed(sample, rotated(sample))
    offers(sample, tmp_path).read(new)
    (tmp_path / DIRECTORS).write_bytes(damage)
    assert offers(sample, tmp_path).read(new).sequence == 7


def enrolled(sample: PublishedSample, state: Path) -> None:
    state.mkdir()
    settings = AgentSettings(
        server="http://127.0.0.1:1",
        device="till-1",
        director_key=sample.keys.director.public_hex,
        labels={"site": "north"},
    )
    save_agent_settings(state, settings)
    (state / ROOT).write_bytes(sample.keys.root_json)


def test_a_device_is_given_another_root_by_hand(
    sample: PublishedSample, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    enrolled(sample, state)
    (state / "trust").mkdir()
    other = publish_sample(tmp_path / "other")
    before = load_agent_settings(state, {})
    version, director = trust_root(state, other.keys.root_json)
    assert (version, director) == (1, other.keys.director.public_hex)
    assert (state / ROOT).read_bytes() == other.keys.root_json
    assert not (state / "trust").exists()
    assert load_agent_settings(state, {}) == replace(before, director_key=director)


def test_a_root_that_its_own_keys_did_not_sign_is_not_pinned(
    sample: PublishedSample, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    enrolled(sample, state)
    forged = sample.keys.root_json.replace(b'"version":1', b'"version":2')
    for raw in (forged, b"{}", b""):
        with pytest.raises(UntrustedError):
            trust_root(state, raw)
    assert (state / ROOT).read_bytes() == sample.keys.root_json
    shutil.rmtree(state)
    with pytest.raises(NotFoundError):
        trust_root(state, sample.keys.root_json)
