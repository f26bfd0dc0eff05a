"""Which host names requests may be addressed to: the guard against DNS rebinding.

A web page can make its own name resolve to this device; its requests then carry that
name. Everything is refused that does not name the endpoint as its owner does.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from slmops.agent.hosts import ANY, host_name, normal_name
from slmops.agent.openai_errors import RequestRefused, refused_response


class AllowedHosts:
    """An ASGI application around another: refuses other names in OpenAI's form."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = frozenset(normal_name(host) for host in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        refusal = RequestRefused(
            "This endpoint does not answer to the host name of this request; its owner"
            " may add it to allowed_hosts.",
            code="host_not_allowed",
        )
        await refused_response(refusal)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if ANY in self._allowed:
            return True
        written = [value for name, value in scope["headers"] if name == b"host"]
        if len(written) != 1:
            return False
        found = host_name(written[0].decode("latin-1"))
        return found is not None and found in self._allowed
