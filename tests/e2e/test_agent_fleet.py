"""Real agents, a real control plane, echo models: bad releases, crashes, outages."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from slmops.demo.load import RequestLoad
from slmops.testing.stage import (
    QUICK,
    Stage,
    echo_artefact,
    stage,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def wait_for_rollout(built: Stage, rollout: str, wanted: str) -> str:
    found: dict[str, object] = {}

    def ended() -> bool:
        found.update(built.operator("GET", f"/v1/rollouts/{rollout}"))
        return found["state"] == wanted

    wait_until(ended, f"rollout {wanted}")
    return str(found["reason"])


def one_device(built: Stage, **artefact: object) -> Path:
    """Return a device that serves sample-1."""
    built.publish(1, echo_artefact(**artefact))
    built.serve()
    state = built.enrol("till-1")
    built.start_agent(state)
    wait_for_rollout(built, built.roll_out("sample-1"), "done")
    wait_until(lambda: built.serving(state) == "sample-1", "sample-1 serves")
    return state


def ask(built: Stage, state: Path, text: str = "hello") -> httpx.Response:
    return httpx.post(
        f"{built.endpoint(state)}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": text}]},
        timeout=20,
    )


@pytest.mark.parametrize("memory_mib", [1024, 241], ids=["overlap", "queue"])
def test_good_and_bad_updates_fail_no_request(built: Stage, memory_mib: int) -> None:
    built.publish(1, echo_artefact(delay_ms=2))
    built.serve()
    state = built.enrol("till-1", memory_mib=memory_mib)
    built.start_agent(state)
    wait_for_rollout(built, built.roll_out("sample-1"), "done")
    load = RequestLoad(pause_s=0.01)
    for _ in range(3):
        load.add(built.endpoint(state))

    good = built.publish(2, echo_artefact(delay_ms=2, start_delay_ms=1)).label
    wait_for_rollout(built, built.roll_out(good), "done")
    bad = built.publish(3, echo_artefact(logprob=-3.0), claims=echo_artefact()).label
    reason = wait_for_rollout(built, built.roll_out(bad), "halted")
    wait_until(lambda: built.serving(state) == "sample-2", "back on sample-2")
    time.sleep(0.5)
    counts = load.stop()

    assert "answers differ from the release card" in reason
    status = built.status(state)
    assert status["installation"]["state"] == "rolled_back"
    assert [entry["release"] for entry in status["quarantined"]] == ["sample-3"]
    held = "requests wait while" in built.log("till-1")
    assert held == (memory_mib == 241)
    assert counts.sent > 50
    assert (counts.failed, counts.reasons) == (0, [])


def test_an_artefact_that_does_not_load_is_rolled_back_and_never_tried_again(
    built: Stage,
) -> None:
    state = one_device(built)
    bad = built.publish(
        2, echo_artefact(crash_at_start=True), claims=echo_artefact()
    ).label
    reason = wait_for_rollout(built, built.roll_out(bad), "halted")
    assert "does not start" in reason
    assert built.serving(state) == "sample-1"
    assert ask(built, state).status_code == 200
    built.stop("till-1")
    built.start_agent(state)
    wait_until(lambda: built.serving(state) == "sample-1", "sample-1 again")
    assert built.log("till-1").count("installation 2 is offered") == 1


def test_an_older_release_comes_back_from_its_slot_without_a_download(
    built: Stage,
) -> None:
    state = one_device(built)
    good = built.publish(2, echo_artefact(start_delay_ms=1)).label
    wait_for_rollout(built, built.roll_out(good), "done")
    back = built.roll_out("sample-1", allow_downgrade=True)
    wait_for_rollout(built, back, "done")
    assert built.serving(state) == "sample-1"
    assert built.status(state)["installation"]["bytes_downloaded"] == 0


def test_a_killed_model_process_gives_503_and_comes_back(built: Stage) -> None:
    state = one_device(built, start_delay_ms=300)
    (child,) = built.children(state.name)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: ask(built, state).status_code == 503, "503")
    answer = ask(built, state)
    if answer.status_code == 503:
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == "model_unavailable"
    wait_until(lambda: ask(built, state).status_code == 200, "recovery")
    assert built.children(state.name) != [child]


def test_a_model_that_crashes_on_a_prompt_breaks_one_stream_and_recovers(
    built: Stage,
) -> None:
    state = one_device(built, crash_on="boom")
    answer = ask(built, state, "boom")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    wait_until(lambda: ask(built, state).status_code == 200, "recovery")


def test_a_model_that_crashes_after_its_commit_halts_its_rollout_and_goes_back(
    tmp_path: Path,
) -> None:
    soaking = replace(QUICK, soak_s=30.0)
    with stage(tmp_path) as built:
        state = one_device(built)
        built.policy = soaking
        bad = built.publish(2, echo_artefact(crash_on="boom")).label
        rollout = built.roll_out(bad)
        wait_until(lambda: soaks(built, rollout), "sample-2 is committed and soaks")
        assert built.serving(state) == bad
        assert ask(built, state, "boom").status_code == 503
        reason = wait_for_rollout(built, rollout, "halted")
        assert "after it committed, its process ended 1 times" in reason
        wait_until(lambda: built.serving(state) == "sample-1", "back on sample-1")


def soaks(built: Stage, rollout: str) -> bool:
    found = built.operator("GET", f"/v1/rollouts/{rollout}")
    return bool(found["phase"] == "soaking")


def test_it_serves_without_its_control_plane_also_across_a_restart(
    built: Stage,
) -> None:
    state = one_device(built)
    built.kill("control")
    assert ask(built, state).status_code == 200
    assert built.stop("till-1") < 2
    built.start_agent(state)
    wait_until(lambda: built.serving(state) == "sample-1", "serving offline")
    assert ask(built, state).status_code == 200
    assert built.stop("till-1") < 2


def test_a_damaged_artefact_falls_back_and_is_fetched_again(built: Stage) -> None:
    state = one_device(built)
    new = built.publish(2, echo_artefact(start_delay_ms=1))
    wait_for_rollout(built, built.roll_out(new.label), "done")
    built.stop("till-1")
    blob = state / "blobs" / "sha256" / new.variants[0].digest.removeprefix("sha256:")
    blob.write_bytes(b"x" * blob.stat().st_size)
    built.kill("control")
    built.start_agent(state)
    wait_until(lambda: built.serving(state) == "sample-1", "the previous one serves")
    assert "damaged" in built.log("till-1")
    built.serve(port=int(built.url.rpartition(":")[2]))
    wait_until(lambda: built.serving(state) == "sample-2", "fetched again")


def test_a_damaged_journal_is_moved_aside_and_the_model_serves(built: Stage) -> None:
    state = one_device(built)
    built.stop("till-1")
    (state / "journal.db").write_bytes(b"not a database at all" * 500)
    built.start_agent(state)
    wait_until(lambda: built.serving(state) == "sample-1", "serving")
    assert "journal was damaged" in built.log("till-1")
    assert list(state.glob("journal.db.damaged-*"))
    # Sessions and reports still work: their counters start above what was lost.
    good = built.publish(2, echo_artefact(start_delay_ms=1)).label
    wait_for_rollout(built, built.roll_out(good), "done")


def test_expired_metadata_keeps_serving_and_installs_nothing(built: Stage) -> None:
    state = one_device(built)
    built.publish(2, echo_artefact(start_delay_ms=1))
    built.stop("till-1")
    # The newest trusted time lies beyond every expiry: as with a clock set back.
    trust = state / "trust" / "trusted-time"
    trust.write_text(repr(time.time() + 400 * 86_400))
    built.start_agent(state)
    built.roll_out("sample-2")
    wait_until(
        lambda: "expired" in built.status(state)["installation"]["reason"], "reason"
    )
    assert built.status(state)["installation"]["state"] == "offered"
    assert ask(built, state).status_code == 200
    assert built.serving(state) == "sample-1"


def test_a_second_agent_on_the_same_folder_is_refused(built: Stage) -> None:
    state = one_device(built)
    result = built.try_run("agent", "run", "--state", str(state), "--port", "0")
    assert result.returncode == 4
    assert b"another agent runs" in result.stderr
    assert ask(built, state).status_code == 200


def test_the_state_folder_and_its_key_are_for_the_owner_only(built: Stage) -> None:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "device.key").stat().st_mode & 0o777 == 0o600


def test_enrolling_twice_or_with_a_used_token_is_refused(built: Stage) -> None:
    built.publish(1, echo_artefact())
    built.serve()
    state = built.enrol("till-1")
    again = built.try_run(
        *("agent", "enrol", "--server", built.url, "--token", "x", "--state"),
        str(state),
    )
    assert again.returncode == 4
    other = built.try_run(
        *("agent", "enrol", "--server", built.url, "--token", "x", "--state"),
        str(state.with_name("till-2")),
    )
    assert other.returncode == 5
    portal = built.try_run(
        *("agent", "enrol", "--server", "http://127.0.0.1:9", "--token", "x"),
        *("--state", str(state.with_name("till-3"))),
    )
    assert portal.returncode == 7


def test_no_prompt_reaches_disk_or_log(built: Stage) -> None:
    state = one_device(built)
    secret = "zebra-crossing-4711"
    assert ask(built, state, secret).status_code == 200
    bad = httpx.post(
        f"{built.endpoint(state)}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": secret}], "nonsense": secret},
    )
    assert bad.status_code == 400
    built.stop("till-1")
    for path in [*state.rglob("*"), built.folder / "till-1.log"]:
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_requests_of_many_threads_all_end_when_the_agent_stops(built: Stage) -> None:
    state = one_device(built, delay_ms=20)
    url = f"{built.endpoint(state)}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "word " * 50}], "stream": True}
    ended = []

    def stream() -> None:
        try:
            with httpx.stream("POST", url, json=body, timeout=20) as answer:
                ended.append(sum(len(part) for part in answer.iter_bytes()))
        except httpx.HTTPError:
            ended.append(0)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert built.stop("till-1") < 2
    for thread in threads:
        thread.join(5)
    assert len(ended) == 4


def test_an_agent_that_is_stopped_during_a_trial_does_not_blame_the_model(
    built: Stage,
) -> None:
    state = one_device(built)
    slow = echo_artefact(delay_ms=500)
    good = built.publish(2, slow, claims=echo_artefact()).label
    rollout = built.roll_out(good)
    wait_until(
        lambda: "installation 2 is probation" in built.log("till-1"), "golden prompts"
    )
    time.sleep(0.3)
    assert built.stop("till-1") < 2
    assert built.status(state)["installation"]["state"] == "probation"
    built.start_agent(state)
    wait_for_rollout(built, rollout, "done")
    assert built.serving(state) == good
    assert built.status(state)["quarantined"] == []
