"""`slmops blueprint`: check blueprints, compare them with releases, export the schema."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.catalog import open_catalog
from slmops.domain.errors import NotFoundError
from slmops.domain.ids import label_version
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.workshop.blueprint_diff import BlueprintChange

_WIDEST = 40


class _Blueprints(click.Group):
    """Finds `apply` in a file of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "apply"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "apply":
            module = importlib.import_module("slmops.cli.blueprint_apply")
            command: click.Command = module.apply
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Blueprints)
def blueprint() -> None:
    """Check blueprints, compare them with what was released, bring changes about.

    Example: slmops blueprint check blueprint.yaml
    """


@blueprint.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@render.as_json
@click.pass_obj
def check(workspace: Workspace, path: Path, as_json: bool) -> None:
    """Check the blueprint at PATH: keys, values, and everything it names.

    The first mistake is told with its place and, for a misspelt word, the right one. The
    model is looked up where this workspace has any.

    Example: slmops blueprint check blueprint.yaml
    """
    from slmops.workshop.blueprints import load_blueprint
    from slmops.workshop.models import find_model, list_models

    checked = load_blueprint(path)
    if list_models(workspace):
        find_model(workspace, checked.model)
    else:
        render.note(f"model {checked.model} was not looked up: none is imported here")
    if as_json:
        render.json_document(checked)
        return
    classes = ", ".join(device_class.name for device_class in checked.classes)
    render.text(f"{path} is valid: {checked.name} for {classes}")


@blueprint.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--since",
    metavar="RELEASE",
    help="Compare with this release; default is the product's newest.",
)
@render.as_json
@click.pass_obj
def diff(workspace: Workspace, path: Path, since: str | None, as_json: bool) -> None:
    """Show what the blueprint at PATH changes against a release, and what that takes.

    Example: slmops blueprint diff blueprint.yaml --since assistant-2
    """
    label, changes = changes_since(workspace, path, since)
    if as_json:
        render.json_document({"since": label, "changes": changes})
        return
    if not changes:
        render.text(f"{path} says what {label} was made from")
        return
    render_changes(path, label, changes)
    render.note(
        "devices get none of it before a new release: slmops blueprint apply"
        f" {path} --rollout"
    )


def changes_since(
    workspace: Workspace, path: Path, since: str | None
) -> "tuple[str, tuple[BlueprintChange, ...]]":
    """Return the release compared with, and what the blueprint at PATH changes.

    Raises:
        NotFoundError: the product has no release, or `since` is none.
    """
    from slmops.workshop.blueprint_diff import blueprint_changes
    from slmops.workshop.blueprints import load_blueprint

    wanted = load_blueprint(path)
    catalog = open_catalog(workspace)
    label = since or newest_label(catalog.labels(), wanted.name)
    return label, blueprint_changes(catalog.load(label)[0].blueprint, wanted)


def render_changes(
    path: Path, label: str, changes: "Sequence[BlueprintChange]"
) -> None:
    """Print changes as a table."""
    render.table(
        ("key", f"in {label}", f"in {path.name}", "what it takes"),
        [
            (one.path, _shown(one.before), _shown(one.after), one.consequence)
            for one in changes
        ],
    )


def newest_label(labels: Sequence[str], product: str) -> str:
    """Return the newest release of a product.

    Raises:
        NotFoundError: it has none.

    >>> newest_label(["a-2", "a-10", "b-11"], "a")
    'a-10'
    """
    mine = [label for label in labels if label.rpartition("-")[0] == product]
    if not mine:
        raise NotFoundError(
            f"{product} has no release yet to compare with; --since names another one's"
        )
    return max(mine, key=label_version)


def _shown(value: object) -> str:
    from slmops.wire import codec

    text = "–" if value is None else codec.encode_json(value).decode()
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"


@blueprint.command()
@render.as_json
def schema(as_json: bool) -> None:
    """Print the JSON Schema of blueprints, for editors and other tools.

    Editors that know YAML schemas read it from the first line `slmops init` writes.

    Example: slmops blueprint schema > blueprint.schema.json
    """
    from slmops.workshop.blueprints import blueprint_schema

    del as_json  # a schema is JSON either way
    render.text(blueprint_schema())
