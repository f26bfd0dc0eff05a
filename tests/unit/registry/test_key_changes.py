"""The runbook of docs/keys.md, rehearsed: a real registry, and a device that follows."""

import shutil
from pathlib import Path

import pytest

from slmops.domain.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UntrustedError,
)
from slmops.registry import rotation
from slmops.registry.bins import BinSettings
from slmops.registry.blobs import write_atomically
from slmops.registry.catalog import Catalog
from slmops.registry.key_changes import NEXT_ROOT, KeyChanges, Wanted, sign_file
from slmops.registry.key_folder import KeyAccess, KeyPlan, create_keys, given_ring
from slmops.registry.reanchor import replace_root
from slmops.registry.roots import director_keys
from slmops.registry.signing import OnlineKeys, ReleaseKeys
from slmops.registry.trust import TrustedRegistry
from slmops.testing.sample_release import (
    DAY_S,
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)

SOON = SAMPLE_TIME + 3600
ACCESS = KeyAccess()


class Site:
    """A registry, the machine that signs, and one device that pinned the first root."""

    def __init__(self, folder: Path, plan: KeyPlan | None = None) -> None:
        self.folder = folder
        workspace = folder / "workspace"
        if plan is not None:
            create_keys(workspace / "keys", plan, now=SAMPLE_TIME, access=ACCESS)
        self.sample: PublishedSample = publish_sample(workspace)
        self.pinned = self.sample.keys.root_json
        self.keys = self.sample.workspace.keys

    @property
    def changes(self) -> KeyChanges:
        return KeyChanges(self.keys, self.sample.catalog, ACCESS)

    def device(self, name: str = "device", *, at: float = SOON) -> TrustedRegistry:
        return TrustedRegistry(
            self.folder / name,
            self.pinned,
            self.sample.workspace.registry,
            now=lambda: at,
        )

    def publish(self, version: int, *, at: float = SOON) -> None:
        keys = ReleaseKeys.load(self.keys, root=self.sample.catalog.newest_root())
        publish_sample(
            self.sample.workspace.root, [sample_release(version)], keys=keys, now=at
        )

    def away(self, *names: str) -> Path:
        """Move key files to another machine, as a runbook asks for."""
        stick = self.folder / "stick"
        stick.mkdir(exist_ok=True)
        for name in names:
            (self.keys / name).rename(stick / name)
        return stick


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.device().refresh()
    return made


def metadata_names(site: Site) -> set[str]:
    return {path.name for path in (site.sample.catalog.root / "metadata").iterdir()}


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_planned_rotation_of_any_role_is_followed_and_the_old_key_is_worth_nothing(
    site: Site, role: str
) -> None:
    old = (site.keys / f"{role}.key").read_bytes()
    before = OnlineKeys.load(site.keys)
    result = site.changes.rotate(Wanted(role=role), now=SOON)
    assert result.published
    assert [path.name for path in result.retired] == [f"{role}.key.retired"]
    site.publish(2)
    assert site.device().release("sample-2")[0].version == 2
    assert site.device("newcomer").release("sample-2")[0].version == 2
    rows = {row.role: row for row in site.changes.rows()}
    assert rows[role].place == f"file:{role}-2.key"
    # Who holds the old key alone is refused, here and on devices.
    (site.keys / f"{role}-2.key").write_bytes(old)
    keys = ReleaseKeys.load(site.keys, root=site.sample.catalog.newest_root())
    assert not keys.holds(site.changes.newest_root().roles[role])
    if role == "timestamp":
        with pytest.raises(NotFoundError, match="timestamp metadata needs 1 of"):
            site.sample.catalog.refresh_timestamp(before, SOON + 6 * DAY_S)


def test_a_rotation_twice_and_back_in_time_is_refused(site: Site) -> None:
    first = site.changes.rotate(Wanted(role="snapshot"), now=SOON)
    raw = (site.sample.catalog.root / "metadata" / "2.root.json").read_bytes()
    site.changes.rotate(Wanted(role="snapshot"), now=SOON)
    assert first.version == 2
    assert site.changes.newest_root().version == 3
    with pytest.raises(ConflictError, match="does not follow"):
        site.changes.publish(raw, now=SOON)


