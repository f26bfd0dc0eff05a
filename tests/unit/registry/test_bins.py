"""Hash bins: what a device downloads stays small when releases grow past hundreds."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]

from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.registry.bins import BinSettings, TargetTree, bin_settings, with_targets
from slmops.registry.catalog import Catalog
from slmops.registry.metadata import MetadataFolder
from slmops.registry.roots import role_keys
from slmops.registry.trust import TrustedRegistry
from slmops.testing.folder_server import serving_folder
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    digest_of,
    publish_sample,
    sample_release,
)

NEVER = BinSettings(bins_from=10**9)


def many(count: int, *, begin: int = 0) -> Iterator[TargetFile]:
    for number in range(begin, begin + count):
        hexadecimal = digest_of(str(number).encode()).removeprefix("sha256:")
        yield TargetFile(
            100_000_000 + number,
            {"sha256": hexadecimal},
            f"blobs/sha256/{hexadecimal}",
        )


def add(
    sample: PublishedSample, count: int, settings: BinSettings, *, begin: int = 0
) -> None:
    root = sample.catalog.root / "metadata"
    folder = MetadataFolder(root, sample.keys.root_json, settings)
    folder.add_targets(
        many(count, begin=begin),
        state=folder.state(),
        keys=sample.keys,
        now=SAMPLE_TIME,
    )


def client(sample: PublishedSample, place: str | Path, name: str) -> TrustedRegistry:
    return TrustedRegistry(
        sample.workspace.root / name,
        sample.keys.root_json,
        place,
        now=lambda: SAMPLE_TIME,
    )


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "workspace")


def downloaded(sample: PublishedSample, device: str) -> int:
    """Return the metadata bytes that a device fetches to check one release."""
    sizes = []

    def count(handler: BaseHTTPRequestHandler) -> bool:
        path = sample.catalog.root / handler.path.lstrip("/")
        if path.is_file() and path.parent.name == "metadata":
            sizes.append(path.stat().st_size)
        return False

    with serving_folder(sample.catalog.root, count) as url:
        registry = client(sample, url, device)
        release, _ = registry.release("sample-1")
        for digest, _ in release.variants[0].artefacts:
            registry.target(f"blobs/sha256/{digest.removeprefix('sha256:')}")
    return sum(sizes)


def test_a_device_downloads_a_small_part_of_two_thousand_targets(
    sample: PublishedSample,
) -> None:
    known = client(sample, sample.catalog.root, "known")
    known.refresh()
    add(sample, 2000, NEVER)
    flat = downloaded(sample, "flat")
    add(sample, 1, BinSettings(), begin=2000)
    binned = downloaded(sample, "binned")
    assert flat > 350_000
    assert binned < 40_000
    # A device that knew the registry before follows.
    again = client(sample, sample.catalog.root, "known")
    assert again.release("sample-1")[0] == sample.releases[0]
    [last] = many(1, begin=2000)
    assert again.target(last.path) == (last.length, last.hashes["sha256"])
    [absent] = many(1, begin=9999)
    with pytest.raises(NotFoundError):
        again.target(absent.path)


def test_the_switch_comes_by_itself_and_a_split_registry_is_verified_and_grows(
    sample: PublishedSample,
) -> None:
    add(sample, 300, BinSettings())
    assert not list((sample.catalog.root / "metadata").glob("*.bins*"))
    add(sample, 200, BinSettings(), begin=300)
    assert list((sample.catalog.root / "metadata").glob("1.bins4-*.json"))
    catalog = Catalog(sample.catalog.root, pinned_root=sample.keys.root_json)
    publish_sample(sample.workspace.root, [sample_release(2)], keys=sample.keys)
    assert catalog.labels() == ("sample-1", "sample-2")
    assert catalog.verify("sample-2").blobs
    # Only bins that changed are new.
    versions = {
        path.name.partition(".")[0]
        for path in (sample.catalog.root / "metadata").glob("*.bins4-*.json")
    }
    assert versions == {"1", "2"}
    device = client(sample, sample.catalog.root, "device")
    assert device.release("sample-2")[0].version == 2


def test_bins_that_fill_up_are_split_finer_and_known_devices_follow(
    sample: PublishedSample,
) -> None:
    add(sample, 500, BinSettings())
    device = client(sample, sample.catalog.root, "device")
    assert device.release("sample-1")[0].version == 1
    add(sample, 700, BinSettings(), begin=500)
    assert list((sample.catalog.root / "metadata").glob("1.bins6-*.json"))
    again = client(sample, sample.catalog.root, "device")
    assert again.release("sample-1")[0].version == 1
    for target in many(1200):
        assert again.target(target.path)[0] == target.length
    assert sample.catalog.labels() == ("sample-1",)


def test_a_bin_is_signed_by_the_release_key_and_a_changed_one_is_refused(
    sample: PublishedSample,
) -> None:
    add(sample, 10, BinSettings(bins_from=0))
    [path, *_] = sorted((sample.catalog.root / "metadata").glob("1.bins1-*.json"))
    path.write_bytes(path.read_bytes().replace(b'"length":100000001', b'"length":1'))
    with pytest.raises(UntrustedError, match="does not"):
        sample.catalog.labels()


def test_nothing_is_lost_on_the_way_into_bins(sample: PublishedSample) -> None:
    holders = role_keys(sample.keys.newest_root, Targets.type)
    tree: TargetTree | None = None
    for begin in range(0, 900, 90):
        tree = with_targets(
            tree,
            many(90, begin=begin),
            holders,
            settings=BinSettings(bins_from=200),
            now=SAMPLE_TIME,
        ).tree
    assert tree is not None
    assert tree.files == {target.path: target for target in many(900)}
    assert not tree.top.targets


def test_the_setting_is_read_and_checked() -> None:
    assert bin_settings({"SLMOPS_REGISTRY_BINS_FROM": "7"}).bins_from == 7
    with pytest.raises(InvalidInputError, match="bins_from must be >= 0"):
        bin_settings({"SLMOPS_REGISTRY_BINS_FROM": "-1"})
