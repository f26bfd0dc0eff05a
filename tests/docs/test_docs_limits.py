"""The limits on the reference pages are the ones the documents hold to."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

from slmops.agent.settings import AgentSettings
from slmops.cli.reference.limits import LIMITS, Limit
from slmops.control.settings import ControlSettings
from slmops.domain.blueprint import Blueprint, EvaluationPlan, RolloutPolicy
from slmops.domain.device import DeviceClass, Range
from slmops.domain.energy import Power
from slmops.domain.errors import InvalidInputError
from slmops.domain.levers import Finetune, PruneDepth, PruneWidth, TrimVocabulary
from slmops.domain.recipe import RecoverPlan
from slmops.domain.tasks import TaskKind, TaskPlan
from slmops.registry.workspace import Workspace
from slmops.wire.field_docs import documents_in

REQUIRED: dict[type, dict[str, Any]] = {
    DeviceClass: {"name": "a"},
    AgentSettings: {"server": "http://a", "device": "a", "director_key": "0" * 64},
    ControlSettings: {"workspace": Workspace(root=Path("a"))},
    # So that `window_tokens`, `probation_s` can be probed without meeting the other limit.
    EvaluationPlan: {"max_tokens": 10**12},
    RolloutPolicy: {"deadline_s": 1e12},
    # So that `idle_watts` can be probed.
    Power: {"source": "a", "busy_watts": 1e12},
    TrimVocabulary: {"text": "a", "tokens": 256},
    PruneDepth: {"layers": 1},
    PruneWidth: {"feed_forward": 1, "kv_heads": 1},
    Finetune: {"data": "a"},
    RecoverPlan: {"candidates": ("Q4_0",)},
    TaskPlan: {"name": "a", "kind": TaskKind.TEXT, "examples": "a"},
}
KINDS = (*documents_in(Blueprint), AgentSettings, ControlSettings)
NUMBERS = [
    (kind, name)
    for kind in KINDS
    if kind is not Range
    for name, hint in typing.get_type_hints(kind).items()
    if typing.get_origin(hint) is not tuple
    and {int, float} & {hint, *typing.get_args(hint)}
]


def accepts(kind: type, name: str, value: float) -> bool:
    try:
        made = kind(**REQUIRED.get(kind, {}) | {name: value})
    except InvalidInputError:
        return False
    return bool(dataclasses.is_dataclass(made))


def probes(limit: Limit, *, whole: bool) -> tuple[list[float], list[float]]:
    """Return values just inside and just outside."""
    step = 1 if whole else 1e-6
    inside, outside = [], []
    for end, direction in ((limit.least, 1), (limit.most, -1)):
        if end is not None:
            inside.append(end)
            outside.append(end - direction * step)
    for end, direction in ((limit.above, 1), (limit.below, -1)):
        if end is not None:
            inside.append(end + direction * step)
            outside.append(end)
    return inside, outside


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_number_may_be_what_the_page_says_and_nothing_else(
    kind: type, name: str
) -> None:
    hint = typing.get_type_hints(kind)[name]
    whole = int in {hint, *typing.get_args(hint)}
    limit = LIMITS.get(kind, {}).get(name, Limit())
    if (kind, name) == (EvaluationPlan, "max_tokens"):
        assert accepts(kind, name, EvaluationPlan().window_tokens)
        assert not accepts(kind, name, EvaluationPlan().window_tokens - 1)
        return
    if (kind, name) == (RolloutPolicy, "deadline_s"):
        assert accepts(kind, name, 2 * RolloutPolicy().probation_s)
        assert not accepts(kind, name, 2 * RolloutPolicy().probation_s - 1)
        return
    inside, outside = probes(limit, whole=whole)
    if limit.least is None and limit.above is None:
        inside.append(-(10**9))
    if limit.most is None and limit.below is None:
        inside.append(10**9)
    convert = int if whole else float
    assert all(accepts(kind, name, convert(value)) for value in inside), inside
    assert not any(accepts(kind, name, convert(value)) for value in outside), outside


def test_no_limit_is_of_a_field_that_does_not_exist() -> None:
    for kind, limits in LIMITS.items():
        assert set(limits) <= {name for one, name in NUMBERS if one is kind}
