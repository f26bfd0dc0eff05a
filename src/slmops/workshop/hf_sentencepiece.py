"""SentencePiece vocabularies of checkpoints, as Gemma has them.

llama.cpp joins the neighbours whose result has the highest score; ``tokenizer.json``
holds the same vocabulary as byte-pair merges in order of rank, with byte fallback. The
scores are in ``tokenizer.model`` beside it; where that is missing they are made from
the ranks, which join in the same order.

``tokenizer.model`` is a protobuf message of pieces (text, score, type): read and
written here directly, because nothing else of SentencePiece is needed.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""What a token is: ``tokenizer.ggml.token_type`` counts as SentencePiece does."""

MARK = "▁"
"""Stands for a space."""

ADDED_SCORE = -1000.0
"""Of tokens that are found before anything is joined, as llama.cpp's converter has it."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_MORE = 0x80
"""Bit of a varint's byte: another one follows."""
_VARINT_BITS = 64
_VARINT, _FIXED64, _TEXT, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One token of a SentencePiece model."""

    text: str
    """With `MARK` for spaces."""
    score: float
    """The higher, the sooner it is joined."""
    kind: int
    """As `NORMAL` and its kin."""


def read_pieces(path: Path) -> tuple[Piece, ...]:
    """Read the pieces of a ``tokenizer.model``, in order of their ids.

    Raises:
        InvalidInputError: not such a file.
    """
    raw = path.read_bytes()
    try:
        pieces = [
            _piece(dict(_fields(bytes(value))))
            for number, value in _fields(raw)
            if number == 1 and isinstance(value, bytes)
        ]
    except (struct.error, IndexError, ValueError, TypeError):
        raise InvalidInputError(f"{path}: no SentencePiece model") from None
    if not pieces:
        raise InvalidInputError(f"{path}: a SentencePiece model without pieces")
    return tuple(pieces)


def pieces_message(pieces: Sequence[Piece], ids: Mapping[str, int]) -> bytes:
    """Return a ``tokenizer.model`` of pieces: BPE, byte fallback, no normalization.

    Args:
        pieces: in order of their ids.
        ids: of ``unk``, ``bos``, ``eos`` and ``pad``, as far as there are any.
    """
    parts = []
    for piece in pieces:
        text = piece.text.encode()
        body = b"\x0a" + _varint(len(text)) + text
        body += b"\x15" + struct.pack("<f", piece.score)
        body += b"\x18" + _varint(piece.kind)
        parts.append(b"\x0a" + _varint(len(body)) + body)
    trainer = _number(3, 2) + _number(35, 1)
    for place, name in enumerate(("unk", "bos", "eos", "pad")):
        index = ids.get(name, -1)
        # A negative number takes ten bytes; -1 says that there is no such token.
        trainer += _number(40 + place, index & 0xFFFFFFFFFFFFFFFF)
        if index >= 0:
            text = pieces[index].text.encode()
            trainer += _varint(45 + place << 3 | _TEXT) + _varint(len(text)) + text
    normalizer = b"\x0a\x08identity" + _number(3, 0) + _number(4, 0) + _number(5, 1)
    for tag, body in ((b"\x12", trainer), (b"\x1a", normalizer)):
        parts.append(tag + _varint(len(body)) + body)
    return b"".join(parts)


def ranked_scores(vocabulary: Mapping[str, int], merges: Sequence[str]) -> list[float]:
    """Return a score for each token, so that joining by score is joining by rank.

    Args:
        vocabulary: token to id.
        merges: two tokens each, best first.

    Returns:
        By id, up to the largest one: minus the place of the first merge that gives the
        token among all such places; tokens that no merge gives come last.

    >>> ranked_scores({"a": 0, "b": 1, "ab": 2}, ["a b"])
    [-1.0, -1.0, 0.0]
    """
    places: dict[str, float] = {}
    for merge in merges:
        places.setdefault(merge.replace(" ", ""), float(-len(places)))
    scores = [float(-len(places))] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        scores[index] = places.get(token, scores[index])
    return scores


def score_merges(scores: Mapping[str, float]) -> Iterator[list[str]]:
    """Give all pairs of tokens that make a token, the best-scored results first.

    Args:
        scores: of the tokens that joining may use and make.

    >>> list(score_merges({"a": -3.0, "b": -4.0, "ab": -1.0}))
    [['a', 'b']]
    """
    # Sorting is stable: tokens of one score stay in the order of their ids.
    for token in sorted(scores, key=lambda token: -scores[token]):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in scores and right in scores:
                yield [left, right]


def is_byte(token: str) -> bool:
    """Tell whether a token stands for a byte: ``<0x0A>``."""
    return _BYTE_PIECE.fullmatch(token) is not None


def _piece(fields: Mapping[int, int | bytes]) -> Piece:
    text, score, kind = fields.get(1), fields.get(2, bytes(4)), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise TypeError
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise ValueError
    return Piece(text=text.decode(), score=struct.unpack("<f", score)[0], kind=kind)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk over a message: (field number, a number or bytes)."""
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _read_varint(raw, at)
            yield number, value
            continue
        if wire == _TEXT:
            length, at = _read_varint(raw, at)
        elif wire in {_FIXED32, _FIXED64}:
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(wire)
        if at + length > len(raw):
            raise ValueError(length)
        yield number, raw[at : at + length]
        at += length


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            return value, at
        shift += 7
        if shift >= _VARINT_BITS:
            raise ValueError(shift)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= _MORE:
        parts.append(value & 0x7F | _MORE)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)
