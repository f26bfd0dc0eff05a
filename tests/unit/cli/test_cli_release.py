"""``slmops release``: listing, showing and verifying what was published."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.domain.release import ForcedRelease
from slmops.registry.blobs import BlobStore
from slmops.testing.sample_evidence import released_build
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
    assert "quantized, mainly Q4_1" in shown


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


def test_evidence_is_listed_verified_and_written_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, build = released_build(tmp_path, now=time.time())
    assert run(sample, "show", "sample-1") == 0
    assert "provenance.intoto.dsse.json" in capsys.readouterr().out
    assert run(sample, "verify", "sample-1", "--json") == 0
    (signed, whole) = json.loads(capsys.readouterr().out)["evidence"]
    assert "signed by the targets key" in signed
    assert "attachments whole" in whole
    out = tmp_path / "out"
    assert run(sample, "evidence", "sample-1", "--output", str(out), "--json") == 0
    files = json.loads(capsys.readouterr().out)
    assert {Path(path).name for path in files.values()} == {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "bom.cdx.json").read_bytes())["specVersion"] == "1.6"
    assert build.model.name in (out / "README.md").read_text(encoding="utf-8")


def test_damaged_evidence_is_neither_verified_nor_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, _ = released_build(tmp_path, now=time.time())
    bom = sample.releases[0].attachments[1]
    path = BlobStore(sample.catalog.root).path(bom.digest)
    path.write_bytes(path.read_bytes().replace(b"Q8_0", b"Q8_1"))
    assert run(sample, "verify", "sample-1") == 5
    out = tmp_path / "out"
    assert run(sample, "evidence", "sample-1", "--output", str(out)) == 5
    assert not out.exists()
    assert "damaged" in capsys.readouterr().err


def test_a_release_without_evidence_says_so(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(sample, "verify", "sample-1") == 0
    assert "no evidence is attached" in capsys.readouterr().out
    output = str(tmp_path / "out")
    assert run(sample, "evidence", "sample-1", "--output", output) == 0
    assert "has no evidence" in capsys.readouterr().err
