"""``slmops release``: listing, showing and verifying what was published."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.domain.release import ForcedRelease
from slmops.registry.blobs import BlobStore
from slmops.testing.sample_release import (
    SAMPLE_TIME,
    PublishedSample,
    publish_sample,
    sample_release,
)


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path, now=time.time())


def run(sample: PublishedSample, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["--workspace", str(sample.workspace.root), "release", *arguments])
    return int(exit_info.value.code or 0)


def test_list_names_every_release(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sample, "list", "--json") == 0
    [entry] = json.loads(capsys.readouterr().out)["releases"]
    assert entry["label"] == "sample-1"
    assert entry["created_at"] == SAMPLE_TIME
    assert not entry["forced"]
    assert run(sample, "list") == 0
    assert "sample-1" in capsys.readouterr().out


def test_show_prints_what_was_measured(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sample, "show", "sample-1") == 0
    shown = capsys.readouterr().out
    assert "0.0450 (0.0410 to 0.0490)" in shown
    assert run(sample, "show", "sample-1", "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["label"] == "sample-1"
    assert len(tree["variants"]) == 2


def test_show_says_why_a_release_was_forced_and_what_flatters_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = sample_release()
    variants = tuple(
        dataclasses.replace(
            variant, card=dataclasses.replace(variant.card, reference_grid="Q4_1")
        )
        for variant in plain.variants
    )
    forced = ForcedRelease(reason="a drill", violations=("mean KLD too large",))
    release = dataclasses.replace(plain, variants=variants, forced=forced)
    sample = publish_sample(tmp_path, [release], now=time.time())
    assert run(sample, "show", "sample-1") == 0
    shown = capsys.readouterr().out
    assert "a drill" in shown
    assert "mean KLD too large" in shown
    assert "dequantized from Q4_1" in shown


def test_verify_passes_for_what_was_published(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sample, "verify", "sample-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["blobs"] == 8


def test_verify_exits_with_5_on_a_flipped_bit(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    store = BlobStore(sample.catalog.root)
    path = store.path(sample.releases[0].variants[0].digest)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert run(sample, "verify", "sample-1") == 5
    assert "damaged" in capsys.readouterr().err


def test_verify_exits_with_5_when_the_metadata_has_expired(tmp_path: Path) -> None:
    assert run(publish_sample(tmp_path, now=SAMPLE_TIME), "verify", "sample-1") == 5


def test_verify_exits_with_5_when_the_registry_was_replaced(
    sample: PublishedSample, tmp_path: Path
) -> None:
    other = publish_sample(tmp_path / "other", now=time.time())
    sample.catalog.root.rename(tmp_path / "away")
    other.catalog.root.rename(sample.catalog.root)
    assert run(sample, "verify", "sample-1") == 5


def test_an_unknown_label_exits_with_3(sample: PublishedSample) -> None:
    assert run(sample, "show", "sample-9") == 3
    assert run(sample, "verify", "sample-9") == 3
