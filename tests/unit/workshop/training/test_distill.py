"""A student comes nearer to its teacher, and only to one that it can understand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.jobs.job import Job
from slmops.workshop.training import distill

pytest.importorskip("torch")

MakeJob = Callable[..., Job]
OPTIONS = {
    "learning_rate": 3e-3,
    "window_tokens": 64,
    "batch_tokens": 256,
    "top_k": 32,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("teacher") / "t.gguf", seed=5)


def evaluations(outputs: dict[str, Path]) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(outputs["log"].read_text())[
        "evaluations"
    ]
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_comes_nearer_to_its_teacher(
    temperature: float, tiny_model: Path, teacher: Path, text: Path, make_job: MakeJob
) -> None:
    inputs = {"model": tiny_model, "teacher": teacher, "text": text}
    job = make_job("distill", inputs, **OPTIONS, temperature=temperature)
    found = evaluations(dict(distill.run(job)))
    assert found[-1]["loss"] < found[0]["loss"] / 2
    assert found[-1]["same_top1"] > found[0]["same_top1"]


def test_a_teacher_has_nothing_to_teach_itself(
    tiny_model: Path, text: Path, make_job: MakeJob
) -> None:
    inputs = {"model": tiny_model, "teacher": tiny_model, "text": text}
    found = evaluations(dict(distill.run(make_job("self", inputs, max_steps=1))))
    assert found[0]["loss"] == pytest.approx(0, abs=1e-4)
    assert found[0]["same_top1"] == 1


def test_answers_of_examples_are_learnt_from_a_teacher(
    tiny_model: Path, teacher: Path, examples: Path, make_job: MakeJob
) -> None:
    inputs = {"model": tiny_model, "teacher": teacher, "data": examples}
    outputs = distill.run(
        make_job("data", inputs, **(OPTIONS | {"epochs": 8}), label_weight=0.3)
    )
    found = evaluations(dict(outputs))
    assert min(row["loss"] for row in found) < found[0]["loss"] * 0.8


def test_another_tokenizer_is_refused_before_anything_is_computed(
    tiny_model: Path, text: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    larger = write_tiny_llama(tmp_path / "larger.gguf", vocabulary=320)
    job = make_job("other", {"model": tiny_model, "teacher": larger, "text": text})
    with pytest.raises(InvalidInputError) as error:
        distill.run(job)
    assert "300 items in the student, 320 in the teacher" in str(error.value)
    assert not job.state.exists()


def test_a_stored_teacher_teaches_the_same_bits(
    tiny_model: Path, teacher: Path, text: Path, make_job: MakeJob
) -> None:
    asked = make_job("ask", {"teacher": teacher, "text": text}, **OPTIONS)
    logits = distill.run_teacher(asked)["logits"]
    one = distill.run(
        make_job(
            "stored", {"model": tiny_model, "logits": logits, "text": text}, **OPTIONS
        )
    )
    inputs = {"model": tiny_model, "teacher": teacher, "text": text}
    other = distill.run(make_job("direct", inputs, **OPTIONS))
    assert one["model"].read_bytes() == other["model"].read_bytes()
    wrong = make_job(
        "wrong",
        {"model": tiny_model, "logits": logits, "text": text},
        **(OPTIONS | {"top_k": 16}),
    )
    with pytest.raises(InvalidInputError, match="of another text or top_k"):
        distill.run(wrong)


def test_few_steps_ask_the_teacher_only_of_what_they_reach(
    tiny_model: Path, teacher: Path, text: Path, make_job: MakeJob
) -> None:
    options = OPTIONS | {"max_steps": 2}
    asked = make_job("ask", {"teacher": teacher, "text": text}, **options)
    logits = distill.run_teacher(asked)["logits"]
    whole = distill.run(
        make_job(
            "stored", {"model": tiny_model, "logits": logits, "text": text}, **options
        )
    )
    totals: list[float] = []
    inputs = {"model": tiny_model, "teacher": teacher, "text": text}
    job = make_job("few", inputs, lambda _, total: totals.append(total), **options)
    few = distill.run(job)
    positions = len(np.load(logits))
    held_out = positions * 0.1 + OPTIONS["window_tokens"]
    assert totals[0] <= 2 * OPTIONS["batch_tokens"] + held_out < positions / 2
    for one, other in zip(
        evaluations(dict(few)), evaluations(dict(whole)), strict=True
    ):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


class StoppedError(Exception):
    """What a build's stop looks like to a job."""


def test_a_teacher_that_was_stopped_goes_on_where_it_was(
    teacher: Path, text: Path, make_job: MakeJob
) -> None:
    options = OPTIONS | {"batch_tokens": 64}
    inputs = {"teacher": teacher, "text": text}
    whole = distill.run_teacher(make_job("whole", inputs, **options))["logits"]
    total = len(np.load(whole))

    def stop(done: float, total: float) -> None:
        if done > total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        distill.run_teacher(make_job("cut", inputs, stop, **options))
    seen: list[float] = []
    resumed = distill.run_teacher(
        make_job("cut", inputs, lambda done, _: seen.append(done), **options)
    )["logits"]
    assert total / 4 < seen[0] < total
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("model", "teacher"), "either an input text or data"),
        (("model", "teacher", "text", "data"), "either an input text or data"),
        (("model", "text"), "needs an input teacher or logits"),
        (("teacher", "text"), "input model is missing"),
    ],
)
def test_missing_inputs_are_named(
    roles: tuple[str, ...],
    message: str,
    tiny_model: Path,
    text: Path,
    make_job: MakeJob,
) -> None:
    files = {"model": tiny_model, "teacher": tiny_model, "text": text, "data": text}
    job = make_job("missing", {role: files[role] for role in roles})
    with pytest.raises(InvalidInputError, match=message):
        distill.run(job)


def test_a_short_text_is_refused(
    tiny_model: Path, teacher: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    inputs = {"model": tiny_model, "teacher": teacher, "text": path}
    with pytest.raises(InvalidInputError, match="must have at least 256 tokens"):
        distill.run(make_job("short", inputs))
