"""Entry point: finds the noun's file, runs it, and turns errors into exit codes."""

import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from slmops import __version__
from slmops.cli import render
from slmops.cli.extras import extra_needed
from slmops.domain.errors import SlmopsError, UnavailableError
from slmops.registry.workspace import DEFAULT_FOLDER, Workspace

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("slmops.cli.init:init", "Write a commented blueprint to start from."),
    "model": ("slmops.cli.model:model", "Import models and look at them."),
    "blueprint": (
        "slmops.cli.blueprint:blueprint",
        "Check, compare and apply blueprints.",
    ),
    "plan": (
        "slmops.cli.plan:plan",
        "Predict sizes, memory and speed before building.",
    ),
    "task": ("slmops.cli.task:task", "Check a task's examples, ask models about them."),
    "build": ("slmops.cli.build:build", "Quantize, measure and choose variants."),
    "report": ("slmops.cli.build:report", "Show a finished build, write its page."),
    "release": (
        "slmops.cli.release:release",
        "Create, list, show and verify releases.",
    ),
    "keys": ("slmops.cli.keys:keys", "Who signs: thresholds, rotation, revocation."),
    "serve": ("slmops.cli.serve:serve", "Run the control plane and its dashboard."),
    "device": ("slmops.cli.device:device", "Enrolment tokens and the fleet's devices."),
    "agent": ("slmops.cli.agent:agent", "Run the agent on a device."),
    "rollout": ("slmops.cli.rollout:rollout", "Bring a release to the fleet in waves."),
    "operator": (
        "slmops.cli.operator:operator",
        "Give people tokens of their own, to approve and be named.",
    ),
    "workspace": (
        "slmops.cli.workspace:workspace_",
        "See how full the workspace is, and free space.",
    ),
    "demo": (
        "slmops.cli.demo:demo",
        "Play the whole loop with a real model and fleet.",
    ),
}
"""Noun → where its command is, and the line `slmops --help` shows; loaded on use."""


class _Nouns(click.Group):
    """Loads a noun's file only when it is called, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(
        self,
        ctx: click.Context,
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slmops")
@click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(DEFAULT_FOLDER),
    envvar="SLMOPS_WORKSPACE",
    show_default=True,
    help="Folder for models, builds, releases and keys.",
)
@click.pass_context
def app(ctx: click.Context, workspace: Path) -> None:
    """Small language models on fleets of devices that do not look alike.

    Start with: model import, init, plan, build, release create. Every command takes --json for machines and
    --help for people.
    """
    ctx.obj = Workspace(root=workspace.absolute())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 0, the error's class code, 130 on Ctrl-C, or 143 on SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot spell a sign shows another; the command goes on.
            stream.reconfigure(errors="replace")
    _end_like_ctrl_c()
    try:
        code = app.main(args=arguments, prog_name="slmops", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stop:
        render.note("stopped; nothing is half-done, run it again to go on")
        # click turns an interrupt into an Abort of its own.
        told = isinstance(stop.__cause__ or stop, _Terminated)
        sys.exit(143 if told else 130)
    except BrokenPipeError:
        # `slmops … | head`: the reader has seen enough, and there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)  # as click and rich do
    except (SlmopsError, ModuleNotFoundError, OSError) as error:
        problem = _as_ours(error)
        if problem is None:
            raise
        render.error(problem)
        sys.exit(problem.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _end_like_ctrl_c() -> None:
    """Let SIGTERM end a command as Ctrl-C does; servers take it over for themselves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _as_ours(error: Exception) -> SlmopsError | None:
    """Name the next step after what the machine refuses; None for a bug."""
    if isinstance(error, SlmopsError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return extra_needed(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return UnavailableError(f"{place}{error.strerror}")
    return None
