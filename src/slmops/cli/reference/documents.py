"""The blueprint and the settings as pages, made from their documents."""

import dataclasses
from collections.abc import Iterator

from slmops.agent.settings import PREFIX, AgentSettings
from slmops.cli.main import app
from slmops.cli.reference.commands import leaf_commands
from slmops.cli.reference.limits import LIMITS
from slmops.cli.reference.tables import WRITTEN, field_rows, table
from slmops.control.settings import PREFIX as CONTROL_PREFIX
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import Blueprint
from slmops.registry.bins import BinSettings
from slmops.registry.keys import KeySettings
from slmops.wire.field_docs import documents_in, field_docs

_COLUMNS = ("key", "value", "default", "what")
_BLUEPRINT_HEAD = """\
# Blueprint reference

{written}

One YAML file says what to build and how it reaches the devices. `slmops init` writes a
commented one, `slmops blueprint check` tells the first mistake with its place, and
`slmops blueprint schema` prints the JSON Schema that editors show help from. Unknown
keys, keys given twice, aliases, NaN and infinities are errors. A device belongs to the
first class whose `where` matches it.
"""
_SETTINGS_HEAD = """\
# Settings

{written}

A variable beats the file, the file beats the default. Unknown settings are errors, in
the file and as variables. Variables of lists and mappings are YAML: `[a, b]`,
`{{site: north}}`.
"""
_AGENT_HEAD = f"""\
## The agent

`config.json` in the state folder, written by `slmops agent enrol`; each may be set by a
variable `{PREFIX}…` in capitals: `{PREFIX}PORT=8765`.
"""
_CONTROL_HEAD = f"""\
## The control plane

Options of `slmops serve` for the first three; each may be set by a variable `{CONTROL_PREFIX}…`
in capitals: `{CONTROL_PREFIX}DEVICE_BURST=20`. An option beats its variable.
"""
_KEYS_HEAD = """\
## Signing keys

Read by `slmops release create` and `slmops serve`.
"""
_COMMANDS_HEAD = """\
## Variables that stand for options
"""
_OTHERS = """
## Variables of others

`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` count for the operator's commands (`device`, `rollout`) and for
imports from the Hub, never for an agent: whoever starts it must not send it elsewhere.
`XDG_CACHE_HOME` moves the cache in which the demo keeps its model. `HF_HOME` and the other
variables of `huggingface_hub` count for imports from the Hub.

`RAY_ADDRESS` names the cluster that `slmops build --executor ray` joins; `SLMOPS_RAY_NODE_FOLDER`, set on its nodes,
where they keep inputs and checkpoints ([executors](executors.md)).
"""


def blueprint_page() -> str:
    """Return the page of every key of a blueprint."""
    parts = [_BLUEPRINT_HEAD.format(written=WRITTEN)]
    parts += [_document(kind) for kind in documents_in(Blueprint)]
    return "\n".join(parts)


def settings_page() -> str:
    """Return the page of every setting and every environment variable."""
    return "\n".join(
        [
            _SETTINGS_HEAD.format(written=WRITTEN),
            _AGENT_HEAD,
            *table(_COLUMNS, _rows(AgentSettings)),
            "",
            _CONTROL_HEAD,
            *table(_COLUMNS, _control_rows()),
            "",
            _KEYS_HEAD,
            *table(("variable", "what"), _key_rows()),
            "",
            _COMMANDS_HEAD,
            *table(("variable", "option", "of"), _option_rows()),
            _OTHERS,
        ]
    )


def _document(kind: type) -> str:
    said = " ".join((kind.__doc__ or "").split())
    heading = [f"## {kind.__name__}", "", said, ""]
    lines = [*heading, *table(_COLUMNS, _rows(kind))]
    return "\n".join(lines) + "\n"


def _rows(kind: type) -> Iterator[tuple[str, ...]]:
    """Yield a document's fields, with the limits of their values."""
    limits = LIMITS.get(kind, {})
    for name, value, default, what in field_rows(kind):
        limit = limits.get(name.strip("`"))
        yield name, f"{value}, {limit}" if limit else value, default, what


def _control_rows() -> Iterator[tuple[str, ...]]:
    for row in _rows(ControlSettings):
        if row[0] != "`workspace`":
            yield row


def _key_rows() -> Iterator[tuple[str, str]]:
    for kind, prefix in ((KeySettings, "KEY"), (BinSettings, "REGISTRY")):
        docs = field_docs(kind)
        for field in dataclasses.fields(kind):
            yield f"`SLMOPS_{prefix}_{field.name.upper()}`", docs[field.name]


def _option_rows() -> list[tuple[str, str, str]]:
    used: dict[tuple[str, str], list[str]] = {}
    commands = [((), app), *leaf_commands(app)]
    for path, command in commands:
        for parameter in command.params:
            if isinstance(parameter.envvar, str):
                key = (parameter.envvar, parameter.opts[0])
                used.setdefault(key, []).append(" ".join(path) or "every command")
    return [
        (f"`{variable}`", f"`{option}`", ", ".join(names))
        for (variable, option), names in sorted(used.items())
    ]
