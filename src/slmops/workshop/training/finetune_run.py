"""Fine-tuning with torch: what the job ``finetune`` runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmops.workshop.jobs.job import Job
from slmops.workshop.training.adapters import (
    add_adapters,
    merge_adapters,
    save_adapter,
)
from slmops.workshop.training.bridge import TorchModel, open_model, save_model
from slmops.workshop.training.chat import TokenExample, render_examples
from slmops.workshop.training.courses import run_course, write_log
from slmops.workshop.training.data import (
    Example,
    read_examples,
    refuse_leakage,
    split_examples,
)
from slmops.workshop.training.lessons import Sequences, TokenLesson, true_tokens
from slmops.workshop.training.machine import open_machine
from slmops.workshop.training.settings import FinetuneSettings, input_file


def finetune(job: Job, settings: FinetuneSettings) -> Mapping[str, Path]:
    """Train on the job's examples and write model, adapter and log."""
    training, held_out = _examples(job, settings)
    machine = open_machine(settings.precision, threads=job.threads)
    model = open_model(input_file(job, "model"), job.state / "checkpoint", machine)
    lesson = TokenLesson(
        model=model,
        training=Sequences(_tokens(training, model, settings), machine),
        held_out=Sequences(_tokens(held_out, model, settings), machine),
        batch_tokens=settings.batch_tokens,
        losses=true_tokens,
        held_out_losses=true_tokens,
    )
    adapted: Any = None
    if settings.method == "lora":
        machine.seed(job.seed)
        adapted = add_adapters(model.causal, settings)
    log = run_course(job, settings, lesson, kind="finetune")
    outputs = {"log": write_log(log, job.output)}
    if adapted is not None:
        outputs |= save_adapter(adapted, model.source, job)
    if settings.merge:
        if adapted is not None:
            merge_adapters(adapted)
        outputs["model"] = job.output / "model.gguf"
        save_model(model, outputs["model"])
    return outputs


def _examples(
    job: Job, settings: FinetuneSettings
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    examples = read_examples(input_file(job, "data"))
    if "validation" not in job.inputs:
        return split_examples(examples, share=settings.held_out, seed=job.seed)
    held_out = read_examples(job.inputs["validation"])
    refuse_leakage(examples, held_out)
    return examples, held_out


def _tokens(
    examples: tuple[Example, ...], model: TorchModel, settings: FinetuneSettings
) -> tuple[TokenExample, ...]:
    return render_examples(examples, model.tokenizer, max_tokens=settings.max_tokens)
