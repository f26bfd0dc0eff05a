"""`slmops build` and `slmops report`: measured variants, and the evidence for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmops.cli import render
from slmops.cli.build_adapter import adapter
from slmops.cli.build_settings import render_settings
from slmops.cli.build_show import compare, show
from slmops.cli.card_figures import peak_figure, speed_remarks
from slmops.cli.runnable_group import RunnableGroup
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.domain.release import Estimate
    from slmops.workshop.build_result import BuildResult, Candidate, Trial
    from slmops.workshop.evidence.mlflow_log import Tracking

_MB = 1_000_000
_REPORT_FOLDER = Path("build-report")

_output = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=_REPORT_FOLDER,
    show_default=True,
    help="Folder for build.html, charts, build.json, card, BOM and provenance.",
)

_mlflow = click.option(
    "--mlflow",
    metavar="URI",
    help="Log the build to this MLflow server, or sqlite:///FILE, as well.",
)

_executor = click.option(
    "--executor",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Run jobs on this machine, or on a Ray cluster (extra: ray); same results.",
)
_ray_address = click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Join this cluster (HOST:PORT, auto) instead of starting one for the build.",
)


@click.group(cls=RunnableGroup, no_args_is_help=False)
@click.argument("blueprint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--candidates",
    metavar="TYPE,TYPE…",
    help="Try these quantizations instead of the blueprint's, e.g. Q8_0,Q4_K_M.",
)
@click.option(
    "--below-floor",
    is_flag=True,
    help="Choose below the quality floor too; its release must be forced.",
)
@click.option(
    "--locked",
    is_flag=True,
    help="Build only what the lock file beside BLUEPRINT holds, else say what differs.",
)
@_executor
@_ray_address
@_mlflow
@_output
@render.as_json
@click.pass_obj
def build(  # noqa: PLR0917 - options are arguments
    workspace: Workspace,
    blueprint: Path,
    candidates: str | None,
    below_floor: bool,
    locked: bool,
    executor: str,
    ray_address: str | None,
    mlflow: str | None,
    output: Path,
    as_json: bool,
) -> None:
    """Quantize, measure and choose the variants of BLUEPRINT.

    Every candidate is evaluated in the runtime that will serve it, next to two control
    rows: the reference against itself, and 8-bit. Finished steps are kept: a second
    build computes nothing, and a killed one goes on where it was. What BLUEPRINT stood
    for (model, files, structures, tools) is locked in a file beside it.

    Example: slmops build blueprint.yaml
    """
    from slmops.workshop.blueprints import load_resolved
    from slmops.workshop.pipeline import BuildOptions, run_build
    from slmops.workshop.recipe_lock import lock_build
    from slmops.workshop.requirements import require_extras

    resolved = load_resolved(blueprint)
    lock_build(resolved, workspace, blueprint, locked=locked)
    wanted = resolved.blueprint
    require_extras(wanted, on_ray=executor == "ray", to_mlflow=mlflow is not None)
    tracking = _tracking(mlflow, wanted.name)
    options = BuildOptions(
        candidates=_names(candidates),
        below_floor=below_floor,
        executor=executor,
        ray_address=ray_address,
    )
    with render.progress(quiet=as_json) as progress:
        run = run_build(
            wanted,
            workspace,
            folder=blueprint.absolute().parent,
            options=options,
            progress=progress,
        )
    files = _write(workspace, run.result, output)
    logged = _log(tracking, run.result)
    if as_json:
        render.json_document(
            {
                "build": run.id,
                "mlflow_run": logged,
                "steps_computed": run.executed,
                "steps_reused": len(run.steps) - run.executed,
                "stages_s": run.stages,
                "files": {what: str(path) for what, path in files.items()},
                "result": run.result,
            }
        )
        return
    _render(run.result)
    render.note(
        f"build {run.id[:19]}: {run.executed} steps computed,"
        f" {len(run.steps) - run.executed} reused, {sum(run.stages.values()):.1f} s"
    )
    render.note(f"page: {files['page']}; next: slmops release create")


@click.command()
@click.argument("build_id", metavar="[BUILD]", default="latest")
@_mlflow
@_output
@render.as_json
@click.pass_obj
def report(
    workspace: Workspace,
    build_id: str,
    mlflow: str | None,
    output: Path,
    as_json: bool,
) -> None:
    """Show a finished BUILD again, and write its page.

    BUILD is a digest or the beginning of one; without it, the latest.

    Example: slmops report --output build-report
    """
    from slmops.workshop.builds import load_build

    result = load_build(workspace, build_id)
    tracking = _tracking(mlflow, result.blueprint.name)
    files = _write(workspace, result, output)
    _log(tracking, result)
    if as_json:
        render.json_document(result)
        return
    _render(result)
    render.note(f"page: {files['page']}")


build.add_command(show)
build.add_command(compare)
build.add_command(adapter)


def _write(
    workspace: Workspace, result: "BuildResult", output: Path
) -> dict[str, Path]:
    from slmops.registry.blobs import BlobStore
    from slmops.workshop.report.page import write_report
    from slmops.workshop.report.sensitivity import measured_heat

    heat = measured_heat(result, BlobStore(workspace.blobs))
    return write_report(result, output, sensitivity=heat)


def _tracking(uri: str | None, experiment: str) -> "Tracking | None":
    """Reach the tracking server before anything is computed for it."""
    if uri is None:
        return None
    from slmops.workshop.evidence.mlflow_log import open_tracking

    return open_tracking(uri, experiment)


def _log(tracking: "Tracking | None", result: "BuildResult") -> str | None:
    if tracking is None:
        return None
    from slmops.wire.codec import document_digest
    from slmops.workshop.evidence.bom import Product
    from slmops.workshop.evidence.mlflow_log import log_build

    version = document_digest(result)[7:19]
    run = log_build(
        tracking, result, Product(name=result.blueprint.name, version=version)
    )
    render.note(f"MLflow: run {run}, one below it for each candidate")
    return run


def _names(candidates: str | None) -> tuple[str, ...] | None:
    if candidates is None:
        return None
    return tuple(name.strip() for name in candidates.split(",") if name.strip())


def _render(result: "BuildResult") -> None:
    render.table(
        (
            *("candidate", "MB", "bits/weight", "mean KLD", "p99 KLD", "same top-1"),
            *("perplexity", "decode tok/s", "first token ms", "peak MiB"),
        ),
        [_row(row, result) for row in (result.reference, *result.candidates)],
        title=f"{result.blueprint.name}: {result.model.name}, measured",
    )
    render.text()
    render.table(
        ("class", "variant", "why"),
        [(s.device_class, s.quantization, s.reason) for s in result.selection],
    )
    render_settings(result)
    for selection in result.selection:
        for violation in selection.violations:
            render.note(f"class {selection.device_class}: {violation}")
    for line in (*_not_made(result.trials), *_remarks(result)):
        render.note(line)


def _not_made(trials: "Sequence[Trial]", most: int = 5) -> list[str]:
    """Say which structures of the recipe could not be, and why."""
    dropped = [
        one
        for one in trials
        if not one.kept and one.kld is None and not one.reason.startswith("not tried")
    ]
    lines = [f"structure {one.name} was not made: {one.reason}" for one in dropped]
    if len(lines) > most:
        lines[most:] = [f"and {len(dropped) - most} more: slmops build show"]
    return lines


def _row(candidate: "Candidate", result: "BuildResult") -> tuple[object, ...]:
    card, fidelity = candidate.card, candidate.card.fidelity
    name = candidate.label
    if candidate.digest in {result.reference.digest, result.control.digest}:
        name += " (control)"
    name += " *" if candidate.on_reference_grid else ""
    speed = card.speed_for(result.blueprint.classes[0])
    return (
        name,
        round(card.bytes / _MB, 1),
        round(card.bits_per_weight, 2),
        _bounds(fidelity.mean_kld, 4),
        round(fidelity.p99_kld.value, 3),
        _bounds(fidelity.same_top1, 3),
        round(fidelity.perplexity.value, 2),
        round(speed.decode_tokens_per_s.value, 1) if speed else None,
        round(speed.first_token_ms.value) if speed else None,
        peak_figure(speed) if speed else None,
    )


def _bounds(estimate: "Estimate", digits: int) -> str:
    return (
        f"{estimate.value:.{digits}f}"
        f" ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
    )


def _remarks(result: "BuildResult") -> list[str]:
    from slmops.workshop.evidence.energy_tables import energy_lines

    first = result.blueprint.classes[0]
    lines = [
        "KLD in nats over the reference's 256 likeliest tokens and the rest as one: a"
        " lower bound; in brackets 95 % bounds",
        f"speed and memory as class {first.name} runs it; every class's are on the page",
        *speed_remarks(c.card.speed_for(first) for c in result.candidates),
        *(
            f"{device_class.name}, {result.chosen_card(device_class.name).label}: {line}"
            for device_class in result.blueprint.classes
            for line in energy_lines(
                result.chosen_card(device_class.name), device_class
            )
        ),
    ]
    lines += [
        f"{each.card.label} on text that nothing was chosen by: KLD"
        f" {_bounds(each.card.fidelity.mean_kld, 4)}, same top-1"
        f" {_bounds(each.card.fidelity.same_top1, 3)}"
        for each in result.variants
        if result.reference.test_fidelity is not None
    ]
    if result.model.source_quantization:
        grid = result.model.source_quantization
        lines.append(
            "* flattered: its tensors have types of the source, which was quantized, mainly"
            f" {grid}"
        )
    return lines
