"""A real control plane process for the operator's commands, shared by a module."""

from collections.abc import Iterator

import pytest

from slmops.cli.main import main
from slmops.testing.live_control import LiveControl, Ran, Slmops, live_control


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveControl]:
    with live_control(tmp_path_factory.mktemp("live"), releases=9) as running:
        yield running


@pytest.fixture
def slmops(
    live: LiveControl,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Slmops:
    """Run a command against the control plane, as `slmops …` would."""
    monkeypatch.delenv("SLMOPS_OPERATOR_TOKEN", raising=False)
    monkeypatch.setenv("SLMOPS_SERVER", live.control.url)
    monkeypatch.setenv("SLMOPS_WORKSPACE", str(live.control.workspace))

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return Ran(code=int(caught.value.code or 0), out=out, err=err)

    return call
