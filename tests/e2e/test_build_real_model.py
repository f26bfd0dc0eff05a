"""Builds of a real model: true figures, nothing twice, and no trace of being interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slmops.domain.blueprint import Blueprint
from slmops.domain.errors import OverBudgetError, UntrustedError
from slmops.domain.release import Estimate
from slmops.registry.blobs import BlobStore, bytes_digest
from slmops.registry.workspace import Workspace
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import start_worker
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.builds import load_build
from slmops.workshop.models import import_model
from slmops.workshop.pipeline import BuildOptions, BuildRun, run_build
from slmops.workshop.releases import compose_release
from slmops.workshop.text_sources import evaluation_parts

pytestmark = pytest.mark.slow

BLUEPRINT = """
name: assistant
model: smol
classes:
  - name: small
    where: {memory_mib: {max: 700}}
    budget: {disk_mib: 110, memory_mib: 400}
    context_tokens: 256
  - name: large
    budget: {decode_tokens_per_s: 0.5}
    context_tokens: 512
candidates: [Q8_0, Q4_K_M, Q2_K]
quality: {max_kld_times_8bit: 60, min_same_top1: 0.5}
evaluation: {max_tokens: 144, window_tokens: 96, speed_runs: 3}
golden: {prompts: prompts.txt, answer_tokens: 2}
"""
PROMPTS = "What is the capital of France?\nHow many legs has a spider?\n"
DRIVER = """
import signal, sys
from pathlib import Path
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.address import open_client
from slmops.runtimes.speed import SpeedPlan, run_once
from slmops.runtimes.worker import start_worker
from slmops.workshop.blueprints import load_blueprint
from slmops.workshop.pipeline import run_build

# A shell that runs this in the background would have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = Path(sys.argv[1])
run_build(
    load_blueprint(path),
    Workspace(root=Path(sys.argv[2])),
    folder=path.parent,
    progress=lambda what, done, total: print(what, flush=True),
)
"""
WAIT_S = 180.0


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a blueprint and a workspace that holds the model."""

    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(root=self.folder / "ws")

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.workspace.blobs)

    @property
    def blueprint(self) -> Blueprint:
        return load_blueprint(self.folder / "blueprint.yaml")

    def build(
        self, blueprint: Blueprint | None = None, options: BuildOptions | None = None
    ) -> BuildRun:
        return run_build(
            blueprint or self.blueprint,
            self.workspace,
            folder=self.folder,
            options=options,
        )

    def records(self) -> dict[str, int]:
        """Return finished steps and when each was written."""
        return {
            path.name: path.stat().st_mtime_ns
            for path in self.workspace.steps.glob("*.json")
        }


def make_place(folder: Path, model: Path) -> Place:
    place = Place(folder)
    folder.mkdir(exist_ok=True)
    (folder / "blueprint.yaml").write_text(BLUEPRINT)
    (folder / "prompts.txt").write_text(PROMPTS)
    import_model(str(model), place.workspace, name="smol")
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Place:
    return make_place(tmp_path_factory.mktemp("build"), smollm2_gguf)


@pytest.fixture(scope="module")
def built(place: Place) -> BuildRun:
    return place.build()


def mean_kld(run: BuildRun, quantization: str) -> Estimate:
    return run.result.candidate(quantization).card.fidelity.mean_kld


def test_fewer_bits_diverge_more_by_more_than_chance(built: BuildRun) -> None:
    eight, four, two = (mean_kld(built, name) for name in ("Q8_0", "Q4_K_M", "Q2_K"))
    assert eight.high < four.low
    assert four.high < two.low
    assert 0.001 < eight.value < 0.01
    assert 0.02 < four.value < 0.1
    assert 0.2 < two.value < 0.6


def test_the_reference_against_itself_shows_no_loss(built: BuildRun) -> None:
    fidelity = built.result.reference.card.fidelity
    assert fidelity.mean_kld.high < 1e-6
    assert fidelity.same_top1.value == 1.0
    assert fidelity.perplexity.value == pytest.approx(fidelity.reference_perplexity)
    assert built.result.control.quantization == "Q8_0"


