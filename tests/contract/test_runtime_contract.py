"""Every built-in runtime keeps the contract, on real processes."""

from pathlib import Path

import pytest

from slmops.testing.contracts.runtime import RuntimeContract, RuntimeSubject


class TestEcho(RuntimeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, tmp_path_factory: pytest.TempPathFactory) -> RuntimeSubject:
        artefact = tmp_path_factory.mktemp("echo") / "model.echo"
        artefact.write_text('{"echo": 1, "delay_ms": 1}')
        return RuntimeSubject(runtime="echo", artefact=artefact)


@pytest.mark.slow
class TestLlamaCpp(RuntimeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, smollm2_gguf: Path) -> RuntimeSubject:
        pytest.importorskip("xllamacpp")
        return RuntimeSubject(runtime="llamacpp", artefact=smollm2_gguf)
