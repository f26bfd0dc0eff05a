"""A step's key names all of our code that its job runs: stale results are not reused."""

import pytest

from slmops.domain.errors import NotFoundError
from slmops.workshop.jobs.kinds import KINDS, find_kind
from slmops.workshop.jobs.tools import imported_code

_DATA = "slmops.workshop.jsonl"
_SCORER = "slmops.runtimes.llamacpp_scorer"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_loaded_and_names_its_own_module(kind: str) -> None:
    row = find_kind(kind)
    assert callable(row.load())
    assert row.function.partition(":")[0] in row.code
    assert not any(".jobs." in name for name in row.code)


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("finetune", _DATA),
        ("distill", _DATA),
        ("recover", _DATA),
        ("recover", "slmops.workshop.quantize"),
        ("generate", _DATA),
        ("generate", "slmops.workshop.training.settings"),
        ("task", _DATA),
        ("sensitivity", "slmops.workshop.mixes"),
        ("sensitivity", _SCORER),
        ("statistics", _SCORER),
        ("trim-vocabulary", _SCORER),
        ("prune-depth", _SCORER),
        ("quantize", "slmops.workshop.precision.compensated"),
        ("quantize", "slmops.workshop.gguf_writer"),
        ("score", "slmops.workshop.token_map"),
    ],
)
def test_what_a_job_reaches_through_others_counts(kind: str, module: str) -> None:
    assert module in find_kind(kind).code


def test_an_import_inside_a_function_counts() -> None:
    code = imported_code("slmops.workshop.training.finetune")
    assert "slmops.workshop.training.finetune_run" in code


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(NotFoundError, match="known are quantize"):
        find_kind("quantise")