def test_a_lost_online_key_is_replaced_with_the_root_key_alone(site: Site) -> None:
    (site.keys / "timestamp.key").unlink()
    with pytest.raises(NotFoundError, match=r"timestamp\.key"):
        OnlineKeys.load(site.keys)
    [lost] = [row for row in site.changes.rows() if row.role == "timestamp"]
    assert lost.place == "elsewhere"
    assert site.changes.revoke(lost.keyid[:10], now=SOON).published
    assert site.device().release("sample-1")[0].version == 1
    site.publish(2)
    assert site.device().release("sample-2")[0].version == 2


def test_a_stolen_release_key_is_revoked_and_signs_nothing_any_more(
    site: Site,
) -> None:
    stolen = site.folder / "stolen"
    shutil.copytree(site.sample.workspace.root, stolen)
    [row] = [row for row in site.changes.rows() if row.role == "targets"]
    assert site.changes.revoke(row.keyid[:8], now=SOON).published
    assert site.device().release("sample-1")[0].version == 1
    # The thief signs a release with all keys as they were, and serves it.
    thief = publish_sample(stolen, [sample_release(n) for n in (2, 3, 4)], now=SOON)
    evil = TrustedRegistry(
        site.folder / "device", site.pinned, thief.workspace.registry, now=lambda: SOON
    )
    with pytest.raises(UntrustedError):
        evil.release("sample-2")
    # He copies the new root over, too: the old key is not in it.
    newest = site.sample.catalog.root / "metadata" / "2.root.json"
    shutil.copy(newest, thief.catalog.root / "metadata" / newest.name)
    with pytest.raises(UntrustedError):
        evil.release("sample-2")
    with pytest.raises(UntrustedError):
        thief.catalog.labels()


def test_a_director_s_key_is_named_by_the_root_and_changed_like_any_other(
    site: Site,
) -> None:
    old = OnlineKeys.load(site.keys).director.public_hex
    assert site.device().director_keys() == (old,)
    assert site.changes.revoke(old[:8], now=SOON).published
    new = OnlineKeys.load(site.keys, root=site.changes.newest_root()).director
    assert new.public_hex != old
    device = site.device()
    device.refresh()
    assert device.director_keys() == (new.public_hex,)
    # Nothing else had to be signed.
    assert "2.snapshot.json" not in metadata_names(site)


def test_two_of_three_root_keys_sign_on_two_machines(tmp_path: Path) -> None:
    site = Site(tmp_path, KeyPlan(root_keys=3, root_threshold=2))
    site.device().refresh()
    stick = site.away("root.key", "root-2.key", "root-3.key")
    result = site.changes.rotate(Wanted(role="targets"), now=SOON)
    assert not result.published
    assert result.signatures.missing == tuple(
        f"2 of the {which} root's keys {ids}"
        for which, ids in zip(
            ("old", "new"),
            [
                ", ".join(
                    sorted(
                        row.keyid[:8]
                        for row in site.changes.rows()
                        if row.role == "root"
                    )
                )
            ]
            * 2,
            strict=True,
        )
    )
    file = stick / NEXT_ROOT
    shutil.copy(site.keys / NEXT_ROOT, file)
    with pytest.raises(ConflictError, match="waits for signatures"):
        site.changes.rotate(Wanted(role="snapshot"), now=SOON)
    # One signature, the same one twice: not enough.
    ring = given_ring([str(stick / "root-2.key")], ACCESS)
    assert sign_file(file, ring) == 1
    assert sign_file(file, ring) == 0
    assert not site.changes.publish(file.read_bytes(), now=SOON).published
    assert "2.root.json" not in metadata_names(site)
    # A key that holds no root role counts for nothing.
    sign_file(file, given_ring([str(site.keys / "targets.key")], ACCESS))
    assert not site.changes.publish(file.read_bytes(), now=SOON).published
    assert sign_file(file, given_ring([str(stick / "root-3.key")], ACCESS)) == 1
    assert site.changes.publish(file.read_bytes(), now=SOON).published
    site.publish(2)
    assert site.device().release("sample-2")[0].version == 2
    assert not (site.keys / NEXT_ROOT).exists()


def test_one_of_three_root_keys_is_lost_and_replaced(tmp_path: Path) -> None:
    site = Site(tmp_path, KeyPlan(root_keys=3, root_threshold=2))
    (site.keys / "root-3.key").unlink()
    [lost] = [row for row in site.changes.rows() if row.place == "elsewhere"]
    assert site.changes.revoke(lost.keyid, now=SOON).published
    roots = [row for row in site.changes.rows() if row.role == "root"]
    assert [row.threshold for row in roots] == [2, 2, 2]
    assert all(row.place.startswith("file:") for row in roots)
    assert site.device().release("sample-1")[0].version == 1


