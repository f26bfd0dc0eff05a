"""Private keys by URI: files here, hardware tokens, key services of clouds.

The signers are `securesystemslib`'s; a service's library is imported when a key of it is
used, and named when it is missing::

    file:targets.key                      Ed25519, PKCS #8 PEM, in the keys folder
    hsm:2?label=release                   PKCS #11, by key id and token label (ECDSA)
    awskms:1234abcd-12ab-34cd-56ef-…      AWS KMS
    gcpkms:projects/p/locations/…         Google Cloud KMS
    azurekms:release-vault/release-key    Azure Key Vault: vault and key

Only the signature leaves a token or a service, never the key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import parse_qsl

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (  # type: ignore[attr-defined]
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signature,
    Signer,
    SSlibKey,
)

from slmops.domain.errors import (
    InvalidInputError,
    SlmopsError,
    UnavailableError,
    UntrustedError,
)
from slmops.registry.keys import SigningKey

FILE = "file"
"""Scheme of keys on disk."""

Result = TypeVar("Result")
Secrets = Callable[[str], str]
"""Asked for a secret by its name ("pin", "passphrase"); called when it is needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSigner:
    """Where a public key's private half is, when it is in no file here."""

    uri: str
    """As above; what `Signer.from_priv_key_uri` takes."""
    keyid: str
    """Of the public key, as TUF metadata names it."""
    keytype: str
    """Such as ``ecdsa``."""
    scheme: str
    """Such as ``ecdsa-sha2-nistp256``."""
    public: str
    """The public key, PEM."""

    @property
    def key(self) -> SSlibKey:
        """The public key."""
        return SSlibKey(self.keyid, self.keytype, self.scheme, {"public": self.public})


def open_signer(stored: StoredSigner, secrets: Secrets) -> Signer:
    """Return what signs with a stored key; nothing is asked of it before it signs."""
    return NamedSigner(stored, secrets)


def import_signer(uri: str, secrets: Secrets) -> StoredSigner:
    """Ask a token or a service for the public half of a key.

    Raises:
        UnavailableError: the library for it is not installed, or it cannot be reached.
        InvalidInputError: no such scheme, or a malformed URI.
    """
    scheme, _, rest = uri.partition(":")
    service = SERVICES.get(scheme)
    if service is None or not rest:
        known = ", ".join(f"{name}:…" for name in SERVICES)
        raise InvalidInputError(
            f"a key's URI must be one of {known}, got {uri[:80]!r};"
            " files in the keys folder need none"
        )
    used, key = _call(uri, lambda: service.find(rest, secrets))
    return StoredSigner(
        uri=used,
        keyid=key.keyid,
        keytype=key.keytype,
        scheme=key.scheme,
        public=key.keyval["public"],
    )


class NamedSigner(Signer):
    """A stored key: opened when it signs, so that a token is asked for only then."""

    def __init__(self, stored: StoredSigner, secrets: Secrets) -> None:
        self._stored = stored
        self._secrets = secrets

    @property
    def public_key(self) -> Key:
        """The public half."""
        return self._stored.key

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: Secrets | None = None,
    ) -> "NamedSigner":
        """Not used: `open_signer` makes it."""
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        """Sign.

        Raises:
            UnavailableError: the library for it is not installed, the token or service
                cannot be reached, or it refuses.
            UntrustedError: what came back does not hold for the public key.
        """
        stored = self._stored
        signature: Signature = _call(
            stored.uri,
            lambda: Signer.from_priv_key_uri(
                stored.uri, stored.key, self._secrets
            ).sign(payload),
        )
        try:
            stored.key.verify_signature(signature, payload)
        except Exception as error:  # noqa: BLE001 - any failure to verify is one
            raise UntrustedError(
                f"{stored.uri} signed with another key than {stored.keyid[:12]}…:"
                f" {error}"
            ) from None
        return signature


def file_signer(path: Path, passphrase: str | None) -> CryptoSigner:
    """Return what signs with a key file; errors as `SigningKey.load`."""
    return CryptoSigner(SigningKey.load(path, passphrase=passphrase).private)


@dataclass(frozen=True, slots=True)
class _Service:
    library: str
    """To install when it is missing."""
    find: Callable[[str, Secrets], tuple[str, SSlibKey]]


def _find_hsm(rest: str, secrets: Secrets) -> tuple[str, SSlibKey]:
    number, _, query = rest.partition("?")
    label = dict(parse_qsl(query)).get("label")
    return HSMSigner.import_(int(number), label, secrets)


def _find_aws(rest: str, secrets: Secrets) -> tuple[str, SSlibKey]:
    return AWSSigner.import_(rest)


def _find_gcp(rest: str, secrets: Secrets) -> tuple[str, SSlibKey]:
    return GCPSigner.import_(rest)


def _find_azure(rest: str, secrets: Secrets) -> tuple[str, SSlibKey]:
    vault, _, name = rest.partition("/")
    return AzureSigner.import_(vault, name)


SERVICES: Mapping[str, _Service] = MappingProxyType(
    {
        HSMSigner.SCHEME: _Service(
            "python-pkcs11 (in the source folder: '.[hsm]')", _find_hsm
        ),
        AWSSigner.SCHEME: _Service(
            "boto3 (in the source folder: '.[awskms]')", _find_aws
        ),
        GCPSigner.SCHEME: _Service(
            "google-cloud-kms (in the source folder: '.[gcpkms]')", _find_gcp
        ),
        AzureSigner.SCHEME: _Service(
            "azure-identity and azure-keyvault-keys (in the source folder: '.[azurekms]')",
            _find_azure,
        ),
    }
)
"""Scheme of a URI → how its keys are found."""


def _call(uri: str, work: Callable[[], Result]) -> Result:
    """Turn whatever a service's library raises into our errors.

    Each has exceptions of its own, undocumented by `securesystemslib` on purpose: it
    asks callers to expect any.
    """
    scheme = uri.partition(":")[0]
    try:
        return work()
    except SlmopsError:
        raise
    except (UnsupportedLibraryError, ImportError):
        raise UnavailableError(
            f"{uri}: install {SERVICES[scheme].library} to sign with {scheme}: keys"
        ) from None
    except Exception as error:
        raise UnavailableError(
            f"{uri}: {type(error).__name__}: {str(error) or 'no reason given'}"
        ) from error
