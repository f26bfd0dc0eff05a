"""slmops-tuf-client: the agent's TUF client as conformance suites call it."""

from pathlib import Path
from urllib.parse import quote

import pytest

from slmops.agent.tuf_client import main
from slmops.registry.signing import OnlineKeys
from slmops.testing.folder_server import serving_folder
from slmops.testing.sample_release import PublishedSample, publish_sample


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "workspace")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch, sample: PublishedSample) -> None:
    created = sample.releases[0].created_at
    monkeypatch.setattr("slmops.agent.tuf_client.time.time", lambda: created + 3600)


def trusted(sample: PublishedSample, folder: Path) -> str:
    metadata = folder / "metadata"
    root = folder / "pinned.json"
    root.write_bytes(sample.keys.root_json)
    assert main(["--metadata-dir", str(metadata), "init", str(root)]) == 0
    assert (metadata / "root.json").read_bytes() == sample.keys.root_json
    return str(metadata)


@pytest.mark.usefixtures("now")
def test_it_refreshes_and_downloads_what_the_root_vouches_for(
    sample: PublishedSample, tmp_path: Path
) -> None:
    metadata = trusted(sample, tmp_path)
    name = "releases/sample-1.json"
    with serving_folder(sample.catalog.root) as url:
        given = ["--metadata-dir", metadata, "--metadata-url", f"{url}/metadata"]
        assert main([*given, "refresh"]) == 0
        into = ["--target-base-url", f"{url}/targets", "--target-dir", str(tmp_path)]
        assert main([*given, *into, "--target-name", name, "download"]) == 0
        absent = ["--target-name", "releases/sample-9.json"]
        assert main([*given, *into, *absent, "download"]) == 1
    assert (tmp_path / quote(name, "")).read_bytes().startswith(b"{")
    assert (Path(metadata) / "timestamp.json").exists()


def test_expired_metadata_is_exit_code_1_and_says_so(
    sample: PublishedSample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = trusted(sample, tmp_path)  # the sample is of 2025
    with serving_folder(sample.catalog.root) as url:
        given = ["--metadata-dir", metadata, "--metadata-url", f"{url}/metadata"]
        assert main([*given, "refresh"]) == 1
    assert "has expired" in capsys.readouterr().err


def test_what_is_missing_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--metadata-dir", str(tmp_path)]
    assert main([*where, "init", str(tmp_path / "none.json")]) == 1
    assert main([*where, "refresh"]) == 1
    assert main([*where, "--metadata-url", "http://127.0.0.1:9", "download"]) == 1
    assert "--target-name is missing" in capsys.readouterr().err
    # No root to trust: nothing is asked of anybody.
    assert main([*where, "--metadata-url", "http://127.0.0.1:9", "refresh"]) == 1


@pytest.mark.usefixtures("now")
def test_what_is_frozen_stays_refused_however_often_it_is_asked_for(
    sample: PublishedSample, tmp_path: Path
) -> None:
    metadata = trusted(sample, tmp_path)
    old = (sample.catalog.root / "metadata" / "timestamp.json").read_bytes()
    keys = OnlineKeys.load(sample.workspace.keys)
    later = sample.releases[0].created_at + 5 * 86_400
    with serving_folder(sample.catalog.root) as url:
        given = ["--metadata-dir", metadata, "--metadata-url", f"{url}/metadata"]
        sample.catalog.refresh_timestamp(keys, later)
        assert main([*given, "refresh"]) == 0
        (sample.catalog.root / "metadata" / "timestamp.json").write_bytes(old)
        assert [main([*given, "refresh"]) for _ in range(2)] == [1, 1]
