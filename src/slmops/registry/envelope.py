"""DSSE envelopes: signed JSON payloads for one reader.

Format: https://github.com/secure-systems-lab/dsse (protocol and envelope), through
`securesystemslib`.
"""

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]
    CryptoSigner,
    Signer,
    SSlibKey,
)

from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.registry.keys import SigningKey
from slmops.wire import codec

PAYLOAD_TYPE = "application/vnd.slmops.assignment.v1+json"


def seal(
    payload: bytes, key: SigningKey | Signer, *, payload_type: str = PAYLOAD_TYPE
) -> str:
    """Sign `payload` and return the envelope as JSON text; its type is signed too."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(CryptoSigner(key.private) if isinstance(key, SigningKey) else key)
    return codec.encode_json(envelope.to_dict()).decode()


def open_envelope(
    text: str,
    public_key: str,
    *,
    payload_type: str = PAYLOAD_TYPE,
    signer: str = "the director",
) -> bytes:
    """Check an envelope against one trusted key and return its payload.

    Args:
        text: the envelope, JSON.
        public_key: the trusted key: Ed25519 as hex, others as PEM.
        payload_type: what it must hold.
        signer: whose key that is, for the message.

    Raises:
        UntrustedError: malformed, of another type, or not signed by that key.
    """
    try:
        tree = codec.parse_json(text, where="envelope")
        envelope = Envelope.from_dict(tree)
    except (InvalidInputError, KeyError, TypeError, ValueError, AttributeError):
        raise UntrustedError("envelope is malformed") from None
    if envelope.payload_type != payload_type:
        raise UntrustedError(
            f"envelope must hold {payload_type}, got {str(envelope.payload_type)[:80]}"
        )
    try:
        envelope.verify([_trusted(public_key)], 1)
    except (VerificationError, ValueError):
        raise UntrustedError(f"envelope is not signed by {signer}") from None
    payload: bytes = envelope.payload
    return payload


def _trusted(public_key: str) -> SSlibKey:
    # Same key id as the signer makes, so that the signature is found.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if public_key.startswith("-----BEGIN"):
        return SSlibKey.from_crypto(load_pem_public_key(public_key.encode()))
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    return SSlibKey.from_crypto(public)
