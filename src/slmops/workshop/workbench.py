"""What steps are run with: the cache of finished ones, an executor, and a progress line.

A step that is a job is described by its kind, inputs, parameters and seed alone; this is
where that becomes a `Step` with its tools' versions, and where it runs.
"""

import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slmops.domain.ids import Digest, digest_hex
from slmops.registry.blobs import BlobStore
from slmops.registry.workspace import Workspace
from slmops.runtimes.base import load_runtime
from slmops.workshop.board import Board
from slmops.workshop.jobs.executor import Executor, LocalExecutor
from slmops.workshop.jobs.job import Value
from slmops.workshop.jobs.kinds import find_kind
from slmops.workshop.jobs.order import Order
from slmops.workshop.jobs.processes import JobProcesses
from slmops.workshop.jobs.tools import tool_version
from slmops.workshop.steps import Step, StepCache, StepRecord, StepRunner

Begun = Callable[[Step], Mapping[str, Digest]]
"""Finds what shortens a job: role → blob of an earlier one that began the same."""


def not_begun(step: Step) -> Mapping[str, Digest]:
    """Find nothing."""
    del step
    return {}


@dataclass(kw_only=True, slots=True)
class Workbench:
    """Runs the jobs of one build, or finds that they were run."""

    runner: StepRunner
    """Knows what is finished."""
    executor: Executor
    """Runs what is not."""
    board: Board
    """Told what runs."""

    @property
    def blobs(self) -> BlobStore:
        """Where inputs and outputs lie."""
        return self.runner.cache.blobs

    def run(
        self,
        name: str,
        kind: str,
        inputs: Mapping[str, Digest],
        parameters: Mapping[str, Value],
        *,
        seed: int = 0,
        begun: Begun = not_begun,
    ) -> StepRecord:
        """Return the record of a job, running it only when no earlier build did.

        Args:
            name: for people: ``quantize Q4_K_M``.
            kind: row of the table of kinds.
            inputs: role → blob.
            parameters: everything else that decides the outputs.
            seed: of any chance in it.
            begun: asked once the job must run. What it finds is no part of the key: the
                job does with it less work, and leaves the same bytes.

        Raises:
            SlmopsError: what the job raised; see `Executor.run`.
        """
        step = job_step(kind, inputs, parameters, seed=seed)

        def compute() -> Mapping[str, Digest]:
            order = Order(
                key=digest_hex(step.digest),
                kind=kind,
                inputs={**begun(step), **inputs},
                parameters=parameters,
                seed=seed,
            )
            with self.board.task(name) as report:
                return self.executor.run(order, self.blobs, report)

        return self.runner.run(name, step, compute)

    @contextmanager
    def pool(self, threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
        """Run jobs from threads; on an error or Ctrl-C stop what runs, drop the rest.

        Args:
            threads: how many; by default one for each slot of the executor.
        """
        pool = ThreadPoolExecutor(threads or self.executor.slots)
        try:
            yield pool
        except BaseException:
            self.board.stop()
            self.executor.stop()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def local_workbench(workspace: Workspace, board: Board) -> Iterator[Workbench]:
    """Have a bench on this machine's processors; its children end with the block."""
    cache = StepCache(workspace)
    with JobProcesses() as processes:
        yield Workbench(
            runner=StepRunner(cache, on_reuse=board.reuse),
            executor=LocalExecutor(
                processes=processes, scratch=cache.scratch, state=cache.state
            ),
            board=board,
        )


@contextmanager
def ray_workbench(
    workspace: Workspace, board: Board, address: str | None = None
) -> Iterator[Workbench]:
    """Have a bench on a Ray cluster; see `slmops.workshop.jobs.ray_executor`.

    Raises:
        InvalidInputError: Ray is not installed, or the address is a client's.
        UnavailableError: no cluster answers at the address, or none starts.
    """
    from slmops.workshop.jobs.ray_executor import ray_executor

    cache = StepCache(workspace)
    with ray_executor(cache.scratch, address=address) as executor:
        yield Workbench(
            runner=StepRunner(cache, on_reuse=board.reuse),
            executor=executor,
            board=board,
        )


def job_step(
    kind: str,
    inputs: Mapping[str, Digest],
    parameters: Mapping[str, Value],
    *,
    seed: int = 0,
) -> Step:
    """Describe a job as a step: its digest is the key of its outputs.

    Raises:
        NotFoundError: no such kind, or no such runtime.
    """
    row = find_kind(kind)
    tool = tool_version(*row.code, packages=row.packages)
    if row.in_runtime:
        tool += f"; {runtime_tool(str(parameters['runtime']))}"
    return Step(kind=kind, tool=tool, inputs=inputs, parameters=parameters, seed=seed)


def runtime_tool(name: str) -> str:
    """Name a runtime with its version and the code that drives it."""
    runtime = load_runtime(name)
    module = type(runtime).__module__
    package = module.rpartition(".")[0]
    folder = importlib.resources.files(package)
    # A backend is one module and those that begin with its name: its scorer, its server.
    modules = sorted(
        f"{package}.{Path(file.name).stem}"
        for file in folder.iterdir()
        if f"{package}.{file.name}".startswith(module) and file.name.endswith(".py")
    )
    return f"{name} {runtime.version()}, {tool_version(*modules)}"
