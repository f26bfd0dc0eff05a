"""Routes that operators call: tokens, fleet, releases, rollouts, history."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from slmops.control import aborted, views
from slmops.control.auth import hash_token, new_token
from slmops.control.http import json_answer, read_body, read_document
from slmops.control.plane import Plane
from slmops.control.records import AuditEntry
from slmops.domain.errors import InvalidInputError
from slmops.domain.rollout import Rollout
from slmops.wire import codec

_MAX_TOKEN_LIFE_S = 30 * 86_400.0


async def make_token(plane: Plane, request: Request) -> Response:
    """Make a one-time enrolment token."""
    body = await read_body(request) or b"{}"
    order = codec.decode_json(body, views.TokenOrder, where=request.url.path)
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
    answer = views.TokenAnswer(token=token, expires_in_s=order.expires_in_s)
    return json_answer(answer, status=201)


async def list_devices(plane: Plane, _request: Request) -> Response:
    """Return the fleet."""

    def work() -> views.DeviceList:
        newest = plane.releases.newest()
        return views.DeviceList(
            devices=tuple(
                views.device_view(record, newest) for record in plane.store.devices()
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


async def start_rollout(plane: Plane, request: Request) -> Response:
    """Start a rollout."""
    order = await read_document(request, views.RolloutOrder)
    # Hashing its artefacts takes seconds: not on the thread that devices wait for.
    verify = plane.releases.load_verified
    release, digest = await asyncio.to_thread(verify, order.release)
    rollout = await plane.run(
        plane.engine.start,
        release,
        digest,
        plane.clock(),
        allow_downgrade=order.allow_downgrade,
    )
    return await _after(plane, rollout, status=201)


async def list_rollouts(plane: Plane, _request: Request) -> Response:
    """Return all rollouts."""

    def work() -> views.RolloutList:
        return views.RolloutList(
            rollouts=tuple(
                views.rollout_view(stored, plane.store.members(stored.rollout.id))
                for stored in plane.store.rollouts()
            )
        )

    return json_answer(await plane.run(work))


async def show_rollout(plane: Plane, request: Request) -> Response:
    """Return one rollout with its members and verdicts."""
    return json_answer(await _detail(plane, request.path_params["id"]))


async def pause_rollout(plane: Plane, request: Request) -> Response:
    """Make no new offers until resumed."""
    body = await read_body(request) or b"{}"
    order = codec.decode_json(
        body, views.PauseOrder, where=request.url.path, lenient=True
    )
    rollout = await plane.run(
        plane.engine.pause, request.path_params["id"], order.reason, plane.clock()
    )
    return await _after(plane, rollout)


async def resume_rollout(plane: Plane, request: Request) -> Response:
    """Go on after a pause."""
    rollout = await plane.run(
        plane.engine.resume, request.path_params["id"], plane.clock()
    )
    return await _after(plane, rollout)


async def abort_rollout(plane: Plane, request: Request) -> Response:
    """End a rollout, keeping or reverting what it has done."""
    order = await read_document(request, views.AbortOrder)
    rollout = await plane.run(
        plane.engine.abort, request.path_params["id"], order.keep, plane.clock()
    )
    plane.news()

    def work() -> aborted.AbortAnswer:
        return aborted.abort_answer(
            _read_detail(plane, rollout.id),
            plane.store.members(rollout.id),
            plane.store.going_back(rollout.id),
            plane.store.moved_on(rollout.id),
            keep=order.keep,
        )

    return json_answer(await plane.run(work))


async def list_audit(plane: Plane, _request: Request) -> Response:
    """Return who did what."""
    entries = await plane.run(plane.store.audit)
    return json_answer(views.AuditList(entries=entries))


async def _after(plane: Plane, rollout: Rollout, *, status: int = 200) -> Response:
    plane.news()
    return json_answer(await _detail(plane, rollout.id), status=status)


async def _detail(plane: Plane, rollout: str) -> views.RolloutDetail:
    return await plane.run(_read_detail, plane, rollout)


def _read_detail(plane: Plane, rollout: str) -> views.RolloutDetail:
    return views.rollout_detail(
        plane.store.rollout(rollout),
        plane.store.members(rollout),
        plane.store.left_out(rollout),
        plane.store.evaluations(rollout),
    )