def test_every_class_gets_the_best_that_fits_it(built: BuildRun) -> None:
    chosen = {s.device_class: s.quantization for s in built.result.selection}
    assert chosen == {"small": "Q4_K_M", "large": "Q8_0"}
    for selection in built.result.selection:
        assert {r.quantization for r in selection.rejected} == {
            "Q8_0",
            "Q4_K_M",
            "Q2_K",
        } - {selection.quantization}
    assert {v.classes for v in built.result.variants} == {("small",), ("large",)}


def test_speed_and_memory_are_measured_at_every_setting(built: BuildRun) -> None:
    for candidate in built.result.candidates:
        large, small = candidate.card.speed
        assert (large.context_tokens, small.context_tokens) == (512, 256)
        assert small.timed_context_tokens == 512
        # Of 256 tokens more: KV cache, 30 layers of 3 heads of 64, twice, 16 bit, is
        # 5.6 MiB; scores, 9 heads by a batch of 256, add the rest.
        assert 6 < large.peak_rss_mib - small.peak_rss_mib < 14
        assert large.peak_rss_mib > candidate.card.bytes / 2**20
        assert large.decode_tokens_per_s.low > 0


def test_the_cards_peak_is_that_of_a_really_full_context(
    place: Place, built: BuildRun
) -> None:
    chosen = built.result.candidate("Q4_K_M")
    path = place.blobs.path(chosen.digest)
    with start_worker("llamacpp", path, WorkerSettings(context_tokens=512)) as worker:
        with open_client(worker.address) as client:
            run_once(client, SpeedPlan(prompt_tokens=500, answer_tokens=8))
        true = worker.memory().peak_rss_mib
    (speed,) = [s for s in chosen.card.speed if s.context_tokens == 512]
    assert speed.peak_rss_mib == pytest.approx(true, rel=0.02)
    known = speed.peak_memory
    assert known is not None
    assert known.processes == 3
    # Processes that do the same differ by tenths of a MiB: bounds are a few MiB.
    assert 0 < known.full.high - known.full.low < 30
    assert speed.measured_energy is not None or speed.energy_unmeasured


def test_golden_figures_are_the_variants_own(built: BuildRun) -> None:
    golden = built.result.golden
    assert [prompt.prompt for prompt in golden.prompts] == PROMPTS.splitlines()
    for variant in built.result.variants:
        assert len(variant.golden_logprobs) == 2
        for prompt, found in zip(golden.prompts, variant.golden_logprobs, strict=True):
            assert abs(found - prompt.answer[0].logprob) < 1.0


def test_a_second_build_computes_nothing_and_is_the_same(
    place: Place, built: BuildRun
) -> None:
    again = place.build()
    assert again.executed == 0
    assert again.id == built.id
    assert again.result == built.result
    assert load_build(place.workspace) == built.result


def test_another_text_changes_the_scores_and_nothing_else(
    place: Place, built: BuildRun
) -> None:
    text = "The baker counts the loaves. " * 40 + "Rain fell on the tin roof. " * 40
    (place.folder / "mine.txt").write_text(text)
    asked = place.blueprint
    asked = replace(
        asked,
        evaluation=replace(asked.evaluation, text="mine.txt"),
        quality=replace(asked.quality, max_kld_times_8bit=500),
    )
    run = place.build(asked)
    computed = {step.kind for step in run.steps if not step.reused}
    assert computed == {"score reference", "score"}
    reported, searched = evaluation_parts(asked.evaluation, place.folder)
    assert reported + searched == text
    fidelity = run.result.control.card.fidelity
    assert fidelity.text_digest == bytes_digest(searched.encode())
    again = run.result.control.reported.fidelity
    assert again.text_digest == bytes_digest(reported.encode())
    # A text that repeats itself is easy to foresee.
    before = built.result.control.card.fidelity.perplexity.value
    assert fidelity.perplexity.value < 0.2 * before


def test_below_the_floor_nothing_is_built_or_released_unless_forced(
    place: Place, built: BuildRun
) -> None:
    only = BuildOptions(candidates=("Q2_K",))
    with pytest.raises(OverBudgetError, match="nearest is Q2_K: below the quality"):
        place.build(options=only)
    run = place.build(options=replace(only, below_floor=True))
    anew = [s.kind for s in run.steps if not s.reused]
    assert "quantize" not in anew
    assert anew.count("score") == 1  # of the choice, on the text that is reported
    assert [s.quantization for s in run.result.selection] == ["Q2_K", "Q2_K"]
    with pytest.raises(OverBudgetError, match="KL divergence"):
        compose_release(place.workspace, run.result, 2, 1, 0.0)
    release = compose_release(place.workspace, run.result, 2, 1, 0.0, "drill")
    assert release.forced is not None
    assert release.forced.reason == "drill"
    assert release.forced.violations
    assert release.variants[0].classes == ("small", "large")
    assert run.id != built.id


