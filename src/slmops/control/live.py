"""Live news for dashboards: one snapshot, made once, given to every listener."""

import asyncio
from collections.abc import AsyncIterator


class Live:
    """The newest snapshot and who waits for the next.

    A snapshot is built only while somebody listens, and only after a poke; listeners
    share it, so ten dashboards cost the database what one does.
    """

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._changed = asyncio.Condition()
        self._text: str | None = None
        self._number = 0
        self._listeners = 0
        self._closed = False

    def poke(self) -> None:
        """Something changed."""
        self._news.set()

    def close(self) -> None:
        """End every listener's stream."""
        self._closed = True
        self._news.set()

    async def wait_for_news(self) -> bool:
        """Wait for a poke while somebody listens; False when closed."""
        await self._news.wait()
        self._news.clear()
        while not self._listeners and not self._closed:
            await self._news.wait()
            self._news.clear()
        return not self._closed

    async def publish(self, text: str) -> None:
        """Give a snapshot to every listener, unless it is the one they have."""
        if text == self._text:
            return
        async with self._changed:
            self._text = text
            self._number += 1
            self._changed.notify_all()

    async def end(self) -> None:
        """Wake every listener so that it sees the end."""
        async with self._changed:
            self._changed.notify_all()

    async def listen(self, *, heartbeat_s: float) -> AsyncIterator[str | None]:
        """Yield snapshots as they come; None as a sign of life in between."""
        self._listeners += 1
        self._news.set()
        seen = 0
        try:
            while not self._closed:
                if self._number > seen and self._text is not None:
                    seen = self._number
                    yield self._text
                    continue
                if not await self._wait(seen, heartbeat_s):
                    yield None
        finally:
            self._listeners -= 1

    async def _wait(self, seen: int, heartbeat_s: float) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._number > seen or self._closed),
                    heartbeat_s,
                )
            except TimeoutError:
                return False
        return True
