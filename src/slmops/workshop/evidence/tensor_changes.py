"""How the tensors of two artefacts differ, by their headers: types, shapes, bytes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.workshop.gguf_file import read_header, tensor_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChange:
    """One tensor whose type, shape or bytes differ."""

    name: str
    """As GGUF names it."""
    before: str | None
    """Type and shape in the first: ``Q4_K 576x1536``; None when it has none."""
    after: str | None
    """The same in the second."""
    before_bytes: int
    """0 when it is not there."""
    after_bytes: int
    """0 when it is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorComparison:
    """All tensors of two artefacts."""

    changed: tuple[TensorChange, ...]
    """In the order of the first file."""
    unchanged: int
    """Tensors of equal type and shape; their values may differ."""
    moves: Mapping[str, int]
    """Types before and after → tensors: ``Q4_K → Q6_K``."""


def compare_tensors(
    before: Digest, after: Digest, blobs: BlobStore
) -> TensorComparison | None:
    """Compare the tensors of two artefacts by their headers; None when one is gone."""
    if not (blobs.has(before) and blobs.has(after)):
        return None
    try:
        one, two = (_tensors(blobs, digest) for digest in (before, after))
    except InvalidInputError:
        return None
    changed = tuple(
        TensorChange(
            name=name,
            before=one[name][0] if name in one else None,
            after=two[name][0] if name in two else None,
            before_bytes=one[name][1] if name in one else 0,
            after_bytes=two[name][1] if name in two else 0,
        )
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name)
    )
    moves = Counter(
        f"{(c.before or 'none').split()[0]} → {(c.after or 'none').split()[0]}"
        for c in changed
    )
    return TensorComparison(
        changed=changed,
        unchanged=len({*one, *two}) - len(changed),
        moves=dict(sorted(moves.items())),
    )


def _tensors(blobs: BlobStore, digest: Digest) -> dict[str, tuple[str, int]]:
    header = read_header(blobs.path(digest))
    return {
        tensor.name: (
            f"{tensor.kind} {'x'.join(map(str, tensor.shape))}",
            tensor_bytes(tensor.kind, tensor.shape),
        )
        for tensor in header.tensors
    }
