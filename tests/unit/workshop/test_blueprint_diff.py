"""What differs between two blueprints: by name, with what it takes."""

from dataclasses import replace

from slmops.domain.blueprint import Blueprint, RolloutPolicy
from slmops.domain.device import Budget, DeviceClass
from slmops.workshop.blueprint_diff import blueprint_changes

TILL = DeviceClass(name="till", budget=Budget(memory_mib=300))
ONE = Blueprint(name="shop", model="smol", classes=(TILL,))


def test_equal_blueprints_differ_in_nothing() -> None:
    assert blueprint_changes(ONE, replace(ONE)) == ()


def test_a_class_put_in_front_is_the_only_change() -> None:
    new = DeviceClass(name="gateway")
    (change,) = blueprint_changes(ONE, replace(ONE, classes=(new, TILL)))
    assert change.path == "classes.gateway"
    assert change.before is None
    assert "a class more or less" in change.consequence


def test_each_key_says_what_it_takes() -> None:
    till = replace(TILL, budget=Budget(memory_mib=256), threads=2)
    after = replace(
        ONE,
        classes=(till,),
        candidates=("Q4_0",),
        rollout=RolloutPolicy(soak_s=10.0),
    )
    said = {one.path: one.consequence for one in blueprint_changes(ONE, after)}
    assert said == {
        "classes.till.budget.memory_mib": "variants are chosen anew among those measured",
        "classes.till.threads": "speed is measured anew",
        "candidates": "added candidates are made and measured",
        "rollout.soak_s": "nothing is computed: holds from the next release on",
    }
