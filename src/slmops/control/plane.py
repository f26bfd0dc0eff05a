"""What the route handlers share: the store behind one thread, the engine, live news."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from slmops.control.auth import (
    OWNER,
    KnownSessions,
    OperatorDoor,
    RateLimit,
    hash_token,
    refused_operator,
)
from slmops.control.engine import Engine
from slmops.control.http import bearer
from slmops.control.live import Live
from slmops.control.releases import KnownReleases
from slmops.control.settings import ControlSettings
from slmops.control.store import Store
from slmops.domain.errors import UntrustedError
from slmops.registry.envelope import seal
from slmops.registry.signing import OnlineKeys
from slmops.wire import codec

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")

_REMEMBERED = 100_000


class Plane:
    """One running control plane.

    All database work runs on one thread: SQLite has one writer anyway, and the event
    loop never waits for a disk.
    """

    def __init__(
        self,
        settings: ControlSettings,
        *,
        store: Store,
        engine: Engine,
        keys: OnlineKeys,
        operator_token: str,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.store = store
        self.engine = engine
        self.keys = keys
        self.door = OperatorDoor(operator_token)
        self.limit = RateLimit(
            burst=settings.device_burst, rate_per_s=settings.device_rate_per_s
        )
        self.news_limit = RateLimit(
            burst=settings.device_news_burst_bytes,
            rate_per_s=settings.device_news_bytes_per_s,
            what="bytes of news",
        )
        self.clock = clock
        self.live = Live()
        self.wake = asyncio.Event()
        self._chance = random.SystemRandom()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.sessions = KnownSessions()
        self._sealed: dict[tuple[str, int], str] = {}
        self._seen: dict[str, float] = {}

    @property
    def releases(self) -> KnownReleases:
        """Published releases."""
        return self.engine.releases

    async def run(
        self,
        work: Callable[Inputs, Result],
        *inputs: Inputs.args,
        **options: Inputs.kwargs,
    ) -> Result:
        """Do database work on its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: work(*inputs, **options)
        )

    def news(self) -> None:
        """Something that people or the engine care about has changed."""
        self.live.poke()
        self.wake.set()

    async def require_device(self, request: Request) -> str:
        """Return the device whose session token the request carries.

        Raises:
            UntrustedError: none, unknown or expired: open a new session.
            UnavailableError: it asks too often.
        """
        token = bearer(request)
        if token is None:
            raise UntrustedError("session token is missing: POST /v1/session first")
        token_hash = hash_token(token)
        session = self.sessions.find(token_hash)
        if session is None:
            session = await self.run(self.store.session, token_hash)
            if session is not None:
                self.sessions.keep(token_hash, session)
        if session is None or session[1] <= self.clock():
            raise UntrustedError("session is unknown or expired: open a new one")
        self.limit.take(session[0])
        return session[0]

    async def require_operator(self, request: Request, *, owner: bool = False) -> str:
        """Return the operator whose token the request carries.

        Args:
            request: with a bearer token.
            owner: only the holder of the workspace's own token will do.

        Raises:
            UntrustedError: the token is missing, wrong, removed, or not the owner's.
        """
        token = bearer(request)
        if token is None:
            raise refused_operator()
        if self.door.is_owner(token):
            return OWNER
        name = await self.run(self.store.operator_of, hash_token(token))
        if name is None:
            raise refused_operator()
        if owner:
            raise UntrustedError(
                f"{name} is an operator; this needs the token of the workspace's owner"
            )
        return name

    def next_poll_s(self) -> float:
        """Return the device's next waiting time: a fifth around the mean, by chance."""
        return self.settings.poll_s * self._chance.uniform(0.8, 1.2)

    def sealed(self, assignment: object, *, device: str, sequence: int) -> str:
        """Return the signed envelope; signatures are deterministic, so it is kept."""
        key = (device, sequence)
        if key not in self._sealed:
            if len(self._sealed) >= _REMEMBERED:
                self._sealed.clear()
            self._sealed[key] = seal(codec.encode_json(assignment), self.keys.director)
        return self._sealed[key]

    def saw(self, device: str, now: float) -> None:
        """Note that a device was heard of; written in batches."""
        self._seen[device] = now
        self.engine.heard(device, now)

    async def flush_seen(self) -> None:
        """Write the noted times."""
        seen, self._seen = self._seen, {}
        if seen:
            await self.run(self.store.touch, seen)
            self.live.poke()

    def take_keys(self, keys: OnlineKeys) -> None:
        """Sign with other keys from now on: the root names them."""
        self.keys = keys
        self._sealed.clear()

    def close(self) -> None:
        """Finish database work and close the store."""
        self.live.close()
        self._thread.shutdown(wait=True)
        self.store.close()
