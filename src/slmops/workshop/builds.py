"""Finished builds, by digest; ``latest`` points at the one that ended last."""

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import BlobStore, write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.build_result import BuildResult

LATEST = "latest"
_LEAST_PREFIX = 4


def save_build(workspace: Workspace, result: BuildResult) -> Digest:
    """Store a result as a blob and by name, and make it the latest."""
    content = encode_json(result)
    digest = BlobStore(workspace.blobs).put_bytes(content)
    write_atomically(workspace.builds / f"{digest_hex(digest)}.json", content)
    write_atomically(workspace.builds / LATEST, digest.encode())
    return digest


def load_build(workspace: Workspace, id_or_latest: str = LATEST) -> BuildResult:
    """Return a build by its digest, the beginning of its hex digits, or ``latest``.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: the beginning fits more than one, or the file is damaged.
    """
    wanted = id_or_latest
    if wanted == LATEST:
        pointer = workspace.builds / LATEST
        if not pointer.is_file():
            raise NotFoundError(
                f"no build in {workspace.root}; make one: slmops build BLUEPRINT"
            )
        wanted = pointer.read_text()
    prefix = wanted.removeprefix("sha256:")
    found = [
        path
        for path in sorted(workspace.builds.glob("*.json"))
        if len(prefix) >= _LEAST_PREFIX and path.stem.startswith(prefix)
    ]
    if not found:
        raise NotFoundError(f"build {id_or_latest!r} is not in {workspace.builds}")
    if len(found) > 1:
        raise InvalidInputError(
            f"build {id_or_latest!r} is ambiguous: {len(found)} builds begin with it"
        )
    content = found[0].read_bytes()
    return decode_json(content, BuildResult, where=str(found[0]))
