"""Everything the command line prints: JSON, tables, notes, errors, progress.

Results go to standard output; notes, errors and progress go to standard error.
Text may come from devices and model files: what would steer a terminal is not printed.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from slmops.domain.errors import SlmopsError

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON document."
)
"""Option every command takes."""

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, done so far, total); total 0 when unknown. What runs
at the same time is joined by `` + ``."""

_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and newline, direction overrides, lone surrogates."""


def json_document(document: object) -> None:
    """Print a document (a domain dataclass or plain values) as readable JSON."""
    from slmops.wire.codec import encode_json_pretty

    print(encode_json_pretty(document))


def text(line: str = "") -> None:
    """Print a line of the result."""
    print(_harmless(line))


def note(line: str) -> None:
    """Print a line for the person watching."""
    print(_harmless(line), file=sys.stderr)


def error(problem: SlmopsError) -> None:
    """Print an error with its class: ``error [not_found]: …``."""
    print(_harmless(f"error [{problem.code}]: {problem}"), file=sys.stderr)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
) -> None:
    """Print a table; numbers go right, None shows as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heading = Text(_harmless(title)) if title else None
    shown = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = rows and all(
            isinstance(row[index], int | float | None) for row in rows
        )
        shown.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        shown.add_row(
            *(Text("–" if cell is None else _harmless(str(cell))) for cell in row)
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(shown)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress on standard error while work reports through the callback.

    Args:
        quiet: write no lines into a log; a terminal gets its bar all the same.
    """
    if not sys.stderr.isatty():
        told: set[str] = set()

        def report_line(what: str, done: float, total: float) -> None:
            # Tasks that run together come joined; each is worth one line of a log.
            for part in what.split(" + "):
                if part not in told and not quiet:
                    note(f"  {part}")
                told.add(part)

        yield report_line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def report_bar(what: str, done: float, total: float) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield report_bar


def _harmless(line: str) -> str:
    r"""Replace what would steer a terminal.

    >>> _harmless("till\x1b[2J")
    'till�[2J'
    """
    return _STEERING.sub("\ufffd", line)
