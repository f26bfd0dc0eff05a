"""`slmops blueprint`: check blueprints, export their schema."""

from pathlib import Path

import click

from slmops.cli import render


@click.group()
def blueprint() -> None:
    """Check blueprints, export their schema.

    Example: slmops blueprint check blueprint.yaml
    """


@blueprint.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@render.as_json
def check(path: Path, as_json: bool) -> None:
    """Check the blueprint at PATH: keys, values, and everything it names.

    The first mistake is told with its place and, for a misspelt word, the right one.

    Example: slmops blueprint check blueprint.yaml
    """
    from slmops.workshop.blueprints import load_blueprint

    checked = load_blueprint(path)
    if as_json:
        render.json_document(checked)
        return
    classes = ", ".join(device_class.name for device_class in checked.classes)
    render.text(f"{path} is valid: {checked.name} for {classes}")


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
