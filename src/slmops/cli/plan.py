"""`slmops plan`: sizes, memory and speed before anything is built."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.workshop.disk_needs import DiskNeeds
    from slmops.workshop.plan import BuildPlan, CandidatePlan

_MB = 1_000_000


@click.command()
@click.argument("blueprint", type=click.Path(dir_okay=False, path_type=Path))
@render.as_json
@click.pass_obj
def plan(workspace: Workspace, blueprint: Path, as_json: bool) -> None:
    """Predict what building BLUEPRINT gives, without building it.

    Bytes and types are exact. Memory and speed are predicted; speed on this machine.
    A blueprint that nothing can meet fails here, with the nearest change that helps.

    Example: slmops plan blueprint.yaml
    """
    from slmops.domain.blueprint import CONTROL_QUANTIZATION
    from slmops.workshop.artefacts import built_quantizations
    from slmops.workshop.blueprints import load_blueprint
    from slmops.workshop.disk_needs import disk_needs, with_built
    from slmops.workshop.gguf_file import read_header
    from slmops.workshop.machine import load_prior
    from slmops.workshop.models import find_grid, find_model, reference_path
    from slmops.workshop.plan import candidate_names, plan_build
    from slmops.workshop.requirements import require_extras

    wanted = load_blueprint(blueprint)
    require_extras(wanted)
    record = find_model(workspace, wanted.model)
    reference = reference_path(workspace, record)
    names = candidate_names(wanted.candidates)
    if wanted.recipe.calibration is not None:
        # Their bytes depend on statistics that a plan does not gather.
        names = (CONTROL_QUANTIZATION,)
    built = built_quantizations(workspace, record.id, names)
    planned = plan_build(
        wanted,
        record,
        reference,
        load_prior(workspace),
        built=built,
        source_types=find_grid(workspace, record).types,
    )
    if as_json:
        render.json_document(planned)
        return
    _render(planned)
    _show_disk(
        workspace,
        disk_needs(wanted, planned, read_header(reference), with_built(built)),
    )


def _render(planned: "BuildPlan") -> None:
    classes = [forecast.class_name for forecast in planned.candidates[0].classes]
    render.table(
        (
            "candidate",
            "quantized",
            "MB",
            "bits/weight",
            "types",
            "predicted tok/s",
            *classes,
        ),
        [_row(candidate) for candidate in planned.candidates],
        title=f"{planned.blueprint}: {planned.model_name},"
        f" reference {planned.reference_bytes / _MB:.1f} MB",
    )
    if planned.structures:
        render.text()
        render.table(
            ("structure", "levers", "parameters", "16-bit MB", "built or tried"),
            [
                (
                    each.name,
                    ", ".join(each.steps),
                    f"{each.parameters / 1e6:.1f} M",
                    round(each.bytes / _MB, 1),
                    each.obstacle or "yes",
                )
                for each in planned.structures
            ],
        )
    to_do = [c.quantization for c in planned.candidates if not c.is_built]
    render.note(
        f"a build would quantize: {', '.join(to_do) or 'nothing, all is there'}"
    )
    render.note(f"speed predicted from: {planned.prior.source}")
    render.note(f"memory predicted: {planned.memory_error}")
    if planned.reference_grid:
        flattered = [c.quantization for c in planned.candidates if c.is_flattered]
        render.note(
            f"the reference's source was quantized, mainly {planned.reference_grid}; with its"
            f" tensors' types, so better looking than they are: {', '.join(flattered) or 'none'}"
        )


def _show_disk(workspace: Workspace, needs: "DiskNeeds") -> None:
    from slmops.workshop.disk import MIB, free_bytes

    free = free_bytes(workspace.root)
    render.note(
        f"a build would write at most {needs.bytes / MIB:.0f} MiB,"
        f" {free / MIB:.0f} MiB are free"
    )


def _row(candidate: "CandidatePlan") -> tuple[object, ...]:
    name = candidate.quantization + (" (control)" if candidate.is_control else "")
    types = " ".join(f"{kind}×{n}" for kind, n in candidate.tensor_types.items())
    return (
        name,
        "already" if candidate.is_built else "to do",
        round(candidate.bytes / _MB, 1),
        round(candidate.bits_per_weight, 2),
        types,
        round(candidate.classes[0].decode_tokens_per_s, 1),
        *(
            "; ".join(forecast.obstacles) or f"fits: {forecast.memory_mib:.0f} MiB"
            for forecast in candidate.classes
        ),
    )
