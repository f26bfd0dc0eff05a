"""A registry that is not whole: `slmops release` says so, with the documented code."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

from slmops.cli.main import main
from slmops.registry.blobs import BlobStore
from slmops.registry.metadata import MetadataFolder
from slmops.testing.sample_release import PublishedSample, publish_sample
from slmops.wire import codec


@pytest.fixture
def sample(tmp_path: Path) -> PublishedSample:
    return publish_sample(tmp_path / "ws", now=time.time())


def release(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["--workspace", str(sample.workspace.root), "release", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().err


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


Damage = Callable[[PublishedSample], object]


def metadata(name: str, content: bytes | None) -> Damage:
    return lambda sample: _put(sample.catalog.root / "metadata" / name, content)


def layout(name: str, content: bytes | None) -> Damage:
    return lambda sample: _put(sample.catalog.root / name, content)


def document(content: bytes | None) -> Damage:
    def damage(sample: PublishedSample) -> None:
        [path] = (sample.catalog.root / "targets" / "releases").iterdir()
        _put(path, content)

    return damage


def _put(path: Path, content: bytes | None) -> None:
    """Replace a file; None puts a folder in its place, ``gone`` nothing."""
    path.unlink()
    if content is None:
        path.mkdir()
    elif content != b"gone":
        path.write_bytes(content)


def swapped_index(sample: PublishedSample) -> None:
    path = sample.catalog.root / "index.json"
    tree = json.loads(path.read_bytes())
    tree["manifests"][0]["digest"] = "sha256:" + "0" * 64
    path.write_bytes(codec.encode_json(tree))


def lost_manifest(sample: PublishedSample) -> None:
    tree = json.loads((sample.catalog.root / "index.json").read_bytes())
    BlobStore(sample.catalog.root).remove(tree["manifests"][0]["digest"])


def lost_artefact(sample: PublishedSample) -> None:
    BlobStore(sample.catalog.root).remove(sample.releases[0].variants[0].digest)


def cut_artefact(sample: PublishedSample) -> None:
    path = BlobStore(sample.catalog.root).path(sample.releases[0].variants[0].digest)
    path.write_bytes(path.read_bytes()[:-1])


def unsigned_targets(sample: PublishedSample) -> None:
    path = sample.catalog.root / "metadata" / "1.targets.json"
    tree = json.loads(path.read_bytes())
    tree["signatures"] = []
    path.write_bytes(codec.encode_json(tree))


DAMAGES: dict[str, Damage] = {
    "empty timestamp": metadata("timestamp.json", b""),
    "timestamp that is no JSON": metadata("timestamp.json", b"\x00\xff{"),
    "timestamp that is a number": metadata("timestamp.json", b"1"),
    "timestamp without content": metadata("timestamp.json", b'{"signed": {}}'),
    "timestamp nested for ever": metadata("timestamp.json", b"[" * 100_000),
    "folder in place of the timestamp": metadata("timestamp.json", None),
    "no snapshot": metadata("1.snapshot.json", b"gone"),
    "snapshot of another role": metadata("1.snapshot.json", b'{"_type": "root"}'),
    "no targets": metadata("1.targets.json", b"gone"),
    "unsigned targets": unsigned_targets,
    "folder in place of the targets": metadata("1.targets.json", None),
    "another root": metadata("1.root.json", b"{}"),
    "folder in place of the root": metadata("1.root.json", None),
    "second root that is none": lambda sample: (
        sample.catalog.root / "metadata" / "2.root.json"
    ).write_bytes(b"null"),
    "empty release document": document(b""),
    "release document that is a list": document(b"[]"),
    "no release document": document(b"gone"),
    "folder in place of the release document": document(None),
    "no oci-layout": layout("oci-layout", b"gone"),
    "oci-layout of another version": layout(
        "oci-layout", b'{"imageLayoutVersion":"9.9.9"}'
    ),
    "no index": layout("index.json", b"gone"),
    "index that is a list": layout("index.json", b"[]"),
    "index of nothing": layout("index.json", b'{"manifests":[]}'),
    "index of numbers": layout("index.json", b'{"manifests":[1]}'),
    "index with a list for a name": layout(
        "index.json",
        b'{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":[]}}]}',
    ),
    "index that names another manifest": swapped_index,
    "no manifest": lost_manifest,
    "no artefact": lost_artefact,
    "artefact cut off": cut_artefact,
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_registry_is_untrusted_and_stays_as_it_is(
    case: str, sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[case](sample)
    before = contents(sample.workspace.root)
    code, said = release(sample, capsys, "verify", "sample-1")
    assert code == 5, said
    assert said.splitlines()[-1].startswith("error [untrusted]: ")
    # What these two do not look at may be damaged; what they look at may not.
    for command in (("list",), ("show", "sample-1")):
        code, said = release(sample, capsys, *command)
        assert code in {0, 5}, said
    assert contents(sample.workspace.root) == before


SIGNED_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "null": (b"null", "sample-2.json"),
    "an empty object": (b"{}", "missing required field"),
    "no UTF-8": (b'{"name": "\xff"}', "not valid JSON"),
    "nested for ever": (b"[" * 100_000, "not valid JSON"),
}


def publish_signed(sample: PublishedSample, content: bytes) -> None:
    """Sign a document as release sample-2, whatever it says."""
    root = sample.catalog.root
    digest = hashlib.sha256(content).hexdigest()
    (root / "targets" / "releases" / f"{digest}.sample-2.json").write_bytes(content)
    target = TargetFile.from_data("releases/sample-2.json", content, ["sha256"])
    folder = MetadataFolder(root / "metadata", sample.keys.root_json)
    folder.add_targets(
        [target], state=folder.state(), keys=sample.keys, now=time.time()
    )


@pytest.mark.parametrize("case", SIGNED_DOCUMENTS)
def test_a_signed_document_that_is_no_release_is_untrusted(
    case: str, sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = SIGNED_DOCUMENTS[case]
    publish_signed(sample, content)
    for command in (("verify", "sample-2"), ("show", "sample-2"), ("list",)):
        code, said = release(sample, capsys, *command)
        assert code == 5, said
        assert reason in said
    assert release(sample, capsys, "verify", "sample-1")[0] == 0


def test_a_release_signed_under_another_name_is_untrusted(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_signed(sample, codec.encode_json(sample.releases[0]))
    code, said = release(sample, capsys, "show", "sample-2")
    assert (code, "says it is sample-1" in said) == (5, True)


def test_a_target_without_a_sha256_is_untrusted(
    sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = MetadataFolder(sample.catalog.root / "metadata", sample.keys.root_json)
    target = TargetFile.from_data("releases/sample-2.json", b"{}", ["sha512"])
    folder.add_targets(
        [target], state=folder.state(), keys=sample.keys, now=time.time()
    )
    code, said = release(sample, capsys, "show", "sample-2")
    assert (code, "no SHA-256" in said) == (5, True)


@pytest.mark.parametrize("label", ["", "-", "sample", "../../keys/root-1", "x" * 5000])
def test_a_label_that_cannot_be_one_is_refused(
    label: str, sample: PublishedSample, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("show", "verify"):
        code, said = release(sample, capsys, command, "--", label)
        assert code in {2, 3}, said
        assert len(said) < 500, "a message quotes what came, but not all of it"
