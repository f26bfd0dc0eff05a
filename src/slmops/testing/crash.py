"""The agent with a power cut at a chosen place, for the kill test.

``python -m slmops.testing.crash --state DIR --at downloading --phase after`` runs the
real agent, whose journal ends the process by SIGKILL: ``before`` the action of a state
(right after the state is on disk), or ``after`` it (before the next state is written).
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

import click

from slmops.agent.app import run_agent, set_up_logging
from slmops.agent.journal import Journal
from slmops.agent.records import Installation
from slmops.agent.settings import load_agent_settings
from slmops.domain.installation import State

PHASES = ("before", "after")


class CrashingJournal(Journal):
    """Cuts the power around one state's action."""

    at: State
    phase: str

    def enter(self, installation: Installation) -> None:
        """Write the state, or die before or after that."""
        current = self.installation()
        left = current is not None and current.state is self.at
        if left and self.phase == "after":
            _cut_power()
        super().enter(installation)
        if installation.state is self.at and self.phase == "before":
            _cut_power()


def _cut_power() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option(
    "--at", type=click.Choice([state.value for state in State]), required=True
)
@click.option("--phase", type=click.Choice(PHASES), required=True)
def main(state: Path, at: str, phase: str) -> None:
    """Run the agent of a state folder until it gets there."""

    def open_journal(path: Path, now: float) -> Journal:
        journal = CrashingJournal.open(path, now=now)
        assert isinstance(journal, CrashingJournal)
        journal.at, journal.phase = State(at), phase
        return journal

    set_up_logging()
    settings = replace(load_agent_settings(state, os.environ), port=0)
    run_agent(state.absolute(), settings, open_journal=open_journal)


if __name__ == "__main__":
    main()
