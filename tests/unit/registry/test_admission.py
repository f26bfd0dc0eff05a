"""Releases signed on a machine that has the release key alone."""

import shutil
from pathlib import Path

import pytest

from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.registry.bins import BinSettings
from slmops.registry.blobs import BlobStore
from slmops.registry.catalog import Catalog
from slmops.registry.key_folder import KeyAccess, KeyPlan, create_keys
from slmops.registry.signing import OnlineKeys, ReleaseKeys
from slmops.registry.trust import TrustedRegistry
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    sample_artefacts,
    sample_release,
)

SPLIT = BinSettings(bins_from=0)


class TwoMachines:
    """One signs releases, one is online; a registry is carried between them."""

    def __init__(self, folder: Path) -> None:
        access = KeyAccess()
        self.signer, self.online = folder / "signer", folder / "online"
        create_keys(folder / "keys", KeyPlan(), now=SAMPLE_TIME, access=access)
        for place, names in (
            (self.signer, ["targets.key"]),
            (self.online, ["snapshot.key", "timestamp.key", "director.key"]),
        ):
            (place / "keys").mkdir(parents=True)
            for name in ("root.json", *names):
                shutil.copy2(folder / "keys" / name, place / "keys" / name)
        self.release_keys = ReleaseKeys.load(self.signer / "keys")
        self.online_keys = OnlineKeys.load(self.online / "keys")

    def catalog(self, place: Path, bins: BinSettings | None = None) -> Catalog:
        pinned = self.release_keys.root_json
        return Catalog(place / "registry", pinned_root=pinned, bins=bins)

    def sign(self, version: int, bins: BinSettings | None = None) -> None:
        blobs = BlobStore(self.signer)
        for content in sample_artefacts(version).values():
            blobs.put_bytes(content)
        release = sample_release(version)
        self.catalog(self.signer, bins).publish(release, blobs, self.release_keys)

    def carry(self, source: Path, target: Path) -> None:
        shutil.copytree(source / "registry", target / "registry", dirs_exist_ok=True)

    def admit(self) -> bool:
        return self.catalog(self.online).admit(self.online_keys, SAMPLE_TIME)

    def device(self) -> TrustedRegistry:
        return TrustedRegistry(
            self.online / "device",
            self.release_keys.root_json,
            self.online / "registry",
            now=lambda: SAMPLE_TIME,
        )


@pytest.fixture
def machines(tmp_path: Path) -> TwoMachines:
    return TwoMachines(tmp_path)


@pytest.mark.parametrize("bins", [None, SPLIT], ids=["one file", "bins"])
def test_what_the_release_key_signed_is_published_once_the_online_keys_name_it(
    machines: TwoMachines, bins: BinSettings | None
) -> None:
    for version in (1, 2, 3):
        machines.sign(version, bins)
        machines.carry(machines.signer, machines.online)
        label = f"sample-{version}"
        assert label not in machines.catalog(machines.online).labels()
        with pytest.raises(NotFoundError):
            machines.device().release(label)
        assert machines.admit()
        assert not machines.admit()
        assert machines.device().release(label)[0].version == version
        assert machines.catalog(machines.online).verify(label).blobs
        machines.carry(machines.online, machines.signer)


def test_signing_again_changes_nothing_and_a_second_release_waits_for_the_first(
    machines: TwoMachines,
) -> None:
    machines.sign(1)
    machines.sign(1)
    with pytest.raises(ConflictError, match="slmops release admit"):
        machines.sign(2)


def test_neither_machine_can_publish_alone(machines: TwoMachines) -> None:
    machines.sign(1)
    assert machines.catalog(machines.signer).labels() == ()
    with pytest.raises(NotFoundError, match=r"targets\.key"):
        ReleaseKeys.load(machines.online / "keys")
    with pytest.raises(NotFoundError, match="does not exist"):
        OnlineKeys.load(machines.signer / "keys")
    with pytest.raises(NotFoundError, match="director"):
        _ = machines.release_keys.director


def test_what_is_not_signed_by_the_release_key_is_not_admitted(
    machines: TwoMachines, tmp_path: Path
) -> None:
    other = TwoMachines(tmp_path / "other")
    other.sign(1)
    machines.sign(1)
    machines.carry(machines.signer, machines.online)
    forged = other.signer / "registry" / "metadata" / "1.targets.json"
    shutil.copy(forged, machines.online / "registry" / "metadata" / forged.name)
    with pytest.raises(UntrustedError, match="not signed by the release keys"):
        machines.admit()


def test_bins_that_were_not_carried_are_missed(machines: TwoMachines) -> None:
    machines.sign(1, SPLIT)
    machines.carry(machines.signer, machines.online)
    [path, *_] = (machines.online / "registry" / "metadata").glob("1.bins*.json")
    path.unlink()
    with pytest.raises(UntrustedError, match="missing"):
        machines.admit()
