"""What a device does not pay for."""

import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "numpy", "pandas", "sqlalchemy", "alembic", "altair", "gguf"),
    *("huggingface_hub", "safetensors", "rich", "pygments"),
)


@pytest.mark.parametrize("module", ["slmops.agent.app", "slmops.registry.trust"])
def test_the_agent_loads_no_training_table_or_terminal_library(module: str) -> None:
    code = f"import sys, slmops.agent.app, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_httpx_works_in_the_agent_without_its_command_line() -> None:
    code = "import slmops.agent, httpx; httpx.Client().close(); print(httpx.codes.OK)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    assert said.strip() == "200"
