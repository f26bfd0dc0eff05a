"""Downloads by way of the site's cache, which nobody has to trust.

Bytes are asked there first; the control plane goes on where they end when the cache is
gone, slow, or has no such blob. Bytes that turn out wrong are thrown away, and that blob
comes from the control plane: a bad cache costs time, never trust. It can delay a blob
by `wait_s` at most, plus one transfer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from slmops.agent.download import Downloads, Pace, Wanted
from slmops.agent.link import http_client
from slmops.agent.settings import AgentSettings
from slmops.domain.errors import UnavailableError, UntrustedError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore

_TIMEOUT = httpx.Timeout(15.0, connect=3.0)
_NAP_S = 0.2
_LONGEST_RETRY_S = 30.0
_REST_S = 300.0
"""How long a cache that failed is left alone for that blob."""
_LEAST_BYTES_PER_S = 16_384.0
"""A local network gives a hundred times as much; slower, the control plane may do
better."""
_JUDGED_AFTER_S = 10.0
_NEVER_S = 86_400.0
"""A cache that sent wrong bytes: it, or what lies between, may be mended by then."""
_SERVICE_UNAVAILABLE = 503
_log = logging.getLogger("slmops.agent")


def downloads_for(
    settings: AgentSettings, client: httpx.Client, blobs: BlobStore, incoming: Path
) -> Downloads:
    """Return downloads from `client`'s control plane, through the mirror if one is set."""
    pace = Pace(most_bytes_per_s=settings.download_bytes_per_s)
    if settings.blob_mirror is None:
        return Downloads(client, blobs, incoming, pace=pace)
    near = http_client(settings.blob_mirror)
    near.timeout = _TIMEOUT
    return MirroredDownloads(
        client,
        blobs,
        incoming,
        pace=pace,
        mirror=Mirror(near, wait_s=settings.blob_mirror_wait_s),
    )


def _near_pace(pace: Pace) -> Pace:
    least = _LEAST_BYTES_PER_S
    if pace.most_bytes_per_s is not None:
        # Our own brake must not look like a slow cache.
        least = min(least, pace.most_bytes_per_s / 2)
    return replace(pace, least_bytes_per_s=least, judged_after_s=_JUDGED_AFTER_S)


class Mirror:
    """What this device knows of its site's cache; used by one thread."""

    def __init__(
        self,
        client: httpx.Client,
        *,
        wait_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._asked_at: dict[Digest, float] = {}
        self._rests_until: dict[Digest, float] = {}

    def has(self, wanted: Wanted, *, pause: Callable[[], bool]) -> bool:
        """Tell whether it gives that blob now; waits while it is on its way there.

        Ends early, with False, when `pause` says so.
        """
        if self._monotonic() < self._rests_until.get(wanted.digest, 0.0):
            return False
        asked_at = self._asked_at.setdefault(wanted.digest, self._monotonic())
        while (again_s := self._look(wanted)) is not None:
            if again_s == 0:
                return True
            if self._monotonic() + again_s > asked_at + self._wait_s:
                self.failed(wanted.digest, "it takes too long")
                return False
            if self._napped(again_s, pause):
                return False
        return False

    def failed(self, digest: Digest, why: str, *, rest_s: float = _REST_S) -> None:
        """Leave it alone for that blob for a while."""
        _log.warning("blob mirror: %s…: %s; asking the control plane", digest[:19], why)
        self._asked_at.pop(digest, None)
        self._rests_until[digest] = self._monotonic() + rest_s

    def done(self, digest: Digest) -> None:
        """Forget a blob that is here."""
        self._asked_at.pop(digest, None)
        self._rests_until.pop(digest, None)

    def _look(self, wanted: Wanted) -> float | None:
        """Return 0 for "here", seconds until it may be, or None for "not from here"."""
        try:
            answer = self.client.head(wanted.path)
        except httpx.HTTPError as error:
            self.failed(wanted.digest, type(error).__name__)
            return None
        if answer.status_code == httpx.codes.OK:
            return 0.0
        again = answer.headers.get("retry-after", "")
        # Only seconds: a date would need a clock that is right.
        if answer.status_code == _SERVICE_UNAVAILABLE and again.isdecimal():
            return min(max(float(again), _NAP_S), _LONGEST_RETRY_S)
        self.failed(wanted.digest, f"status {answer.status_code}")
        return None

    def _napped(self, seconds: float, pause: Callable[[], bool]) -> bool:
        """Wait; tell whether `pause` ended that."""
        end = self._monotonic() + seconds
        while self._monotonic() < end:
            if pause():
                return True
            time.sleep(_NAP_S)
        return pause()


class MirroredDownloads(Downloads):
    """Downloads that ask a mirror first and finish at the control plane."""

    def __init__(
        self,
        client: httpx.Client,
        blobs: BlobStore,
        incoming: Path,
        *,
        pace: Pace,
        mirror: Mirror,
    ) -> None:
        super().__init__(client, blobs, incoming, pace=pace)
        near = _near_pace(pace)
        self._near = Downloads(mirror.client, blobs, incoming, pace=near)
        self._mirror = mirror
        self._mirrored: set[Digest] = set()

    def fetch(self, wanted: Wanted, *, pause: Callable[[], bool]) -> None:
        """As `Downloads.fetch`; what the mirror does wrong is no error."""
        missing = self.missing_bytes(wanted)
        if missing and self._mirror.has(wanted, pause=pause):
            self._fetch_near(wanted, pause)
        # Without a pause the mirror left something to do: the control plane goes on.
        if self.missing_bytes(wanted) and not pause():
            super().fetch(wanted, pause=pause)

    def finish(self, wanted: Wanted) -> bool:
        """As `Downloads.finish`; False when the mirror's bytes are not the promised."""
        try:
            whole = super().finish(wanted)
        except UntrustedError as error:
            if wanted.digest not in self._mirrored:
                raise
            self._mirrored.discard(wanted.digest)
            self._mirror.failed(wanted.digest, str(error), rest_s=_NEVER_S)
            return False
        if whole:
            self._mirrored.discard(wanted.digest)
            self._mirror.done(wanted.digest)
        return whole

    def _fetch_near(self, wanted: Wanted, pause: Callable[[], bool]) -> None:
        before = self._near.received_bytes
        self._mirrored.add(wanted.digest)
        try:
            self._near.fetch(wanted, pause=pause)
        except (UnavailableError, UntrustedError) as error:
            self._mirror.failed(wanted.digest, str(error))
        finally:
            self.received_bytes += self._near.received_bytes - before
