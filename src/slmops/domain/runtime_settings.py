"""How a runtime is to run a variant, beyond its class's knobs: measured so, served so.

Two settings that change what a variant costs, and one of them what it answers: the type
that the attention's keys and values are kept in, and a smaller model that drafts tokens
for the variant to check (Leviathan et al. 2023, "Fast inference from transformers via
speculative decoding": answers are the variant's own).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import Digest

KV_CACHE_BYTES: Mapping[str, tuple[float, float]] = {
    "f16": (2.0, 2.0),
    "q8_0": (34 / 32, 34 / 32),
    "q4_0": (18 / 32, 18 / 32),
    "k-q8_0": (34 / 32, 2.0),
    "k-q4_0": (18 / 32, 2.0),
}
"""Type of the cache → bytes of one number of the keys, and of the values."""
DRAFT_TOKENS = 3
"""Drafted at once unless said otherwise, as llama.cpp does."""
MOST_DRAFT_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeSettings:
    """Settings that a build may propose and must measure; the defaults change nothing."""

    kv_cache: str = "f16"
    """Type of the attention's cache: ``f16``; ``q8_0`` or ``q4_0`` for keys and values,
    ``k-q8_0`` or ``k-q4_0`` for keys alone."""
    draft: Digest | None = None
    """Artefact of a model with the same vocabulary that drafts; None for none."""
    draft_bytes: int = 0
    """Its exact size."""
    draft_tokens: int = DRAFT_TOKENS
    """Most tokens drafted at once, 1 to 16; nothing without a draft."""

    def __post_init__(self) -> None:
        check_kv_cache(self.kv_cache)
        check_draft_tokens(self.draft_tokens)
        if (self.draft is None) != (self.draft_bytes == 0) or self.draft_bytes < 0:
            raise InvalidInputError(
                "runtime settings: draft_bytes must be the draft's size,"
                f" got {self.draft_bytes} with draft {self.draft}"
            )

    @property
    def is_default(self) -> bool:
        """Whether they change nothing."""
        return self.kv_cache == "f16" and self.draft is None

    @property
    def label(self) -> str:
        """For people: ``kv q8_0, draft a1b2c3d4``; empty when nothing is changed."""
        parts = [] if self.kv_cache == "f16" else [f"kv {self.kv_cache}"]
        if self.draft is not None:
            hexadecimal = self.draft.rpartition(":")[2]
            parts.append(f"draft {hexadecimal[:8]} of {self.draft_tokens}")
        return ", ".join(parts)


def check_kv_cache(kv_cache: str) -> None:
    """Refuse a type that no cache has.

    Raises:
        InvalidInputError: unknown.
    """
    if kv_cache not in KV_CACHE_BYTES:
        raise InvalidInputError(
            f"kv_cache must be one of {', '.join(KV_CACHE_BYTES)}, got {kv_cache!r}"
        )


def check_draft_tokens(draft_tokens: int) -> None:
    """Refuse a number of drafted tokens that makes no sense.

    Raises:
        InvalidInputError: not 1 to 16.
    """
    if not 1 <= draft_tokens <= MOST_DRAFT_TOKENS:
        raise InvalidInputError(
            f"draft_tokens must be 1 to {MOST_DRAFT_TOKENS}, got {draft_tokens}"
        )


UNCHANGED = RuntimeSettings()
"""What the runtime does unless told otherwise."""
