"""Where commands find the control plane of their workspace, and what they do not believe."""

from pathlib import Path

import pytest

from slmops.control.occupancy import ADDRESS, announced, only_plane, running_at
from slmops.domain.errors import ConflictError


def test_an_address_counts_only_while_its_plane_runs(tmp_path: Path) -> None:
    assert running_at(tmp_path) is None
    with only_plane(tmp_path), announced(tmp_path, "http://127.0.0.1:1"):
        assert running_at(tmp_path) == "http://127.0.0.1:1"
        assert (tmp_path / ADDRESS).stat().st_mode & 0o077 == 0
    assert running_at(tmp_path) is None


def test_a_killed_plane_s_address_is_gone_before_the_next_one_answers(
    tmp_path: Path,
) -> None:
    left = tmp_path / ADDRESS
    left.write_text('{"url": "http://127.0.0.1:1"}')
    assert running_at(tmp_path) is None
    with only_plane(tmp_path):
        assert running_at(tmp_path) is None


def test_a_second_plane_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with only_plane(tmp_path), announced(tmp_path, "http://127.0.0.1:1"):
        with (
            pytest.raises(ConflictError, match=r"at http://127\.0\.0\.1:1"),
            only_plane(tmp_path),
        ):
            pass
        assert running_at(tmp_path) == "http://127.0.0.1:1"