def test_a_root_lost_below_its_threshold_needs_a_new_anchor_on_every_device(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, KeyPlan(root_keys=2, root_threshold=2))
    device = site.device()
    assert device.release("sample-1")[0].version == 1
    (site.keys / "root.key").unlink()
    result = site.changes.rotate(Wanted(role="timestamp"), now=SOON)
    assert not result.published
    replace_root(site.sample.workspace, ACCESS, now=SOON)
    keys = ReleaseKeys.load(site.keys)
    catalog = Catalog(site.sample.catalog.root, pinned_root=keys.root_json)
    assert catalog.labels() == ("sample-1",)
    assert catalog.verify("sample-1").blobs
    # It believes nobody new by itself, whatever is served to it.
    with pytest.raises(UntrustedError):
        site.device().refresh()
    site.pinned = keys.root_json
    assert site.device("visited").release("sample-1")[0].version == 1
    assert (site.sample.workspace.root / "keys.lost-1" / "root.json").exists()


def test_an_expired_root_stops_new_installs_until_it_is_renewed(site: Site) -> None:
    late = SAMPLE_TIME + 366 * DAY_S
    with pytest.raises(UntrustedError, match="expired"):
        site.device(at=late).refresh()
    assert site.changes.renew(now=late).published
    keys = ReleaseKeys.load(site.keys, root=site.changes.newest_root())
    assert site.sample.catalog.renew(keys, late)
    assert site.device(at=late + 1).release("sample-1")[0].version == 1


def test_releases_are_published_without_the_root_key(site: Site) -> None:
    site.away("root.key")
    site.publish(2)
    assert site.device().release("sample-2")[0].version == 2
    # A root that wears out is left to `keys renew`; the release is not held up.
    site.publish(3, at=SAMPLE_TIME + 300 * DAY_S)
    assert "2.root.json" not in metadata_names(site)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_rotation_killed_before_the_last_file_is_completed_by_publishing_again(
    site: Site, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def until_the_timestamp(path: Path, content: bytes) -> None:
        if path.name == "timestamp.json":
            raise KilledError
        write_atomically(path, content)

    monkeypatch.setattr(rotation, "write_atomically", until_the_timestamp)
    with pytest.raises(KilledError):
        site.changes.rotate(Wanted(role=role), now=SOON)
    monkeypatch.undo()
    if role == "timestamp":
        with pytest.raises(UntrustedError):  # refuses, and keeps what it believed
            site.device().refresh()
    raw = (site.keys / NEXT_ROOT).read_bytes()
    assert site.changes.publish(raw, now=SOON).published
    assert site.device().release("sample-1")[0].version == 1
    site.publish(2)
    assert site.device().release("sample-2")[0].version == 2


def test_a_threshold_that_no_keys_can_meet_is_refused_before_a_key_is_made(
    site: Site,
) -> None:
    before = sorted(path.name for path in site.keys.iterdir())
    with pytest.raises(InvalidInputError, match="needs 3 signatures and would have 1"):
        site.changes.rotate(Wanted(role="root", threshold=3), now=SOON)
    assert sorted(path.name for path in site.keys.iterdir()) == before
    grown = Wanted(role="root", files=3, threshold=2)
    assert site.changes.rotate(grown, now=SOON).published
    assert site.device().release("sample-1")[0].version == 1


def test_a_rotation_of_the_release_key_signs_every_bin_anew(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.sample = publish_sample(tmp_path / "workspace")
    binned = Catalog(
        site.sample.catalog.root,
        pinned_root=site.pinned,
        bins=BinSettings(bins_from=0),
    )
    binned.publish(
        sample_release(1, name="other"),
        site.sample.catalog.blobs,
        site.sample.keys,
        now=SOON,
    )
    assert site.device().release("other-1")[0].version == 1
    assert site.changes.rotate(Wanted(role="targets"), now=SOON).published
    assert site.device().release("other-1")[0].version == 1
    assert site.device("newcomer").release("sample-1")[0].version == 1


def test_a_foreign_file_is_no_root(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="no root metadata"):
        site.changes.publish(b"{}", now=SOON)
    other = Site(tmp_path / "other")
    raw = (other.sample.catalog.root / "metadata" / "1.root.json").read_bytes()
    with pytest.raises(ConflictError, match="does not follow"):
        site.changes.publish(raw, now=SOON)
    assert director_keys(site.changes.newest_root())
