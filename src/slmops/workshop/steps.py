"""Build steps: pure functions of what goes in, computed once and kept by digest.

A step is described by the digests of its inputs, its parameters, the tools that
compute it and a seed; the digest of that description is its key. Its outputs are
blobs. A record in the workspace's ``steps`` folder ties key to outputs; it is written
last and atomically, so a step is either done or as if it never began. Records found
again are trusted only as far as their outputs' bytes hold: what is missing or damaged
is computed anew.

The records together are the build's provenance.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmops.domain.errors import InvalidInputError, NotFoundError, UntrustedError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import BlobStore, write_atomically
from slmops.registry.workspace import Workspace
from slmops.wire.codec import decode_json, document_digest, encode_json
from slmops.workshop.jobs.job import Value

_KEPT_STATES = 8
"""Checkpoints of unfinished steps that are kept: a step whose code was edited meanwhile
is another step, and nobody comes back for its checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What determines a step's outputs; its digest is the cache key."""

    kind: str
    """What is computed: ``quantize``, ``score``, ``speed`` …"""
    tool: str
    """What computes it, with versions: see `tool_version`."""
    inputs: Mapping[str, Digest]
    """Role → digest of the blob that is read."""
    parameters: Mapping[str, Value]
    """Everything else that matters."""
    seed: int = 0
    """Of any chance in it."""

    @property
    def digest(self) -> Digest:
        """Key of the step."""
        return document_digest(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """A finished step."""

    step: Step
    """What was computed."""
    outputs: Mapping[str, Digest]
    """Role → digest of the blob that was made."""
    seconds: float
    """How long it took when it was computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTiming:
    """One step as one build met it."""

    name: str
    """For people: ``quantize Q4_K_M``."""
    kind: str
    """Kind of the step."""
    seconds: float
    """When it was computed: in this build or an earlier one."""
    reused: bool
    """Whether an earlier build had computed it."""


@dataclass(frozen=True, slots=True)
class StepCache:
    """Finished steps of a workspace."""

    workspace: Workspace

    @property
    def blobs(self) -> BlobStore:
        """Where inputs and outputs lie."""
        return BlobStore(self.workspace.blobs)

    @property
    def scratch(self) -> Path:
        """Folder for files that no step keeps; emptied when a build begins."""
        return self.workspace.steps / ".scratch"

    @property
    def state(self) -> Path:
        """Folder for checkpoints of unfinished steps, by the step's digest."""
        return self.workspace.steps / ".state"

    def clean(self) -> None:
        """Remove what a killed build left half done; only under the build lock."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        for folder in self._states()[_KEPT_STATES:]:
            shutil.rmtree(folder, ignore_errors=True)
        self.blobs.remove_partials()

    def _states(self) -> list[Path]:
        """Return checkpoints' folders, the one touched last first."""
        if not self.state.is_dir():
            return []
        folders = list(self.state.iterdir())
        return sorted(folders, key=lambda folder: -folder.stat().st_mtime_ns)

    def find(self, step: Step) -> StepRecord | None:
        """Return the record of a finished step whose outputs are whole, or None.

        Damaged outputs are removed, so that computing the step replaces them.
        """
        record = self._read(step)
        if record is None:
            return None
        whole = [self._is_whole(digest) for digest in record.outputs.values()]
        return record if all(whole) else None

    def peek(self, step: Step) -> StepRecord | None:
        """Return the record of a finished step whose outputs are there, whole or not."""
        record = self._read(step)
        if record is None or not all(map(self.blobs.has, record.outputs.values())):
            return None
        return record

    def has(self, step: Step) -> bool:
        """Tell whether a step is finished and its outputs are there, whole or not."""
        return self.peek(step) is not None

    def alike(self, step: Step, like: Callable[[Step], bool]) -> Iterator[StepRecord]:
        """Yield finished steps that the same tool computed, in an order that is theirs.

        Args:
            step: of the kind that is wanted.
            like: tells which of them will do.
        """
        mark = b'"kind":' + encode_json(step.kind)
        for path in sorted(self.workspace.steps.glob("*.json")):
            # Most are of other kinds: those are not decoded.
            if mark not in path.read_bytes():
                continue
            other = self._read_path(path)
            if other is None or self._path(other.step) != path:
                continue
            same = (other.step.kind, other.step.tool) == (step.kind, step.tool)
            if same and like(other.step) and self.find(other.step) is not None:
                yield other

    def save(self, record: StepRecord) -> None:
        """Make a finished step known; its outputs are in the blob store already."""
        write_atomically(self._path(record.step), encode_json(record))

    def _read(self, step: Step) -> StepRecord | None:
        path = self._path(step)
        if not path.is_file():
            return None
        record = self._read_path(path)
        return record if record is not None and record.step == step else None

    def _read_path(self, path: Path) -> StepRecord | None:
        try:
            return decode_json(path.read_bytes(), StepRecord, where=str(path))
        except InvalidInputError:
            return None

    def _is_whole(self, digest: Digest) -> bool:
        try:
            self.blobs.verify(digest)
        except NotFoundError:
            return False
        except UntrustedError:
            self.blobs.remove(digest)
            return False
        return True

    def _path(self, step: Step) -> Path:
        return self.workspace.steps / f"{digest_hex(step.digest)}.json"


@dataclass(slots=True)
class StepRunner:
    """Runs the steps of one build; may be used from several threads."""

    cache: StepCache
    on_reuse: Callable[[], None] = lambda: None
    """Called for every step that need not be computed."""
    records: dict[Digest, StepRecord] = field(default_factory=dict)
    """Step digest → record of every step this build used."""
    timings: list[StepTiming] = field(default_factory=list)
    """One per step, in the order they were done."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, name: str, step: Step, compute: Callable[[], Mapping[str, Digest]]
    ) -> StepRecord:
        """Return the record of `step`, computing it only when no earlier build did.

        A step that this build has met already is not looked at again.

        Args:
            name: for people.
            step: what is wanted.
            compute: stores the outputs as blobs and returns their digests.
        """
        with self._lock:
            met = self.records.get(step.digest)
        if met is not None:
            self.on_reuse()
            return met
        record = self.cache.find(step)
        reused = record is not None
        if reused:
            self.on_reuse()
        if record is None:
            began = time.perf_counter()
            outputs = dict(compute())
            seconds = round(time.perf_counter() - began, 3)
            record = StepRecord(step=step, outputs=outputs, seconds=seconds)
            self.cache.save(record)
        self._note(name, record, reused=reused)
        return record

    def take(self, name: str, record: StepRecord) -> None:
        """Take a step that `StepCache.alike` found for one that this build wanted."""
        with self._lock:
            met = record.step.digest in self.records
        self.on_reuse()
        if not met:
            self._note(name, record, reused=True)

    def _note(self, name: str, record: StepRecord, *, reused: bool) -> None:
        timing = StepTiming(
            name=name, kind=record.step.kind, seconds=record.seconds, reused=reused
        )
        with self._lock:
            self.records[record.step.digest] = record
            self.timings.append(timing)

    def provenance(self) -> tuple[StepRecord, ...]:
        """Return all records, in an order that does not depend on timing."""
        return tuple(
            sorted(self.records.values(), key=lambda r: (r.step.kind, r.step.digest))
        )
