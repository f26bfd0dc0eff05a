"""From a lesson and a job to a finished run and its log: what all trainings share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from slmops.wire.codec import encode_json_pretty
from slmops.workshop.jobs.job import Job
from slmops.workshop.training.batches import padded_share
from slmops.workshop.training.lessons import TokenLesson, step_plan
from slmops.workshop.training.log import TrainingLog
from slmops.workshop.training.loop import Course, train
from slmops.workshop.training.machine import versions
from slmops.workshop.training.settings import DistillSettings, FinetuneSettings


def run_course(
    job: Job,
    settings: FinetuneSettings | DistillSettings,
    lesson: TokenLesson,
    *,
    kind: str,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TrainingLog:
    """Train every parameter that requires gradients; leaves the best weights in place."""
    causal, sequences = lesson.model.causal, lesson.training
    if settings.gradient_checkpointing:
        # Renamed in transformers 5.24; the old name warns there and goes in 6.
        enable = getattr(
            causal,
            "activation_checkpointing_enable",
            causal.gradient_checkpointing_enable,
        )
        enable({"use_reentrant": False})
    named = {name: p for name, p in causal.named_parameters() if p.requires_grad}
    plan, looks = step_plan(sequences.lengths, settings, seed=job.seed)
    progress = train(
        Course(
            lesson=lesson,
            named=named,
            plan=plan,
            evaluate_at=looks,
            settings=settings,
            peak=settings.peak,
            machine=sequences.machine,
            seed=job.seed,
            state=job.state / "training",
            report=job.report,
            around=around,
        )
    )
    everyone = tuple(range(len(sequences.examples)))
    first = [batch for step in plan for batch in step]
    return TrainingLog(
        kind=kind,
        device=sequences.machine.device,
        precision=sequences.machine.precision,
        threads=job.threads,
        seed=job.seed,
        versions=versions(),
        parameters=sum(
            p.numel() for n, p in causal.named_parameters() if "lora_" not in n
        ),
        trained_parameters=sum(p.numel() for p in named.values()),
        examples=len(everyone),
        held_out_examples=len(lesson.held_out.examples),
        learnt_tokens=sequences.learnt(everyone),
        padded_share=padded_share(sequences.lengths, first),
        planned_steps=len(plan),
        best_step=progress.best_step,
        stopped_early=progress.stopped_early,
        steps=progress.steps,
        evaluations=progress.evaluations,
    )


def write_log(log: TrainingLog, folder: Path) -> Path:
    """Write a log as JSON."""
    path = folder / "log.json"
    path.write_text(encode_json_pretty(log))
    return path
