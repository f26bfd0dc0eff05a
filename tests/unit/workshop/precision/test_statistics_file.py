"""Activation statistics on disk: carried exactly, checked, and the same every time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError
from slmops.workshop.precision.statistics_file import (
    Collected,
    Floats,
    load_statistics,
    save_statistics,
)
from slmops.workshop.quantize import decode_rows, encode_rows


def collected() -> Collected:
    return Collected(
        tokens=5,
        inputs={"blk.0.attn_q.weight": 0, "blk.0.attn_k.weight": 0, "output.weight": 1},
        mean_squares=(
            np.array([1, 4, 9], np.float32),
            np.array([2, 0.5], np.float32),
        ),
        block_similarity=np.array([0.75], np.float32),
    )


def moments() -> Iterator[Floats]:
    yield np.array([[1, 2, 3], [2, 4, 6], [3, 6, 9]], np.float32)
    yield np.array([[2, 1], [1, 0.5]], np.float32)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    save_statistics(path, collected(), moments())
    found = load_statistics(path)
    assert found.tokens == 5
    assert found.importance["blk.0.attn_k.weight"].tolist() == [1, 4, 9]
    assert found.block_similarity.tolist() == [0.75]
    for name, expected in zip(
        ("blk.0.attn_k.weight", "output.weight"), moments(), strict=True
    ):
        moment = found.moment(name)
        assert moment is not None
        assert moment.tolist() == expected.tolist()


def test_statistics_without_moments_say_so(tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    save_statistics(path, collected())
    found = load_statistics(path)
    assert not found.has_moments
    assert found.moment("output.weight") is None


def test_equal_statistics_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_statistics(tmp_path / name, collected(), moments())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("cut", [0, 10, 200, 900])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "statistics"
    save_statistics(path, collected(), moments())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidInputError, match="no activation statistics"):
        load_statistics(path)


def test_negative_mean_squares_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    found = collected()
    found.mean_squares[1][0] = -1
    save_statistics(path, found)
    with pytest.raises(InvalidInputError, match=r"output\.weight must be finite"):
        load_statistics(path)


def test_missing_moments_of_one_input_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    save_statistics(path, collected(), iter([next(moments())]))
    with pytest.raises(InvalidInputError, match="some inputs are missing"):
        load_statistics(path)


def test_channels_never_used_keep_their_weights(tmp_path: Path) -> None:
    found = collected()
    found.mean_squares[0][:] = 0
    found.mean_squares[1][:] = (0, 4)
    path = tmp_path / "statistics"
    save_statistics(path, found)
    importance = load_statistics(path).importance
    assert importance["blk.0.attn_q.weight"].min() > 0
    assert 0 < importance["output.weight"][0] < 1e-5
    values = np.ones((2, 32), np.float32)
    raw = encode_rows(
        values, "Q4_0", np.repeat(importance["blk.0.attn_q.weight"], 11)[:32]
    )
    np.testing.assert_allclose(decode_rows(raw, "Q4_0", 2, 32), values, rtol=0.01)
