"""DSSE envelopes: signed JSON payloads for one reader.

Format: https://github.com/secure-systems-lab/dsse (protocol and envelope), through
`securesystemslib`.
"""

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]
    CryptoSigner,
    SSlibKey,
)

from slmops.domain.errors import InvalidInputError, UntrustedError
from slmops.registry.keys import SigningKey
from slmops.wire import codec

PAYLOAD_TYPE = "application/vnd.slmops.assignment.v1+json"


def seal(payload: bytes, key: SigningKey, *, payload_type: str = PAYLOAD_TYPE) -> str:
    """Sign `payload` and return the envelope as JSON text; its type is signed too."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(CryptoSigner(key.private))
    return codec.encode_json(envelope.to_dict()).decode()


def open_envelope(
    text: str,
    public_hex: str,
    *,
    payload_type: str = PAYLOAD_TYPE,
    signer: str = "the director",
) -> bytes:
    """Check an envelope against one trusted key and return its payload.

    Args:
        text: the envelope, JSON.
        public_hex: the trusted Ed25519 key.
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
        envelope.verify([_trusted(public_hex)], 1)
    except (VerificationError, ValueError):
        raise UntrustedError(f"envelope is not signed by {signer}") from None
    payload: bytes = envelope.payload
    return payload


def _trusted(public_hex: str) -> SSlibKey:
    # Same key id as the signer makes, so that the signature is found.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
    return SSlibKey.from_crypto(public)
