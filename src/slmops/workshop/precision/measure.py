"""The job that measures sensitivity: one forward pass a tensor.

A tensor is probed with a plain rounding; the rise is scaled to each type as it will be
rounded (by importance, with statistics) by the ratio of squared errors.

Resumable: every measurement is a line in the job's state, and a rerun starts behind the
last whole one.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.wire.codec import encode_json
from slmops.workshop.gguf_file import (
    ALIGNMENT,
    GgufHeader,
    TensorEntry,
    aligned,
    read_header,
)
from slmops.workshop.jobs.job import Job
from slmops.workshop.mixes import NEED_IMATRIX, TensorChoice, choose_types
from slmops.workshop.precision.assignment import Assignment, frontier, without_types
from slmops.workshop.precision.damage import (
    TYPES,
    Damage,
    Importance,
    damages,
    fitting_types,
    grid_types,
    padded_bytes,
    relative_error,
    rounded_rows,
)
from slmops.workshop.precision.probe import Probe, open_probe
from slmops.workshop.precision.sensitivity import (
    Check,
    Option,
    Sensitivity,
    TensorSensitivity,
)
from slmops.workshop.precision.statistics_file import load_statistics
from slmops.workshop.quantize import predict_quantized

SENSITIVITY = "sensitivity"
"""Role of the output."""
_CHECKS = 3
_PROBES = ("Q4_0", "IQ4_NL", "Q5_0", "Q4_K", "Q8_0")
"""Types to measure with, best first: at the error that mixes of 4 to 5 bits have."""
_LEAST_ERROR = 1e-3
_ERROR_ROWS = 256
"""Rows that tell a type's relative error: all of a large tensor tell no more, and some
types search long for scales. Measurements round every row."""
_WHOLE = frozenset({"token_embd.weight", "output.weight"})
"""Measured at each of their types: the largest, and used in two ways when tied."""

Importances = Mapping[str, Importance]
_Key = tuple[str, str]


def run(job: Job) -> Mapping[str, Path]:
    """Measure how each tensor of input ``model`` bears each type, on input ``text``.

    Optional input ``statistics`` weighs errors, and steers the rounding as an importance
    matrix does. Parameters: ``tokens`` (positions to score), ``window_tokens``,
    ``types`` (tuple of type names; empty or missing for all there are).

    Returns:
        ``sensitivity``, a `Sensitivity` document.

    Raises:
        InvalidInputError: the model is not 16 bit or damaged, the text too short, an
            unknown type.
        UnavailableError: the runtime is missing or does not map what it loads.
    """
    header = read_header(job.inputs["model"])
    header_bytes, matrices = frame_of(header)
    importance: dict[str, Importance] = {}
    if "statistics" in job.inputs:
        importance |= load_statistics(job.inputs["statistics"]).importance
    window = job.parameter("window_tokens", int)
    settings = WorkerSettings(threads=job.threads, context_tokens=window)
    job.state.mkdir(parents=True, exist_ok=True)
    with open_probe(
        job.inputs["model"],
        job.inputs["text"].read_text(encoding="utf-8"),
        # Not in the state: a killed job must not leave a copy of the model for long.
        job.output / "probe.gguf",
        settings=settings,
        tokens=job.parameter("tokens", int),
    ) as probe:
        bench = _Bench(
            probe=probe,
            importance=importance,
            kinds=_kinds(job),
            log=_Log(job.state / "measured.jsonl"),
            report=job.report,
            total=sum(tensor.elements for tensor in matrices),
        )
        probe.check_mapping(matrices[0].name)
        tensors = tuple(
            bench.measured(tensor) if tensor in matrices else fixed_tensor(tensor)
            for tensor in header.tensors
        )
        found = Sensitivity(
            positions=probe.positions,
            window_tokens=window,
            header_bytes=header_bytes,
            tensors=tensors,
        )
        found = with_checks(found, [bench.check(mix) for mix in _spread(found)])
        probe.check_restored()
    path = job.output / "sensitivity.json"
    path.write_bytes(encode_json(found))
    return {SENSITIVITY: path}


def with_checks(sensitivity: Sensitivity, checks: Sequence[Check]) -> Sensitivity:
    """Add whole mixes that were measured, and the scale they ask for."""
    ratios = [
        math.log(check.measured / check.predicted)
        for check in checks
        if check.measured > 0 and check.predicted > 0
    ]
    scale = math.exp(sum(ratios) / len(ratios)) if ratios else 1.0
    return replace(sensitivity, checks=tuple(checks), scale=scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What one rounding without an importance matrix did to the model."""

    error: float
    """Squared error over squared weights, by importance if known; without any error,
    it tells nothing."""
    kld: float
    """Rise of mean KL divergence, nats."""


def tensor_options(
    found: Sequence[Damage], probed: Mapping[str, Probed]
) -> tuple[Option, ...]:
    """Give every type a rise: that of a probe, scaled by squared error.

    A type's own probe is preferred, else the one whose error is nearest in ratio.

    Args:
        found: what each type does to the tensor, as it will be rounded.
        probed: type → what was measured; empty if no type does harm.
    """
    gridded = grid_types(found)

    def option(damage: Damage) -> Option:
        kld, measured = 0.0, False
        probes = [each for each in probed.values() if each.error > 0]
        if damage.error > 0 and probes:
            probe = _nearest(probed.get(damage.kind), probes, damage.error)
            kld = probe.kld * damage.error / probe.error
            measured = damage.kind in probed and damage.error == probe.error
        return Option(
            kind=damage.kind,
            bytes=damage.bytes,
            kld=kld,
            error=damage.error,
            measured=measured,
            on_grid=damage.kind in gridded,
        )

    return tuple(option(damage) for damage in found)


