"""Models are exchanged under load: no request fails, none is answered by two models."""

from pathlib import Path

import pytest

from slmops.testing.swap_load import MEMORY_MIB, swap_under_load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("policy", sorted(MEMORY_MIB))
def test_no_request_fails_or_mixes_models_while_they_are_exchanged(
    tmp_path: Path, policy: str
) -> None:
    result = swap_under_load(tmp_path, requests=300, swaps=2, policy=policy)
    assert (result.failed, result.mixed) == ([], [])
    assert result.swaps == 2
    assert result.requests >= 300
    assert result.long_streams > 0
    assert len(result.answered) == 3  # every version has answered
