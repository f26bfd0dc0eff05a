"""Routes that operators call: tokens, fleet, releases, rollouts, history."""

from starlette.requests import Request
from starlette.responses import Response

from slmops.control import orders, views
from slmops.control.auth import hash_token, new_token
from slmops.control.http import json_answer, read_body
from slmops.control.plane import Plane
from slmops.control.records import AuditEntry
from slmops.domain.errors import InvalidInputError
from slmops.wire import codec

_MAX_TOKEN_LIFE_S = 30 * 86_400.0


async def make_token(plane: Plane, request: Request) -> Response:
    """Make a one-time enrolment token."""
    body = await read_body(request) or b"{}"
    order = codec.decode_json(body, orders.TokenOrder, where=request.url.path)
    if not 0 < order.expires_in_s <= _MAX_TOKEN_LIFE_S:
        raise InvalidInputError(
            f"expires_in_s must be in (0, {_MAX_TOKEN_LIFE_S:g}],"
            f" got {order.expires_in_s:g}"
        )
    token, now = new_token("enrol"), plane.clock()
    await plane.run(
        plane.store.add_enrolment_token,
        hash_token(token),
        expires_at=now + order.expires_in_s,
    )
    entry = AuditEntry(
        at=now, actor="operator", action="token.make", subject=hash_token(token)[:12]
    )
    await plane.run(plane.store.append_audit, entry)
    answer = orders.TokenAnswer(token=token, expires_in_s=order.expires_in_s)
    return json_answer(answer, status=201)


async def list_devices(plane: Plane, _request: Request) -> Response:
    """Return the fleet."""

    def work() -> views.DeviceList:
        newest, orders = plane.releases.newest(), plane.store.newest_assignments()
        return views.DeviceList(
            devices=tuple(
                views.device_view(record, newest, orders.get(record.id))
                for record in plane.store.devices()
            )
        )

    return json_answer(await plane.run(work))


async def show_device(plane: Plane, request: Request) -> Response:
    """Return one device and why it has its class."""
    device = request.path_params["id"]

    def work() -> views.DeviceDetail:
        record = plane.store.device(device)
        assignments = plane.store.assignments(device)
        return views.device_detail(record, plane.releases.newest(), assignments)

    return json_answer(await plane.run(work))


async def retire_device(plane: Plane, request: Request) -> Response:
    """Take a device out of the fleet; doing it again changes nothing."""
    device = request.path_params["id"]
    await plane.run(plane.engine.retire, device, plane.clock())
    plane.sessions.forget(device)
    plane.news()
    return await show_device(plane, request)


async def list_releases(plane: Plane, _request: Request) -> Response:
    """Return published releases."""

    def work() -> views.ReleaseList:
        found = [
            views.release_view(*plane.releases.load(label))
            for label in plane.releases.labels()
        ]
        found.sort(key=lambda view: view.created_at, reverse=True)
        return views.ReleaseList(releases=tuple(found))

    return json_answer(await plane.run(work))


async def list_audit(plane: Plane, _request: Request) -> Response:
    """Return who did what."""
    entries = await plane.run(plane.store.audit)
    return json_answer(views.AuditList(entries=entries))
