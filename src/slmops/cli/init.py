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
@click.option(
    "--model",
    help="Imported model to name in it, or a file, folder or Hub id to import first;"
    " by default the only one there is.",
)
@render.as_json
@click.pass_obj
def init(workspace: Workspace, folder: Path, model: str | None, as_json: bool) -> None:
    """Write a commented blueprint.yaml into FOLDER, and its schema for editors.

    An existing blueprint is never overwritten.

    Example: slmops init --model ./SmolLM2-135M-Instruct.gguf
    """
    from slmops.workshop.blueprints import write_blueprint
    from slmops.workshop.models import list_models

    models = list_models(workspace)
    if model is not None:
        model = _known_or_imported(workspace, model, quiet=as_json)
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


def _known_or_imported(workspace: Workspace, model: str, *, quiet: bool) -> str:
    """Return the name of an imported model; what looks like a source is imported."""
    from slmops.domain.errors import NotFoundError
    from slmops.workshop.models import find_model, import_model

    try:
        return find_model(workspace, model).name
    except NotFoundError:
        if "/" not in model and not Path(model).exists():
            raise
    with render.progress(quiet=quiet) as progress:
        return import_model(model, workspace, progress=progress).name
