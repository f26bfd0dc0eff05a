"""What differs between two blueprints, and what it takes to bring each change about. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slmops.domain.blueprint import Blueprint
from slmops.wire.codec import to_plain

_BY_CLASS_KEY = {
    "where": "devices may change class; nothing is computed",
    "budget": "variants are chosen anew among those measured",
    "objective": "variants are chosen anew among those measured",
    "context_tokens": "memory and speed are measured anew",
    "threads": "speed is measured anew",
    "runtime": "variants for this runtime are made and measured",
}
_BY_KEY = {
    "name": "another product: its releases and rollouts are its own",
    "model": "everything is built anew",
    "candidates": "added candidates are made and measured",
    "recipe": "what the change reaches is built anew",
    "quality": "variants are chosen anew among those measured",
    "evaluation": "candidates are measured anew",
    "golden": "golden answers are recorded anew",
    "tasks": "tasks are asked anew",
    "rollout": "nothing is computed: holds from the next release on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BlueprintChange:
    """One key that differs."""

    path: str
    """``classes.till.budget.memory_mib``; parts of lists go by their name where they
    have one, else by their number."""
    before: object
    """Plain value; None where it was not there."""
    after: object
    """Plain value; None where it is gone."""
    consequence: str
    """What a build computes for it, for people."""


def blueprint_changes(
    before: Blueprint, after: Blueprint
) -> tuple[BlueprintChange, ...]:
    """Return every key that differs, in the order of the document.

    >>> from dataclasses import replace
    >>> from slmops.domain.device import DeviceClass
    >>> one = Blueprint(name="a", model="m", classes=(DeviceClass(name="till"),))
    >>> two = replace(one, classes=(DeviceClass(name="till", threads=2),))
    >>> [(change.path, change.before, change.after) for change in blueprint_changes(one, two)]
    [('classes.till.threads', 1, 2)]
    """
    found = changed_keys(to_plain(before), to_plain(after))
    return tuple(
        BlueprintChange(
            path=path, before=values[0], after=values[1], consequence=_consequence(path)
        )
        for path, values in found.items()
    )


def changed_keys(
    before: object, after: object, path: str = ""
) -> dict[str, tuple[object, object]]:
    """Return the leaves that differ, by path: ``evaluation.max_tokens``.

    Lists of documents are compared by their parts' names where all have one, so that a
    class put in front changes no other; else by number.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        changed: dict[str, tuple[object, object]] = {}
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}".lstrip(".")
            changed |= changed_keys(before.get(key), after.get(key), inner)
        return changed
    if _documents(before) and _documents(after):
        return changed_keys(*_keyed(before, after), path)
    return {} if before == after else {path: (before, after)}


def _documents(value: object) -> bool:
    return isinstance(value, Sequence) and any(isinstance(v, Mapping) for v in value)


def _keyed(
    before: object, after: object
) -> tuple[dict[str, object], dict[str, object]]:
    lists = [list(side) for side in (before, after) if isinstance(side, Sequence)]
    named = all(
        isinstance(one, Mapping) and "name" in one for side in lists for one in side
    )
    one, two = (
        {
            str(part["name"]) if named else str(index): part
            for index, part in enumerate(side)
        }
        for side in lists
    )
    return one, two


def _consequence(path: str) -> str:
    parts = path.split(".")
    if parts[0] != "classes":
        return _BY_KEY.get(parts[0], "what the change reaches is built anew")
    if len(parts) == 2:  # noqa: PLR2004 - classes.NAME
        return "a class more or less: variants are chosen, and measured for it"
    return _BY_CLASS_KEY.get(parts[2], "what the change reaches is built anew")
