"""The job that puts a task's examples to one model, in the runtime that will serve it.

Every example is asked apart from all others, greedily, so an answer depends on its
example alone: a run that was killed goes on where it was, and comes out the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.domain.tasks import (
    TaskAnswer,
    TaskAnswers,
    TaskKind,
    TaskMethod,
    TaskMetric,
    TaskPlan,
    TaskSplit,
)
from slmops.runtimes.base import WorkerSettings, load_runtime
from slmops.wire.codec import decode_json, encode_json
from slmops.workshop.jobs.job import Job, Value
from slmops.workshop.tasks.chat import TaskChat, open_chat
from slmops.workshop.tasks.examples import (
    TaskExample,
    TaskExamples,
    asked_turns,
    choose_examples,
    examples_digest,
    read_examples,
)
from slmops.workshop.tasks.json_answers import AnswerSchema, read_schema
from slmops.workshop.tasks.marking import RawAnswer, mark
from slmops.workshop.tasks.rank import rank_labels

ANSWERS_FILE = "answers.json"
CONTEXT_TOKENS = 2048
"""Context of one question by default."""
_CHECKPOINT = "answers.jsonl"
_PLAN_FIELDS = (
    "name",
    "search_share",
    "labels",
    "constrained",
    "system",
    "template",
    "max_tokens",
    "limit",
)

Marked = Callable[[TaskExample, RawAnswer], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Everything that is asked, of whom."""

    plan: TaskPlan
    runtime: str
    artefact: Path
    settings: WorkerSettings
    schema: AnswerSchema | None
    found: TaskExamples
    split: TaskSplit
    asked: tuple[TaskExample, ...]

    def turns(self, example: TaskExample) -> list[dict[str, str]]:
        return asked_turns(example, self.found.labels, self.plan)


def task_parameters(
    plan: TaskPlan,
    *,
    split: TaskSplit = TaskSplit.TEST,
    runtime: str = "llamacpp",
    context_tokens: int = CONTEXT_TOKENS,
) -> dict[str, Value]:
    """Return the parameters of a `task` job; `plan.examples` and `plan.schema` are inputs."""
    return {
        **{name: getattr(plan, name) for name in _PLAN_FIELDS},
        "kind": str(plan.kind),
        "method": str(plan.asked_by),
        "metric": str(plan.scored_by),
        "split": str(split),
        "runtime": runtime,
        "context_tokens": context_tokens,
    }


def run(job: Job) -> Mapping[str, Path]:
    """Ask one model all examples of a split.

    Inputs: ``artefact``, ``examples`` (JSONL), and ``schema`` when the plan has one.
    Parameters: those of `task_parameters`. Outputs: ``answers``, a `TaskAnswers`.

    Raises:
        InvalidInputError: examples, schema or parameters are wrong, the model does not
            load, or an example does not fit the context.
        UnavailableError: the runtime is not installed or did not answer.
    """
    task = _task(job)
    with _Kept(job.state / _CHECKPOINT) as kept:
        left = [each for each in task.asked if each.line not in kept.answers]
        job.report(len(kept.answers), len(task.asked))

        def take(example: TaskExample, raw: RawAnswer) -> None:
            kept.add(
                mark(
                    example,
                    raw,
                    task.plan,
                    labels=task.found.labels,
                    schema=task.schema,
                )
            )
            job.report(len(kept.answers), len(task.asked))

        if left:
            ask = _rank if task.plan.asked_by is TaskMethod.RANK else _generate
            ask(task, left, take)
    output = job.output / ANSWERS_FILE
    output.write_bytes(encode_json(_answers(task, kept.answers)))
    return {"answers": output}


def load_answers(path: Path) -> TaskAnswers:
    """Read what a `task` job left."""
    return decode_json(path.read_bytes(), TaskAnswers, where=str(path))


def _task(job: Job) -> _Task:
    schema_path = job.inputs.get("schema")
    plan = _plan(job)
    schema = read_schema(schema_path) if schema_path is not None else None
    found = read_examples(job.inputs["examples"], plan, schema)
    split = TaskSplit(job.parameter("split", str))
    return _Task(
        plan=plan,
        runtime=job.parameter("runtime", str),
        artefact=job.inputs["artefact"],
        settings=WorkerSettings(
            threads=job.threads, context_tokens=job.parameter("context_tokens", int)
        ),
        schema=schema,
        found=found,
        split=split,
        asked=choose_examples(found, plan, split),
    )


def _plan(job: Job) -> TaskPlan:
    given = {name: job.parameters[name] for name in _PLAN_FIELDS}
    return TaskPlan(
        **given,  # type: ignore[arg-type]
        kind=TaskKind(job.parameter("kind", str)),
        method=TaskMethod(job.parameter("method", str)),
        metric=TaskMetric(job.parameter("metric", str)),
        examples="examples",
        schema="schema" if "schema" in job.inputs else None,
    )


def _generate(task: _Task, left: Sequence[TaskExample], take: Marked) -> None:
    with open_chat(task.runtime, task.artefact, task.settings) as chat:
        for example in left:
            raw = chat.answer(
                task.turns(example),
                max_tokens=task.plan.max_tokens,
                schema=task.schema.tree
                if task.schema is not None and task.plan.constrained
                else None,
                where=_where(task, example),
            )
            take(example, raw)


def _rank(task: _Task, left: Sequence[TaskExample], take: Marked) -> None:
    with open_chat(task.runtime, task.artefact, task.settings) as chat:
        # All of them, so that what they share is the same before and after a kill.
        prompts = dict(_rendered(task, chat))
        following = chat.written_behind_answers()
    ranked = rank_labels(
        (task.runtime, task.artefact, task.settings),
        prompts,
        task.found.labels,
        following,
        [example.line for example in left],
    )
    for example, raw in zip(left, ranked, strict=True):
        take(example, raw)


def _rendered(task: _Task, chat: TaskChat) -> Iterator[tuple[int, str]]:
    for example in task.asked:
        where = _where(task, example)
        yield example.line, chat.render(task.turns(example), where=where)


def _where(task: _Task, example: TaskExample) -> str:
    return f"{task.found.path}:{example.line}"


def _answers(task: _Task, answers: Mapping[int, TaskAnswer]) -> TaskAnswers:
    version = load_runtime(task.runtime).version()
    return TaskAnswers(
        name=task.plan.name,
        kind=task.plan.kind,
        method=task.plan.asked_by,
        metric=task.plan.scored_by,
        split=task.split,
        constrained=task.plan.constrained,
        examples=examples_digest(task.asked, task.found.labels, task.plan),
        labels=task.found.labels,
        runtime=f"{task.runtime} {version}",
        answers=tuple(answers[example.line] for example in task.asked),
    )


class _Kept:
    """Answers that outlive a kill: one a line; a half-written last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[int, TaskAnswer] = {}
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                try:
                    answer = decode_json(line, TaskAnswer, where=str(path))
                except InvalidInputError:
                    break
                self.answers[answer.line] = answer
                whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def add(self, answer: TaskAnswer) -> None:
        self.answers[answer.line] = answer
        self._file.write(encode_json(answer) + b"\n")
        self._file.flush()

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
