"""Fidelity: scored in a child, in the engine that serves, on complete tiny models."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from slmops.domain.blueprint import EvaluationPlan
from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.ids import Digest
from slmops.domain.release import Fidelity
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import Runtime, WorkerSettings, load_runtime
from slmops.testing.sample_release import digest_of
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.board import Board
from slmops.workshop.evaluate import (
    Scoring,
    estimate_fidelity,
    fidelity_of,
    score_candidate,
    score_reference,
)
from slmops.workshop.gguf_file import Scalar
from slmops.workshop.jobs.executor import LocalExecutor
from slmops.workshop.jobs.job import unheard
from slmops.workshop.jobs.processes import JobProcesses
from slmops.workshop.progress import silent
from slmops.workshop.quantize import quantize_gguf
from slmops.workshop.score_file import CandidateScores, ReferenceScores, load_scores
from slmops.workshop.score_job import candidate_scores, reference_scores
from slmops.workshop.steps import StepRunner
from slmops.workshop.text_sources import evaluation_text
from slmops.workshop.workbench import Workbench, local_workbench, runtime_tool

PLAN = EvaluationPlan(max_tokens=144, window_tokens=64)
TEXT = evaluation_text(PLAN, Path())[:800]


@dataclass(frozen=True, slots=True)
class Bench:
    """Scores models of one workspace."""

    bench: Workbench
    folder: Path

    @property
    def workspace(self) -> Workspace:
        return self.bench.runner.cache.workspace

    @property
    def blobs(self) -> BlobStore:
        return self.bench.blobs

    @property
    def processes(self) -> JobProcesses:
        assert isinstance(self.bench.executor, LocalExecutor)
        return self.bench.executor.processes

    def scoring(self, *, text: str = TEXT, plan: EvaluationPlan = PLAN) -> Scoring:
        return Scoring(
            bench=replace(self.bench, runner=StepRunner(self.bench.runner.cache)),
            runtime="llamacpp",
            plan=plan,
            text_digest=self.blobs.put_bytes(text.encode()),
        )

    def model(self, seed: int = 1, **sizes: Scalar) -> Digest:
        path = self.folder / f"{seed}-{len(sizes)}.gguf"
        write_tiny_llama(path, seed, sizes=None, **sizes)
        return self.blobs.put_bytes(path.read_bytes())

    def quantized(self, model: Digest, kind: str) -> Digest:
        with self.blobs.writer() as writer:
            quantize_gguf(self.blobs.path(model), kind, writer)
        return writer.digest

    def fidelity(self, reference: Digest, candidate: Digest) -> Fidelity:
        scoring = self.scoring()
        expected = score_reference(scoring, reference)
        found = score_candidate(scoring, "candidate", candidate, expected)
        return estimate_fidelity(scoring, expected, found)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    workspace = Workspace(root=tmp_path / "ws")
    with local_workbench(workspace, Board(progress=silent)) as bench:
        yield Bench(bench, tmp_path)


def test_fewer_bits_diverge_more_and_the_reference_not_at_all(bench: Bench) -> None:
    reference = bench.model(width=256, feed_forward=512)
    found = [
        bench.fidelity(reference, candidate)
        for candidate in (
            reference,
            bench.quantized(reference, "Q8_0"),
            bench.quantized(reference, "Q4_0"),
        )
    ]
    itself, eight, four = (each.mean_kld for each in found)
    assert itself.high < 1e-5
    assert itself.high < eight.low
    assert eight.high < four.low
    assert found[0].same_top1.value == 1.0
    assert found[0].perplexity.value == pytest.approx(found[0].reference_perplexity)
    assert {each.tokens for each in found} == {144}
    assert found[0].text_digest == digest_of(TEXT.encode())


def test_scores_are_found_again(bench: Bench) -> None:
    reference = bench.model()
    first, again = bench.scoring(), bench.scoring()
    digests = {
        score_candidate(s, "itself", reference, score_reference(s, reference))
        for s in (first, again)
    }
    assert len(digests) == 1
    assert [timing.reused for timing in first.bench.runner.timings] == [False, False]
    assert [timing.reused for timing in again.bench.runner.timings] == [True, True]


@pytest.mark.parametrize("before", [96, 192, 240])
def test_more_or_fewer_positions_give_the_same_bytes_as_alone(
    bench: Bench, tmp_path: Path, before: int
) -> None:
    reference = bench.model()
    candidate = bench.quantized(reference, "Q4_0")

    def scores(on: Bench, positions: int) -> tuple[Digest, Digest]:
        scoring = on.scoring(plan=replace(PLAN, max_tokens=positions))
        expected = score_reference(scoring, reference)
        return expected, score_candidate(scoring, "candidate", candidate, expected)

    first = scores(bench, before)
    after = scores(bench, 144)
    assert first != after
    alone = Workspace(root=tmp_path / "alone")
    with local_workbench(alone, Board(progress=silent)) as other:
        for digest in (reference, candidate):
            other.blobs.put_file(bench.blobs.path(digest))
        assert scores(Bench(other, tmp_path), 144) == after


def test_windows_that_were_scored_are_not_scored_again(bench: Bench) -> None:
    reference = bench.model()
    short, long = (
        bench.scoring(plan=replace(PLAN, max_tokens=positions))
        for positions in (96, 192)
    )
    paths = []
    for scoring in (short, long):
        expected = score_reference(scoring, reference)
        found = score_candidate(scoring, "itself", reference, expected)
        paths.append((bench.blobs.path(expected), bench.blobs.path(found)))
    (begun, lost), (whole, _) = paths
    known = load_scores(begun, ReferenceScores)
    wanted = load_scores(whole, ReferenceScores)
    scorer = Watched(load_runtime("llamacpp"), bench.blobs.path(reference))
    reference_scores(scorer, wanted.tokens, unheard, known)
    assert scorer.scored == len(wanted.tokens) - len(known.tokens) == 2
    against = load_scores(lost, CandidateScores)
    candidate_scores(scorer, wanted, unheard, (known, against))
    assert scorer.scored == 4
    # What was begun against another reference is of no use.
    changed = replace(known, top_logprobs=known.top_logprobs - np.float32(1))
    candidate_scores(scorer, wanted, unheard, (changed, against))
    assert scorer.scored == 8


class Watched:
    """The runtime's own scorer, and how many windows it was given."""

    def __init__(self, runtime: Runtime, path: Path) -> None:
        settings = WorkerSettings(threads=1, context_tokens=PLAN.window_tokens)
        self._scorer = runtime.open_scorer(path, settings)
        self.vocabulary = self._scorer.vocabulary
        self.scored = 0

    def tokenize(self, text: str) -> list[int]:
        return self._scorer.tokenize(text)

    def piece(self, token: int) -> bytes:
        return self._scorer.piece(token)

    def logits(self, tokens: Sequence[int]) -> "npt.NDArray[np.float32]":
        self.scored += 1
        return self._scorer.logits(tokens)

    def close(self) -> None:
        self._scorer.close()


