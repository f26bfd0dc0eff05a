"""The supervisor with real worker processes: deaths, restarts, exchanges, the end."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.clock import Backoff
from slmops.agent.models import Child, Models, ModelTimes
from slmops.agent.records import Deployment
from slmops.agent.slots import SlotStore
from slmops.agent.telemetry import Telemetry
from slmops.agent.upstream import Gateway, NotServingError, Upstream
from slmops.domain.errors import (
    InvalidInputError,
    NotFoundError,
    OverBudgetError,
    UnavailableError,
    UntrustedError,
)
from slmops.runtimes.address import open_client
from slmops.testing.clock import SimulatedClock
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.stage import echo_artefact, wait_until

pytestmark = pytest.mark.slow  # real processes


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def models(tmp_path: Path, clock: SimulatedClock) -> Iterator[Models]:
    models = Models(
        slots=SlotStore(tmp_path),
        gateway=Gateway(hold_s=1, max_waiting=4),
        telemetry=Telemetry(clock.now),
        clock=clock,
        backoff=Backoff(first_s=1.0, longest_s=8.0, chance=random.Random(1)),
        times=ModelTimes(stop_s=1.0, drain_s=5.0, start_s=20.0),
    )
    yield models
    models.close(stop_s=1.0)


def deployment(models: Models, **behaviour: object) -> Deployment:
    content = echo_artefact(**behaviour)
    variant = models.slots.blobs.put_bytes(content)
    return replace(
        sample_deployment(variant, len(content)),
        memory_limit_mib=100.0,
    )


def serving(models: Models, **behaviour: object) -> Child:
    child = models.start(deployment(models, **behaviour))
    models.promote(child)
    return child


def blamed(models: Models) -> str | None:
    """Return the release that a request refused now counts against."""

    async def ask() -> None:
        async with models.gateway.lease():
            pass

    with pytest.raises(NotServingError) as refused:
        asyncio.run(ask())
    return refused.value.release


def served(models: Models) -> Child | None:
    """Return the property anew: mypy takes it for a constant."""
    return models.serving


def pointed_at(models: Models) -> Upstream | None:
    return models.gateway.current


def ask(child: Child, text: str = "Hi") -> int:
    body = {"messages": [{"role": "user", "content": text}]}
    with open_client(child.upstream.address, timeout_s=10) as client:
        return client.post("/v1/chat/completions", json=body).status_code


def kill(child: Child) -> None:
    os.kill(child.worker.pid, signal.SIGKILL)
    wait_until(lambda: not child.worker.alive(), "its end", timeout_s=5)


def test_a_started_child_gets_traffic_only_once_promoted(models: Models) -> None:
    child = models.start(deployment(models))
    assert ask(child) == 200
    assert served(models) is None
    assert pointed_at(models) is None
    assert models.promote(child) is None
    assert models.promote(child) is None
    assert served(models) is child
    assert pointed_at(models) is child.upstream
    peak = child.peak_rss_mib()
    assert peak is not None
    assert 5 < peak < 200


def test_a_dead_child_closes_the_gateway_with_its_reason_and_is_restarted(
    models: Models, clock: SimulatedClock
) -> None:
    first = serving(models)
    kill(first)
    models._watch_once()
    assert served(models) is None
    assert pointed_at(models) is None
    assert "sample-1 ended (signal SIGKILL); it is being" in models.gateway.reason
    assert blamed(models) == "sample-1"
    assert models.telemetry.live("sample-1").restarts == 1
    models._watch_once()
    assert served(models) is None  # not before the wait is over
    clock.advance(1.0)
    models._watch_once()
    second = served(models)
    assert second is not None
    assert second is not first
    assert pointed_at(models) is second.upstream
    assert ask(second) == 200
    assert models.telemetry.live("sample-1").restarts == 1


def test_restarts_wait_longer_each_time_and_begin_anew_after_a_stable_run(
    models: Models, clock: SimulatedClock
) -> None:
    waits = []
    serving(models)
    for _ in range(5):
        child = models.serving
        assert child is not None
        kill(child)
        models._watch_once()
        assert models._restart_at is not None
        waits.append(models._restart_at - clock.monotonic())
        clock.advance(waits[-1])
        models._watch_once()
    for wait, longest in zip(waits, (1, 2, 4, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest
    clock.advance(models.times.stable_s)
    models._watch_once()
    assert models.backoff.failures == 0


def test_a_model_that_never_starts_is_tried_for_ever_ever_more_seldom(
    models: Models, clock: SimulatedClock
) -> None:
    models.want(deployment(models, refuse=True))
    assert "being loaded" in models.gateway.reason
    assert blamed(models) is None
    for failures in range(1, 5):
        with pytest.raises(InvalidInputError):
            models._watch_once()
        assert models.backoff.failures == failures
        assert "cannot be loaded" in models.gateway.reason
        assert blamed(models) == "sample-1"
        models._watch_once()  # waits
        assert models.backoff.failures == failures
        clock.advance(8.0)
    assert served(models) is None
    assert not models.artefact_lost


def test_damaged_or_missing_bytes_are_never_started_and_are_reported(
    models: Models, clock: SimulatedClock
) -> None:
    wanted = deployment(models)
    path = models.slots.blobs.path(wanted.variant)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    models.want(wanted)
    with pytest.raises(UntrustedError):
        models._watch_once()
    assert models.artefact_lost
    clock.advance(8.0)
    with pytest.raises(NotFoundError):
        models._watch_once()
    assert not models._children


def test_a_child_cannot_take_more_memory_than_its_limit(models: Models) -> None:
    with pytest.raises(OverBudgetError, match="100 MiB"):
        models.start(deployment(models, hold_mib=400))
    assert not models._children


def test_requests_in_flight_end_before_a_replaced_child_is_stopped(
    models: Models,
) -> None:
    old = serving(models, delay_ms=30)
    statuses: list[int] = []
    old.upstream.in_flight += 1  # as a lease does
    thread = threading.Thread(target=lambda: statuses.append(ask(old, "word " * 8)))
    thread.start()
    new = models.start(deployment(models))
    assert models.promote(new) is old
    models.retire(old)
    thread.join(10)
    assert statuses == [200]
    assert old.worker.alive()
    with models.gateway._changed:
        old.upstream.in_flight -= 1
        models.gateway._changed.notify_all()
    wait_until(lambda: not old.worker.alive(), "the old one's end", timeout_s=5)
    wait_until(lambda: models._children == [new], "only the new one", timeout_s=5)


def test_making_room_stops_the_serving_child_while_requests_wait(
    models: Models,
) -> None:
    old = serving(models)
    models.make_room()
    assert not old.worker.alive()
    assert models.gateway.holding
    assert models.wanted is None
    new = models.start(deployment(models))
    models.promote(new)
    assert not models.gateway.holding


def test_what_is_wanted_meanwhile_wins_over_what_was_being_started(
    models: Models,
) -> None:
    slow = deployment(models, start_delay_ms=500)
    fast = deployment(models)
    models.want(slow)
    thread = threading.Thread(target=models._watch_once)
    thread.start()
    time.sleep(0.1)
    models.want(fast)
    thread.join(10)
    assert served(models) is None
    assert not models._children
    models._watch_once()
    now = served(models)
    assert now is not None
    assert now.deployment == fast


def test_serving_nothing_says_why_and_ends_the_child(models: Models) -> None:
    child = serving(models)
    models.serve_none("sample-1 was rolled back; nothing else is here")
    assert "rolled back" in models.gateway.reason
    wait_until(lambda: not child.worker.alive(), "its end", timeout_s=5)
    models._watch_once()
    assert served(models) is None


def test_stopping_ends_every_child_and_starts_none(models: Models) -> None:
    children = [models.start(deployment(models)) for _ in range(2)]
    models.promote(children[0])
    models.close(stop_s=1.0)
    assert not any(child.worker.alive() for child in children)
    assert models.gateway.reason == "the agent is stopping"
    with pytest.raises(UnavailableError, match="stopping"):
        models.start(deployment(models))
    assert not any(child.worker.alive() for child in models._children)


def test_the_supervisor_survives_failures_and_ends_when_told(models: Models) -> None:
    models.want(deployment(models, refuse=True))
    thread = threading.Thread(target=models.watch)
    thread.start()
    wait_until(lambda: models.backoff.failures == 1, "a failure", timeout_s=10)
    assert thread.is_alive()
    models.close(stop_s=1.0)
    thread.join(5)
    assert not thread.is_alive()


def test_a_child_that_hangs_is_ended_and_restarted(
    models: Models, clock: SimulatedClock
) -> None:
    models.times = replace(models.times, probe_s=0.3)
    hung = serving(models)
    os.kill(hung.worker.pid, signal.SIGSTOP)
    models._watch_once()
    assert hung.worker.alive()  # nobody complained yet
    hung.upstream.suspected = True
    models._watch_once()
    assert not hung.worker.alive()
    assert pointed_at(models) is None
    assert models.telemetry.live("sample-1").restarts == 1
    clock.advance(1.0)
    models._watch_once()
    after = served(models)
    assert after is not None
    assert ask(after) == 200


def test_a_child_that_is_only_slow_or_busy_is_left_alone(models: Models) -> None:
    models.times = replace(models.times, probe_s=0.3)
    fine = serving(models)
    fine.upstream.suspected = True
    models._watch_once()
    assert not fine.upstream.suspected
    assert served(models) is fine
    busy = serving(models, delay_ms=1000)
    busy.upstream.suspected = True
    said = threading.Timer(0.1, lambda: setattr(busy.upstream, "heard_at", 1.0))
    said.start()
    models._watch_once()
    said.join()
    assert served(models) is busy
    assert busy.worker.alive()


def test_memory_of_an_ended_process_is_unknown_and_says_why(models: Models) -> None:
    child = serving(models)
    kill(child)
    peak, why = child.peak_memory()
    assert peak is None
    assert why
