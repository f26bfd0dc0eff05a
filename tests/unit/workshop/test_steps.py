"""Steps: computed once, found again only when nothing that matters has changed."""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from slmops.domain.errors import NotFoundError, UnavailableError
from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.testing.sample_release import digest_of
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.steps import Step, StepCache, StepRunner

STEP = Step(
    kind="double",
    tool="tool 1",
    inputs={"text": digest_of(b"in")},
    parameters={"size": 3, "names": ("a", "b")},
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


@dataclass(slots=True)
class Counted:
    """A computation that counts its runs."""

    workspace: Workspace
    content: bytes = b"out"
    runs: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> Mapping[str, Digest]:
        with self.lock:
            self.runs += 1
        return {"out": BlobStore(self.workspace.blobs).put_bytes(self.content)}


def run(workspace: Workspace, compute: Counted, step: Step = STEP) -> StepRunner:
    """Run one step as a build of its own would."""
    runner = StepRunner(StepCache(workspace))
    record = runner.run("double", step, compute)
    assert record.outputs == {"out": digest_of(compute.content)}
    return runner


def record_path(workspace: Workspace, step: Step = STEP) -> Path:
    return workspace.steps / f"{digest_hex(step.digest)}.json"


def test_a_second_build_computes_nothing(workspace: Workspace) -> None:
    compute = Counted(workspace)
    first, second = run(workspace, compute), run(workspace, compute)
    assert compute.runs == 1
    assert [timing.reused for timing in first.timings + second.timings] == [False, True]
    assert first.provenance() == second.provenance()


@pytest.mark.parametrize(
    "other",
    [
        replace(STEP, kind="triple"),
        replace(STEP, tool="tool 2"),
        replace(STEP, inputs={"text": digest_of(b"other")}),
        replace(STEP, inputs={"words": digest_of(b"in")}),
        replace(STEP, parameters={"size": 4, "names": ("a", "b")}),
        replace(STEP, parameters={"size": 3, "names": ("b", "a")}),
        replace(STEP, seed=1),
    ],
)
def test_whatever_matters_changes_the_key(workspace: Workspace, other: Step) -> None:
    compute = Counted(workspace)
    run(workspace, compute)
    run(workspace, compute, other)
    assert compute.runs == 2


def test_the_order_of_parameters_does_not_matter() -> None:
    turned = replace(STEP, parameters=dict(reversed(list(STEP.parameters.items()))))
    assert turned.digest == STEP.digest


def test_a_damaged_output_is_computed_again(workspace: Workspace) -> None:
    compute = Counted(workspace)
    run(workspace, compute)
    path = BlobStore(workspace.blobs).path(digest_of(b"out"))
    path.chmod(0o644)
    path.write_bytes(b"oUt")
    run(workspace, compute)
    assert compute.runs == 2
    assert path.read_bytes() == b"out"


def test_a_missing_output_is_computed_again(workspace: Workspace) -> None:
    compute = Counted(workspace)
    run(workspace, compute)
    BlobStore(workspace.blobs).remove(digest_of(b"out"))
    run(workspace, compute)
    assert compute.runs == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 1}'])
def test_a_damaged_record_is_as_if_it_were_not(
    workspace: Workspace, content: bytes
) -> None:
    compute = Counted(workspace)
    run(workspace, compute)
    record_path(workspace).write_bytes(content)
    run(workspace, compute)
    assert compute.runs == 2


def test_a_record_of_other_code_under_this_steps_name_is_not_used(
    workspace: Workspace,
) -> None:
    compute = Counted(workspace)
    run(workspace, compute, replace(STEP, tool="tool 0"))
    record_path(workspace, replace(STEP, tool="tool 0")).rename(record_path(workspace))
    run(workspace, compute)
    assert compute.runs == 2


def test_a_step_that_fails_leaves_no_record(workspace: Workspace) -> None:
    def fail() -> Mapping[str, Digest]:
        raise UnavailableError("no")

    with pytest.raises(UnavailableError):
        StepRunner(StepCache(workspace)).run("double", STEP, fail)
    assert not record_path(workspace).exists()


def test_provenance_does_not_depend_on_the_order_of_work(workspace: Workspace) -> None:
    chain = [replace(STEP, seed=seed) for seed in range(6)]
    compute = Counted(workspace)

    def build(order: list[Step]) -> StepRunner:
        runner = StepRunner(StepCache(workspace))
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda step: runner.run("double", step, compute), order))
        return runner

    assert build(chain).provenance() == build(chain[::-1]).provenance()
    assert compute.runs == len(chain)


def test_a_tools_version_is_its_codes_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "some_step_code.py"
    module.write_text("ANSWER = 1\n")
    first = tool_version("some_step_code")
    module.write_text("ANSWER = 2\n")
    assert tool_version("some_step_code") != first
    assert "numpy " in tool_version("some_step_code", packages=("numpy",))


def test_code_that_does_not_exist_has_no_version() -> None:
    with pytest.raises(NotFoundError, match="no_such_module"):
        tool_version("no_such_module")


def test_a_step_that_one_build_meets_twice_counts_once(workspace: Workspace) -> None:
    compute = Counted(workspace)
    runner = run(workspace, compute)
    runner.run("double", STEP, compute)
    assert compute.runs == 1
    assert len(runner.timings) == 1


def test_a_reused_step_tells_how_long_computing_it_took(workspace: Workspace) -> None:
    compute = Counted(workspace)
    first, second = run(workspace, compute), run(workspace, compute)
    assert first.timings[0].seconds == second.timings[0].seconds


def test_cleaning_removes_what_a_killed_build_left_and_keeps_what_it_finished(
    workspace: Workspace,
) -> None:
    compute = Counted(workspace)
    cache = run(workspace, compute).cache
    cache.clean()
    (cache.scratch / "abc").mkdir()
    (cache.scratch / "abc" / "scores.npz").write_bytes(b"half")
    partial = cache.blobs.folder / ".partial-abc"
    partial.write_bytes(b"half")
    cache.clean()
    assert not list(cache.scratch.iterdir())
    assert not partial.exists()
    run(workspace, compute)
    assert compute.runs == 1


def test_only_the_latest_checkpoints_of_unfinished_steps_are_kept(
    tmp_path: Path,
) -> None:
    cache = StepCache(Workspace(root=tmp_path))
    for number in range(10):
        folder = cache.state / f"step-{number}"
        folder.mkdir(parents=True)
        os.utime(folder, (number, number))
    cache.clean()
    assert {folder.name for folder in cache.state.iterdir()} == {
        f"step-{number}" for number in range(2, 10)
    }
