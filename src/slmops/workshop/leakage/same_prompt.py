"""When two prompts are the same: a model that learnt one knows the other.

Case, spacing, Unicode form, quotes, and punctuation that ends a word make no other prompt;
signs inside a word or between words do: ``3 + 4`` and ``3 - 4`` are two questions.
"""

import re
import unicodedata
from collections.abc import Iterable

_SPACE = re.compile(r"\s+")
_BEFORE_WORDS = re.compile(r"(?<!\S)[\"'`“”„‘’‚«»‹›¿¡(「『《]+(?=\w)")
_BEHIND_WORDS = re.compile(
    r"(?<=\S)[.,;:!?…\"'`“”‘’«»‹›)。、！？，；：؟،।」』》]+(?!\S)"
)


def prompt_form(turns: Iterable[str]) -> str:
    """Return what prompts share that are the same, and no others.

    Args:
        turns: what was said before the answer, system prompts left out: the same question
            under another system prompt is no other question.

    >>> prompt_form(["Where's  my CARD?"]) == prompt_form(["“where's my card”"])
    True
    >>> prompt_form(["3 + 4?"]) == prompt_form(["3 - 4?"])
    False
    """
    return "\0".join(_form(turn) for turn in turns)


def _form(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    bare = _BEHIND_WORDS.sub("", _BEFORE_WORDS.sub("", plain))
    return _SPACE.sub(" ", bare).strip()
