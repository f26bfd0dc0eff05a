"""The gateway between the endpoint and the model's process: leases, holding, draining.

The endpoint leases the current upstream for each request; the installation points the
gateway to another one. Requests in flight keep theirs, so the old process can be
drained. While one model must go before the next can come (`hold`), requests wait.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from slmops.domain.errors import UnavailableError
from slmops.runtimes.address import Address


@dataclass(eq=False, slots=True)
class Upstream:
    """One loaded model, as the endpoint sees it."""

    address: Address
    """On loopback, with its key."""
    release: str
    """Release label: the model's name."""
    context_tokens: int
    """Longest request."""
    shows_tools: bool = False
    """Does its chat template mention tools?"""
    in_flight: int = field(default=0)
    """Requests that hold a lease."""
    heard_at: float = 0.0
    """Monotonic time of the last byte that came from it, seconds."""
    suspected: bool = False
    """Set when an answer timed out: it may hang, or only have too much to do."""


class NotServingError(UnavailableError):
    """No upstream serves now."""

    def __init__(self, reason: str, *, release: str | None) -> None:
        super().__init__(reason)
        self.release = release
        """Label of the release that should serve and fails to; None when none does."""


_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Gateway:
    """Which upstream serves now; safe to share between threads."""

    def __init__(self, *, hold_s: float, max_waiting: int) -> None:
        self._hold_s = hold_s
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._current: Upstream | None = None
        self._reason = "no model is installed on this device yet"
        self._release: str | None = None
        self._holding = False
        self._waiters: list[_Waiter] = []

    @property
    def current(self) -> Upstream | None:
        """What new requests get."""
        with self._changed:
            return self._current

    @property
    def reason(self) -> str:
        """Why there is none."""
        with self._changed:
            return self._reason

    @property
    def holding(self) -> bool:
        """Tell whether new requests wait for the next upstream."""
        with self._changed:
            return self._holding

    def point_to(self, upstream: Upstream) -> Upstream | None:
        """Give new requests to `upstream`; return what they got before."""
        with self._changed:
            before, self._current = self._current, upstream
            self._holding = False
            self._wake()
            return before

    def close(
        self,
        reason: str,
        *,
        release: str | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        """Refuse new requests.

        Args:
            reason: why, for the clients.
            release: label of the release that is at fault, so that refusals count as
                its failures; None when none is.
            upstream: do nothing unless this one serves.
        """
        with self._changed:
            if upstream is not None and self._current is not upstream:
                return
            self._current = None
            self._reason = reason
            self._release = release
            self._holding = False
            self._wake()

    def hold(self) -> Upstream | None:
        """Let new requests wait, bounded, for the next upstream; return the last one."""
        with self._changed:
            before, self._current = self._current, None
            self._reason = "the model is being exchanged"
            self._release = None
            self._holding = True
            return before

    def drain(self, upstream: Upstream, *, timeout_s: float) -> bool:
        """Wait until no request holds a lease on `upstream`; blocks this thread."""
        with self._changed:
            return self._changed.wait_for(
                lambda: upstream.in_flight == 0, timeout=timeout_s
            )

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Upstream]:
        """Hold the current upstream for one request.

        Raises:
            NotServingError: there is none; says why.
        """
        upstream = await self._acquire()
        try:
            yield upstream
        finally:
            with self._changed:
                upstream.in_flight -= 1
                self._changed.notify_all()

    async def _acquire(self) -> Upstream:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._hold_s
        while True:
            with self._changed:
                if self._current is not None:
                    self._current.in_flight += 1
                    return self._current
                if not self._holding or len(self._waiters) >= self._max_waiting:
                    raise NotServingError(self._reason, release=self._release)
                waiter = (loop, loop.create_future())
                self._waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter[1], max(deadline - loop.time(), 0.001))
            except TimeoutError:
                with self._changed:
                    late = NotServingError(self._reason, release=self._release)
                raise late from None
            finally:
                with self._changed:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    def _wake(self) -> None:
        for loop, future in self._waiters:
            loop.call_soon_threadsafe(_resolve, future)
        self._waiters.clear()
        self._changed.notify_all()


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
