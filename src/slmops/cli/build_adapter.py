"""`slmops build adapter`: take out what a recipe's fine-tuning learned."""

from pathlib import Path

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace


@click.command()
@click.argument("build_id", metavar="[BUILD]", default="latest")
@click.option(
    "--candidate", metavar="LABEL", help="Whose adapter, where a build has several."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(("gguf", "peft")),
    default="gguf",
    show_default=True,
    help="A file for llama.cpp's --lora, or a folder for peft and others.",
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="File or folder to write.",
)
@render.as_json
@click.pass_obj
def adapter(
    workspace: Workspace,
    build_id: str,
    candidate: str | None,
    kind: str,
    output: Path,
    as_json: bool,
) -> None:
    """Write the LoRA adapter that a fine-tuning of BUILD learned.

    A build goes on with the merged model; this is for keeping the adapter beside the
    base instead: many adapters, one base. It fits the model that was fine-tuned, in any
    quantization. BUILD is a digest or the beginning of one; without it, the latest.

    Example: slmops build adapter --output banking.gguf
    """
    from slmops.registry.blobs import BlobStore
    from slmops.workshop.builds import load_build
    from slmops.workshop.built_adapters import (
        find_adapter,
        write_gguf_adapter,
        write_peft_adapter,
    )

    found = find_adapter(load_build(workspace, build_id), candidate)
    write = write_gguf_adapter if kind == "gguf" else write_peft_adapter
    write(found, BlobStore(workspace.blobs), output)
    if as_json:
        render.json_document({"adapter": found, "format": kind, "output": str(output)})
        return
    render.text(str(output))
    render.note(f"loads beside {found.base}, or any quantization of it")
