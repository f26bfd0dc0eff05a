"""The vocabulary is valid from birth, frozen, and complete."""

import dataclasses
import importlib
import pkgutil

import pytest

import slmops.domain
from slmops.domain.blueprint import Blueprint, EvaluationPlan, QualityFloor, WavePlan
from slmops.domain.device import (
    Budget,
    DeviceClass,
    DeviceFacts,
    Predicate,
    Range,
    classify,
)
from slmops.domain.errors import ERROR_CLASSES, ConflictError, InvalidInputError
from slmops.domain.ids import check_name, parse_digest
from slmops.domain.installation import ENDED, TRANSITIONS, Event, State, next_state

FACTS = DeviceFacts(memory_mib=512, disk_mib=900, cpu_count=2, architecture="x86_64")


def domain_dataclasses() -> list[type]:
    found = []
    for module in pkgutil.iter_modules(slmops.domain.__path__):
        loaded = importlib.import_module(f"slmops.domain.{module.name}")
        found += [
            kind
            for kind in vars(loaded).values()
            if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        ]
    return found


@pytest.mark.parametrize("kind", domain_dataclasses(), ids=lambda kind: kind.__name__)
def test_documents_are_frozen_and_have_slots_so_that_defaults_are_encoded(
    kind: type,
) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)


def test_the_six_error_classes_have_codes_and_exits_of_their_own() -> None:
    assert len(ERROR_CLASSES) == 6
    assert len({kind.code for kind in ERROR_CLASSES}) == 6
    assert [kind.exit_code for kind in ERROR_CLASSES] == [2, 3, 4, 5, 6, 7]


def test_every_installation_state_is_reached_and_every_running_one_can_fail() -> None:
    reached = set(TRANSITIONS.values())
    assert reached == set(State)
    for state in set(State) - ENDED - {State.IDLE}:
        assert next_state(state, Event.FAIL) is State.ROLLED_BACK


@pytest.mark.parametrize(
    ("state", "event"),
    [(s, e) for s in State for e in Event if (s, e) not in TRANSITIONS],
)
def test_a_pair_outside_the_table_is_a_bug(state: State, event: Event) -> None:
    with pytest.raises(ConflictError, match="no event"):
        next_state(state, event)


def test_the_first_matching_class_wins_and_a_mismatch_says_why() -> None:
    small = DeviceClass(name="small", where=Predicate(memory_mib=Range(max=700)))
    large = DeviceClass(name="large", where=Predicate())
    assert classify([small, large], FACTS, {}) is small
    picky = Predicate(
        disk_mib=Range(min=1000), architecture=("aarch64",), labels={"site": "north"}
    )
    assert len(picky.mismatches(FACTS, {})) == 3
    assert classify([DeviceClass(name="picky", where=picky)], FACTS, {}) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Budget(memory_mib=0),
        lambda: DeviceClass(name="Bad Name"),
        lambda: DeviceClass(name="a", threads=0),
        lambda: DeviceClass(name="a", context_tokens=1),
        lambda: Range(min=2, max=1),
        lambda: DeviceFacts(
            memory_mib=-1, disk_mib=0, cpu_count=1, architecture="x86_64"
        ),
        lambda: WavePlan(),
        lambda: WavePlan(count=0),
        lambda: WavePlan(share=1.5),
        lambda: QualityFloor(max_kld_times_8bit=0.5),
        lambda: QualityFloor(min_same_top1=2),
        lambda: EvaluationPlan(window_tokens=8),
        lambda: EvaluationPlan(max_tokens=8),
        lambda: EvaluationPlan(speed_runs=1),
        lambda: Blueprint(name="a", model="m", classes=()),
        lambda: Blueprint(name="a", model="", classes=(DeviceClass(name="x"),)),
        lambda: Blueprint(name="a", model="m", classes=(DeviceClass(name="x"),) * 2),
        lambda: parse_digest("sha256:short"),
        lambda: check_name("", where="name"),
    ],
)
def test_nonsense_is_refused_at_birth(make: "object") -> None:
    with pytest.raises(InvalidInputError, match=r"got|must|needs|twice"):
        make()  # type: ignore[operator]
