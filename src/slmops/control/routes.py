"""The one table of routes: the server and the OpenAPI document are both made from it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from slmops.control import (
    aborted,
    api_device,
    api_live,
    api_operator,
    api_operators,
    api_registry,
    api_rollouts,
    orders,
    preview,
    views,
)
from slmops.control.plane import Plane
from slmops.domain import sync

Handler = Callable[[Plane, Request], Awaitable[Response]]


class Access(StrEnum):
    """Who may call a route."""

    ANYONE = "anyone"
    """No credential, or one inside the body."""
    DEVICE = "device"
    """Session token; the handler checks it."""
    OPERATOR = "operator"
    """Operator token; checked before the handler runs."""
    OWNER = "owner"
    """The workspace's own operator token; checked before the handler runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One method on one path."""

    method: str
    """``GET`` or ``POST``."""
    path: str
    """With ``{parameters}``."""
    handler: Handler
    """What answers."""
    summary: str
    """One line for the document."""
    access: Access = Access.OPERATOR
    """Who may."""
    body: type | None = None
    """Document of the request; None for none."""
    body_required: bool = True
    """False when an empty body means all defaults."""
    answers: dict[int, type | str | None] = field(default_factory=dict)
    """Status → document, media type, or None for an empty body."""


_JSON = "application/json"
_BYTES = "application/octet-stream"

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/enrol",
        handler=api_device.enrol,
        summary="Enrol a device with a one-time token and its own key.",
        access=Access.ANYONE,
        body=sync.EnrolRequest,
        answers={201: sync.EnrolAnswer},
    ),
    Route(
        method="POST",
        path="/v1/session",
        handler=api_device.open_session,
        summary="Get a session token for a signature of the device's key.",
        access=Access.ANYONE,
        body=sync.SessionRequest,
        answers={200: sync.SessionAnswer},
    ),
    Route(
        method="POST",
        path="/v1/sync",
        handler=api_device.sync,
        summary="Say all a device has to say; 304 when there is nothing new for it.",
        access=Access.DEVICE,
        body=sync.SyncRequest,
        answers={200: sync.SyncAnswer, 304: None},
    ),
    Route(
        method="GET",
        path="/v1/registry/metadata/{file}",
        handler=api_registry.metadata_file,
        summary="Read a TUF metadata file.",
        access=Access.ANYONE,
        answers={200: _JSON, 206: _JSON, 304: None},
    ),
    Route(
        method="GET",
        path="/v1/registry/targets/releases/{file}",
        handler=api_registry.release_file,
        summary="Read a release document, named by its hash.",
        access=Access.ANYONE,
        answers={200: _JSON, 206: _JSON, 304: None},
    ),
    Route(
        method="GET",
        path="/v1/registry/blobs/sha256/{file}",
        handler=api_registry.blob_file,
        summary="Read an artefact, whole or in byte ranges.",
        access=Access.ANYONE,
        answers={200: _BYTES, 206: _BYTES, 304: None},
    ),
    Route(
        method="GET",
        path="/v1/registry/deltas/{file}",
        handler=api_registry.delta_file,
        summary="Read the delta `<from>.<to>` between artefacts; 404: none is offered.",
        access=Access.ANYONE,
        answers={200: _BYTES, 206: _BYTES, 304: None},
    ),
    Route(
        method="POST",
        path="/v1/tokens",
        handler=api_operator.make_token,
        summary="Make a one-time enrolment token.",
        body=orders.TokenOrder,
        body_required=False,
        answers={201: orders.TokenAnswer},
    ),
    Route(
        method="GET",
        path="/v1/devices",
        handler=api_operator.list_devices,
        summary="List the fleet as last seen.",
        answers={200: views.DeviceList},
    ),
    Route(
        method="GET",
        path="/v1/devices/{id}",
        handler=api_operator.show_device,
        summary="Show a device, and why it has its class.",
        answers={200: views.DeviceDetail},
    ),
    Route(
        method="POST",
        path="/v1/devices/{id}/retire",
        handler=api_operator.retire_device,
        summary="Take a device out of the fleet for good; its record stays.",
        answers={200: views.DeviceDetail},
    ),
    Route(
        method="GET",
        path="/v1/releases",
        handler=api_operator.list_releases,
        summary="List published releases.",
        answers={200: views.ReleaseList},
    ),
    Route(
        method="POST",
        path="/v1/rollouts",
        handler=api_rollouts.start_rollout,
        summary="Start bringing a release to the fleet.",
        body=orders.RolloutOrder,
        answers={201: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/preview",
        handler=api_rollouts.preview_rollout,
        summary="Show what a rollout would reach, without starting it.",
        body=orders.RolloutOrder,
        answers={200: preview.RolloutPreview},
    ),
    Route(
        method="POST",
        path="/v1/emergency-stop",
        handler=api_rollouts.emergency_stop,
        summary="End every rollout and bring its devices back.",
        body=orders.ReasonOrder,
        answers={200: views.RolloutList},
    ),
    Route(
        method="GET",
        path="/v1/rollouts",
        handler=api_rollouts.list_rollouts,
        summary="List rollouts.",
        answers={200: views.RolloutList},
    ),
    Route(
        method="GET",
        path="/v1/rollouts/{id}",
        handler=api_rollouts.show_rollout,
        summary="Show a rollout with its members and verdicts.",
        answers={200: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/{id}/pause",
        handler=api_rollouts.pause_rollout,
        summary="Make no new offers until resumed.",
        body=orders.PauseOrder,
        body_required=False,
        answers={200: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/{id}/resume",
        handler=api_rollouts.resume_rollout,
        summary="Go on after a pause.",
        answers={200: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/{id}/abort",
        handler=api_rollouts.abort_rollout,
        summary="End a rollout; keep or revert what it did.",
        body=orders.AbortOrder,
        answers={200: aborted.AbortAnswer},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/{id}/approve",
        handler=api_rollouts.approve_rollout,
        summary="Approve a draft; the last approval needed starts it.",
        answers={200: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/rollouts/{id}/revert",
        handler=api_rollouts.revert_rollout,
        summary="Bring a finished rollout's devices back, in a rollout of its own.",
        answers={201: views.RolloutDetail},
    ),
    Route(
        method="POST",
        path="/v1/operators",
        handler=api_operators.add_operator,
        summary="Add an operator with a token of their own.",
        access=Access.OWNER,
        body=orders.OperatorOrder,
        answers={201: orders.OperatorAnswer},
    ),
    Route(
        method="GET",
        path="/v1/operators",
        handler=api_operators.list_operators,
        summary="List operators.",
        answers={200: orders.OperatorList},
    ),
    Route(
        method="POST",
        path="/v1/operators/{name}/remove",
        handler=api_operators.remove_operator,
        summary="Make an operator's token worthless.",
        access=Access.OWNER,
        answers={200: orders.OperatorList},
    ),
    Route(
        method="GET",
        path="/v1/audit",
        handler=api_operator.list_audit,
        summary="Read who did what, newest first.",
        answers={200: views.AuditList},
    ),
    Route(
        method="GET",
        path="/v1/events",
        handler=api_live.events,
        summary="Follow the fleet live: server-sent events, each a whole snapshot.",
        answers={200: "text/event-stream"},
    ),
    Route(
        method="GET",
        path="/v1/openapi.json",
        handler=api_live.openapi_document,
        summary="Read this document.",
        access=Access.ANYONE,
        answers={200: _JSON},
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=api_live.healthz,
        summary="Tell whether the control plane and its database work.",
        access=Access.ANYONE,
        answers={200: api_live.Health},
    ),
    Route(
        method="GET",
        path="/",
        handler=api_live.dashboard,
        summary="Open the dashboard.",
        access=Access.ANYONE,
        answers={200: "text/html"},
    ),
    Route(
        method="GET",
        path="/dashboard/{file}",
        handler=api_live.dashboard_file,
        summary="Read a file of the dashboard.",
        access=Access.ANYONE,
        answers={200: "text/css"},
    ),
)


def server_routes(plane: Plane) -> list[BaseRoute]:
    """Return the table as Starlette's routes."""
    return [_server_route(plane, route) for route in ROUTES]


def _server_route(plane: Plane, route: Route) -> BaseRoute:
    async def answer(request: Request) -> Response:
        if route.access in {Access.OPERATOR, Access.OWNER}:
            owner = route.access is Access.OWNER
            request.state.operator = await plane.require_operator(request, owner=owner)
        return await route.handler(plane, request)

    return StarletteRoute(route.path, answer, methods=[route.method])
