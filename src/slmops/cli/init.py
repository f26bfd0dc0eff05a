"""`slmops init`: a commented blueprint to start from."""

from pathlib import Path

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace


@click.command()
@click.argument(
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
)
@click.option("--model", help="Imported model to name in it; the only one by default.")
@render.as_json
@click.pass_obj
def init(workspace: Workspace, folder: Path, model: str | None, as_json: bool) -> None:
    """Write a commented blueprint.yaml into FOLDER, and its schema for editors.

    An existing blueprint is never overwritten.

    Example: slmops init --model smollm2-135m-instruct
    """
    from slmops.workshop.blueprints import write_blueprint
    from slmops.workshop.models import find_model, list_models

    models = list_models(workspace)
    if model is not None:
        model = find_model(workspace, model).name
    elif len(models) == 1:
        model = models[0].name
    path, schema = write_blueprint(folder, model or "my-model")
    if as_json:
        document = {"blueprint": str(path), "schema": str(schema), "model": model}
        render.json_document(document)
        return
    render.text(f"wrote {path} and {schema}")
    if model is None:
        render.note("set `model` in it after `slmops model import SOURCE`")
    render.note(f"next: slmops plan {path}")
