"""Where targets stand: in one file while they are few, in hash bins when they are many.

A device downloads the targets metadata whole, and that grows by some 200 bytes a target.
Past a number of them they move to succinct hash bins (TUF TAP 15, specification 1.0,
4.5): the SHA-256 of a target's path says in which of 2^n files it stands, and a device
downloads the few it asks about.

Pure: what is signed now goes in, what is to be signed next comes out.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Delegations,
    SuccinctRoles,
    TargetFile,
    Targets,
)

from slmops.domain.errors import InvalidInputError
from slmops.registry.roots import RoleKeys, expiry
from slmops.wire.settings import load_settings

BINS_FROM = 400
"""Targets from which bins are smaller for a device than one file: 80 kB of it."""
_PER_BIN = 32
"""At most so many in each when bins are made: some 6 kB."""
_MOST_PER_BIN = 64
"""Above this mean, finer ones are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BinSettings:
    """When targets metadata is split; from ``SLMOPS_REGISTRY_…`` variables."""

    bins_from: int = BINS_FROM
    """Targets from which they stand in hash bins; 0 splits at once. Once split, a
    registry stays split."""

    def __post_init__(self) -> None:
        if self.bins_from < 0:
            raise InvalidInputError(f"bins_from must be >= 0, got {self.bins_from}")


def bin_settings(environment: Mapping[str, str]) -> BinSettings:
    """Read the settings from ``SLMOPS_REGISTRY_…`` variables."""
    return load_settings(
        BinSettings, path=None, environment=environment, prefix="SLMOPS_REGISTRY_"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetTree:
    """Top-level targets metadata and the bins it delegates to."""

    top: Targets
    """Lists targets, or delegates to `bins`."""
    bins: Mapping[str, Targets] = field(default_factory=dict)
    """Role name → bin; none without delegation."""

    @property
    def files(self) -> dict[str, TargetFile]:
        """All targets by path."""
        found = dict(self.top.targets)
        for each in self.bins.values():
            found |= each.targets
        return found

    @property
    def roles(self) -> SuccinctRoles | None:
        """The delegation to bins, if there is one."""
        delegations = self.top.delegations
        return delegations.succinct_roles if delegations is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTargets:
    """What must be signed for the next state."""

    tree: TargetTree
    """The next state, whole."""
    changed: frozenset[str]
    """Roles in it whose metadata is new, ``targets`` for the top."""


def with_targets(
    tree: TargetTree | None,
    added: Iterable[TargetFile],
    holders: RoleKeys,
    *,
    settings: BinSettings,
    now: float,
) -> NextTargets:
    """Add targets.

    Args:
        tree: what is signed now; None for a new registry.
        added: may be there already.
        holders: of the targets role: they sign bins, too.
        settings: when to split.
        now: Unix time, seconds; what is signed holds from here.
    """
    new = {target.path: target for target in added}
    top = Targets(expires=expiry(Targets.type, now)) if tree is None else tree.top
    bins = {} if tree is None else tree.bins
    known = TargetTree(top=top, bins=bins)
    everything = known.files | new
    if _must_split(known, len(everything), settings):
        return _split(
            top if tree is None else _renewed(top, now), everything, holders, now
        )
    if known.roles is None:
        following = top if tree is None else _renewed(top, now)
        following.targets |= new
        return NextTargets(
            tree=TargetTree(top=following), changed=frozenset({Targets.type})
        )
    touched: dict[str, Targets] = {}
    for target in new.values():
        name = known.roles.get_role_for_target(target.path)
        if name not in touched:
            touched[name] = _renewed(bins[name], now)
        touched[name].targets[target.path] = target
    return NextTargets(
        tree=TargetTree(top=top, bins={**bins, **touched}), changed=frozenset(touched)
    )


def renewed(
    tree: TargetTree,
    holders: RoleKeys,
    *,
    now: float,
    only: Iterable[str] | None = None,
) -> NextTargets:
    """Sign roles anew: all of them, or `only` some, with the keys that hold the role now.

    Args:
        tree: what is signed now.
        holders: of the targets role; the delegation names them, too.
        now: Unix time, seconds.
        only: role names, ``targets`` for the top; None for all.
    """
    wanted = {Targets.type, *tree.bins} if only is None else set(only)
    top, bins = tree.top, dict(tree.bins)
    if Targets.type in wanted:
        top = _renewed(top, now)
        if tree.roles is not None:
            roles = tree.roles
            roles = _bin_roles(holders, roles.bit_length, roles.name_prefix)
            top.delegations = _delegation(holders, roles)
    for name in wanted & set(bins):
        bins[name] = _renewed(bins[name], now)
    return NextTargets(tree=TargetTree(top=top, bins=bins), changed=frozenset(wanted))


def _must_split(tree: TargetTree, count: int, settings: BinSettings) -> bool:
    if tree.roles is None:
        return count > settings.bins_from
    bins = 1 << int(tree.roles.bit_length)
    return count > _MOST_PER_BIN * bins


def _split(
    top: Targets, files: Mapping[str, TargetFile], holders: RoleKeys, now: float
) -> NextTargets:
    bits = max((-(-len(files) // _PER_BIN) - 1).bit_length(), 1)
    # The number of bins is part of their names: a snapshot may never lose a name, and
    # finer bins are other roles.
    roles = _bin_roles(holders, bits, f"bins{bits}")
    top.delegations = _delegation(holders, roles)
    top.targets = {}
    bins = {
        name: Targets(expires=expiry(Targets.type, now)) for name in roles.get_roles()
    }
    for path, target in files.items():
        bins[roles.get_role_for_target(path)].targets[path] = target
    return NextTargets(
        tree=TargetTree(top=top, bins=bins), changed=frozenset({Targets.type, *bins})
    )


def _bin_roles(holders: RoleKeys, bits: int, prefix: str) -> SuccinctRoles:
    keyids = [key.keyid for key in holders.keys]
    return SuccinctRoles(keyids, holders.threshold, bits, prefix)


def _delegation(holders: RoleKeys, roles: SuccinctRoles) -> Delegations:
    keys = {key.keyid: key for key in holders.keys}
    return Delegations(keys=keys, succinct_roles=roles)


def _renewed(targets: Targets, now: float) -> Targets:
    following = deepcopy(targets)
    following.version += 1
    following.expires = expiry(Targets.type, now)
    return following
