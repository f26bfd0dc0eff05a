"""A full disk is one clear sentence, leaves nothing half-written, and is no end."""

import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.artefacts import Making
from slmops.workshop.board import Board
from slmops.workshop.disk import full_disk, said_when_full
from slmops.workshop.models import import_model, list_models
from slmops.workshop.progress import silent
from slmops.workshop.workbench import local_workbench


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow larger, here and in children: a full disk without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def blobs_of(workspace: Workspace) -> list[Path]:
    folder = BlobStore(workspace.blobs).folder
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x", "/some/a.gguf"), "/some/a.gguf: no space"),
        (OSError(errno.EDQUOT, "x"), "no space left"),
        (OSError(errno.EFBIG, "x"), "file too large"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space"),
        (OSError(errno.EACCES, "x"), None),
        (ValueError("x"), None),
        (InvalidInputError("no space left on device"), None),
    ],
)
def test_whatever_a_full_disk_raises_is_told_from_other_errors(
    error: Exception, said: str | None, tmp_path: Path
) -> None:
    found = full_disk(error, tmp_path / "not" / "there")
    if said is None:
        assert found is None
    else:
        assert said in str(found)
        assert "MiB free there" in str(found)


def test_a_device_that_is_always_full_is_named() -> None:
    with (
        pytest.raises(UnavailableError, match=r"^/dev: no space left, \d+ MiB free"),
        said_when_full(Path("/dev")),
        Path("/dev/full").open("wb") as sink,
    ):
        sink.write(b"x")
        sink.flush()


def test_an_import_without_room_leaves_nothing_and_works_once_there_is_some(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    with largest_file(100_000), pytest.raises(UnavailableError, match="too large"):
        import_model(source, workspace)
    assert blobs_of(workspace) == []
    assert list_models(workspace) == ()
    assert import_model(source, workspace).name == "tiny-llama"


def test_a_job_without_room_says_so_and_runs_once_there_is_some(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    model = import_model(str(source), workspace)
    before = blobs_of(workspace)
    making = Making(model=model.id, quantization="Q8_0")
    with local_workbench(workspace, Board(progress=silent)) as bench:
        with (
            largest_file(50_000),
            pytest.raises(UnavailableError, match=r"quantize: .*too large.*gc shows"),
        ):
            making.quantize(bench)
        assert blobs_of(workspace) == before
        assert making.quantize(bench).file.bytes > 50_000


IN_A_SMALL_DISK = """
import sys
from pathlib import Path
from slmops.domain.errors import UnavailableError
from slmops.registry.workspace import Workspace
from slmops.workshop.artefacts import Making
from slmops.workshop.board import Board
from slmops.workshop.models import import_model
from slmops.workshop.progress import silent
from slmops.workshop.workbench import local_workbench

disk = Path(sys.argv[2])
workspace = Workspace(root=disk / "ws")
model = import_model(sys.argv[1], workspace)
blobs = workspace.blobs / "blobs" / "sha256"
before = sorted(blobs.iterdir())
ballast = disk / "ballast"
with ballast.open("wb", buffering=0) as sink:
    try:
        while sink.write(bytes(4096)) == 4096:
            pass
    except OSError:
        pass
ballast.open("r+b").truncate(ballast.stat().st_size - 40_000)
with local_workbench(workspace, Board(progress=silent)) as bench:
    making = Making(model=model.id, quantization="Q8_0")
    try:
        making.quantize(bench)
    except UnavailableError as error:
        print(error)
    assert sorted(blobs.iterdir()) == before, "a partial blob was left"
    ballast.unlink()
    making.quantize(bench)
print("resumed")
"""


@pytest.mark.slow
def test_on_a_small_file_system_a_job_fails_clean_and_resumes(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(IN_A_SMALL_DISK)
    inside = (
        f"mount -t tmpfs -o size=600k tmpfs {disk} || exit 99;"
        f" exec {sys.executable} {script} {source} {disk}"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=100
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode in {1, 99} and "unshare:" in done.stderr + done.stdout:
        pytest.skip(f"no mount in a namespace of one's own: {done.stderr.strip()}")
    if done.returncode == 99:
        pytest.skip(f"no tmpfs in a namespace of one's own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "no space left" in done.stdout
    assert "MiB free there" in done.stdout
    assert "Traceback" not in done.stdout
    assert done.stdout.rstrip().endswith("resumed")
