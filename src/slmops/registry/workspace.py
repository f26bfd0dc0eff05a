"""Workspace: the folder that holds everything one project makes.

Layout below the root (``.slmops`` next to the blueprint by default)::

    blobs/sha256/   models, step outputs, artefacts, by content
    models/         one record per imported model
    steps/          cache of finished build steps, by step digest
    builds/         one result per build
    registry/       published releases: OCI image layout and TUF metadata
    keys/           signing keys, mode 0600; never published
    control/        the control plane's database and operator token
"""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = ".slmops"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Paths of one workspace; folders are made by whoever writes to them first."""

    root: Path
    """Folder of the workspace."""

    @property
    def blobs(self) -> Path:
        """Root for `slmops.registry.blobs.BlobStore`: holds ``blobs/sha256``."""
        return self.root

    @property
    def models(self) -> Path:
        """Model records, ``<hex>.json``."""
        return self.root / "models"

    @property
    def steps(self) -> Path:
        """Step cache."""
        return self.root / "steps"

    @property
    def builds(self) -> Path:
        """Build results."""
        return self.root / "builds"

    @property
    def registry(self) -> Path:
        """Published releases."""
        return self.root / "registry"

    @property
    def keys(self) -> Path:
        """Signing keys."""
        return self.root / "keys"

    @property
    def control(self) -> Path:
        """Control plane's state."""
        return self.root / "control"
