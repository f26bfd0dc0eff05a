"""Download of one artefact: ranged, resumable, bounded, verified.

Bytes go to ``incoming/<hex>`` and stay there over restarts. Never more than the
promised length is read; only a file whose every byte was hashed moves to the blobs. A
sender that drips is left after a while: what arrived is kept, the next try goes on.
"""

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from slmops.domain.errors import UnavailableError, UntrustedError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry import durable
from slmops.registry.blobs import BlobStore, file_digest

_FLUSH_BYTES = 8 << 20
_NAP_S = 0.2
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the signed metadata promises."""

    digest: Digest
    """Of the whole artefact."""
    length: int
    """Bytes."""

    @property
    def path(self) -> str:
        """Route on the control plane."""
        return f"/v1/registry/blobs/sha256/{digest_hex(self.digest)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How slow a sender may be; the client's own time-outs bound its silences."""

    least_bytes_per_s: float = 256.0
    """Mean over one connection: the poorest radio links give ten times as much."""
    judged_after_s: float = 20.0
    """Age of a connection from which its mean counts."""
    most_bytes_per_s: int | None = None
    """Mean over one connection that the device's owner allows; None for any."""

    def ahead_s(self, received: int, seconds: float) -> float:
        """Return how long to read nothing, so that the mean stays below the most.

        >>> Pace(most_bytes_per_s=1000).ahead_s(3000, 2.0)
        1.0
        """
        if self.most_bytes_per_s is None:
            return 0.0
        return max(received / self.most_bytes_per_s - seconds, 0.0)


