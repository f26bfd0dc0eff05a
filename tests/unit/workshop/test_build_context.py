"""Errors and Ctrl-C end everything a build has started, and nothing new begins."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest

from slmops.domain.errors import UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.workshop.artefacts import Artefact
from slmops.workshop.board import REUSED, Board
from slmops.workshop.build_context import BuildContext
from slmops.workshop.goldens import Goldens

Make = Callable[..., BuildContext]
Echo = Callable[..., Artefact]


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_ends_workers_that_still_answer(
    make_build: Make, error: type[BaseException]
) -> None:
    """The worker would need a minute for its answer; the pool ends in no time."""
    build = make_build(answer="yes " * 50, delay_ms=1200)
    asked: list[Future[object]] = []
    began = time.monotonic()
    with pytest.raises(error), build.pool() as pool:
        asked.append(pool.submit(Goldens(build=build).record, ("Say yes.",), 40))
        while not build.workers._running and not asked[0].done():
            time.sleep(0.01)
        (worker,) = build.workers._running
        raise error
    assert time.monotonic() - began < 10
    assert isinstance(asked[0].exception(), UnavailableError)
    assert not is_running(worker.pid)


def test_what_waits_in_a_pool_is_dropped(make_build: Make) -> None:
    build = make_build()
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(ValueError, match="stop"), build.pool(1) as pool:
        for number in range(50):
            pool.submit(work, number)
        raise ValueError("stop")
    assert len(done) < 5


def test_a_worker_ends_with_its_block(make_build: Make, echo_artefact: Echo) -> None:
    build = make_build()
    path: Path = build.blobs.path(echo_artefact().digest)
    with build.workers.start(path, WorkerSettings()) as worker:
        assert worker.alive()
    assert not worker.alive()
    assert not build.workers._running


def test_a_stage_is_timed(make_build: Make) -> None:
    build = make_build()
    with build.stage("wait"):
        time.sleep(0.02)
    assert build.stages["wait"] >= 0.02


def test_a_stopped_board_fails_the_next_report() -> None:
    board = Board(progress=lambda *_: None)
    with board.task("work") as report:
        report(1, 2)
        board.stop()
        with pytest.raises(UnavailableError, match="work: the build was stopped"):
            report(2, 2)


def test_progress_adds_up_over_tasks() -> None:
    shown: list[tuple[str, float, float]] = []
    board = Board(progress=lambda *said: shown.append(said))
    board.expect(2)
    with board.task("one") as one, board.task("two") as two:
        one(1, 2)
        two(1, 4)
    assert ("one + two", 0.75, 2) in shown
    assert [done for _, done, _ in shown] == sorted(done for _, done, _ in shown)
    assert all(done <= total for _, done, total in shown)
    assert shown[-1][1:] == (2, 2)


def test_what_is_foreseen_is_counted_once_and_forgotten_with_its_block() -> None:
    board = Board(progress=lambda *_: None)
    with board.foresee(5):
        assert board.total == 5
        board.expect(2)
        assert board.total == 5
    assert board.total == 2, "three never came"
    with board.foresee(1):
        board.expect(3)
    assert board.total == 5, "two came that nobody foresaw"


def test_a_reused_step_counts_as_done_beside_what_runs() -> None:
    shown: list[tuple[str, float, float]] = []
    board = Board(progress=lambda *said: shown.append(said))
    board.expect(3)
    board.reuse()
    with board.task("one") as one:
        one(1, 2)
        board.reuse()
    assert shown == [
        (REUSED, 1, 3),
        ("one", 1, 3),
        ("one", 1.5, 3),
        ("one", 2.5, 3),
        ("one", 3, 3),
    ]
