"""A control plane in this process for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from slmops.domain.release import Release
from slmops.testing.control_in_process import ControlInProcess, control_in_process


@pytest.fixture
def run_control(tmp_path: Path) -> Iterator[Callable[..., ControlInProcess]]:
    """Return a function that starts a control plane on given releases."""
    with ExitStack() as running:

        def run(*releases: Release, **settings: float) -> ControlInProcess:
            control = control_in_process(tmp_path / "workspace", releases, **settings)
            running.enter_context(control.http)
            return control

        yield run


@pytest.fixture
def control(run_control: Callable[..., ControlInProcess]) -> ControlInProcess:
    """A control plane with one quick release."""
    return run_control()
