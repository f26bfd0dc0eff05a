"""The gateway: exchanging models loses no request, and waiting is bounded."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from slmops.agent.upstream import Gateway, Upstream
from slmops.domain.errors import UnavailableError
from slmops.runtimes.address import Address
from slmops.testing.endpoint_in_process import LocalEndpoint, local_endpoint
from slmops.testing.raw_server import RawServer, Received, Reply, answer
from slmops.testing.stage import wait_until

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def said(text: str, *, seconds: float = 0.0) -> Reply:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    reply = answer(body=json.dumps({"choices": choices}).encode())

    def later(connection: socket.socket, request: Received) -> None:
        time.sleep(seconds)
        reply(connection, request)

    return later


@pytest.fixture
def endpoint() -> Iterator[LocalEndpoint]:
    with local_endpoint(hold_s=3.0, max_waiting=4) as endpoint:
        yield endpoint


class Asking:
    """Some requests at the same time, each in a thread."""

    def __init__(self, endpoint: LocalEndpoint, number: int) -> None:
        self.answers: list[httpx.Response] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(endpoint,)) for _ in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, endpoint: LocalEndpoint) -> None:
        url = f"{endpoint.url}/v1/chat/completions"
        self.answers.append(httpx.post(url, json=BODY, timeout=10))

    def ended(self) -> list[int]:
        for thread in self._threads:
            thread.join(10)
        return [each.status_code for each in self.answers]

    def texts(self) -> set[str]:
        return {
            each.json()["choices"][0]["message"]["content"] for each in self.answers
        }


def waiting(endpoint: LocalEndpoint) -> int:
    return len(endpoint.gateway._waiters)


def test_without_a_model_the_reason_is_said(endpoint: LocalEndpoint) -> None:
    endpoint.gateway.close("sample-1 is being loaded")
    asking = Asking(endpoint, 1)
    assert asking.ended() == [503]
    assert "sample-1 is being loaded" in asking.answers[0].json()["error"]["message"]
    health = httpx.get(f"{endpoint.url}/healthz")
    assert health.status_code == 503
    assert httpx.get(f"{endpoint.url}/v1/models").json()["data"] == []
    (report,) = endpoint.reports()
    assert (report.release, report.failures) == (None, 1)


def test_refusals_for_want_of_a_model_count_against_the_release_at_fault(
    endpoint: LocalEndpoint,
) -> None:
    endpoint.gateway.close("sample-2 cannot be loaded: damaged", release="sample-2")
    assert Asking(endpoint, 3).ended() == [503] * 3
    endpoint.gateway.hold()
    asking = Asking(endpoint, 1)
    wait_until(lambda: waiting(endpoint) == 1, "one waiting", timeout_s=5)
    endpoint.gateway.close("the agent is stopping")
    assert asking.ended() == [503]
    counts = {report.release: report.failures for report in endpoint.reports()}
    assert counts == {"sample-2": 3, None: 1}


def test_requests_wait_while_models_are_exchanged(endpoint: LocalEndpoint) -> None:
    with RawServer(replies=[said("new")]) as runtime:
        endpoint.gateway.hold()
        asking = Asking(endpoint, 4)
        wait_until(lambda: waiting(endpoint) == 4, "four waiting", timeout_s=5)
        endpoint.serve(runtime.url)
        assert asking.ended() == [200] * 4
        assert asking.texts() == {"new"}
    (report,) = endpoint.reports()
    assert (report.requests, report.failures) == (4, 0)


def test_no_more_wait_than_there_is_room_for(endpoint: LocalEndpoint) -> None:
    endpoint.gateway.hold()
    asking = Asking(endpoint, 4)
    wait_until(lambda: waiting(endpoint) == 4, "four waiting", timeout_s=5)
    assert Asking(endpoint, 1).ended() == [503]
    endpoint.gateway.close("the new model does not load")
    assert asking.ended() == [503] * 4
    assert "does not load" in asking.answers[0].json()["error"]["message"]


def test_nobody_waits_for_ever() -> None:
    with local_endpoint(hold_s=0.2) as endpoint:
        endpoint.gateway.hold()
        begin = time.monotonic()
        asking = Asking(endpoint, 1)
        assert asking.ended() == [503]
        assert 0.15 < time.monotonic() - begin < 2
        assert "being exchanged" in asking.answers[0].json()["error"]["message"]
        assert waiting(endpoint) == 0


def test_a_client_that_leaves_while_it_waits_leaves_no_trace(
    endpoint: LocalEndpoint,
) -> None:
    endpoint.gateway.hold()
    with pytest.raises(httpx.ReadTimeout):
        url = f"{endpoint.url}/v1/chat/completions"
        httpx.post(url, json=BODY, timeout=0.1)
    with RawServer(replies=[said("new")]) as runtime:
        upstream = endpoint.serve(runtime.url)
        assert Asking(endpoint, 1).ended() == [200]
        # Counted out after the last byte, which the client has by then.
        wait_until(lambda: upstream.in_flight == 0, "the end of both")


def test_swapping_under_load_loses_no_request_and_drains_the_old_model(
    endpoint: LocalEndpoint,
) -> None:
    stop = threading.Event()
    answers: list[tuple[int, str]] = []

    def load() -> None:
        with httpx.Client(base_url=endpoint.url, timeout=10) as client:
            while not stop.is_set():
                got = client.post("/v1/chat/completions", json=BODY)
                answers.append((got.status_code, got.text))

    with (
        RawServer(replies=[said("a", seconds=0.02)]) as first,
        RawServer(replies=[said("b", seconds=0.02)]) as second,
    ):
        serving = endpoint.serve(first.url)
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for swap in range(10):
            time.sleep(0.1)
            old = serving
            if swap % 3 == 2:
                endpoint.gateway.hold()
                assert endpoint.gateway.drain(old, timeout_s=5)
            serving = endpoint.serve((first, second)[swap % 2].url)
            assert endpoint.gateway.drain(old, timeout_s=5)
            assert old.in_flight == 0
        stop.set()
        for thread in threads:
            thread.join(10)
    assert len(answers) > 30
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers} >= {answers[0][1], answers[-1][1]}
    assert sum(report.failures for report in endpoint.reports()) == 0


def test_draining_gives_up_after_its_time(endpoint: LocalEndpoint) -> None:
    with RawServer(replies=[said("late", seconds=0.5)]) as runtime:
        upstream = endpoint.serve(runtime.url)
        asking = Asking(endpoint, 1)
        wait_until(lambda: upstream.in_flight == 1, "a request", timeout_s=5)
        assert not endpoint.gateway.drain(upstream, timeout_s=0.05)
        assert asking.ended() == [200]
        assert endpoint.gateway.drain(upstream, timeout_s=5)


def test_closing_for_a_dead_model_spares_its_successor() -> None:
    gateway = Gateway(hold_s=1, max_waiting=1)
    old = Upstream(
        address=Address("http://127.0.0.1:1"), release="sample-1", context_tokens=1
    )
    new = Upstream(
        address=Address("http://127.0.0.1:2"), release="sample-2", context_tokens=1
    )
    gateway.point_to(old)
    assert gateway.point_to(new) is old
    gateway.close("the old one died", upstream=old)
    current = gateway.current
    assert current is new
    gateway.close("the new one died", upstream=new)
    assert gateway.current is None
    assert gateway.reason == "the new one died"


def test_a_lease_ends_also_when_its_request_fails() -> None:
    gateway = Gateway(hold_s=1, max_waiting=1)
    upstream = Upstream(
        address=Address("http://127.0.0.1:1"), release="r-1", context_tokens=1
    )
    gateway.point_to(upstream)

    async def fail() -> None:
        async with gateway.lease():
            assert upstream.in_flight == 1
            raise UnavailableError("broken")

    with pytest.raises(UnavailableError):
        asyncio.run(fail())
    assert upstream.in_flight == 0
