"""The client: what the pinned root vouches for, and every attack TUF names, refused."""

import shutil
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from slmops.domain.errors import NotFoundError, UnavailableError, UntrustedError
from slmops.registry.blobs import bytes_digest
from slmops.registry.signing import OnlineKeys
from slmops.registry.target_names import blob_target
from slmops.registry.trust import TrustedRegistry
from slmops.testing.folder_server import serving_folder as serving
from slmops.testing.sample_release import (
    DAY_S,
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)

SOON = SAMPLE_TIME + 3600


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "workspace")


def client(
    sample: PublishedSample,
    place: str | Path,
    *,
    at: float = SOON,
    headers: dict[str, str] | None = None,
) -> TrustedRegistry:
    folder = sample.workspace.root / "trust"
    return TrustedRegistry(
        folder, sample.keys.root_json, place, headers, now=lambda: at
    )


def metadata(sample: PublishedSample, name: str) -> Path:
    return sample.catalog.root / "metadata" / name


def test_a_release_is_fetched_over_http_and_verified(sample: PublishedSample) -> None:
    with serving(sample.catalog.root) as url:
        registry = client(sample, url)
        registry.refresh()
        release, digest = registry.release("sample-1")
    assert release == sample.releases[0]
    assert digest == sample.catalog.load("sample-1")[1]


def test_an_artefact_is_promised_with_length_and_hash(sample: PublishedSample) -> None:
    content = b"artefact of small, version 1"
    registry = client(sample, sample.catalog.root)
    length, sha256 = registry.target(blob_target(bytes_digest(content)))
    assert length == len(content)
    assert f"sha256:{sha256}" == bytes_digest(content)


def test_a_later_release_and_a_renewed_root_are_followed(
    sample: PublishedSample,
) -> None:
    registry = client(sample, sample.catalog.root)
    registry.refresh()
    later = SAMPLE_TIME + 300 * DAY_S
    publish_sample(
        sample.workspace.root, [sample_release(2)], keys=sample.keys, now=later
    )
    registry = client(sample, sample.catalog.root, at=later + DAY_S)
    assert registry.release("sample-2")[0].version == 2


def test_headers_are_sent_and_bodies_never_decompressed(
    sample: PublishedSample,
) -> None:
    seen: list[tuple[str | None, str | None]] = []

    def look(handler: BaseHTTPRequestHandler) -> bool:
        seen.append((handler.headers["X-Site"], handler.headers["Accept-Encoding"]))
        return False

    with serving(sample.catalog.root, look) as url:
        client(sample, url, headers={"X-Site": "store-7"}).refresh()
    assert set(seen) == {("store-7", "identity")}


