"""`slmops model`: import models and look at them."""

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

_MIB = 1 << 20


@click.group()
def model() -> None:
    """Import models and look at them.

    Example: slmops model import SmolLM2-135M-Instruct.gguf --name smollm2
    """


@model.command("import")
@click.argument("source")
@click.option("--name", help="Short name; derived from the model's own by default.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@render.as_json
@click.pass_obj
def import_(
    workspace: Workspace,
    source: str,
    name: str | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Import SOURCE as a 16-bit reference.

    SOURCE is a GGUF file, a Hugging Face checkpoint folder with safetensors, or a Hub
    id such as HuggingFaceTB/SmolLM2-135M-Instruct. A quantized file is dequantized and
    marked: its grid flatters variants of its own type.

    Example: slmops model import ./SmolLM2-135M-Instruct --name smollm2
    """
    from slmops.workshop.models import import_model

    with render.progress(quiet=as_json) as progress:
        record = import_model(
            source, workspace, name=name, revision=revision, progress=progress
        )
    if as_json:
        render.json_document(record)
        return
    render.text(f"{record.name}  {record.id}")
    if record.source_quantization:
        render.note(
            f"the source is quantized ({record.source_quantization}): measurements of"
            " that type against this reference are flattered"
        )


@model.command("list")
@render.as_json
@click.pass_obj
def list_(workspace: Workspace, as_json: bool) -> None:
    """List imported models.

    Example: slmops model list
    """
    from slmops.workshop.models import list_models

    records = list_models(workspace)
    if as_json:
        render.json_document({"models": records})
        return
    if not records:
        render.note(
            "no model is imported; `slmops model import SOURCE` is the first step"
        )
        return
    render.table(
        ("name", "id", "architecture", "parameters", "MiB", "licence", "from"),
        [
            (
                record.name,
                record.id[7:19],
                record.architecture,
                f"{record.parameters / 1e6:.1f} M",
                round(record.bytes / _MIB, 1),
                record.licence,
                record.source_quantization or "16 bit",
            )
            for record in records
        ],
    )


@model.command()
@click.argument("name")
@render.as_json
@click.pass_obj
def show(workspace: Workspace, name: str, as_json: bool) -> None:
    """Show one model by NAME, digest, or the beginning of its digest.

    Example: slmops model show smollm2
    """
    from slmops.wire.codec import to_plain
    from slmops.workshop.models import find_model

    record = find_model(workspace, name)
    if as_json:
        render.json_document(record)
        return
    fields = to_plain(record)
    fields["chat_template"] = "yes" if record.chat_template else "none"
    render.table(("field", "value"), list(fields.items()))
