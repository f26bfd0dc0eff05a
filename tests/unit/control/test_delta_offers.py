"""Deltas are offered where they save bytes, and nobody waits for one."""

import os
from pathlib import Path

import pytest

from slmops.control.deltas import delta_name, offer_delta
from slmops.deltas.apply import apply_delta
from slmops.domain.errors import NotFoundError
from slmops.domain.ids import Digest
from slmops.registry.blobs import BlobStore
from slmops.testing.control_in_process import ControlInProcess


def test_a_delta_is_made_once_served_and_gives_the_artefact(
    control: ControlInProcess, tmp_path: Path
) -> None:
    registry = control.plane.settings.workspace.registry
    blobs = BlobStore(registry)
    content = os.urandom(50_000)
    old, new = blobs.put_bytes(content), blobs.put_bytes(content + b"a little more")
    path = f"/v1/registry/deltas/{delta_name(old, new)}"
    assert control.http.get(path).status_code == 404
    size = offer_delta(registry, old, new)
    place = registry / "deltas" / delta_name(old, new)
    made_at = place.stat().st_mtime_ns
    assert offer_delta(registry, old, new) == size < 1000
    assert place.stat().st_mtime_ns == made_at
    (tmp_path / "d").write_bytes(control.http.get(path).content)
    apply_delta(blobs.path(old), tmp_path / "d", tmp_path / "out", expected=new)
    assert (tmp_path / "out").read_bytes() == content + b"a little more"


def test_a_delta_that_saves_too_little_is_remembered_and_not_offered(
    control: ControlInProcess,
) -> None:
    registry = control.plane.settings.workspace.registry
    blobs = BlobStore(registry)
    pair = blobs.put_bytes(os.urandom(9000)), blobs.put_bytes(os.urandom(9000))
    assert offer_delta(registry, *pair) == 0
    answer = control.http.get(f"/v1/registry/deltas/{delta_name(*pair)}")
    assert answer.status_code == 404
    assert "save too little" in answer.text
    assert [p.name for p in (registry / "deltas").iterdir()] == [delta_name(*pair)]


def test_no_delta_is_made_of_what_is_not_published(tmp_path: Path) -> None:
    missing = Digest("sha256:" + "0" * 64)
    with pytest.raises(NotFoundError):
        offer_delta(tmp_path, missing, missing)


def test_no_delta_s_name_leads_out_of_the_registry(control: ControlInProcess) -> None:
    for name in ("..%2fx", "0" * 64, "0" * 64 + "." + "0" * 63 + "%2f"):
        assert control.http.get(f"/v1/registry/deltas/{name}").status_code == 404
