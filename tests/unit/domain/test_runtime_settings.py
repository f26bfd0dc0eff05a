"""Runtime settings: valid from birth, and unchanged in documents that have none."""

import json

import pytest

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest
from slmops.domain.release import Release
from slmops.domain.runtime_settings import UNCHANGED, RuntimeSettings
from slmops.testing.sample_release import sample_release
from slmops.wire.codec import decode_json, encode_json

DRAFT = Digest("sha256:" + "d" * 64)


def test_an_unknown_type_of_cache_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidInputError, match=r"one of f16, q8_0.*got 'q2_k'"):
        RuntimeSettings(kv_cache="q2_k")


def test_a_draft_has_a_size_and_only_a_draft_has_one() -> None:
    with pytest.raises(InvalidInputError, match="draft_bytes"):
        RuntimeSettings(draft=DRAFT)
    with pytest.raises(InvalidInputError, match="draft_bytes"):
        RuntimeSettings(draft_bytes=7)


@pytest.mark.parametrize("tokens", [0, 17])
def test_a_draft_of_none_or_too_many_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(InvalidInputError, match="1 to 16"):
        RuntimeSettings(draft=DRAFT, draft_bytes=1, draft_tokens=tokens)


def test_a_release_written_before_there_were_settings_still_reads() -> None:
    release = sample_release()
    tree = json.loads(encode_json(release))
    for variant in tree["variants"]:
        del variant["settings"]
        del variant["card"]["settings"]
    old = decode_json(json.dumps(tree).encode(), Release, where="old")
    assert old == release
    assert {variant.settings for variant in old.variants} == {UNCHANGED}


def test_settings_say_what_they_change() -> None:
    assert UNCHANGED.label == ""
    changed = RuntimeSettings(kv_cache="k-q8_0", draft=DRAFT, draft_bytes=1)
    assert changed.label == "kv k-q8_0, draft dddddddd of 3"
    assert not changed.is_default
