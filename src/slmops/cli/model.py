"""`slmops model`: import models, look at them, export and merge."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.workshop.inspection import ModelInspection

_MIB = 1 << 20


@click.group()
def model() -> None:
    """Import models, look at them, export and merge.

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
            f"the source is quantized (mainly {record.source_quantization}): measurements of"
            " variants with its tensors' types are flattered, and marked"
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


@model.command()
@click.argument("name")
@render.as_json
@click.pass_obj
def remove(workspace: Workspace, name: str, as_json: bool) -> None:
    """Forget the model called NAME; `slmops workspace gc` then frees its bytes.

    Other names of the same model stay, and so do builds and releases made from it.

    Example: slmops model remove smollm2
    """
    from slmops.workshop.models import remove_model

    record = remove_model(workspace, name)
    if as_json:
        render.json_document({"removed": name, "id": record.id})
        return
    render.note(f"{name} is forgotten; slmops workspace gc shows what that frees")


@model.command()
@click.argument("name")
@render.as_json
@click.pass_obj
def inspect(workspace: Workspace, name: str, as_json: bool) -> None:
    """Show what a model consists of: NAME, a digest, or a GGUF file.

    One line a group of tensors: where the bytes are, and which block formats divide its
    rows; then totals, sizes, and what a token of context costs.

    Example: slmops model inspect smollm2
    """
    from slmops.workshop.inspection import inspect_model
    from slmops.workshop.models import find_model, reference_path

    path = Path(name)
    if not path.is_file():
        path = reference_path(workspace, find_model(workspace, name))
    found = inspect_model(path)
    if as_json:
        render.json_document(found)
        return
    _show_inspection(found)


@model.command()
@click.argument("name")
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; must hold no checkpoint.",
)
@render.as_json
@click.pass_obj
def export(workspace: Workspace, name: str, output: Path, as_json: bool) -> None:
    """Export model NAME as a Hugging Face checkpoint folder.

    Configuration, safetensors, tokenizer and chat template, for tools that train, and a
    card with licence and origin; the folder imports as the same model. Families: llama,
    qwen2, qwen3, gemma3.

    Example: slmops model export smollm2 --output ./smollm2-hf
    """
    from slmops.workshop.hf_card import export_model
    from slmops.workshop.models import find_model

    record = find_model(workspace, name)
    with render.progress(quiet=as_json) as progress:
        export_model(workspace, record, output, progress)
    if as_json:
        render.json_document({"model": record.id, "folder": str(output)})
        return
    render.text(str(output))


@model.command()
@click.argument("name")
@click.option(
    "--adapter",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of a LoRA adapter, as peft saves it.",
)
@click.option("--name", "new_name", help="Of the result; MODEL-ADAPTER by default.")
@render.as_json
@click.pass_obj
def merge(
    workspace: Workspace, name: str, adapter: Path, new_name: str | None, as_json: bool
) -> None:
    """Merge a LoRA adapter into model NAME; the result is a new model.

    Example: slmops model merge smollm2 --adapter ./banking-lora --name smollm2-banking
    """
    from slmops.workshop.merging import merge_into_model
    from slmops.workshop.models import find_model

    record = find_model(workspace, name)
    with render.progress(quiet=as_json) as progress:
        merged = merge_into_model(
            workspace, record, adapter, name=new_name, progress=progress
        )
    if as_json:
        render.json_document(merged)
        return
    render.text(f"{merged.name}  {merged.id}")


def _show_inspection(found: "ModelInspection") -> None:
    render.table(
        ("tensors", "count", "type", "shape", "MiB", "share %", "blocks"),
        [
            (
                group.name,
                group.tensors,
                group.type,
                " × ".join(map(str, group.shape)),
                round(group.bytes / _MIB, 2),
                round(100 * group.share, 1),
                ", ".join(map(str, group.blocks)) or None,
            )
            for group in found.groups
        ],
    )
    render.text()
    render.table(
        ("part", "parameters", "MiB", "share %"),
        [
            (
                part.part,
                f"{part.parameters / 1e6:.2f} M",
                round(part.bytes / _MIB, 2),
                round(100 * part.share, 1),
            )
            for part in found.parts
        ],
    )
    render.text()
    shape = found.shape
    window = f", {shape.windowed_layers} with a window of {shape.window_tokens} tokens"
    rows = (
        ("architecture", shape.architecture),
        ("layers", f"{shape.layers}{window if shape.windowed_layers else ''}"),
        ("width", shape.width),
        ("feed-forward width", shape.feed_forward),
        ("heads", f"{shape.heads}, {shape.kv_heads} of keys and values"),
        ("head width", shape.key_width),
        ("vocabulary", shape.vocabulary),
        ("tokenizer", found.tokenizer),
        ("context tokens", shape.context_tokens),
        ("embedding tied to output", "yes" if found.tied_embeddings else "no"),
        ("chat template", "yes" if found.chat_template else "none"),
        ("file MiB", round(found.file_bytes / _MIB, 2)),
        ("KV cache, bytes a token (F16)", _kv_cache(found)),
    )
    render.table(("model", ""), [(key, str(value)) for key, value in rows])


def _kv_cache(found: "ModelInspection") -> str:
    first, late = found.kv_cache_bytes_a_token, found.kv_cache_bytes_a_late_token
    return str(first) if first == late else f"{first}, {late} once windows are full"
