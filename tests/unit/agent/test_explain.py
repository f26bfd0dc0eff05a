"""A device says why it has its class, condition by condition."""

from dataclasses import replace
from pathlib import Path

import pytest

from slmops.agent.explain import explain_class
from slmops.agent.settings import AgentSettings
from slmops.agent.slots import SlotStore
from slmops.domain.device import DeviceClass, Predicate, Range
from slmops.domain.errors import NotFoundError
from slmops.registry.blobs import bytes_digest
from slmops.testing.sample_deployment import sample_deployment
from slmops.testing.sample_release import sample_release
from slmops.wire import codec

SETTINGS = AgentSettings(
    server="http://x",
    device="till-1",
    director_key="k",
    labels={"site": "north"},
    memory_mib=512,
)
CLASSES = (
    DeviceClass(name="large", where=Predicate(memory_mib=Range(min=1024))),
    DeviceClass(
        name="small",
        where=Predicate(memory_mib=Range(max=600), labels={"site": "north"}),
    ),
    DeviceClass(name="any"),
)


def test_every_condition_of_every_class_is_said_with_the_fact_it_met(
    tmp_path: Path,
) -> None:
    document = codec.encode_json(sample_release(1, classes=CLASSES))
    (tmp_path / "trust" / "documents").mkdir(parents=True)
    kept = tmp_path / "trust" / "documents" / "releases%2Fsample-1.json"
    slots = SlotStore(tmp_path)
    variant = slots.blobs.put_bytes(b"x")
    slots.activate(
        replace(sample_deployment(variant, 1), release_digest=bytes_digest(document))
    )
    with pytest.raises(NotFoundError, match="not kept"):
        explain_class(tmp_path, SETTINGS)
    kept.write_bytes(document)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\n")
    found = explain_class(tmp_path, SETTINGS, system=tmp_path)
    said = {
        answer.device_class: [str(clause) for clause in answer.clauses]
        for answer in found.classes
    }
    assert said == {
        "large": ["memory_mib 512 is outside 1024.."],
        "small": ["memory_mib 512 is inside ..600", "label site is 'north'"],
        "any": [],
    }
    chosen = [answer.device_class for answer in found.classes if answer.chosen]
    assert chosen == ["small"]


def test_without_a_release_there_are_no_classes_to_explain(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no release is active"):
        explain_class(tmp_path, SETTINGS)
