"""A task asked of one file here and now, outside a build: nothing is cached."""

from pathlib import Path

from slmops.domain.errors import InvalidInputError, NotFoundError
from slmops.domain.ids import parse_digest
from slmops.domain.tasks import TaskAnswers, TaskPlan, TaskSplit
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.workshop.jobs.child import ChildOrder
from slmops.workshop.jobs.job import Report, unheard
from slmops.workshop.jobs.processes import JobProcesses
from slmops.workshop.models import find_model
from slmops.workshop.own_folder import own_folder, user_scratch
from slmops.workshop.tasks.ask import load_answers, task_parameters
from slmops.workshop.tasks.examples import TaskExamples, read_examples
from slmops.workshop.tasks.json_answers import read_schema


def find_artefact(workspace: Workspace, name: str) -> Path:
    """Return a model's file: a path, a built variant's digest, or an imported model.

    Raises:
        NotFoundError: none of them.
        InvalidInputError: the beginning of a digest fits several models.
    """
    if Path(name).is_file():
        return Path(name)
    blobs = BlobStore(workspace.blobs)
    if name.startswith("sha256:") and blobs.has(digest := parse_digest(name)):
        return blobs.path(digest)
    try:
        return blobs.path(find_model(workspace, name).id)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}; neither is there such a file or variant"
        ) from None


def check_examples(plan: TaskPlan) -> TaskExamples:
    """Read and check a task's examples and schema, by the plan's own paths."""
    schema = read_schema(Path(plan.schema)) if plan.schema is not None else None
    return read_examples(Path(plan.examples), plan, schema)


def ask_here(
    artefact: Path,
    plan: TaskPlan,
    *,
    split: TaskSplit = TaskSplit.ALL,
    threads: int = 1,
    report: Report = unheard,
) -> TaskAnswers:
    """Ask one file, in a child process.

    Args:
        artefact: GGUF file.
        plan: with paths of examples and schema as they are from here.
        split: which examples.
        threads: processors it may use.
        report: told how many examples are done.

    Raises:
        InvalidInputError: examples or schema are wrong, or the file does not load.
        UnavailableError: the runtime is not installed.
    """
    inputs = {"artefact": artefact, "examples": Path(plan.examples)}
    if plan.schema is not None:
        inputs["schema"] = Path(plan.schema)
    for path in inputs.values():
        if not path.is_file():
            raise InvalidInputError(f"{path}: must be a file")
    with (
        own_folder(user_scratch(), prefix="task-") as folder,
        JobProcesses() as processes,
    ):
        for name in ("output", "state"):
            (folder / name).mkdir()
        order = ChildOrder(
            kind="task",
            inputs={role: str(path.absolute()) for role, path in inputs.items()},
            parameters=task_parameters(plan, split=split),
            seed=0,
            output=f"{folder}/output",
            state=f"{folder}/state",
            threads=threads,
        )
        return load_answers(processes.run(order, report)["answers"])
