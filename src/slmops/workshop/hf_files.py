"""The texts of a Hugging Face checkpoint folder: found safely, read within bounds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmops.domain.errors import InvalidInputError
from slmops.wire.codec import MAX_DOCUMENT_BYTES, parse_json, parse_yaml

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_MAX_TOKENIZER_BYTES = 64 * 1024 * 1024


class CheckpointFolder:
    """A folder from which only files inside it are read."""

    def __init__(self, path: Path, trusted_root: Path | None = None) -> None:
        """Open `path`; links may lead to `trusted_root` (the Hub client's cache)."""
        self.path = path
        self._root = (trusted_root or path).resolve()

    def file(self, name: str) -> Path | None:
        """Return a file of the folder, or None when there is none.

        Raises:
            InvalidInputError: the name or a link leads outside.
        """
        path = self.path / name
        if Path(name).name != name or not path.resolve().is_relative_to(self._root):
            raise InvalidInputError(f"{self.path}: {name!r} leads outside the folder")
        return path if path.is_file() else None

    def text(self, name: str, *, limit: int = MAX_DOCUMENT_BYTES) -> str | None:
        """Read a UTF-8 text, or return None when there is none.

        Raises:
            InvalidInputError: too large, or not UTF-8.
        """
        path = self.file(name)
        if path is None:
            return None
        size = path.stat().st_size
        if size > limit:
            raise InvalidInputError(
                f"{path}: must be at most {limit} bytes, got {size}"
            )
        try:
            return path.read_bytes().decode()
        except UnicodeDecodeError:
            raise InvalidInputError(f"{path}: not UTF-8") from None

    def json(self, name: str) -> Mapping[str, Any] | None:
        """Read a JSON object, or return None when there is none.

        Raises:
            InvalidInputError: not JSON, or no object.
        """
        text = self.text(name, limit=_MAX_TOKENIZER_BYTES)
        if text is None:
            return None
        tree = parse_json(
            text, where=str(self.path / name), max_bytes=_MAX_TOKENIZER_BYTES
        )
        if not isinstance(tree, dict):
            raise InvalidInputError(f"{self.path / name}: must hold a JSON object")
        return tree

    def weight_files(self) -> tuple[Path, ...]:
        """Return the safetensors files that hold the weights, by name.

        Raises:
            InvalidInputError: none, only pickles, or the index leads astray.
        """
        index = self.json("model.safetensors.index.json")
        if index is not None:
            return tuple(self._indexed(name) for name in self._index_names(index))
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        found = tuple(path for name in names if (path := self.file(name)))
        if found:
            return found
        pickles = [p.name for p in self.path.iterdir() if p.suffix in _PICKLES]
        if pickles:
            raise InvalidInputError(
                f"{self.path}: the weights are pickled ({sorted(pickles)[0]}), which can"
                " run code when loaded; save them as safetensors"
            )
        raise InvalidInputError(f"{self.path}: holds no *.safetensors file")

    def licence(self) -> str | None:
        """Return the licence: README front matter first, then a LICENSE file."""
        found = _FRONT_MATTER.match(self.text("README.md") or "")
        if found:
            tree = parse_yaml(found[1], where=str(self.path / "README.md"))
            licence = tree.get("license") if isinstance(tree, dict) else None
            if licence == "other":
                licence = tree.get("license_name") or licence
            if isinstance(licence, str):
                return licence
        for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
            text = self.text(name)
            if text:
                return _licence_name(text)
        return None

    def _index_names(self, index: Mapping[str, Any]) -> list[str]:
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InvalidInputError(
                f"{self.path}: model.safetensors.index.json must hold a weight_map"
            )
        return sorted({str(name) for name in names.values()})

    def _indexed(self, name: str) -> Path:
        path = self.file(name)
        if path is None or path.suffix != ".safetensors":
            raise InvalidInputError(
                f"{self.path}: the index names {name!r}, which is no safetensors file here"
            )
        return path


def _licence_name(text: str) -> str:
    head = text[:1000].lower()
    for mark, name in (("apache license", "apache-2.0"), ("mit license", "mit")):
        if mark in head:
            return name
    return text.strip().splitlines()[0][:100] if text.strip() else "unknown"
