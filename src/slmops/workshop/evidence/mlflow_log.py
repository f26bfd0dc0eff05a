"""A build in an MLflow tracking server: one run for the build, one below it per candidate.

Optional (extra ``mlflow``). The parent run holds the blueprint as parameters, and
``build.json`` and the model card as artefacts; a candidate's run holds every figure as a
metric, bounds beside it. Logging the same build again finds its run and adds nothing.

MLflow's client reports its use to its makers unless told not to; here it is told so
before it is imported.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.wire.codec import document_digest, encode_json_pretty, to_plain
from slmops.workshop.build_result import BuildResult, Candidate
from slmops.workshop.evidence.bom import Product
from slmops.workshop.evidence.figures import Bounds, Figure, Nature, card_figures
from slmops.workshop.evidence.graph import rows
from slmops.workshop.evidence.model_card import release_card

BUILD_TAG = "slmops.build"
"""Tag of a parent run: the build's digest."""
_PARENT_TAG = "mlflow.parentRunId"
_NAME_TAG = "mlflow.runName"
_NO_TELEMETRY = "MLFLOW_DISABLE_TELEMETRY"
_MAX_BATCH = 100
_MAX_VALUE = 500
_T = TypeVar("_T")
_SQLITE = re.compile(r"sqlite:///(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class Tracking:
    """An experiment in a tracking server, known to answer."""

    client: Any
    """MLflow's own client."""
    experiment_id: str
    """Where runs go."""


def open_tracking(uri: str, experiment: str) -> Tracking:
    """Find or make an experiment; call it before a build, so that hours are not lost.

    Args:
        uri: as MLflow spells it: ``http://host:5000``, ``sqlite:///runs.db``. Artefacts of
            an experiment made in SQLite lie in ``mlartifacts`` beside the database.
        experiment: its name; made when missing.

    Raises:
        InvalidInputError: MLflow does not take the URI.
        UnavailableError: the server does not answer.
        ModuleNotFoundError: MLflow is not installed.
    """
    mlflow = _import_quietly()
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(experiment, _artifact_location(uri))
        )
    except mlflow.exceptions.MlflowException as error:
        text = f"--mlflow {uri}: {str(error).splitlines()[0][:300]}"
        if uri.startswith(("http://", "https://")):
            raise UnavailableError(text) from None
        raise InvalidInputError(text) from None
    return Tracking(client=client, experiment_id=experiment_id)


def log_build(tracking: Tracking, build: BuildResult, product: Product) -> str:
    """Log a build and its candidates, unless its runs are there already.

    Returns:
        Id of the parent run.

    Raises:
        UnavailableError: the server refuses or does not answer; what was logged until
            then stays as a run that is not finished.
    """
    from mlflow.exceptions import MlflowException

    try:
        digest = document_digest(build)
        known = tracking.client.search_runs(
            [tracking.experiment_id],
            f"tags.`{BUILD_TAG}` = '{digest}' and attributes.status = 'FINISHED'",
            max_results=1,
        )
        if known:
            return str(known[0].info.run_id)
        return _log(tracking, build, product)
    except MlflowException as error:
        raise UnavailableError(f"MLflow: {str(error).splitlines()[0][:300]}") from None


def _log(tracking: Tracking, build: BuildResult, product: Product) -> str:
    client = tracking.client
    parent = _start(
        tracking,
        {
            _NAME_TAG: f"{product.name} {product.version}",
            BUILD_TAG: document_digest(build),
            "slmops.model": build.model.id,
            "slmops.machine": build.machine,
        },
    )
    parameters = {"model": build.model.name, **_flat(to_plain(build.blueprint))}
    for items in _batches(parameters):
        _log_batch(client, parent, parameters=items)
    for candidate in rows(build):
        _log_candidate(tracking, build, candidate, parent)
    client.log_text(parent, encode_json_pretty(build) + "\n", "build.json")
    client.log_text(parent, release_card(build, product), "README.md")
    client.set_terminated(parent)
    return parent


