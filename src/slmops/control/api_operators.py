"""Routes about operators: people with a token of their own."""

from starlette.requests import Request
from starlette.responses import Response

from slmops.control import orders
from slmops.control.auth import OWNER, hash_token, new_token
from slmops.control.http import json_answer, read_document
from slmops.control.plane import Plane
from slmops.domain.errors import ConflictError
from slmops.domain.ids import check_name


async def add_operator(plane: Plane, request: Request) -> Response:
    """Add an operator; the token is shown once."""
    order = await read_document(request, orders.OperatorOrder)
    check_name(order.name, where="name")
    if order.name in {OWNER, "engine"}:
        raise ConflictError(f"{order.name} is what the audit log calls somebody else")
    token = new_token("operator")
    await plane.run(
        plane.store.add_operator, order.name, hash_token(token), now=plane.clock()
    )
    answer = orders.OperatorAnswer(name=order.name, token=token)
    return json_answer(answer, status=201)


async def list_operators(plane: Plane, _request: Request) -> Response:
    """Return who may steer the fleet, and who might before."""
    return json_answer(
        orders.OperatorList(operators=await plane.run(plane.store.operators))
    )


async def remove_operator(plane: Plane, request: Request) -> Response:
    """Make an operator's token worthless."""
    name = request.path_params["name"]
    await plane.run(plane.store.remove_operator, name, now=plane.clock())
    return await list_operators(plane, request)
