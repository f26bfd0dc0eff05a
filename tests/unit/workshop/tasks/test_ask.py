"""The `task` job in the real runtime, on a tiny model whose answers are noise."""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.domain.tasks import TaskAnswers, TaskKind, TaskMethod, TaskPlan, TaskSplit
from slmops.testing.tiny_gguf import write_tiny_llama
from slmops.workshop.jobs.job import Job
from slmops.workshop.tasks import ask
from slmops.workshop.tasks.flips import task_result

pytestmark = pytest.mark.slow

MakeJob = Callable[..., Job]
LABELS = TaskPlan(
    name="intents",
    kind=TaskKind.CLASSIFICATION,
    examples="x",
    system="One of: {labels}.",
    labels=("card", "card lost", "rate"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    chance = random.Random(3)
    path = tmp_path / "examples.jsonl"
    lines = [
        {"prompt": f"question {at} {chance.random()}", "answer": LABELS.labels[at % 3]}
        for at in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def make_job(model: Path, examples: Path, tmp_path: Path) -> MakeJob:
    def make(plan: TaskPlan = LABELS, name: str = "job", **inputs: Path) -> Job:
        for folder in ("output", "state"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        return Job(
            inputs={"artefact": model, "examples": examples, **inputs},
            parameters=ask.task_parameters(
                plan, split=TaskSplit.ALL, context_tokens=512
            ),
            output=tmp_path / name / "output",
            state=tmp_path / name / "state",
        )

    return make


def answered(made: Mapping[str, Path]) -> TaskAnswers:
    return ask.load_answers(made["answers"])


def test_labels_are_ranked_with_probabilities(make_job: MakeJob) -> None:
    found = answered(ask.run(make_job()))
    assert [each.line for each in found.answers] == list(range(1, 13))
    assert {each.answer for each in found.answers} <= set(LABELS.labels)
    assert all(1 / 3 <= (each.confidence or 0) <= 1 for each in found.answers)
    result = task_result(found)
    assert {"macro_f1", "ece"} == set(result.metrics)


def test_a_run_that_was_killed_goes_on_and_comes_out_the_same(
    make_job: MakeJob,
) -> None:
    whole = ask.run(make_job(name="whole"))["answers"].read_bytes()
    told: list[float] = []

    def stop(done: float, total: float) -> None:
        told.append(done)
        if done == 5:
            raise UnavailableError("the build was stopped")

    job = make_job(name="killed")
    with pytest.raises(UnavailableError):
        ask.run(dataclasses.replace(job, report=stop))
    with (job.state / "answers.jsonl").open("ab") as file:
        file.write(b'{"line": 6, "answ')  # as a kill in the middle of a write leaves it
    told.clear()
    again = ask.run(dataclasses.replace(job, report=lambda done, _: told.append(done)))
    assert told[0] == 5
    assert again["answers"].read_bytes() == whole


def test_generated_answers_come_through_the_servers_chat(make_job: MakeJob) -> None:
    plan = dataclasses.replace(
        LABELS, method=TaskMethod.GENERATE, max_tokens=4, limit=3
    )
    found = answered(ask.run(make_job(plan)))
    assert len(found.answers) == 3
    assert all(each.confidence is None for each in found.answers)
    assert "validity" in task_result(found).metrics


def test_a_schema_makes_noise_valid(
    make_job: MakeJob, examples: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"kind": {"enum": ["a", "b"]}},
                "required": ["kind"],
                "additionalProperties": False,
            }
        )
    )
    lines = [{"prompt": f"q{at}", "answer": {"kind": "a"}} for at in range(3)]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    free = TaskPlan(
        name="fields",
        kind=TaskKind.EXTRACTION,
        examples="x",
        schema="s",
        max_tokens=32,
    )
    held = dataclasses.replace(free, constrained=True)
    loose = answered(ask.run(make_job(free, name="free", schema=schema)))
    tight = answered(ask.run(make_job(held, name="held", schema=schema)))
    assert [each.valid for each in loose.answers] == [False] * 3
    assert [each.valid for each in tight.answers] == [True] * 3


def test_an_example_longer_than_the_context_is_named(
    make_job: MakeJob, examples: Path
) -> None:
    lines = [
        {"prompt": "short", "answer": "rate"},
        {"prompt": "long " * 300, "answer": "card"},
    ]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInputError, match="line 2: a window must have"):
        ask.run(make_job(name="rank"))
    plan = dataclasses.replace(LABELS, method=TaskMethod.GENERATE)
    with pytest.raises(InvalidInputError, match=r"jsonl:2: refused by the runtime"):
        ask.run(make_job(plan, name="generate"))


def test_nothing_is_asked_when_an_example_is_wrong(
    make_job: MakeJob, examples: Path
) -> None:
    examples.write_text('{"prompt": "a", "answer": "rate"}\n{"prompt": "b"}\n')
    with pytest.raises(InvalidInputError, match=r"jsonl:2: must be"):
        ask.run(make_job())
