"""The sensitivity that a build measured, as the heat map takes it."""

from slmops.domain.errors import NotFoundError
from slmops.registry.blobs import BlobStore
from slmops.workshop.build_result import BuildResult
from slmops.workshop.precision.sensitivity import heat_map, load_sensitivity
from slmops.workshop.report.page import Heat

_KIND = "sensitivity"


def measured_heat(result: BuildResult, blobs: BlobStore) -> Heat | None:
    """Return nats lost per MB saved by (layer, part), of the model as it was imported.

    A build that measured pruned shapes alone shows the first of those. None when nothing
    was measured, or its document is no longer in the workspace.

    Raises:
        InvalidInputError: the document is damaged.
    """
    records = [r for r in result.provenance if r.step.kind == _KIND]
    records.sort(key=lambda r: r.step.inputs.get("model") != result.model.id)
    for record in records:
        try:
            path = blobs.path(record.outputs[_KIND])
        except (NotFoundError, KeyError):
            continue
        cells = heat_map(load_sensitivity(path))
        return {(cell.layer, cell.part): cell.kld_per_mb for cell in cells} or None
    return None