def test_proxies_of_whoever_started_the_agent_are_not_used(
    sample: PublishedSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(sample.catalog.root) as url:
        assert client(sample, url).release("sample-1")[0] == sample.releases[0]


def test_an_unknown_release_is_not_found(sample: PublishedSample) -> None:
    with pytest.raises(NotFoundError, match="sample-9"):
        client(sample, sample.catalog.root).release("sample-9")


def test_no_registry_at_the_place_is_not_found(
    sample: PublishedSample, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError):
        client(sample, tmp_path / "nowhere").refresh()


def test_an_unreachable_server_is_unavailable(sample: PublishedSample) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            client(sample, url).refresh()


def test_a_failing_server_is_unavailable(sample: PublishedSample) -> None:
    def fail(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_error(500)
        return True

    with (
        serving(sample.catalog.root, fail) as url,
        pytest.raises(UnavailableError, match="500"),
    ):
        client(sample, url).refresh()


def test_freeze_expired_metadata_is_refused(sample: PublishedSample) -> None:
    registry = client(sample, sample.catalog.root, at=SAMPLE_TIME + 8 * DAY_S)
    with pytest.raises(UntrustedError, match="expired"):
        registry.refresh()


def test_a_clock_set_back_does_not_revive_expired_metadata(
    sample: PublishedSample,
) -> None:
    old = metadata(sample, "timestamp.json").read_bytes()
    online = OnlineKeys.load(sample.workspace.keys)
    sample.catalog.refresh_timestamp(online, SAMPLE_TIME + 6 * DAY_S)
    seen = SAMPLE_TIME + 10 * DAY_S
    registry = client(sample, sample.catalog.root, at=seen)
    registry.refresh()
    assert registry.trusted_time == seen
    for path in (sample.workspace.root / "trust").glob("*.json"):
        path.unlink()
    metadata(sample, "timestamp.json").write_bytes(old)
    with pytest.raises(UntrustedError, match="expired"):
        client(sample, sample.catalog.root, at=SOON).refresh()


def test_a_clock_far_ahead_is_not_remembered(sample: PublishedSample) -> None:
    wrong = client(sample, sample.catalog.root, at=SAMPLE_TIME + 1000 * DAY_S)
    with pytest.raises(UntrustedError, match="expired"):
        wrong.refresh()
    right = client(sample, sample.catalog.root, at=SOON)
    right.refresh()
    assert right.trusted_time == SOON


def test_rollback_to_older_metadata_is_refused(sample: PublishedSample) -> None:
    before = sample.workspace.root / "before"
    shutil.copytree(sample.catalog.root, before)
    publish_sample(sample.workspace.root, [sample_release(2)], keys=sample.keys)
    client(sample, sample.catalog.root, at=SOON + DAY_S).refresh()
    with pytest.raises(UntrustedError, match="older"):
        client(sample, before, at=SOON + DAY_S).refresh()


def test_mixed_versions_are_refused(sample: PublishedSample) -> None:
    publish_sample(sample.workspace.root, [sample_release(2)], keys=sample.keys)
    shutil.copy(
        metadata(sample, "1.snapshot.json"), metadata(sample, "2.snapshot.json")
    )
    with pytest.raises(UntrustedError):
        client(sample, sample.catalog.root, at=SOON + DAY_S).refresh()


@pytest.mark.parametrize(
    "name", ["timestamp.json", "1.snapshot.json", "1.targets.json"]
)
def test_tampered_metadata_is_refused(sample: PublishedSample, name: str) -> None:
    path = metadata(sample, name)
    changed = path.read_bytes().replace(b'"version":1', b'"version":3')
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(UntrustedError):
        client(sample, sample.catalog.root).refresh()


def test_a_registry_signed_with_other_keys_is_refused(
    sample: PublishedSample, tmp_path: Path
) -> None:
    other = publish_sample(tmp_path / "other")
    with pytest.raises(UntrustedError, match="not signed by the trusted keys"):
        client(sample, other.catalog.root).refresh()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda content: content + b" ", id="longer"),
        pytest.param(lambda content: content[:-1], id="shorter"),
        pytest.param(lambda content: content.replace(b"echo", b"ecko"), id="changed"),
    ],
)
def test_a_changed_release_document_is_refused(
    sample: PublishedSample, change: Callable[[bytes], bytes]
) -> None:
    [path] = (sample.catalog.root / "targets" / "releases").iterdir()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UntrustedError):
        client(sample, sample.catalog.root).release("sample-1")
    assert not list((sample.workspace.root / "trust" / "documents").iterdir())


def test_a_missing_release_document_is_not_found(sample: PublishedSample) -> None:
    [path] = (sample.catalog.root / "targets" / "releases").iterdir()
    path.unlink()
    with pytest.raises(NotFoundError):
        client(sample, sample.catalog.root).release("sample-1")


@pytest.mark.parametrize("what", ["timestamp.json", "releases"])
def test_endless_data_is_cut_off(sample: PublishedSample, what: str) -> None:
    sent = 0

    def flood(handler: BaseHTTPRequestHandler) -> bool:
        nonlocal sent
        if what not in handler.path:
            return False
        handler.send_response(200)
        handler.end_headers()
        try:
            while sent < 200_000_000:
                sent += handler.wfile.write(b" " * 65536)
        except OSError:
            pass
        return True

    with (
        serving(sample.catalog.root, flood) as url,
        pytest.raises(UntrustedError, match="longer than promised"),
    ):
        client(sample, url).release("sample-1")
    assert sent < 50_000_000


def test_a_verified_document_is_not_fetched_twice(sample: PublishedSample) -> None:
    with serving(sample.catalog.root) as url:
        registry = client(sample, url)
        registry.refresh()
        first = registry.release("sample-1")
    assert registry.release("sample-1") == first
