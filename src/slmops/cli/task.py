"""`slmops task`: check a task's examples, and ask one model about them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmops.cli import render
from slmops.registry.workspace import Workspace

if TYPE_CHECKING:
    from slmops.domain.estimate import Estimate
    from slmops.domain.tasks import TaskPlan, TaskResult

_KINDS = click.Choice(["classification", "extraction", "text"])
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def task() -> None:
    """Check a task's examples, and ask models about them.

    Example: slmops task check intents.jsonl --kind classification --train train.jsonl
    """


@task.command()
@click.argument("file", type=_FILE)
@click.option("--kind", type=_KINDS, required=True, help="What an answer is.")
@click.option("--label", "labels", multiple=True, help="A label; once for each.")
@click.option("--schema", type=_FILE, help="JSON Schema of right answers.")
@click.option("--train", type=_FILE, help="Training data that must share no prompt.")
@click.option(
    "--search-share",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of them to choose candidates by.",
)
@render.as_json
def check(
    *,
    file: Path,
    kind: str,
    labels: tuple[str, ...],
    schema: Path | None,
    train: Path | None,
    search_share: float,
    as_json: bool,
) -> None:
    """Check the examples in FILE: one {"prompt": …, "answer": …} a line.

    Tells the first mistake with its line; prints how many there are, of which labels, and
    how many each split gets. With --train, an example whose prompt is in the training
    data is an error with both lines.

    Example: slmops task check intents.jsonl --kind classification --train train.jsonl
    """
    from slmops.workshop.tasks.examples import split_counts
    from slmops.workshop.tasks.leakage import refuse_leakage
    from slmops.workshop.tasks.run_here import check_examples

    plan = _plan(file, kind, labels=labels, schema=schema, search_share=search_share)
    found = check_examples(plan)
    compared = refuse_leakage(found, train) if train is not None else None
    counts = split_counts(found, plan)
    if as_json:
        render.json_document(
            {"examples": len(found.examples), **counts, "training_lines": compared}
        )
        return
    render.text(
        f"{len(found.examples)} examples: {counts['search']} to choose by,"
        f" {counts['test']} to report"
    )
    if counts["labels"]:
        render.table(("label", "examples"), list(counts["labels"].items()))
    if compared is not None:
        render.text(f"no prompt is among the {compared} lines of {train}")


@task.command()
@click.argument("model")
@click.option("--examples", type=_FILE, required=True, help="JSONL file.")
@click.option("--kind", type=_KINDS, required=True, help="What an answer is.")
@click.option("--label", "labels", multiple=True, help="A label; once for each.")
@click.option("--system", help="System prompt; {labels} becomes the labels.")
@click.option("--template", default="{prompt}", show_default=True, help="User turn.")
@click.option("--schema", type=_FILE, help="JSON Schema of an extraction's answers.")
@click.option("--constrained", is_flag=True, help="Hold answers to the schema.")
@click.option("--method", type=click.Choice(["rank", "generate"]), help="How to ask.")
@click.option(
    "--metric",
    type=click.Choice(["accuracy", "field_f1", "exact_match", "rouge_l"]),
    help="What a score is.",
)
@click.option(
    "--max-tokens",
    type=int,
    default=64,
    show_default=True,
    help="Longest generated answer.",
)
@click.option("--limit", type=int, help="Most examples, drawn by a hash.")
@click.option("--reference", help="Model to compare with, pair by pair.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processors to use.",
)
@render.as_json
@click.pass_obj
def ask(
    workspace: Workspace,
    /,
    model: str,
    examples: Path,
    reference: str | None,
    threads: int,
    as_json: bool,
    **asking: Any,  # noqa: ANN401 - options of the plan
) -> None:
    """Ask MODEL the examples of a task and print its figures with 95 % bounds.

    MODEL is a GGUF file, an imported model, or the digest of a built variant.

    Example: slmops task ask smollm2 --examples intents.jsonl --kind classification --limit 200
    """
    from slmops.workshop.tasks.flips import task_result
    from slmops.workshop.tasks.run_here import ask_here, find_artefact

    plan = _plan(examples, asking.pop("kind"), **asking)
    paths = [find_artefact(workspace, name) for name in (reference, model) if name]
    with render.progress(quiet=as_json) as progress:

        def report(done: float, total: float) -> None:
            progress("ask", done, total)

        answers = [
            ask_here(path, plan, threads=threads, report=report) for path in paths
        ]
    result = task_result(answers[-1], answers[0] if reference else None)
    if as_json:
        render.json_document(result)
        return
    _show(result)


@task.command("lm-eval")
@click.argument("model")
@click.option("--tasks", required=True, help="Names of lm-eval's tasks, with commas.")
@click.option(
    "--include",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with task files of your own.",
)
@click.option("--limit", type=int, help="Most examples of each task.")
@click.option("--shots", type=int, help="Examples shown first; the task's own number.")
@click.option("--chat", is_flag=True, help="Ask through the model's chat template.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processors to use.",
)
@render.as_json
@click.pass_obj
def lm_eval(
    workspace: Workspace,
    /,
    model: str,
    tasks: str,
    include: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - options of the run
) -> None:
    """Run tasks of EleutherAI's lm-eval on MODEL, in the runtime that serves.

    Needs `pip install lm-eval`; its tasks load their data from the Hub. --include adds a
    folder with task files of your own.

    Example: slmops task lm-eval smollm2 --tasks arc_easy --limit 100
    """
    from slmops.workshop.tasks.lm_eval import HarnessPlan, run_lm_eval
    from slmops.workshop.tasks.run_here import find_artefact

    plan = HarnessPlan(tasks=tuple(tasks.split(",")), include=include, **options)
    figures = run_lm_eval(find_artefact(workspace, model), plan)
    if as_json:
        render.json_document({"results": figures})
        return
    render.table(
        ("task", "figure", "value", "standard error"),
        [
            (each.task, each.figure, round(each.value, 4), each.standard_error)
            for each in figures
        ],
    )


def _plan(file: Path, kind: str, **options: Any) -> "TaskPlan":  # noqa: ANN401
    from slmops.domain.tasks import TaskKind, TaskMethod, TaskMetric, TaskPlan

    for name, enum in (("method", TaskMethod), ("metric", TaskMetric)):
        if options.get(name):
            options[name] = enum(options[name])
    if options.get("schema"):
        options["schema"] = str(options["schema"])
    return TaskPlan(name="task", kind=TaskKind(kind), examples=str(file), **options)


def _show(result: "TaskResult") -> None:
    def row(name: str, figure: "Estimate") -> tuple[str, float, str]:
        return name, round(figure.value, 4), f"{figure.low:.3f} – {figure.high:.3f}"

    rows = [row(result.metric, result.score)]
    if result.difference is not None:
        rows.append(row("against the reference", result.difference))
    rows += [row(name, figure) for name, figure in result.metrics.items()]
    render.table(("figure", "value", "95 %"), rows)
    render.text(f"{result.examples} examples {result.examples_digest}")
    if result.flips is not None:
        render.text(
            f"{result.flips.right_to_wrong} right → wrong,"
            f" {result.flips.wrong_to_right} wrong → right"
            f" (McNemar's exact p {result.flips.p_value:.3g})"
        )
    for each in result.confusions[:5]:
        render.text(f"{each.count} × {each.expected!r} answered {each.answer!r}")
