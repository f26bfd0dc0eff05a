"""The agent's endpoint on a real socket, in a thread of the test's own process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn

from slmops.agent.endpoint import Endpoint, EndpointLimits
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway, Upstream
from slmops.domain.sync import Report
from slmops.runtimes.address import Address

_START_S = 10.0


@dataclass(slots=True)
class LocalEndpoint:
    """An endpoint, and what stands behind it."""

    gateway: Gateway
    """Decides which model serves."""
    telemetry: Telemetry
    """Counts."""
    url: str = ""
    """Base address."""
    _sequence: list[int] = field(default_factory=lambda: [0])

    def serve(
        self,
        at: str | Address,
        *,
        release: str = "sample-1",
        shows_tools: bool = False,
    ) -> Upstream:
        """Point the endpoint at a runtime."""
        address = Address(at) if isinstance(at, str) else at
        upstream = Upstream(
            address=address,
            release=release,
            context_tokens=256,
            shows_tools=shows_tools,
        )
        self.gateway.point_to(upstream)
        return upstream

    def reports(self) -> tuple[Report, ...]:
        """Close the open windows."""
        closed: list[Report] = []
        self.telemetry.close_windows(self._next, closed.append)
        return tuple(closed)

    def _next(self) -> int:
        self._sequence[0] += 1
        return self._sequence[0]


@contextlib.contextmanager
def local_endpoint(
    limits: EndpointLimits | None = None,
    *,
    hold_s: float = 5.0,
    max_waiting: int = 64,
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Iterator[LocalEndpoint]:
    """Run an endpoint without a model until the test ends."""
    gateway = Gateway(hold_s=hold_s, max_waiting=max_waiting)
    made = LocalEndpoint(gateway, Telemetry(time.monotonic))
    application = Endpoint(
        gateway,
        made.telemetry,
        limits or EndpointLimits(),
        allowed_hosts=allowed_hosts,
    ).application()
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            port=0,
            log_config=None,
            access_log=False,
            lifespan="off",
            http="h11",
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_S
    while not server.started:
        assert time.monotonic() < deadline, "the endpoint did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    made.url = f"http://127.0.0.1:{port}"
    try:
        yield made
    finally:
        server.should_exit = True
        thread.join(_START_S)