def test_another_text_is_another_step(bench: Bench) -> None:
    reference = bench.model()
    one = score_reference(bench.scoring(), reference)
    assert score_reference(bench.scoring(text=TEXT[::-1]), reference) != one


def test_a_short_text_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInputError, match="at least 112 tokens"):
        score_reference(bench.scoring(text="Too short."), bench.model())


def test_a_candidate_with_a_smaller_vocabulary_is_refused(bench: Bench) -> None:
    scoring = bench.scoring()
    expected = score_reference(scoring, bench.model(vocabulary=320))
    other = bench.model(2, vocabulary=262)
    with pytest.raises(InvalidInputError, match="vocabulary must be the reference's"):
        score_candidate(scoring, "other", other, expected)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(200), b"\0" * 64])
def test_what_is_no_model_is_refused_and_leaves_no_record(
    bench: Bench, content: bytes
) -> None:
    with pytest.raises(InvalidInputError):
        score_reference(bench.scoring(), bench.blobs.put_bytes(content))
    assert not list(bench.workspace.steps.glob("*.json"))


def test_weights_that_are_not_finite_are_refused(bench: Bench, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "bad.gguf")
    raw = bytearray(path.read_bytes())
    raw[-4096:] = b"\x00\x7c" * 2048  # infinities in 16 bit
    digest = bench.blobs.put_bytes(bytes(raw))
    with pytest.raises(InvalidInputError, match="not finite"):
        score_reference(bench.scoring(), digest)


def test_stopping_kills_what_runs_and_refuses_what_comes(
    bench: Bench, tmp_path: Path
) -> None:
    caught: list[BaseException] = []
    model = bench.model(width=256, layers=8, feed_forward=1024)
    plan = EvaluationPlan(max_tokens=200_000, window_tokens=64)
    endless = bench.scoring(text=TEXT * 400, plan=plan)

    def score() -> None:
        try:
            score_reference(endless, model)
        except UnavailableError as error:
            caught.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    while not bench.processes._running:
        time.sleep(0.01)
    (process,) = bench.processes._running
    bench.processes.stop()
    thread.join(10)
    assert "SIGKILL" in str(caught[0])
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    with pytest.raises(UnavailableError, match="stopped"):
        score_reference(bench.scoring(), model)


def made_scores(kld: float, rows: int = 96) -> tuple[ReferenceScores, CandidateScores]:
    reference = ReferenceScores(
        tokens=np.zeros((2, 64), np.int32),
        top_ids=np.zeros((rows, 1), np.int32),
        top_logprobs=np.zeros((rows, 1), np.float32),
        rest_logprob=np.full(rows, -np.inf, np.float32),
        nll=np.full(rows, 2.0, np.float32),
    )
    candidate = CandidateScores(
        kld=np.full(rows, kld, np.float32),
        same_top1=np.arange(rows) % 2 == 0,
        nll=np.full(rows, 2.0 + kld, np.float32),
    )
    return reference, candidate


def test_figures_are_what_the_scores_say() -> None:
    found = fidelity_of(*made_scores(0.25), digest_of(b"text"))
    assert found.mean_kld.value == pytest.approx(0.25)
    assert found.p99_kld.value == pytest.approx(0.25)
    assert found.same_top1.value == pytest.approx(0.5)
    assert found.perplexity.value == pytest.approx(np.exp(2.25))
    assert found.reference_perplexity == pytest.approx(np.exp(2.0))
    assert found.tokens == 96


def test_equal_scores_give_equal_figures() -> None:
    one, two = (fidelity_of(*made_scores(0.25), digest_of(b"text")) for _ in range(2))
    assert one == two
    assert replace(one, tokens=1) != two


def test_a_runtimes_tool_names_its_version_and_its_code() -> None:
    make: Callable[[str], str] = runtime_tool
    assert make("echo").startswith("echo 1, code-")
    assert "xllamacpp" not in make("llamacpp")
    assert make("llamacpp").startswith("llamacpp 2026.")
    assert (
        make("echo").rpartition("code-")[2] != make("llamacpp").rpartition("code-")[2]
    )
