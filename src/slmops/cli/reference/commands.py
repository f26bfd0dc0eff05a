"""The command line as one page, made from the commands themselves."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from slmops.cli.main import app
from slmops.cli.reference.tables import WRITTEN, table
from slmops.cli.runnable_group import RunnableGroup

_HEAD = """\
# Command line

{written}

Results go to standard output, notes and progress to standard error. With `--json` the
result is one JSON document. Exit codes: 0 is success, 2 to 7 say what to do next
([errors](errors.md)), 130 is Ctrl-C, 143 SIGTERM, 1 a bug. `--help` after any command explains it.

Completion, for bash (zsh and fish by their names): `eval "$(_SLMOPS_COMPLETE=bash_source slmops)"`.
"""


def leaf_commands(
    command: click.Command, path: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that does something, with the words that call it."""
    if isinstance(command, RunnableGroup) or not isinstance(command, click.Group):
        yield tuple(path), command
    if not isinstance(command, click.Group):
        return
    context = click.Context(command, info_name=" ".join(path))
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None:
            yield from leaf_commands(inner, (*path, name))


def command_page() -> str:
    """Return the page: every command with its options, defaults and variables."""
    parts = [_HEAD.format(written=WRITTEN), _command((), app)]
    parts += [_command(path, command) for path, command in leaf_commands(app)]
    return "\n".join(parts)


def _command(path: Sequence[str], command: click.Command) -> str:
    words = " ".join(("slmops", *path))
    title = f"`{words}`" if path else "Options before any command"
    parameters = [
        parameter.to_info_dict()
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
    ]
    lines = [f"## {title}", "", f"    {words} {_usage(command)}".rstrip(), ""]
    lines += _prose(command.help or "")
    options = [one for one in parameters if one["param_type_name"] == "option"]
    if options:
        lines += table(("option", "default", "what"), map(_row, options))
    return "\n".join(lines) + "\n"


def _usage(command: click.Command) -> str:
    arguments = [
        parameter.human_readable_name
        if parameter.required
        else f"[{parameter.human_readable_name.strip('[]')}]"
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    runs = isinstance(command, RunnableGroup) or not isinstance(command, click.Group)
    inner = arguments if runs else ["COMMAND"]
    return " ".join(["[OPTIONS]", *inner])


def _prose(text: str) -> Iterator[str]:
    """Turn a help text into Markdown; its example becomes a code block."""
    for paragraph in text.strip().split("\n\n"):
        words = " ".join(paragraph.split())
        example = words.removeprefix("Example: ")
        lines = [words] if example == words else ["```sh", example, "```"]
        yield from (*lines, "")


def _row(option: dict[str, Any]) -> tuple[str, str, str]:
    names = " / ".join(
        f"`{name}`" for name in option["opts"] + option["secondary_opts"]
    )
    what = option["help"] or ""
    if option["envvar"]:
        what += f" Variable: `{option['envvar']}`."
    return names, _default(option), what


def _default(option: dict[str, Any]) -> str:
    if option["required"]:
        return "required"
    default = option["default"]
    if option["is_flag"]:
        chosen = option["opts"] if default else option["secondary_opts"]
        return f"`{chosen[0]}`" if option["secondary_opts"] else "off"
    return f"`{default}`" if default else "none"
