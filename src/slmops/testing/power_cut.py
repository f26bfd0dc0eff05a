"""A disk that forgets: records what a program does to a folder, and cuts its power.

A file system promises little (`fsync(2)`; Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014): bytes are safe after a file's fsync, names after their
folder's. What was not flushed may be there, or not, or in part, in any order. The
recorder looks at the folder around every step that opens, writes, flushes, renames or
removes, whoever takes it, and keeps a model of what is safe; `Moment.kill` is the
folder as a killed process leaves it, `Moment.cuts` are folders that a power cut may
leave. SQLite's own steps cannot be seen from here: `Recorder.committing` says when a
commit is safe, and until then its files are torn like any others.
"""

import builtins
import io
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from slmops.registry import durable

SECTOR = 512
"""What a disk writes whole."""
_FEW = 3
"""Of so few unflushed names all subsets are tried."""

Content = bytes | str | None
"""Of a file its bytes, of a link its target, of a folder None."""
Image = Mapping[str, Content]
"""A folder: relative path → what is there."""
_Names = dict[int, dict[str, int]]
"""Folder's number → name → number of what it names."""


@dataclass(frozen=True, slots=True)
class _Renaming:
    """Names of one folder that change together, not flushed yet."""

    folder: int
    names: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The disk between two steps."""

    label: str
    """The step that comes next: ``rename active``."""
    root: int
    names: Mapping[int, Mapping[str, int]]
    safe_names: Mapping[int, Mapping[str, int]]
    pending: tuple[_Renaming, ...]
    contents: Mapping[int, Content]
    safe_contents: Mapping[int, Content]

    def kill(self) -> Image:
        """Return what a killed process leaves: all that the system was handed."""
        return _image(self.root, self.names, self.contents)

    def cuts(self, chance: random.Random, *, most: int) -> Iterator[Image]:
        """Yield different folders that a power cut here may leave, the poorest first."""
        seen: list[Image] = [self.kill()]
        ways = ((some, torn) for some in self._subsets(chance) for torn in _TORN)
        for chosen, torn in itertools.islice(ways, most):
            image = self._cut(chosen, torn, chance)
            if image not in seen:
                seen.append(image)
                yield image

    def _subsets(self, chance: random.Random) -> Iterator[Sequence[_Renaming]]:
        """Yield what of the unflushed names has reached the disk."""
        count = len(self.pending)
        if count <= _FEW:
            for size in range(count + 1):
                yield from itertools.combinations(self.pending, size)
            return
        yield ()
        yield self.pending
        while True:
            share = chance.random()
            yield [each for each in self.pending if chance.random() < share]

    def _cut(
        self, chosen: Sequence[_Renaming], torn: "_Tear", chance: random.Random
    ) -> Image:
        names = {folder: dict(found) for folder, found in self.safe_names.items()}
        for change in chosen:
            found = names.setdefault(change.folder, {})
            for name, number in change.names.items():
                found.pop(name, None)
                if number is not None:
                    found[name] = number
        contents = {
            number: torn(self.safe_contents.get(number, b""), content, chance)
            for number, content in self.contents.items()
        }
        return _image(self.root, names, {**self.safe_contents, **contents})


_Tear = Callable[[Content, Content, random.Random], Content]


def _lost(safe: Content, now: Content, _: random.Random) -> Content:
    return now if not isinstance(now, bytes) else safe


def _written(_safe: Content, now: Content, _: random.Random) -> Content:
    return now


def _cut_short(safe: Content, now: Content, chance: random.Random) -> Content:
    if not isinstance(now, bytes) or safe == now:
        return now
    common = len(safe) if isinstance(safe, bytes) and now.startswith(safe) else 0
    return now[: chance.randint(common, len(now))]


def _zeros(safe: Content, now: Content, _: random.Random) -> Content:
    """The length is known, the bytes never came: what delayed allocation leaves."""
    if not isinstance(now, bytes) or safe == now:
        return now
    kept = safe[: len(now)] if isinstance(safe, bytes) else b""
    return kept + bytes(len(now) - len(kept))


def _sectors(safe: Content, now: Content, chance: random.Random) -> Content:
    if not isinstance(now, bytes) or safe == now:
        return now
    old = (safe if isinstance(safe, bytes) else b"").ljust(len(now), b"\0")
    return b"".join(
        (now if chance.random() < 0.5 else old)[begin : begin + SECTOR]  # noqa: PLR2004
        for begin in range(0, len(now), SECTOR)
    )


_TORN: tuple[_Tear, ...] = (_lost, _written, _cut_short, _zeros, _sectors)


def _image(
    root: int,
    names: Mapping[int, Mapping[str, int]],
    contents: Mapping[int, Content],
) -> Image:
    image: dict[str, Content] = {}

    def walk(folder: int, path: str) -> None:
        for name, number in names.get(folder, {}).items():
            inner = f"{path}{name}"
            image[inner] = contents.get(number, b"")
            if image[inner] is None:
                walk(number, f"{inner}/")

    walk(root, "")
    return image


def write_image(image: Image, folder: Path) -> None:
    """Make a folder that looks like an image."""
    folder.mkdir(parents=True)
    for name, content in sorted(image.items()):
        path = folder / name
        if content is None:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(0o600)


@dataclass(kw_only=True, slots=True)
class Recorder:
    """What was done to a folder, and what of it is safe; all is, at the beginning."""

    folder: Path
    on_step: Callable[[str], None] = lambda _: None
    """Called before every step with its label; may raise, and the step is not done."""
    moments: list[Moment] = field(default_factory=list)
    """Before every step, when `keep` is set."""
    keep: bool = True
    context: str = ""
    """Begins the labels of steps: what the program is at."""
    _names: _Names = field(default_factory=dict)
    _safe_names: _Names = field(default_factory=dict)
    _pending: list[_Renaming] = field(default_factory=list)
    _contents: dict[int, Content] = field(default_factory=dict)
    _safe_contents: dict[int, Content] = field(default_factory=dict)
    _held: dict[int, int] = field(default_factory=dict)
    """Descriptors that keep the numbers of removed files from being used again."""
    _busy: bool = False
    _thread: int = field(default_factory=threading.get_ident)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self._look()
        self._pending.clear()
        self._safe_names = {key: dict(found) for key, found in self._names.items()}
        self._safe_contents = dict(self._contents)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch all steps of this process inside the folder."""
        opening = self._opening(builtins.open, _mode_writes)
        write = self._watched(durable.write, "write", _path_of_sink)
        with ExitStack() as stack:
            for name, step in self._of_os().items():
                stack.enter_context(mock.patch.object(os, name, step))
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", opening))
            stack.enter_context(mock.patch.object(durable, "write", write))
            yield

    @contextmanager
    def committing(self, label: str, files: Sequence[str]) -> Iterator[None]:
        """SQLite changes `files` in the folder, and they are safe when the block ends."""
        yield
        self.step(f"inside {label}")
        root = _number(self.folder)
        for name in files:
            number = self._names[root].get(name)
            if number is None:
                self._safe_names[root].pop(name, None)
                continue
            self._safe_names[root][name] = number
            self._safe_contents[number] = self._contents[number]

    def _of_os(self) -> dict[str, object]:
        one = {
            **dict.fromkeys(("unlink", "remove", "rmdir"), "remove"),
            "mkdir": "mkdir",
            "truncate": "truncate",
        }
        two = {"replace": "rename", "rename": "rename", "link": "link"}
        watched: dict[str, object] = {
            name: self._watched(getattr(os, name), label, _first)
            for name, label in one.items()
        }
        for name, label in {**two, "symlink": "link"}.items():
            watched[name] = self._watched(getattr(os, name), label, _second)
        watched["open"] = self._opening(os.open, _flags_write)
        watched["fsync"] = watched["fdatasync"] = self._fsync
        return watched

    def _watched(
        self, real: Callable[..., Any], label: str, where: Callable[..., object]
    ) -> Callable[..., Any]:
        def step(*arguments: object, **named: object) -> object:
            path = self._inside(where(*arguments))
            if path is not None:
                self.step(f"{label} {path}")
            return real(*arguments, **named)

        return step

    def _opening(
        self, real: Callable[..., Any], writes: Callable[..., bool]
    ) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> object:  # noqa: ANN401 - as `open`
            path = self._inside(arguments[0]) if arguments else None
            if path is not None and writes(*arguments[1:], **named):
                self.step(f"open {path}")
            return real(*arguments, **named)

        return step

    def _fsync(self, file: Any) -> None:  # noqa: ANN401 - a number, or has one
        descriptor = file if isinstance(file, int) else file.fileno()
        path = self._inside(f"/proc/self/fd/{descriptor}", follow=True)
        if path is None:
            return
        number = os.fstat(descriptor).st_ino
        self.step(f"fsync {path}")
        # Not handed to the real disk: this one is only remembered.
        if number in self._names:
            self._flush_folder(number)
        elif number in self._contents:
            self._safe_contents[number] = self._contents[number]

    def _flush_folder(self, number: int) -> None:
        self._safe_names[number] = dict(self._names.get(number, {}))
        for inner in self._safe_names[number].values():
            if self._contents.get(inner) is None:
                self._safe_contents[inner] = None
        self._pending = [each for each in self._pending if each.folder != number]

    def _inside(self, where: object, *, follow: bool = False) -> str | None:
        if self._busy or not isinstance(where, str | bytes | os.PathLike):
            return None
        path = os.fsdecode(where)
        full = os.path.realpath(path) if follow else os.path.abspath(path)  # noqa: PTH100
        top = f"{self.folder}/"
        if full == str(self.folder):
            return "."
        return full[len(top) :] if full.startswith(top) else None

    def step(self, label: str) -> None:
        """Look at the disk before a step that is about to be taken."""
        if self._busy or threading.get_ident() != self._thread:
            return
        label = f"{self.context}: {label}" if self.context else label
        self._busy = True
        try:
            self._look()
            if self.keep:
                self.moments.append(self.moment(label))
        finally:
            self._busy = False
        self.on_step(label)

    def moment(self, label: str) -> Moment:
        """Return the disk as it was found before the step that is being taken."""
        return Moment(
            label=label,
            root=_number(self.folder),
            names={key: dict(found) for key, found in self._names.items()},
            safe_names={key: dict(found) for key, found in self._safe_names.items()},
            pending=tuple(self._pending),
            contents=dict(self._contents),
            safe_contents=dict(self._safe_contents),
        )

    def _look(self) -> None:
        names, contents = self._scan()
        for folder in names.keys() | self._names.keys():
            before, after = self._names.get(folder, {}), names.get(folder, {})
            changed = {
                name: after.get(name)
                for name in before.keys() | after.keys()
                if before.get(name) != after.get(name)
            }
            if changed:
                self._pending.append(_Renaming(folder, changed))
        self._names, self._contents = names, contents

    def _scan(self) -> tuple[_Names, dict[int, Content]]:
        names: _Names = {}
        contents: dict[int, Content] = {}
        waiting = [self.folder]
        while waiting:
            here = waiting.pop()
            found = names.setdefault(_number(here), {})
            for entry in os.scandir(here):
                if entry.name.endswith("-shm"):
                    continue  # SQLite's index in shared memory: begun anew at a start
                number = entry.inode()
                found[entry.name] = number
                if entry.is_symlink():
                    contents[number] = os.readlink(entry.path)  # noqa: PTH115 - as it is
                    continue
                if number not in self._held:
                    self._held[number] = os.open(entry.path, os.O_RDONLY)
                if entry.is_dir():
                    contents[number] = None
                    waiting.append(Path(entry.path))
                else:
                    contents[number] = Path(entry.path).read_bytes()
        return names, contents

    def close(self) -> None:
        """Let go of the folder's files."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()


def _number(path: Path) -> int:
    return path.stat().st_ino


def _first(path: object, *_: object) -> object:
    return path


def _second(_: object, path: object, *__: object) -> object:
    return path


def _path_of_sink(sink: Any, *_: object) -> object:  # noqa: ANN401 - any file
    name = sink.name
    return os.readlink(f"/proc/self/fd/{name}") if isinstance(name, int) else name  # noqa: PTH115


def _mode_writes(mode: str = "r", *_: object, **__: object) -> bool:
    return any(letter in mode for letter in "wax+")


def _flags_write(flags: int, *_: object, **__: object) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
