"""Devices and device classes: facts, the predicate over them, and budgets."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from slmops.domain.energy import Power
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import check_name


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """What a device says about itself, read at every start of the agent."""

    memory_mib: int
    """Memory the agent may use: the smallest of RAM, cgroup limit and the owner's limit."""
    disk_mib: int
    """Free space where the agent keeps its slots, plus what its slots hold already."""
    cpu_count: int
    """Processors the agent may run on."""
    architecture: str
    """As `platform.machine` names it: ``x86_64``, ``aarch64``."""
    runtimes: tuple[str, ...] = ()
    """Names of the inference runtimes that are installed."""
    os: str = "linux"
    """Operating system, lower case."""
    agent_version: str = ""
    """Version of slmops on the device."""
    cpu_features: tuple[str, ...] = ()
    """Instructions that inference uses, as ``/proc/cpuinfo`` names them."""
    cpu_quota: float | None = None
    """Processors that the tightest cgroup grants; None for no limit."""
    battery: bool = False
    """Whether it has a battery of its own."""
    link: str | None = None
    """Kind of the default route's interface: ``ethernet``, ``wlan``, ``wwan``, ``other``."""
    thermal_zones: tuple[str, ...] = ()
    """Types of the thermal zones that can be read."""

    def __post_init__(self) -> None:
        for name in ("memory_mib", "disk_mib", "cpu_count"):
            if getattr(self, name) < 0:
                raise InvalidInputError(
                    f"facts.{name} must be >= 0, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A closed interval over a device fact; a missing end is open."""

    min: float | None = None
    """Smallest value that matches."""
    max: float | None = None
    """Largest value that matches."""

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidInputError(f"min must be <= max, got {self.min} > {self.max}")

    def holds(self, value: float) -> bool:
        """Tell whether `value` lies inside.

        >>> Range(min=512, max=1024).holds(600)
        True
        """
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        return low <= value <= high

    def __str__(self) -> str:
        low = "" if self.min is None else f"{self.min:g}"
        high = "" if self.max is None else f"{self.max:g}"
        return f"{low}..{high}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicate:
    """Which devices belong to a class; every given condition must hold."""

    memory_mib: Range | None = None
    """Memory the agent may use."""
    disk_mib: Range | None = None
    """Free disk for slots."""
    cpu_count: Range | None = None
    """Processors."""
    architecture: tuple[str, ...] = ()
    """Any of these; empty means any at all."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that must be set to exactly these values."""

    def clauses(
        self, facts: DeviceFacts, labels: Mapping[str, str]
    ) -> tuple["Clause", ...]:
        """Return every given condition with what the device has, and whether it holds.

        >>> facts = DeviceFacts(memory_mib=512, disk_mib=1, cpu_count=1, architecture="x86_64")
        >>> clause, = Predicate(memory_mib=Range(min=1024)).clauses(facts, {})
        >>> clause.holds, str(clause)
        (False, 'memory_mib 512 is outside 1024..')
        """
        found: list[Clause] = []
        for name in ("memory_mib", "disk_mib", "cpu_count"):
            interval: Range | None = getattr(self, name)
            value: int = getattr(facts, name)
            if interval is not None:
                holds = interval.holds(value)
                how = "inside" if holds else "outside"
                said = f"{name} {value} is {how} {interval}"
                found.append(Clause(condition=name, holds=holds, said=said))
        if self.architecture:
            holds = facts.architecture in self.architecture
            how = "one" if holds else "none"
            said = (
                f"architecture {facts.architecture} is {how} of"
                f" {', '.join(self.architecture)}"
            )
            found.append(Clause(condition="architecture", holds=holds, said=said))
        for key, expected in self.labels.items():
            value_here = labels.get(key)
            holds = value_here == expected
            said = f"label {key} is {value_here!r}" + (
                "" if holds else f", not {expected!r}"
            )
            found.append(Clause(condition=f"label {key}", holds=holds, said=said))
        return tuple(found)

    def mismatches(
        self, facts: DeviceFacts, labels: Mapping[str, str]
    ) -> tuple[str, ...]:
        """Say why `facts` and `labels` do not match; empty when they do.

        >>> facts = DeviceFacts(memory_mib=512, disk_mib=1, cpu_count=1, architecture="x86_64")
        >>> Predicate(memory_mib=Range(min=1024)).mismatches(facts, {})
        ('memory_mib 512 is outside 1024..',)
        """
        return tuple(
            clause.said for clause in self.clauses(facts, labels) if not clause.holds
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """One condition of a predicate, held against one device."""

    condition: str
    """What it is about: ``memory_mib``, ``label site``."""
    holds: bool
    """Whether the device meets it."""
    said: str
    """Condition and fact in words."""

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one device of a class may spend; a missing figure is not limited."""

    memory_mib: float | None = None
    """Peak resident memory of the model's process at `context_tokens`."""
    disk_mib: float | None = None
    """Size of one variant on disk, MiB (a device holds two: active and previous)."""
    first_token_ms: float | None = None
    """Slow end of the time to first token on the standard prompt: of fewer than 20 timed
    runs the slowest, else their 95th percentile."""
    decode_tokens_per_s: float | None = None
    """Least decode speed."""
    decode_joules_per_token: float | None = None
    """Most energy per decoded token, idle draw included: measured where the machine that
    builds has counters, else modelled from the class's `power`."""

    def __post_init__(self) -> None:
        for name in (
            *("memory_mib", "disk_mib", "first_token_ms", "decode_tokens_per_s"),
            "decode_joules_per_token",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"budget.{name} must be > 0, got {value:g}")


class Objective(StrEnum):
    """What a class wants most from the variants it can run."""

    QUALITY = "quality"
    SPEED = "speed"
    SIZE = "size"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceClass:
    """A hardware profile: the unit a variant is chosen for."""

    name: str
    """Unique in its blueprint."""
    where: Predicate = field(default_factory=Predicate)
    """Which devices belong here; the first class that matches wins."""
    budget: Budget = field(default_factory=Budget)
    """What a variant may cost here."""
    runtime: str = "llamacpp"
    """Inference runtime that will serve."""
    threads: int = 1
    """Threads the runtime may use: one leaves room for the device's own work."""
    context_tokens: int = 1024
    """Context the model is loaded with; the memory budget counts its KV cache."""
    objective: Objective = Objective.QUALITY
    """What to optimise among the variants that fit. Speeds that timing cannot tell apart
    count as equal: then the variant closest to the reference wins."""
    power: Power | None = None
    """What such a device draws: energy per token is modelled from it. None models none."""

    def __post_init__(self) -> None:
        check_name(self.name, where="class name")
        if self.threads < 1:
            raise InvalidInputError(f"threads must be >= 1, got {self.threads}")
        if self.context_tokens < 64:  # noqa: PLR2004 - shorter holds no chat turn
            raise InvalidInputError(
                f"context_tokens must be >= 64, got {self.context_tokens}"
            )


def classify(
    classes: Iterable[DeviceClass], facts: DeviceFacts, labels: Mapping[str, str]
) -> DeviceClass | None:
    """Return the first class whose predicate matches, or None.

    >>> facts = DeviceFacts(memory_mib=512, disk_mib=1, cpu_count=1, architecture="x86_64")
    >>> small = DeviceClass(name="small", where=Predicate(memory_mib=Range(max=768)))
    >>> classify([small], facts, {}) is small
    True
    """
    for device_class in classes:
        if not device_class.where.mismatches(facts, labels):
            return device_class
    return None
