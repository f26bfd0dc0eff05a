"""`slmops demo`: the whole loop as a story."""

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from slmops.cli import render


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for workspace, logs, devices and summary.json; must not exist yet.",
)
@click.option("--replace", is_flag=True, help="Remove an earlier demo's folder first.")
@click.option("--keep", is_flag=True, help="Leave control plane and devices running.")
@render.as_json
def demo(output: Path, replace: bool, keep: bool, as_json: bool) -> None:
    """Take a real small model to a healthy fleet, then stop a bad release.

    Imports SmolLM2-135M-Instruct, builds and signs a variant for three device classes,
    starts a control plane and six agents as processes of their own, rolls out, asks,
    and forces a bad release through to see the rollout halt. Exits with 0 only if all
    of it really happened; summary.json has the figures.

    Example: slmops demo --keep
    """
    from slmops.demo.story import Narrator, Story, prepare_output, save_summary

    prepare_output(output, replace_demo=replace)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    narrator = Narrator(
        line=render.note if as_json else render.text,
        table=lambda columns, rows: None if as_json else render.table(columns, rows),
        out=sys.stderr if as_json else sys.stdout,
    )
    summary = Story(output=output.absolute(), narrator=narrator, keep=keep).play()
    path = save_summary(summary, output)
    if as_json:
        render.json_document(summary)
    render.note(f"summary: {path}")
    for failure in summary.failures:
        render.note(f"did not happen: {failure}")
    sys.exit(1 if summary.failures else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End like Ctrl-C, also when the terminal closes: no agent is left behind."""
    raise KeyboardInterrupt