def _nearest(own: Probed | None, probes: Sequence[Probed], error: float) -> Probed:
    if own is not None and own.error > 0:
        return own
    return min(probes, key=lambda each: abs(math.log(each.error / error)))


class _Log:
    """Measurements so far; survives a kill, and a line that was cut off by one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[_Key, float] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                name, kind, kld = json.loads(line)
            except ValueError:
                continue
            self._known[name, kind] = kld

    def get(self, key: _Key, measure: Callable[[str, str], float]) -> float:
        if key not in self._known:
            self._known[key] = measure(*key)
            with self._path.open("a", encoding="utf-8") as file:
                # A cut-off line before this one must not swallow it.
                file.write("\n" + json.dumps([*key, self._known[key]]))
        return self._known[key]


@dataclass(kw_only=True, slots=True)
class _Bench:
    probe: Probe
    importance: Importances
    kinds: tuple[str, ...]
    log: _Log
    report: Callable[[float, float], None]
    total: float
    done: float = field(default=0.0)

    def measured(self, tensor: TensorEntry) -> TensorSensitivity:
        """Return one matrix with all its options."""
        importance = self.importance.get(tensor.name)
        fitting = fitting_types(
            tensor, self.kinds, has_importance=importance is not None
        )
        if not fitting:
            return fixed_tensor(tensor)
        values = self.probe.rows(tensor.name, _some_rows(tensor.rows))
        found = []
        for damage in damages(tensor, values, fitting, importance):
            found.append(damage)
            self.report(self.done, self.total)
        probed = {
            kind: Probed(
                error=relative_error(
                    values, rounded_rows(values, kind, None), importance
                ),
                kld=self.log.get((tensor.name, kind), self._rise),
            )
            for kind in _to_measure(tensor, found)
        }
        self.done += tensor.elements
        self.report(self.done, self.total)
        return TensorSensitivity(
            name=tensor.name,
            shape=tensor.shape,
            options=tensor_options(found, probed),
        )

    def check(self, mix: Assignment) -> Check:
        """Measure a whole mix, all tensors rounded at once."""
        with ExitStack() as stack:
            for name, kind in mix.types.items():
                if kind != self.probe.tensors[name].kind:
                    importance = self.importance.get(name)
                    stack.enter_context(self._rounded(name, kind, importance))
                self.report(self.total, self.total)
            measured = self.probe.kld()
        return Check(bytes=mix.bytes, predicted=mix.predicted_kld, measured=measured)

    def _rise(self, name: str, kind: str) -> float:
        # Without importance: what is measured stays true whatever statistics say.
        with self._rounded(name, kind, None):
            return self.probe.kld()

    def _rounded(
        self, name: str, kind: str, importance: Importance
    ) -> AbstractContextManager[None]:
        return self.probe.changed(
            name, lambda rows: rounded_rows(rows, kind, importance)
        )


def _some_rows(rows: int) -> npt.NDArray[np.intp]:
    """Return at most `_ERROR_ROWS` places, evenly spaced: rows are rounded alone."""
    picked = np.linspace(0, rows - 1, min(rows, _ERROR_ROWS))
    return picked.round().astype(np.intp)


def _to_measure(tensor: TensorEntry, found: Sequence[Damage]) -> tuple[str, ...]:
    harmful = {
        damage.kind: damage.error
        for damage in found
        if damage.error > 0 and damage.kind not in NEED_IMATRIX
    }
    if tensor.name in _WHOLE:
        return tuple(harmful)
    for kind in _PROBES:
        if harmful.get(kind, 0.0) >= _LEAST_ERROR:
            return (kind,)
    return (max(harmful, key=lambda kind: harmful[kind]),) if harmful else ()


def _spread(sensitivity: Sensitivity) -> Iterator[Assignment]:
    """Yield a few mixes from small to large, as budgets will ask for.

    Types that are free because the source had them would make mixes nothing is lost by,
    and a ratio of two noises.
    """
    path = frontier(without_types(sensitivity))
    for part in range(1, _CHECKS + 1):
        yield path[(len(path) - 1) * part // (_CHECKS + 1)]


def frame_of(header: GgufHeader) -> tuple[int, list[TensorEntry]]:
    """Return what a quantized file takes beside its tensors, and what is quantized."""
    planned = predict_quantized(header, "Q8_0")
    data = sum(aligned(tensor.bytes, ALIGNMENT) for tensor in planned.tensors)
    choices: tuple[TensorChoice, ...] = choose_types(
        header.tensors, "Q4_0", kv_sharing=1
    )
    matrices = [
        tensor
        for tensor, choice in zip(header.tensors, choices, strict=True)
        if choice.kind != tensor.kind
    ]
    if not matrices:
        raise InvalidInputError(f"{header.path}: no tensor of it can be quantized")
    return planned.bytes - data, matrices


def fixed_tensor(tensor: TensorEntry) -> TensorSensitivity:
    """Describe a tensor that keeps its type."""
    option = Option(
        kind=tensor.kind,
        bytes=padded_bytes(tensor, tensor.kind),
        kld=0.0,
        error=0.0,
    )
    return TensorSensitivity(name=tensor.name, shape=tensor.shape, options=(option,))


def _kinds(job: Job) -> tuple[str, ...]:
    given = job.parameters.get("types") or TYPES
    kinds = tuple(given) if isinstance(given, tuple) else ()
    unknown = [kind for kind in kinds if kind not in TYPES]
    if unknown or not kinds:
        raise InvalidInputError(
            f"parameter types must be some of {', '.join(TYPES)}, got {given!r}"
        )
    return kinds
