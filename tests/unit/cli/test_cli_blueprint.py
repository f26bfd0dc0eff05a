"""``slmops blueprint diff``: against the newest release, or a named one."""

import json
from pathlib import Path

import pytest

from slmops.cli.main import main
from slmops.testing.sample_release import (
    PublishedSample,
    publish_sample,
    sample_release,
)
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.wire import codec
from slmops.workshop.models import import_model


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path, [sample_release(1), sample_release(2)])


def run(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["--workspace", str(sample.workspace.root), "blueprint", *arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def written(sample: PublishedSample, folder: Path, **changes: object) -> str:
    blueprint = {**codec.to_plain(sample.releases[0].blueprint), **changes}
    path = folder / "blueprint.yaml"
    path.write_text(json.dumps(blueprint))
    return str(path)


def test_a_change_is_shown_against_the_newest_release(
    sample: PublishedSample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(sample, tmp_path, quality={"min_same_top1": 0.9})
    code, out, err = run(sample, capsys, "diff", path)
    assert code == 0
    assert "in sample-2" in out
    assert "quality.min_same_top1" in out
    assert "chosen anew" in out
    assert "before a new release" in err
    _, out, _ = run(sample, capsys, "diff", path, "--since", "sample-1", "--json")
    said = json.loads(out)
    assert said["since"] == "sample-1"
    assert [one["path"] for one in said["changes"]] == ["quality.min_same_top1"]


def test_nothing_changed_and_nothing_released_are_said(
    sample: PublishedSample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(sample, capsys, "diff", written(sample, tmp_path))
    assert (code, "says what sample-2 was made from" in out) == (0, True)
    other = written(sample, tmp_path, name="other")
    code, _, err = run(sample, capsys, "diff", other)
    assert code == 3
    assert "other has no release yet" in err


def test_a_check_looks_the_model_up_where_there_are_any(
    sample: PublishedSample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(sample, tmp_path, model="nope")
    code, _, err = run(sample, capsys, "check", path)
    assert (code, "nope was not looked up" in err) == (0, True)
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    import_model(str(source), sample.workspace, name="tiny")
    code, _, err = run(sample, capsys, "check", path)
    assert code == 3
    assert "nope" in err
