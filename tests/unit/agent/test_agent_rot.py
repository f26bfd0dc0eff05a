"""Bits that rot in journal, pointer and artefacts: what serves, and what is said."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from slmops.testing.crash_matrix import (
    LIFE,
    Cut,
    Theatre,
    kills_of,
    look_after,
    outlive,
    record,
    theatre,
)

pytestmark = pytest.mark.slow

UPDATE = LIFE[1]
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return (
        content[:at]
        + bytes([content[at] ^ 1 << chance.randrange(8)])
        + content[at + 1 :]
    )


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def zero_tail(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes(len(content) - at)


def garbage(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(content))


@pytest.fixture(scope="module")
def stage() -> Iterator[Theatre]:
    logging.disable(logging.CRITICAL)
    with theatre() as built:
        yield built
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def updated(stage: Theatre) -> Cut:
    """Return a device that has installed its second release and is at rest."""
    after = next(cut for cut in kills_of(record(stage)) if cut.phase.name == "bad")
    return replace(after, phase=UPDATE, label="at rest")


def blob_of(stage: Theatre, version: int) -> str:
    return "blobs/sha256/" + stage.variant(version).removeprefix("sha256:")


def damaged(cut: Cut, name: str, damage: Damage, seed: int) -> Cut:
    content = cut.image[name]
    assert isinstance(content, bytes)
    assert content
    spoiled = damage(content, random.Random(seed))
    return replace(cut, image={**cut.image, name: spoiled})


@pytest.mark.parametrize("damage", [flip, truncate, zero_tail, garbage])
@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "active"])
def test_a_rotten_journal_or_pointer_takes_no_model_away(
    stage: Theatre, updated: Cut, name: str, damage: Damage
) -> None:
    for seed in range(8):
        served = outlive(stage, damaged(updated, name, damage, seed))
        # A journal that lost its end goes through the trial once more, the old serving.
        assert served == "new" or (served, name) == ("old", "journal.db-wal"), seed


@pytest.mark.parametrize("damage", [flip, truncate, zero_tail, garbage])
def test_a_rotten_model_is_never_served_and_the_one_before_steps_in(
    stage: Theatre, updated: Cut, damage: Damage
) -> None:
    for seed in range(4):
        spoiled = damaged(updated, blob_of(stage, 2), damage, seed)
        if spoiled.image != updated.image:
            assert outlive(stage, spoiled) == "old", seed


def test_it_is_said_what_was_rotten(stage: Theatre, updated: Cut) -> None:
    def said(*names: str) -> tuple[str | None, str | None]:
        cut = updated
        for name in names:
            cut = damaged(cut, name, garbage, 1)
        agent = stage.agent(cut.image, updated.at)
        try:
            return agent.loop.resume(), agent.journal.lost
        finally:
            stage.end(agent)

    mended, lost = said("journal.db", "journal.db-wal")
    assert lost is not None
    assert "journal was damaged" in lost
    assert "begun anew" in lost
    mended, lost = said(blob_of(stage, 2))
    assert lost is None
    assert mended is not None
    assert "sample-2: blob" in mended
    assert mended.endswith("serving sample-1")


def test_with_both_models_rotten_the_endpoint_says_why_and_both_are_fetched_anew(
    stage: Theatre, updated: Cut
) -> None:
    spoiled = damaged(updated, blob_of(stage, 1), garbage, 1)
    spoiled = damaged(spoiled, blob_of(stage, 2), garbage, 1)
    agent = stage.agent(spoiled.image, updated.at)
    try:
        mended = agent.loop.resume()
        look_after(agent)
        assert agent.serves() is None
        assert mended is not None
        assert mended.endswith("no model")
        assert agent.models.gateway.reason
    finally:
        stage.end(agent)
    first = replace(spoiled, phase=replace(UPDATE, before=None))
    assert outlive(stage, first) == "none"
