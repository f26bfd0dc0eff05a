"""Files that no runtime can load, and none may crash its caller over."""

from collections.abc import Iterator
from pathlib import Path


def malformed_artefacts(good: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Make files that are no artefact, from one that is."""
    with good.open("rb") as file:
        head = file.read(4096)
    size = good.stat().st_size
    noise = bytes((n * 197 + n // 251) % 256 for n in range(4096))
    huge = b"\xff" * 8
    kinds = {
        "empty": b"",
        "one-byte": b"G",
        "magic-only": b"GGUF",
        "noise": noise,
        "text": b"this is not a model\n" * 20,
        "zeros": bytes(4096),
        "json-of-another-kind": b'{"model": "none"}',
        "array": b"[1, 2, 3]",
        "nested": b"[" * 100_000,
        "magic-and-noise": b"GGUF" + noise,
        "old-version": b"GGUF" + (1).to_bytes(4, "little") + head[8:],
        "too-many-tensors": b"GGUF" + (3).to_bytes(4, "little") + huge + head[16:],
        "too-many-keys": b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + huge + head,
        "no-tensors": b"GGUF" + (3).to_bytes(4, "little") + bytes(16),
        "first-half-of-the-head": head[: min(2048, size // 2)],
        "flipped-head": bytes(byte ^ 0x5A for byte in head),
    }
    for name, raw in kinds.items():
        path = folder / f"{name}.bin"
        path.write_bytes(raw)
        yield name, path
