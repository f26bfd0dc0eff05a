"""Fine-tune a small model on 20 intents of BANKING77, quantize it, and count answers.

Prints the accuracy of the base model, of the tuned one in 16 bits and of its quantized
variants on held-out examples, with sizes and times. The answer is the name that the model
finds likeliest, in the runtime that serves. With ``--layers``, a smaller student is made
too: vocabulary trimmed, layers taken out by influence, distilled from the tuned model.

BANKING77 (Casanueva et al. 2020) is two CSV files, ``train.csv`` and ``test.csv``, with the
columns ``text`` and ``category``. What a stage computed in ``--work`` is not computed again.

    python bench/finetune_banking77.py --model model.gguf --data banking77 --work out
"""

import argparse
import csv
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Column, print_table, write_json

from slmops.runtimes.base import WorkerSettings
from slmops.workshop.jobs.job import Job, JobFunction, Value
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.quantize import quantize_gguf
from slmops.workshop.tasks.rank import rank_labels
from slmops.workshop.training import finetune

SYSTEM = "Name the intent."
INTENTS = 20
TYPES = ("Q8_0", "Q4_K_M", "Q4_0")
SEED = 77
TEMPLATE = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One example."""

    text: str
    """What a customer wrote."""
    intent: str
    """Its name, in words."""

    def line(self) -> str:
        """Return it as a line of training data."""
        turns = {"system": SYSTEM, "user": self.text, "assistant": self.intent}
        messages = [{"role": role, "content": text} for role, text in turns.items()]
        return json.dumps({"messages": messages}) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model's result."""

    name: str
    megabytes: float
    right: int
    questions: int
    low: float
    """Wilson bound of the accuracy, 95 %."""
    high: float
    seconds: float
    """Time to answer all."""


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="16-bit GGUF")
    parser.add_argument("--data", type=Path, required=True, help="folder of BANKING77")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--train", type=int, default=800, help="training examples")
    parser.add_argument("--test", type=int, default=300, help="test examples")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--method", default="full", choices=["full", "lora"])
    parser.add_argument("--layers", type=int, default=0, help="also prune to so many")
    parser.add_argument(
        "--tokens", type=int, default=8000, help="vocabulary when pruned"
    )
    parser.add_argument("--distill-epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = intents(options.data)
    training = read_questions(options.data / "train.csv", names)
    test = without(read_questions(options.data / "test.csv", names), training)
    training, validation = training[: options.train], training[options.train :][:100]
    test = test[: options.test]
    tuned = run_job(
        finetune.run,
        options.work / f"finetune-{options.method}",
        inputs={
            "model": options.model,
            "data": write_lines(options.work / "train.jsonl", training),
            "validation": write_lines(options.work / "validation.jsonl", validation),
        },
        parameters={
            "method": options.method,
            "learning_rate": 1e-4 if options.method == "full" else 1e-3,
            "epochs": options.epochs,
            "batch_tokens": 640,
        },
        threads=options.threads,
    )
    models = {"tuned, 16 bit": tuned["model"]}
    for kind in TYPES:
        models[f"tuned, {kind}"] = quantized(tuned["model"], kind)
    if options.layers:
        smaller = pruned(tuned["model"], options, training)
        models["smaller, 16 bit"] = smaller
        for kind in TYPES:
            models[f"smaller, {kind}"] = quantized(smaller, kind)
    models["base, 16 bit"] = options.model
    rows = []
    for name, path in models.items():
        rows.append(answered(name, path, test, names, threads=options.threads))
        print(f"{name}: {rows[-1].right} of {rows[-1].questions}", flush=True)
    show(rows)
    log = json.loads(tuned["log"].read_text())
    print(
        f"training: {len(log['steps'])} steps of"
        f" {sum(step['tokens'] for step in log['steps'])} tokens, {log['precision']},"
        f" {log['threads']} thread(s), best step {log['best_step']}"
    )
    write_json(options.json, {"rows": rows, "log": log})


def intents(folder: Path) -> tuple[str, ...]:
    """Return the first 20 intents of the training file by name, in words."""
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        found = {row["category"] for row in csv.DictReader(file)}
    return tuple(name.replace("_", " ") for name in sorted(found)[:INTENTS])


def read_questions(path: Path, names: Sequence[str]) -> list[Question]:
    """Read the questions of some intents, each text once, in an order of chance."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    once = {key(text): (text, name.replace("_", " ")) for text, name in rows}
    found = [Question(text=t, intent=n) for t, n in once.values() if n in names]
    random.Random(SEED).shuffle(found)  # noqa: S311 - an order, no secret
    return found


def without(questions: list[Question], others: list[Question]) -> list[Question]:
    """Leave out questions whose text is among others'."""
    known = {key(question.text) for question in others}
    return [question for question in questions if key(question.text) not in known]


def key(text: str) -> str:
    """Return what texts share that read the same."""
    return " ".join(text.casefold().split())


def write_lines(path: Path, questions: Sequence[Question]) -> Path:
    """Write training data."""
    path.write_text("".join(question.line() for question in questions))
    return path


def run_job(
    function: JobFunction,
    folder: Path,
    *,
    inputs: Mapping[str, Path],
    parameters: Mapping[str, Value],
    threads: int,
) -> Mapping[str, Path]:
    """Run a job in a folder of its own, or return what it left there."""
    done = folder / "outputs.json"
    if done.is_file():
        return {role: Path(path) for role, path in json.loads(done.read_text()).items()}
    (folder / "output").mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def report(done: float, total: float) -> None:
        passed = time.perf_counter() - began
        print(f"{folder.name}: {done:.0f} of {total:.0f}, {passed:.0f} s", flush=True)

    job = Job(
        inputs=inputs,
        parameters=parameters,
        output=folder / "output",
        state=folder / "state",
        seed=SEED,
        threads=threads,
        report=report,
    )
    outputs = function(job)
    done.write_text(json.dumps({role: str(path) for role, path in outputs.items()}))
    return outputs


def pruned(
    tuned: Path, options: argparse.Namespace, training: Sequence[Question]
) -> Path:
    """Trim the tuned model's vocabulary, take out layers, distill from the trimmed one."""
    text = options.work / "training.txt"
    text.write_text("\n".join(f"{row.text}\n{row.intent}" for row in training))
    name = f"{options.tokens}-{options.layers}"

    def step(
        kind: str, inputs: Mapping[str, Path], parameters: Mapping[str, Value]
    ) -> Mapping[str, Path]:
        return run_job(
            find_kind(kind).load(),
            options.work / f"{kind}-{name}",
            inputs=inputs,
            parameters=parameters,
            threads=options.threads,
        )

    trimmed = step(
        "trim-vocabulary", {"model": tuned, "text": text}, {"tokens": options.tokens}
    )["model"]
    measured = step(
        "statistics",
        {"model": trimmed, "text": text},
        {"tokens": 4096, "window_tokens": 256, "hessians": False},
    )["statistics"]
    shallow = step(
        "prune-depth",
        {"model": trimmed, "statistics": measured},
        {"layers": options.layers},
    )["model"]
    return step(
        "distill",
        {
            "model": shallow,
            "teacher": trimmed,
            "data": options.work / "train.jsonl",
            "validation": options.work / "validation.jsonl",
        },
        {
            "learning_rate": 2e-4,
            "epochs": options.distill_epochs,
            "batch_tokens": 640,
            "label_weight": 0.5,
        },
    )["model"]


def quantized(model: Path, kind: str) -> Path:
    """Quantize beside the model, without an importance matrix."""
    path = model.with_name(f"{model.stem}-{kind}.gguf")
    if not path.is_file():
        with path.open("wb") as sink:
            quantize_gguf(model, kind, sink)
    return path


def answered(
    name: str,
    model: Path,
    questions: Sequence[Question],
    names: Sequence[str],
    *,
    threads: int,
) -> Row:
    """Ask all questions and count right answers."""
    settings = WorkerSettings(threads=threads, context_tokens=256)
    prompts = {
        index: TEMPLATE.format(system=SYSTEM, text=question.text)
        for index, question in enumerate(questions)
    }
    began = time.perf_counter()
    answers = rank_labels(
        ("llamacpp", model, settings), prompts, names, "<|im_end|>\n", list(prompts)
    )
    pairs = zip(questions, answers, strict=True)
    right = sum(answer.text == question.intent for question, answer in pairs)
    low, high = wilson(right, len(questions))
    return Row(
        name=name,
        megabytes=model.stat().st_size / 1e6,
        right=right,
        questions=len(questions),
        low=low,
        high=high,
        seconds=time.perf_counter() - began,
    )


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return 95 % bounds of a share (Wilson 1927)."""
    z = 1.96
    share, square = right / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / total + square / 4 / total) ** 0.5
    return middle - half, middle + half


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    columns = [
        Column(title="model", width=16),
        Column(title="MB", width=7),
        Column(title="accuracy", width=9),
        Column(title="95 %", width=13),
        Column(title="s", width=6),
    ]
    print_table(
        columns,
        [
            [
                row.name,
                f"{row.megabytes:.1f}",
                f"{row.right / row.questions:.3f}",
                f"{row.low:.3f}–{row.high:.3f}",
                f"{row.seconds:.0f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
