"""Distillation with torch: what the jobs ``distill`` and ``recover`` run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.errors import InvalidInputError
from slmops.workshop.jobs.job import Job
from slmops.workshop.training.bridge import (
    TorchModel,
    open_model,
    refuse_other_tokenizer,
    save_model,
    text_tokens,
)
from slmops.workshop.training.chat import TokenExample, cut_text, render_examples
from slmops.workshop.training.courses import run_course, write_log
from slmops.workshop.training.data import (
    read_examples,
    refuse_leakage,
    split_examples,
)
from slmops.workshop.training.fake_quant import open_assignment
from slmops.workshop.training.lessons import (
    Sequences,
    TaughtTokens,
    TokenLesson,
    step_plan,
)
from slmops.workshop.training.machine import Machine, open_machine
from slmops.workshop.training.settings import DistillSettings, input_file
from slmops.workshop.training.teacher import open_teacher_file, record_type
from slmops.workshop.training.teaching import TeacherPlan, write_teacher_file

_LEAST_WINDOWS = 2
Around = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Material:
    training: tuple[TokenExample, ...]
    held_out: tuple[TokenExample, ...]

    @property
    def all(self) -> tuple[TokenExample, ...]:
        return (*self.training, *self.held_out)


def distill(job: Job, settings: DistillSettings, *, kind: str) -> Mapping[str, Path]:
    """Train the student against the teacher and write model and log."""
    student_path = input_file(job, "model")
    teacher_path = _teacher_path(job, kind)
    machine = open_machine(settings.precision, threads=job.threads)
    student = open_model(student_path, job.state / "checkpoint", machine)
    # Checked before the teacher is asked: that takes longest.
    around = _around(job, student, kind)
    material = _material(job, settings, student)
    if teacher_path is None:
        logits = input_file(job, "logits")
    else:
        logits = _asked(job, settings, teacher_path, material, machine)
    top_k = _top_k(settings, student)
    file = open_teacher_file(
        logits, material.all, record_type(top_k, student.causal.config.vocab_size)
    )

    def taught(first: int, label_weight: float) -> TaughtTokens:
        return TaughtTokens(
            teacher=file,
            first=first,
            temperature=settings.temperature,
            label_weight=label_weight,
        )

    lesson = TokenLesson(
        model=student,
        training=Sequences(material.training, machine),
        held_out=Sequences(material.held_out, machine),
        batch_tokens=settings.batch_tokens,
        losses=taught(0, settings.label_weight),
        held_out_losses=taught(len(material.training), settings.label_weight),
    )
    log = run_course(job, settings, lesson, kind=kind, around=around)
    output = job.output / "model.gguf"
    save_model(student, output)
    return {"model": output, "log": write_log(log, job.output)}


def teacher_logits(job: Job, settings: DistillSettings) -> Mapping[str, Path]:
    """Ask the teacher and write what it says."""
    machine = open_machine(settings.precision, threads=job.threads)
    teacher = open_model(input_file(job, "teacher"), job.state / "teacher", machine)
    material = _material(job, settings, teacher)
    path = job.output / "logits.npy"
    state = job.state / "logits.npy"
    write_teacher_file(
        teacher,
        material.all,
        state,
        plan=_plan(settings, teacher, machine),
        report=job.report,
    )
    state.replace(path)
    return {"logits": path}


def _teacher_path(job: Job, kind: str) -> Path | None:
    """Return the teacher, which has the student's tokenizer, or None for its logits."""
    if "logits" in job.inputs:
        return None
    student = input_file(job, "model")
    path = job.inputs.get("teacher") or (student if kind == "recover" else None)
    if path is None:
        raise InvalidInputError(
            f"{kind} needs an input teacher or logits, got {sorted(job.inputs)}"
        )
    refuse_other_tokenizer(student, path)
    return path


def _around(job: Job, student: TorchModel, kind: str) -> Around:
    if kind != "recover":
        return nullcontext
    path = input_file(job, "assignment")
    return open_assignment(student, path.read_bytes(), str(path)).rounded


def _asked(
    job: Job,
    settings: DistillSettings,
    teacher_path: Path,
    material: _Material,
    machine: Machine,
) -> Path:
    path = job.state / "teacher.npy"
    if path.is_file():
        return path
    teacher = open_model(teacher_path, job.state / "teacher", machine)
    write_teacher_file(
        teacher,
        material.all,
        path,
        plan=_plan(settings, teacher, machine),
        report=job.report,
        wanted=_learnt_from(settings, material, job.seed),
    )
    return path


def _learnt_from(
    settings: DistillSettings, material: _Material, seed: int
) -> list[int]:
    """Return which sequences the steps reach, and all that are held out.

    A few steps over a long text see little of it, and the teacher is what costs most.
    """
    lengths = [len(example.tokens) for example in material.training]
    plan, _ = step_plan(lengths, settings, seed=seed)
    reached = {index for step in plan for batch in step for index in batch}
    return [*sorted(reached), *range(len(lengths), len(material.all))]


def _plan(
    settings: DistillSettings, teacher: TorchModel, machine: Machine
) -> TeacherPlan:
    return TeacherPlan(
        top_k=_top_k(settings, teacher),
        temperature=settings.temperature,
        batch_tokens=settings.batch_tokens,
        machine=machine,
    )


def _top_k(settings: DistillSettings, model: TorchModel) -> int:
    return min(settings.top_k, int(model.causal.config.vocab_size))


def _material(job: Job, settings: DistillSettings, model: TorchModel) -> _Material:
    if ("text" in job.inputs) == ("data" in job.inputs):
        raise InvalidInputError(
            f"distillation needs either an input text or data, got {sorted(job.inputs)}"
        )
    if "data" in job.inputs:
        return _from_data(job, settings, model)
    return _from_text(job, settings, model)


def _from_data(job: Job, settings: DistillSettings, model: TorchModel) -> _Material:
    examples = read_examples(job.inputs["data"])
    if "validation" in job.inputs:
        held_out = read_examples(job.inputs["validation"])
        refuse_leakage(examples, held_out)
    else:
        examples, held_out = split_examples(
            examples, share=settings.held_out, seed=job.seed
        )
    training, held = (
        render_examples(part, model.tokenizer, max_tokens=settings.max_tokens)
        for part in (examples, held_out)
    )
    return _Material(training=training, held_out=held)


def _from_text(job: Job, settings: DistillSettings, model: TorchModel) -> _Material:
    windows = _windows(job.inputs["text"], settings, model)
    if "validation" in job.inputs:
        held = _windows(job.inputs["validation"], settings, model)
        return _Material(training=windows, held_out=held)
    if len(windows) < _LEAST_WINDOWS:
        raise InvalidInputError(
            f"text must have at least {_LEAST_WINDOWS} windows of"
            f" {settings.window_tokens} tokens, or a validation text be given"
        )
    # The end of the text: neighbouring windows are alike, so a random choice would leak.
    count = max(round(settings.held_out * len(windows)), 1)
    return _Material(training=windows[:-count], held_out=windows[-count:])


def _windows(
    path: Path, settings: DistillSettings, model: TorchModel
) -> tuple[TokenExample, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path}: must be UTF-8: {error.reason} at byte {error.start}"
        ) from None
    return cut_text(
        text_tokens(model, text),
        window_tokens=settings.window_tokens,
        windows=settings.max_windows or None,
    )