def _log_candidate(
    tracking: Tracking, build: BuildResult, candidate: Candidate, parent: str
) -> None:
    card = candidate.card
    chosen = [s.device_class for s in build.selection if s.digest == candidate.digest]
    controls = {build.reference.digest, build.control.digest}
    run = _start(
        tracking,
        {
            _PARENT_TAG: parent,
            _NAME_TAG: card.label,
            "slmops.digest": candidate.digest,
            "slmops.chosen_for": ", ".join(chosen),
            "slmops.control": str(candidate.digest in controls).lower(),
            "slmops.flattered": str(candidate.on_reference_grid).lower(),
        },
    )
    parameters = {
        "quantization": card.quantization,
        "structure": card.structure,
        "rounding": str(card.rounding),
        "recovered": str(card.recovered).lower(),
        "runtime": card.runtime,
    }
    figures = [pair for figure in card_figures(card) for pair in _metrics(figure)]
    _log_batch(tracking.client, run, parameters=parameters)
    for items in _batches(dict(figures)):
        _log_batch(tracking.client, run, metrics=items)
    tracking.client.set_terminated(run)


def _metrics(figure: Figure) -> Iterator[tuple[str, float]]:
    """Yield a figure under its name, with its bounds where it has some.

    What was drawn on from measured points begins with ``modelled/``.
    """
    parts = ["modelled"] if figure.nature is Nature.MODELLED else []
    parts += [figure.of.replace(",", "")] if figure.of else []
    name = "/".join([*parts, figure.name])
    yield name, figure.estimate.value
    if figure.bounds is not Bounds.NONE:
        yield f"{name}_low", figure.estimate.low
        yield f"{name}_high", figure.estimate.high


def _start(tracking: Tracking, tags: Mapping[str, str]) -> str:
    run = tracking.client.create_run(
        tracking.experiment_id, tags=dict(tags), run_name=tags[_NAME_TAG]
    )
    return str(run.info.run_id)


def _log_batch(
    client: Any,  # noqa: ANN401 - MLflow's
    run: str,
    *,
    parameters: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    from mlflow.entities import Metric, Param

    client.log_batch(
        run,
        params=[Param(key, value) for key, value in (parameters or {}).items()],
        # One value each, no series: no time is claimed for it.
        metrics=[Metric(key, value, 0, 0) for key, value in (metrics or {}).items()],
    )


def _batches(values: Mapping[str, _T]) -> Iterator[dict[str, _T]]:
    items = iter(values.items())
    while batch := dict(islice(items, _MAX_BATCH)):
        yield batch


def _flat(tree: object, path: str = "") -> dict[str, str]:
    """Return the leaves of a document by their path, in the letters MLflow allows."""
    if isinstance(tree, Mapping):
        inner = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, list | tuple) and any(
        isinstance(one, Mapping) for one in tree
    ):
        inner = ((str(index), value) for index, value in enumerate(tree))
    else:
        shown = (
            ", ".join(map(str, tree)) if isinstance(tree, list | tuple) else str(tree)
        )
        return {re.sub(r"[^\w. /:-]", "_", path): shown[:_MAX_VALUE]}
    found: dict[str, str] = {}
    for key, value in inner:
        found |= _flat(value, f"{path}.{key}".lstrip("."))
    return found


def _artifact_location(uri: str) -> str | None:
    """Return where artefacts of a new experiment go; MLflow's choice for servers.

    For SQLite that would be a folder below wherever the command happens to run.
    """
    match = _SQLITE.fullmatch(uri)
    if match is None:
        return None
    folder = Path(match["path"]).absolute().parent / "mlartifacts"
    return folder.as_uri()


def _import_quietly() -> Any:  # noqa: ANN401 - a module
    os.environ[_NO_TELEMETRY] = "true"
    loaded_before = "mlflow" in sys.modules
    import mlflow
    from mlflow.telemetry.client import set_telemetry_client

    if loaded_before:
        # Somebody imported it with the default: what they started is stopped.
        set_telemetry_client()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
