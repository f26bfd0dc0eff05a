"""Signing keys on disk: Ed25519 (RFC 8032) through `cryptography`.

A private key is a PKCS #8 PEM file with mode 0600, encrypted when the environment
gives a passphrase to whoever calls `create`/`load` with one.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from slmops.domain.errors import ConflictError, NotFoundError, UntrustedError
from slmops.registry.blobs import write_atomically
from slmops.wire.settings import load_settings

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySettings:
    """How keys on disk are protected; from ``SLMOPS_KEY_…`` variables."""

    passphrase: str | None = None
    """Encrypts keys when they are made and opens them later; None leaves them plain,
    guarded by their file mode alone."""
    pin: str | None = None
    """Opens a signing token (PKCS #11); None asks at the terminal."""


def key_settings(environment: Mapping[str, str]) -> KeySettings:
    """Read the settings from ``SLMOPS_KEY_…`` variables."""
    return load_settings(
        KeySettings, path=None, environment=environment, prefix="SLMOPS_KEY_"
    )


def key_passphrase(environment: Mapping[str, str]) -> str | None:
    """Return what ``SLMOPS_KEY_PASSPHRASE`` says, None without it."""
    return key_settings(environment).passphrase


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key."""

    private: Ed25519PrivateKey
    """The key itself; never printed or sent."""

    @classmethod
    def create(cls, path: Path, *, passphrase: str | None = None) -> "SigningKey":
        """Make a key and write it to `path`, readable by its owner only.

        Raises:
            ConflictError: the file exists; keys are never overwritten.
        """
        private = Ed25519PrivateKey.generate()
        encryption: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(passphrase.encode())
            if passphrase
            else serialization.NoEncryption()
        )
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            encryption,
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            write_atomically(path, pem, mode=0o600, replace=False)
        except FileExistsError:
            raise ConflictError(
                f"key {path} exists; keys are never overwritten"
            ) from None
        return cls(private)

    @classmethod
    def load(cls, path: Path, *, passphrase: str | None = None) -> "SigningKey":
        """Read a key.

        Raises:
            NotFoundError: no such file.
            UntrustedError: others may read it, it is no Ed25519 key, or the passphrase
                is wrong or missing.
        """
        try:
            mode = path.stat().st_mode
            pem = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"key {path} does not exist") from None
        if mode & _OTHERS:
            raise UntrustedError(
                f"key {path} must be readable by its owner only (mode 0600),"
                f" got {stat.S_IMODE(mode):04o}"
            )
        try:
            private = serialization.load_pem_private_key(
                pem, passphrase.encode() if passphrase else None
            )
        except (ValueError, TypeError) as error:
            raise UntrustedError(f"key {path} cannot be read: {error}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise UntrustedError(f"key {path} must be Ed25519")
        return cls(private)

    @property
    def public_hex(self) -> str:
        """The public key, 64 hex digits."""
        return self.private.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """Return the signature, 128 hex digits."""
        return self.private.sign(message).hex()


def verify_signature(public_hex: str, signature_hex: str, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        UntrustedError: key or signature is malformed, or does not hold.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        public.verify(bytes.fromhex(signature_hex), message)
    except (ValueError, InvalidSignature):
        raise UntrustedError("signature does not hold for this key") from None
