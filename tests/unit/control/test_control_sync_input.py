"""What a device may say: everything else is refused, and nothing of it is stored."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from slmops.domain.report import GRID_CELLS
from slmops.registry.keys import SigningKey
from slmops.testing.control_in_process import ControlInProcess

Run = Callable[..., ControlInProcess]

FACTS = {"memory_mib": 512, "disk_mib": 1, "cpu_count": 1, "architecture": "x86_64"}
INSTALLATION = {"assignment": 1, "state": "waiting", "entered_at": 0}
REPORT = {"sequence": 1, "started_at": 0, "ended_at": 1, "release": None}


class Answer(Protocol):
    status_code: int

    def json(self) -> Any: ...  # noqa: ANN401


def error_of(answer: Answer) -> tuple[int, str]:
    tree = answer.json()
    assert set(tree) == {"error"}
    assert set(tree["error"]) == {"code", "message"}
    assert tree["error"]["message"]
    return answer.status_code, tree["error"]["code"]


def sync_body(**changes: object) -> bytes:
    return json.dumps({"facts": FACTS, **changes}).encode()


BAD_SYNCS = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"facts": "\xff"}',
    "null": b"null",
    "a list": b"[]",
    "text": b'"sync"',
    "deep nesting": b"[" * 100_000,
    "NaN": b'{"facts": NaN}',
    "no facts": b"{}",
    "facts of another type": sync_body(facts=[]),
    "memory as text": sync_body(facts={**FACTS, "memory_mib": "512"}),
    "negative memory": sync_body(facts={**FACTS, "memory_mib": -1}),
    "memory beyond 64 bits": sync_body(facts={**FACTS, "memory_mib": 10**30}),
    "label that is no text": sync_body(labels={"site": 3}),
    "negative assignment": sync_body(assignment=-1),
    "huge assignment": sync_body(assignment=2**63 - 1),
    "unknown state": sync_body(
        installation={"assignment": 1, "state": "flying", "entered_at": 0}
    ),
    "digest that is none": sync_body(active={"release": "x-1", "variant": "sha256:1"}),
    "quarantined path": sync_body(quarantined=["../../etc/passwd"]),
    "report without sequence": sync_body(reports=[{"started_at": 0}]),
    "report sequence 0": sync_body(reports=[{**REPORT, "sequence": 0}]),
    "report sequence beyond 64 bits": sync_body(
        reports=[{**REPORT, "sequence": 2**70}]
    ),
    "reports out of order": sync_body(reports=[{**REPORT, "sequence": 2}, REPORT]),
    "negative count": sync_body(reports=[{**REPORT, "failures": -1}]),
    "histogram of a wrong length": sync_body(
        reports=[{**REPORT, "first_token_ms": [1] * (GRID_CELLS + 9)}]
    ),
    "negative histogram": sync_body(
        reports=[{**REPORT, "first_token_ms": [-1] * GRID_CELLS}]
    ),
    "lone surrogate": b'{"facts": {"memory_mib": 1, "disk_mib": 1, "cpu_count": 1,'
    b' "architecture": "\\ud800"}}',
    "text of a megabyte as a reason": sync_body(
        installation={**INSTALLATION, "reason": "R" * 1001}
    ),
    "long reason of a trial": sync_body(
        installation={
            **INSTALLATION,
            "trial": {"passed": False, "reason": "R" * 1001},
        }
    ),
    "long label": sync_body(labels={"site": "L" * 257}),
    "long key of a label": sync_body(labels={"k" * 65: ""}),
    "many labels": sync_body(labels={f"k{index}": "v" for index in range(33)}),
    "many reports": sync_body(
        reports=[{**REPORT, "sequence": index + 1} for index in range(65)]
    ),
    "many quarantined": sync_body(quarantined=["sha256:" + "0" * 64] * 257),
    "release that is no label": sync_body(
        active={"release": "x" * 100_000, "variant": "sha256:" + "0" * 64}
    ),
    "report of a release that is no label": sync_body(
        reports=[{**REPORT, "release": "A B"}]
    ),
    "long architecture": sync_body(facts={**FACTS, "architecture": "a" * 65}),
    "many runtimes": sync_body(facts={**FACTS, "runtimes": ["a"] * 33}),
    "too large": b'{"facts": "' + b"x" * (1024 * 1024) + b'"}',
}


@pytest.mark.parametrize("body", BAD_SYNCS.values(), ids=BAD_SYNCS.keys())
def test_a_bad_sync_is_refused_and_nothing_is_stored(
    control: ControlInProcess, body: bytes
) -> None:
    device = control.enrol("a")
    before = control.plane.store.device("a")
    answer = control.http.post("/v1/sync", content=body, headers=device.headers())
    assert error_of(answer) == (422, "invalid_input")
    assert control.plane.store.device("a") == before
    assert control.plane.store.reports("a") == ()


def test_a_refusal_names_the_field(control: ControlInProcess) -> None:
    device = control.enrol("a")
    for body, expected in (
        (BAD_SYNCS["long label"], "labels['site'] must have at most 256 characters"),
        (BAD_SYNCS["many reports"], "reports must be at most 64, got 65"),
        (BAD_SYNCS["release that is no label"], "active.release must be"),
    ):
        answer = control.http.post("/v1/sync", content=body, headers=device.headers())
        assert expected in answer.json()["error"]["message"]


def test_enrolment_bounds_labels_too(control: ControlInProcess) -> None:
    token = control.post("/v1/tokens", {}, status=201)["token"]
    key = SigningKey.create(control.sample.workspace.root / "a.key")
    body = {
        "token": token,
        "public_key": key.public_hex,
        "signature": key.sign(f"slmops-enrol:{token}".encode()),
        "facts": FACTS,
        "labels": {"site": "L" * 257},
    }
    answer = control.http.post("/v1/enrol", json=body)
    assert error_of(answer) == (422, "invalid_input")


def test_what_a_device_may_have_stored_is_a_budget_of_bytes(run_control: Run) -> None:
    control = run_control(device_news_burst_bytes=4000, device_news_bytes_per_s=0.001)
    device, other = control.enrol("a"), control.enrol("b")
    statuses = [device.sync(control.http) for _ in range(30)]
    assert statuses[:5] == [304] * 5
    assert statuses[-1] == 503
    stored = sum(map(len, control.plane.store.reports("a")))
    assert stored < 8000
    assert other.sync(control.http) == 304


def test_keys_of_a_newer_agent_are_ignored(control: ControlInProcess) -> None:
    device = control.enrol("a")
    body = sync_body(facts={**FACTS, "npu": "x"}, dreams=["electric sheep"])
    answer = control.http.post("/v1/sync", content=body, headers=device.headers())
    assert answer.status_code == 304
