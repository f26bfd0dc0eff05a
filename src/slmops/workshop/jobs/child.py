"""The child process that runs one job.

Started as ``python -m slmops.workshop.jobs.child`` by `processes`, because a malformed
model can abort the process that loads it, and because memory comes back when it ends.
Standard input carries one line of JSON, the order, and then stays open for as long as
the parent lives; reports go to a pipe of their own, because standard output belongs to
the engine.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmops.domain.errors import SlmopsError
from slmops.workshop.disk import full_disk
from slmops.workshop.jobs.job import Job, Value
from slmops.workshop.jobs.kinds import find_kind


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildOrder:
    """One job by paths of this machine."""

    kind: str
    """Row of the table of kinds."""
    inputs: Mapping[str, str]
    """Role → path."""
    parameters: Mapping[str, Value]
    """As the step has them."""
    seed: int
    """As the step has it."""
    output: str
    """Empty folder for outputs."""
    state: str
    """Folder for checkpoints."""
    threads: int
    """Processors it may use."""

    def line(self, report_fd: int) -> bytes:
        """Encode it for the child."""
        return json.dumps({**asdict(self), "report_fd": report_fd}).encode() + b"\n"


class _Reports:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")

    def progress(self, done: float, total: float) -> None:
        self.send({"done": done, "total": total})


def main() -> None:
    """Run the order on standard input; exits with 0 or the error's class code."""
    order: dict[str, Any] = json.loads(_first_line())
    reports = _Reports(int(order.pop("report_fd")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outputs = _run(ChildOrder(**order), reports)
    except SlmopsError as error:
        reports.send({"error": error.code, "message": str(error)})
        _leave(error.exit_code)
    except Exception as error:
        said = full_disk(error, Path(order["output"]))
        if said is None:
            raise
        reports.send({"error": said.code, "message": f"{order['kind']}: {said}"})
        _leave(said.exit_code)
    else:
        reports.send({"outputs": outputs})
        _leave(0)


def _run(order: ChildOrder, reports: _Reports) -> dict[str, str]:
    function = find_kind(order.kind).load()
    job = Job(
        inputs={role: Path(path) for role, path in order.inputs.items()},
        parameters=_parameters(order.parameters),
        output=Path(order.output),
        state=Path(order.state),
        seed=order.seed,
        threads=order.threads,
        report=reports.progress,
    )
    return {role: str(path) for role, path in function(job).items()}


def _parameters(read: Mapping[str, Any]) -> dict[str, Value]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}


def _first_line() -> bytes:
    # Byte by byte: nothing may stay in a buffer, the watching thread reads on.
    raw = bytearray()
    while not raw.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        raw += byte
    return bytes(raw)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _leave(code: int) -> None:
    """Exit without destructors: an engine's own threads may still run."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