class Downloads:
    """Artefacts on their way to a blob store."""

    def __init__(
        self,
        client: httpx.Client,
        blobs: BlobStore,
        incoming: Path,
        *,
        pace: Pace | None = None,
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._incoming = incoming
        self._pace = pace or Pace()
        self.received_bytes = 0
        """Body bytes that arrived since the agent's start, kept or not."""

    def missing_bytes(self, wanted: Wanted) -> int:
        """Return how many bytes are still to come."""
        if self._blobs.has(wanted.digest):
            return 0
        return max(wanted.length - self._have(wanted), 0)

    def fetch(self, wanted: Wanted, *, pause: Callable[[], bool]) -> None:
        """Fetch until all is here or `pause` says so; counts in `received_bytes`.

        Raises:
            UnavailableError: the network failed, the sender is too slow, or something
                else than the registry answered; what arrived is kept.
            UntrustedError: wrong length or digest; what arrived is thrown away.
            OSError: the disk refuses.
        """
        durable.make_folder(self._incoming, mode=0o700)
        begin = self._have(wanted)
        if begin >= wanted.length:
            return
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        try:
            with self._client.stream("GET", wanted.path, headers=headers) as response:
                start = _checked_start(response, wanted, begin)
                self._receive(response, wanted, start, pause)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"download: {type(error).__name__}: {error}"
            ) from None
        except UntrustedError:
            self.discard(wanted)
            raise

    def finish(self, wanted: Wanted) -> bool:
        """Verify what is here and move it to the blobs; False while bytes are missing.

        Raises:
            UntrustedError: wrong digest; the bytes are thrown away.
        """
        if self._blobs.has(wanted.digest):
            return self._check_present(wanted)
        path = self._path(wanted)
        if self._have(wanted) < wanted.length:
            return False
        found = file_digest(path)
        if found != wanted.digest:
            self.discard(wanted)
            raise UntrustedError(
                f"download: expected {wanted.digest[:19]}…, got {found[:19]}…"
            )
        durable.sync_file(path)
        durable.make_folder(self._blobs.folder)
        durable.move(path, self._blobs.folder / digest_hex(wanted.digest))
        durable.sync_folder(self._blobs.folder)
        return True

    def discard(self, wanted: Wanted) -> None:
        """Forget what has arrived."""
        durable.remove(self._path(wanted))

    def discard_all(self) -> None:
        """Forget everything that has arrived: no installation runs."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._incoming.iterdir():
                durable.remove(path)

    def _check_present(self, wanted: Wanted) -> bool:
        """A blob from an earlier installation may have rotted: fetch it anew then."""
        try:
            self._blobs.verify(wanted.digest)
        except UntrustedError:
            self._blobs.remove(wanted.digest)
            return False
        return True

    def _receive(
        self,
        response: httpx.Response,
        wanted: Wanted,
        start: int,
        pause: Callable[[], bool],
    ) -> None:
        begun, received, unflushed = time.monotonic(), 0, 0
        with self._path(wanted).open("r+b" if start else "wb") as sink:
            durable.reserve(sink, wanted.length)
            sink.seek(start)
            try:
                # As it arrives: gathered into blocks, a drip would hide from `pause`.
                for block in response.iter_raw():
                    if start + received + len(block) > wanted.length:
                        raise UntrustedError(
                            f"download: more than the promised {wanted.length} bytes"
                        )
                    durable.write(sink, block)
                    received += len(block)
                    self.received_bytes += len(block)
                    unflushed += len(block)
                    if unflushed >= _FLUSH_BYTES:
                        durable.flush(sink)
                        unflushed = 0
                    if pause() or self._held_back(received, begun, pause):
                        return
                    self._require_pace(received, time.monotonic() - begun)
            finally:
                durable.flush(sink)
        if not received:
            # Asked for at once again, it would give nothing again.
            raise UnavailableError("download: the answer has no bytes")

    def _held_back(
        self, received: int, begun: float, pause: Callable[[], bool]
    ) -> bool:
        """Read nothing until the mean is allowed; tell whether `pause` ended that."""
        while left := self._pace.ahead_s(received, time.monotonic() - begun):
            time.sleep(min(left, _NAP_S))
            if pause():
                return True
        return False

    def _require_pace(self, received: int, seconds: float) -> None:
        least = self._pace.least_bytes_per_s * seconds
        if seconds >= self._pace.judged_after_s and received < least:
            raise UnavailableError(
                f"download: {received} bytes in {seconds:.0f} s, at least"
                f" {self._pace.least_bytes_per_s:g} a second are expected"
            )

    def _path(self, wanted: Wanted) -> Path:
        return self._incoming / digest_hex(wanted.digest)

    def _have(self, wanted: Wanted) -> int:
        try:
            size = self._path(wanted).stat().st_size
        except FileNotFoundError:
            return 0
        if size > wanted.length:
            self.discard(wanted)
            return 0
        return size


def _checked_start(response: httpx.Response, wanted: Wanted, begin: int) -> int:
    """Return where the body begins: `begin`, or 0 when the server sends all of it."""
    status = response.status_code
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if status == _UNSATISFIABLE:
        raise UntrustedError(f"download: the registry has no byte {begin}")
    if status not in {_OK, _PARTIAL}:
        raise UnavailableError(f"download: status {status}")
    if kind in {"text/html", "application/json"}:
        raise UnavailableError(
            f"download: got {kind}, not an artefact: something stands between us and"
            " the registry"
        )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnavailableError("download: the answer is encoded, though not asked for")
    start, end = 0, wanted.length
    if status == _PARTIAL:
        start, end = _range(response, wanted, begin)
    promised = response.headers.get("content-length")
    if promised is not None and promised != str(end - start):
        raise UntrustedError(
            f"download: {end - start} bytes are expected, {promised[:20]} offered"
        )
    return start


def _range(response: httpx.Response, wanted: Wanted, begin: int) -> tuple[int, int]:
    """Return begin and end of what comes: a server may send less than asked for."""
    said = response.headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(said)
    first, last, length = (int(part) for part in match.groups()) if match else (0, 0, 0)
    good = first == begin and first <= last < length == wanted.length
    if match is None or not good:
        raise UntrustedError(
            f"download: asked for bytes {begin}- of {wanted.length}, got {said[:60]!r}"
        )
    return first, last + 1
