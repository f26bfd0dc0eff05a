"""Routes that devices call: enrol, open a session, sync."""

import secrets

from starlette.requests import Request
from starlette.responses import Response

from slmops.control.auth import hash_token, new_token, require_newer
from slmops.control.checks import (
    check_facts,
    check_labels,
    check_sync,
    require_range,
)
from slmops.control.http import json_answer, read_body, read_document
from slmops.control.plane import Plane
from slmops.control.records import (
    DeviceRecord,
    DeviceStatus,
    SyncChange,
)
from slmops.domain.errors import NotFoundError, UntrustedError
from slmops.domain.ids import check_name
from slmops.domain.sync import (
    EnrolAnswer,
    EnrolRequest,
    SessionAnswer,
    SessionRequest,
    SyncAnswer,
    SyncRequest,
)
from slmops.registry.keys import verify_signature
from slmops.wire import codec

NEXT_POLL = "Slmops-Next-Poll"


async def enrol(plane: Plane, request: Request) -> Response:
    """Let a new device in, once per token."""
    said = await read_document(request, EnrolRequest)
    verify_signature(
        said.public_key, said.signature, f"slmops-enrol:{said.token}".encode()
    )
    check_facts(said.facts)
    check_labels(said.labels)
    name = said.name or f"device-{secrets.token_hex(4)}"
    now = plane.clock()
    record = DeviceRecord(
        id=check_name(name, where="name"),
        public_key=said.public_key.lower(),
        enrolled_at=now,
        seen_at=now,
        facts=said.facts,
        labels=said.labels,
    )
    device = await plane.run(
        plane.store.enrol, record, token_hash=hash_token(said.token), now=now
    )
    plane.engine.devices_changed()
    plane.news()
    answer = EnrolAnswer(
        device=device,
        director_key=plane.keys.director.public_hex,
        root=plane.keys.root_json.decode(),
    )
    return json_answer(answer, status=201)


async def open_session(plane: Plane, request: Request) -> Response:
    """Give a short-lived token for a signature of the device's key."""
    said = await read_document(request, SessionRequest)
    require_range("counter", said.counter, low=1)
    try:
        record = await plane.run(plane.store.device, said.device)
    except NotFoundError:
        raise UntrustedError(f"device {said.device[:80]} is not enrolled") from None
    message = f"slmops-session:{said.device}:{said.counter}".encode()
    verify_signature(record.public_key, said.signature, message)
    require_newer(said.counter, than=record.counter)
    # Only now: neither a stranger nor a recorded request must use up what the device
    # may ask. The store checks the counter again, in the transaction that raises it.
    plane.limit.take(said.device)
    token = new_token("session")
    await plane.run(
        plane.store.open_session,
        said.device,
        counter=said.counter,
        token_hash=hash_token(token),
        expires_at=plane.clock() + plane.settings.session_s,
    )
    plane.sessions.forget(said.device)
    return json_answer(
        SessionAnswer(token=token, expires_in_s=plane.settings.session_s)
    )


async def sync(plane: Plane, request: Request) -> Response:
    """Take in what a device says; answer with its assignment when it has a new one."""
    device = await plane.require_device(request)
    body = await read_body(request)
    said = codec.decode_json(body, SyncRequest, where=request.url.path, lenient=True)
    check_sync(said)
    plane.news_limit.require(device)
    now = plane.clock()
    result = await plane.run(plane.store.record_sync, _change(device, said, now))
    plane.saw(device, now)
    if result.facts_changed:
        plane.engine.devices_changed()
    if result.changed:
        plane.news_limit.spend(device, len(body))
        plane.news()
    newest = result.newest
    if newest is None or newest.sequence <= said.assignment:
        answer = Response(status_code=304)
    else:
        sealed = plane.sealed(newest, device=device, sequence=newest.sequence)
        answer = json_answer(SyncAnswer(assignment=sealed))
    answer.headers[NEXT_POLL] = f"{plane.next_poll_s():.3f}"
    return answer


def _change(device: str, said: SyncRequest, now: float) -> SyncChange:
    return SyncChange(
        device=device,
        at=now,
        facts=said.facts,
        labels=said.labels,
        status=DeviceStatus(
            assignment=said.assignment,
            active=said.active,
            previous=said.previous,
            quarantined=said.quarantined,
            installation=said.installation,
        ),
        reports=said.reports,
    )
