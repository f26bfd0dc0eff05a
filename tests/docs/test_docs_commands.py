"""Commands in the docs exist, and every command teaches with an example."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from slmops.cli.main import COMMANDS, app
from slmops.cli.reference.commands import leaf_commands
from slmops.cli.runnable_group import RunnableGroup

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LEAVES = dict(leaf_commands(app))
_FENCE = re.compile(
    r"^```(?:sh|shell|bash|console)?\n(.*?)^```", re.DOTALL | re.MULTILINE
)


def commands_in(text: str) -> Iterator[str]:
    """Yield every `slmops …` command of the fenced blocks, comments and pipes cut off."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            typed = line.removeprefix("$ ").strip()
            for part in re.split(r"\s(?:&&|\|\|?|;|&|#|>|2>)(?:\s|$)|\$\(|\)", typed):
                command = part.strip().rstrip("&")
                if re.match(r"(?:\S*/)?slmops\s", command):
                    yield command


def parse(command: str) -> None:
    """Check a command against the click tree, as far as click does before it runs.

    Raises:
        click.ClickException: it does not exist, or an option or a value is wrong.
    """
    words = shlex.split(command)[1:]
    if words[0] == "--workspace":
        words = words[2:]
    found: click.Command | None = app
    while isinstance(found, click.Group) and not words[0].startswith("-"):
        inner = found.get_command(click.Context(found), words[0])
        if inner is None and isinstance(found, RunnableGroup):
            break
        word = words.pop(0)
        found = inner
        if found is None:
            raise click.UsageError(f"no command {word!r}")
    assert found is not None
    found.make_context("slmops", words)


COMMANDS_IN_DOCS = sorted(
    {
        (page.name, command)
        for page in PAGES
        for command in commands_in(page.read_text("utf-8"))
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS_IN_DOCS)
def test_a_command_in_the_docs_exists_with_its_options(page: str, command: str) -> None:
    try:
        parse(command)
    except click.exceptions.Exit:
        pass  # --help and --version end here
    except click.ClickException as error:
        raise AssertionError(f"{page}: {command}: {error.format_message()}") from None


def test_a_wrong_command_would_be_found() -> None:
    for wrong in ("slmops nothing", "slmops model impart x", "slmops plan"):
        with pytest.raises(click.ClickException):
            parse(wrong)
    for wrong in ("slmops serve --prot 1", "slmops serve --port x"):
        with pytest.raises(click.ClickException):
            parse(wrong)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_teaches_with_an_example_and_speaks_json(
    path: tuple[str, ...],
) -> None:
    command = LEAVES[path]
    text = " ".join((command.help or "").split())
    _, found, example = text.partition("Example: ")
    assert found, f"{' '.join(path)} has no example"
    assert example.startswith(f"slmops {' '.join(path)}")
    assert "--json" in {name for one in command.params for name in one.opts}
    assert all(one.help for one in command.params if isinstance(one, click.Option)), (
        "an option says nothing"
    )


HEAVY = {
    *("altair", "cryptography", "gguf", "httpx", "huggingface_hub", "msgspec"),
    *("numpy", "rich", "securesystemslib", "sqlalchemy", "starlette", "tuf"),
    *("uvicorn", "xllamacpp", "yaml"),
}
HELP = """
import sys
from slmops.cli.main import main
for words in {calls!r}:
    try:
        main([*words, "--help"])
    except SystemExit as ended:
        assert not ended.code, words
print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


def test_no_help_loads_a_library_that_does_the_work() -> None:
    calls = [(), *((name,) for name in COMMANDS), *LEAVES]
    ran = subprocess.run(
        [sys.executable, "-c", HELP.format(calls=calls, heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stderr.strip() == "[]"
    assert ran.stdout.count("Usage: slmops") == len(calls)
