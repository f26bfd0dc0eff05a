"""Tokens and rate limits."""

from pathlib import Path

import pytest

from slmops.control.auth import (
    OPERATOR_TOKEN_FILE,
    KnownSessions,
    OperatorDoor,
    RateLimit,
    hash_token,
    load_operator_token,
    new_token,
)
from slmops.domain.errors import UnavailableError, UntrustedError


def test_the_operator_token_is_made_once(tmp_path: Path) -> None:
    first = load_operator_token(tmp_path / "control")
    assert load_operator_token(tmp_path / "control") == first
    assert len(first) > 40


def test_tokens_differ_and_their_hashes_hide_them() -> None:
    first, second = new_token("enrol"), new_token("enrol")
    assert first != second
    assert first not in hash_token(first)


@pytest.mark.parametrize("token", ["", "x", "operator_", "\udcff"])
def test_a_wrong_token_is_not_the_owners(token: str) -> None:
    assert not OperatorDoor("operator_right").is_owner(token)
    assert OperatorDoor("operator_right").is_owner("operator_right")


def test_a_rate_limit_refills_with_time_and_is_per_device() -> None:
    now = [0.0]
    limit = RateLimit(burst=2, rate_per_s=1.0, monotonic=lambda: now[0])
    limit.take("a")
    limit.take("a")
    with pytest.raises(UnavailableError, match="slow down"):
        limit.take("a")
    limit.take("b")
    now[0] = 1.0
    limit.take("a")


def test_a_device_has_one_known_session_and_the_oldest_is_forgotten() -> None:
    known = KnownSessions(most=2)
    known.keep("t1", ("a", 9.0))
    known.keep("t2", ("a", 9.0))
    assert (known.find("t1"), known.find("t2")) == (None, ("a", 9.0))
    known.keep("t3", ("b", 9.0))
    known.keep("t4", ("c", 9.0))
    assert known.find("t2") is None
    known.forget("b")
    known.forget("nobody")
    assert known.find("t3") is None
    assert known.find("t4") == ("c", 9.0)


@pytest.mark.parametrize("content", [b"", b" \n", b"short\n", b"\xff" * 40])
def test_a_token_file_without_a_token_opens_no_door(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / OPERATOR_TOKEN_FILE
    path.write_bytes(content)
    with pytest.raises(UntrustedError, match="operator-token"):
        load_operator_token(tmp_path)
    assert path.read_bytes() == content
