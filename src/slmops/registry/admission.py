"""Releases signed on another machine, and let in by who holds the online keys.

The machine that signs releases needs the targets key and nothing else; what it signed
lies in the registry's folder and no snapshot names it. Admitting checks the signatures,
then signs the snapshot and the timestamp that name it. So neither a stolen release key
nor a stolen server publishes anything alone.
"""

from collections.abc import Iterator, Mapping

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]

from slmops.domain.errors import UntrustedError
from slmops.registry.metadata import MetadataFolder, read_part, verified_targets
from slmops.registry.signed_state import SignedState, named
from slmops.registry.signing import OnlineKeys


def admit(folder: MetadataFolder, keys: OnlineKeys, *, now: float) -> bool:
    """Name in snapshot and timestamp what the release keys signed since.

    Args:
        folder: of the registry; a lock is held.
        keys: of snapshot and timestamp.
        now: Unix time, seconds.

    Returns:
        Whether anything was waiting.

    Raises:
        UntrustedError: what waits is not signed by the release keys, or is not whole.
    """
    state = folder.state()
    root = folder.newest_root() if state is None else state.root
    files = waiting(folder, state, root)
    if files:
        folder.publish(named(files, state, root=root, keys=keys, now=now))
    return bool(files)


def waiting(
    folder: MetadataFolder, state: SignedState | None, root: Root
) -> Mapping[str, bytes]:
    """Return signed targets files that follow those of `state`, by name.

    Raises:
        UntrustedError: one is not signed by the release keys, or is not whole.
    """
    try:
        return dict(_waiting(folder, state, root))
    except (RepositoryError, ValueError) as error:
        raise UntrustedError(
            f"what waits in {folder.path} is not signed by the release keys: {error}"
        ) from None


def _waiting(
    folder: MetadataFolder, state: SignedState | None, root: Root
) -> Iterator[tuple[str, bytes]]:
    top = None if state is None else state.tree.top
    file = f"{1 if top is None else top.version + 1}.{Targets.type}.json"
    if (folder.path / file).exists():
        raw = read_part(folder.path / file)
        top = verified_targets(raw, root, Targets.type)
        yield file, raw
    if top is None or top.delegations is None or top.delegations.succinct_roles is None:
        return
    known = {} if state is None else state.tree.bins
    for name in top.delegations.succinct_roles.get_roles():
        file = f"{known[name].version + 1 if name in known else 1}.{name}.json"
        if name not in known or (folder.path / file).exists():
            raw = read_part(folder.path / file)
            verified_targets(raw, top, name)
            yield file, raw
