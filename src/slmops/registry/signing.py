"""Signing metadata with the keys that a root names.

Roles as in the TUF specification 1.0: root and targets sign releases and may stay
offline; snapshot and timestamp keep the metadata fresh, and the director signs which
device should run what: these three live where the control plane runs.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from securesystemslib.signer import Signer  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Role,
    Root,
    Signed,
    Targets,
)

from slmops.domain.errors import NotFoundError
from slmops.registry.key_folder import (
    PINNED_ROOT,
    KeyAccess,
    KeyPlan,
    Ring,
    create_keys,
    key_files,
    load_director,
    load_ring,
    no_secret,
    read_pinned_root,
    signed_bytes,
)
from slmops.registry.keys import SigningKey
from slmops.registry.roots import DIRECTOR, LIFE, ONLINE, ROLES, parse_root
from slmops.registry.signers import Secrets


@dataclass(frozen=True, kw_only=True, slots=True)
class RingKeys:
    """Private keys at hand, whatever their roles."""

    ring: Ring
    """By key id."""

    def signed(self, signed: Signed, holder: Role) -> bytes:
        """Return metadata signed by a threshold of a role's keys.

        Raises:
            NotFoundError: too few of them are here.
            UnavailableError: a token or service cannot sign now.
        """
        return signed_bytes(signed, self._signers(signed.type, holder))

    def holds(self, holder: Role) -> bool:
        """Tell whether enough of a role's keys are here."""
        return sum(keyid in self.ring for keyid in holder.keyids) >= holder.threshold

    def _signers(self, what: str, holder: Role) -> list[Signer]:
        here = [self.ring[keyid] for keyid in holder.keyids if keyid in self.ring]
        if len(here) < holder.threshold:
            wanted = ", ".join(keyid[:8] for keyid in holder.keyids)
            raise NotFoundError(
                f"{what} metadata needs {holder.threshold} of the keys {wanted},"
                f" {len(here)} are here; `slmops keys show` says where each is"
            )
        return [held.signer for held in here[: holder.threshold]]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineKeys(RingKeys):
    """What the control plane needs to keep a registry fresh; cannot make a release."""

    own_director: SigningKey | None
    """As `director`; None where releases are signed and nothing else."""
    root_json: bytes
    """Root metadata version 1: public, the anchor of trust."""
    newest_root: Root
    """The root that was newest when the keys were read."""

    @property
    def director(self) -> SigningKey:
        """Signs assignments; no TUF role.

        Raises:
            NotFoundError: it is not here.
        """
        if self.own_director is None:
            raise NotFoundError("the director's key is not here")
        return self.own_director

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        passphrase: str | None = None,
        secrets: Secrets | None = None,
        root: Root | None = None,
    ) -> Self:
        """Read the keys and the pinned root.

        Args:
            folder: of the keys.
            passphrase: of encrypted key files.
            secrets: asked for a token's PIN when one signs.
            root: the newest root, which names the director's key; the pinned one by
                default.

        Raises:
            NotFoundError: a role has no key here.
            UntrustedError: others may read a key, or it cannot be read.
        """
        root_json = read_pinned_root(folder)
        newest = root or parse_root(root_json, where=PINNED_ROOT).signed
        access = KeyAccess(passphrase=passphrase, secrets=secrets or no_secret)
        return cls(
            root_json=root_json,
            newest_root=newest,
            own_director=cls._director(folder, newest, access.passphrase),
            ring=load_ring(
                folder, cls._roles(), access=access, required=cls._required()
            ),
        )

    @classmethod
    def _roles(cls) -> tuple[str, ...]:
        return ONLINE

    @classmethod
    def _required(cls) -> tuple[str, ...]:
        return cls._roles()

    @classmethod
    def _director(
        cls, folder: Path, root: Root, passphrase: str | None
    ) -> SigningKey | None:
        return load_director(folder, root, passphrase)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseKeys(OnlineKeys):
    """What signing a release needs; all keys but those of targets may be elsewhere."""

    @property
    def targets(self) -> Signer:
        """A key that signs which releases and artefacts exist.

        Raises:
            NotFoundError: none is here.
        """
        return self._signers(Targets.type, self.newest_root.roles[Targets.type])[0]

    @classmethod
    def load_or_create(
        cls,
        folder: Path,
        *,
        now: float,
        passphrase: str | None = None,
        secrets: Secrets | None = None,
        root: Root | None = None,
    ) -> Self:
        """Read all keys; make them and the first root metadata on first use.

        Args:
            folder: made with mode 0700.
            now: Unix time, seconds; the root metadata holds a year from here.
            passphrase: encrypts keys that are made here, opens those that exist.
            secrets: asked for a token's PIN when one signs.
            root: as `OnlineKeys.load`.

        Raises:
            NotFoundError: the pinned root exists but a key is missing: a new key would
                not be trusted by anyone.
            UntrustedError: as `OnlineKeys.load`.
        """
        if not (folder / PINNED_ROOT).exists():
            create_keys(
                folder, KeyPlan(), now=now, access=KeyAccess(passphrase=passphrase)
            )
        return cls.load(folder, passphrase=passphrase, secrets=secrets, root=root)

    @classmethod
    def _roles(cls) -> tuple[str, ...]:
        return ROLES

    @classmethod
    def _required(cls) -> tuple[str, ...]:
        return (Targets.type,)

    @classmethod
    def _director(
        cls, folder: Path, root: Root, passphrase: str | None
    ) -> SigningKey | None:
        if not key_files(folder, DIRECTOR):
            return None
        return load_director(folder, root, passphrase)


def wears_out(signed: Signed, now: float) -> bool:
    """Tell whether less than half of the metadata's life is left.

    Half leaves an unreachable control plane days to come back before devices refuse.
    """
    left = signed.expires - datetime.fromtimestamp(now, UTC)
    return left < LIFE[signed.type] / 2
