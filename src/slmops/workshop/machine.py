"""This machine's speed: measured by the last build, or probed when there was none."""

from slmops.registry.blobs import write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.forecast import MachinePrior, probe_prior

FILE = "machine.json"
"""In the workspace's root."""


def load_prior(workspace: Workspace) -> MachinePrior:
    """Return the speed a build measured on this machine, or a quick probe's.

    Raises:
        InvalidInputError: the stored figure is damaged.
    """
    path = workspace.root / FILE
    if not path.is_file():
        return probe_prior()
    return decode_json(path.read_bytes(), MachinePrior, where=str(path))


def save_prior(workspace: Workspace, prior: MachinePrior) -> None:
    """Keep a measured speed for the next plan; see `forecast.measured_prior`."""
    write_atomically(workspace.root / FILE, encode_json(prior))
