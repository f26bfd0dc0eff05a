"""A step's key names all of our code that its job runs: stale results are not reused."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmops.workshop.jobs.kinds import find_kind

KINDS = ("trim-vocabulary", "prune-depth", "prune-width", "sparsify")
FIXED = {"slmops.workshop.jobs.job", "slmops.workshop.mixes"}
"""What a job is handed, and names of types that only quantizing needs."""


def modules_of(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield name
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield f"{name}.{found.name}"


def imports_of(name: str) -> set[str]:
    path = importlib.import_module(name).__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text("utf-8"))
    return {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }


@pytest.mark.parametrize("kind", [*KINDS, "score", "score reference"])
def test_all_code_of_the_workshop_that_a_job_runs_is_in_its_key(kind: str) -> None:
    named = {module for name in find_kind(kind).code for module in modules_of(name)}
    used = {found for module in named for found in imports_of(module)}
    missing = {name for name in used if name.startswith("slmops.workshop.")}
    assert missing - named - FIXED - {"slmops.workshop.progress"} == set()