@pytest.fixture
def fresh(tmp_path: Path, place: Place) -> Place:
    """Another workspace with the same model: hard links, no second import."""
    other = Place(tmp_path)
    for name in ("blueprint.yaml", "prompts.txt"):
        (tmp_path / name).write_bytes((place.folder / name).read_bytes())
    other.workspace.models.mkdir(parents=True)
    for record in place.workspace.models.glob("*.json"):
        (other.workspace.models / record.name).write_bytes(record.read_bytes())
        digest = json.loads(record.read_bytes())["id"]
        other.blobs.put_file(place.blobs.path(digest))
    return other


@dataclass(frozen=True, slots=True)
class Ended:
    """How an interrupted build ended."""

    code: int
    children: tuple[int, ...]


def interrupted(place: Place, moment: str, number: signal.Signals) -> Ended:
    """Run a build and send it a signal while it does what `moment` names."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "blueprint.yaml", str(place.workspace.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place.folder,
    )
    try:
        assert process.stdout is not None
        if not any(moment in line for line in process.stdout):
            pytest.fail(f"the build ended before {moment}: {process.communicate()[1]}")
        # The moment is told before its child process is started.
        while not (children := children_of(process.pid)) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    return Ended(process.returncode, children)


def children_of(pid: int) -> tuple[int, ...]:
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    for task in tasks.iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return tuple(found)


def running(pids: tuple[int, ...]) -> list[int]:
    def state(pid: int) -> str:
        with suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "gone"

    return [pid for pid in pids if state(pid) not in {"gone", "Z", "X"}]


def half_done(place: Place) -> list[Path]:
    root = place.workspace.root
    return [*root.rglob(".partial-*"), *place.workspace.steps.glob(".scratch/*")]


@pytest.fixture
def whole(fresh: Place) -> Iterator[Place]:
    """Check at the end of a test that every blob holds what its name promises."""
    yield fresh
    for digest in fresh.blobs.digests():
        fresh.blobs.verify(digest)


def test_interrupted_at_every_stage_a_build_goes_on_where_it_was(
    whole: Place, built: BuildRun
) -> None:
    known: dict[str, int] = {}
    for moment, number in (
        ("score", signal.SIGINT),
        ("score", signal.SIGKILL),
        ("measure speed", signal.SIGINT),
        ("golden prompts to", signal.SIGINT),
        ("golden prompts to", signal.SIGKILL),
    ):
        ended = interrupted(whole, moment, number)
        assert ended.code != 0
        deadline = time.monotonic() + 10
        while running(ended.children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(ended.children), f"{moment}: children outlive {number.name}"
        if number == signal.SIGINT:
            assert not half_done(whole)
        now = whole.records()
        assert known.items() <= now.items(), f"{moment}: a finished step was redone"
        known = now
        assert not (whole.workspace.builds / "latest").exists()
    run = whole.build()
    assert not half_done(whole)
    assert run.executed <= 3
    assert len(run.steps) - run.executed >= len(known) - 1
    assert selected(run) == selected(built)
    assert outputs(run, "quantize") == outputs(built, "quantize")
    assert outputs(run, "score") == outputs(built, "score")


def selected(run: BuildRun) -> list[tuple[str, str]]:
    return [(s.device_class, s.digest) for s in run.result.selection]


def outputs(run: BuildRun, kind: str) -> list[object]:
    return [r.outputs for r in run.result.provenance if r.step.kind == kind]


def test_a_workspace_without_its_models_bytes_builds_nothing(fresh: Place) -> None:
    (record,) = fresh.workspace.models.glob("*.json")
    digest = json.loads(record.read_bytes())["id"]
    source = fresh.blobs.path(digest)
    copy = source.read_bytes()
    source.unlink()
    source.write_bytes(copy[:-1] + bytes([copy[-1] ^ 1]))
    os.utime(source)
    with pytest.raises(UntrustedError, match="is damaged"):
        fresh.build()
    assert not fresh.records()
