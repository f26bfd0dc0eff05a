"""Routes that operators call about rollouts."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from slmops.control import aborted, orders, preview, views
from slmops.control.http import json_answer, read_body, read_document
from slmops.control.plane import Plane
from slmops.control.starting import StartOrder
from slmops.domain.command import Command
from slmops.domain.rollout import Rollout
from slmops.wire import codec


async def start_rollout(plane: Plane, request: Request) -> Response:
    """Start a rollout."""
    order = await read_document(request, orders.RolloutOrder)
    # Hashing its artefacts takes seconds: not on the thread that devices wait for.
    verify = plane.releases.load_verified
    release, digest = await asyncio.to_thread(verify, order.release)
    start = _start_order(request, order)
    rollout = await plane.run(plane.engine.start, release, digest, plane.clock(), start)
    return await _after(plane, rollout, status=201)


async def preview_rollout(plane: Plane, request: Request) -> Response:
    """Show what a rollout would reach, without starting it."""
    order = await read_document(request, orders.RolloutOrder)

    def work() -> preview.RolloutPreview:
        release, digest = plane.releases.load(order.release)
        planned = plane.engine.preview(release, digest, _start_order(request, order))
        return preview.preview_of(planned)

    return json_answer(await plane.run(work))


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
        body, orders.PauseOrder, where=request.url.path, lenient=True
    )
    return await _command(plane, request, Command.PAUSE, reason=order.reason)


async def resume_rollout(plane: Plane, request: Request) -> Response:
    """Go on after a pause."""
    return await _command(plane, request, Command.RESUME)


async def approve_rollout(plane: Plane, request: Request) -> Response:
    """Approve a draft; the last approval needed starts it."""
    return await _command(plane, request, Command.APPROVE)


async def revert_rollout(plane: Plane, request: Request) -> Response:
    """Bring a finished rollout's devices back, in a rollout of its own."""
    rollout = await plane.run(
        plane.engine.revert,
        request.path_params["id"],
        request.state.operator,
        plane.clock(),
    )
    return await _after(plane, rollout, status=201)


async def emergency_stop(plane: Plane, request: Request) -> Response:
    """End every rollout and bring its devices back."""
    order = await read_document(request, orders.ReasonOrder)
    by = request.state.operator

    def work() -> views.RolloutList:
        stopped = plane.engine.stop_everything(order.reason, plane.clock(), by=by)
        return views.RolloutList(
            rollouts=tuple(
                views.rollout_view(
                    plane.store.rollout(one.id), plane.store.members(one.id)
                )
                for one in stopped
            )
        )

    answer = await plane.run(work)
    plane.news()
    return json_answer(answer)


async def abort_rollout(plane: Plane, request: Request) -> Response:
    """End a rollout, keeping or reverting what it has done."""
    order = await read_document(request, orders.AbortOrder)
    rollout = await plane.run(
        plane.engine.command,
        request.path_params["id"],
        Command.ABORT_KEEP if order.keep else Command.ABORT_REVERT,
        plane.clock(),
        by=request.state.operator,
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


def _start_order(request: Request, order: orders.RolloutOrder) -> StartOrder:
    return StartOrder(
        by=request.state.operator,
        allow_downgrade=order.allow_downgrade,
        despite_quarantine=order.despite_quarantine,
    )


async def _command(
    plane: Plane, request: Request, command: Command, *, reason: str = ""
) -> Response:
    rollout = await plane.run(
        plane.engine.command,
        request.path_params["id"],
        command,
        plane.clock(),
        by=request.state.operator,
        reason=reason,
    )
    return await _after(plane, rollout)


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
