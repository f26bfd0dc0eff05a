"""Log-probabilities of ``/v1/completions`` in that route's own shape.

Runtimes answer in chat's shape, a list of entries. The older route has parallel lists:
https://platform.openai.com/docs/api-reference/completions/object
"""

from typing import Any


class LegacyLogprobs:
    """Rewrites the answers of one request, whole or piece by piece."""

    def __init__(self, listed: int) -> None:
        """Take how many alternatives the client asked for, 0 to 5."""
        self._listed = listed
        self._offset = 0

    def rewrite(self, tree: dict[str, Any]) -> None:
        """Replace the log-probabilities of every choice in place.

        ``text_offset`` counts characters of the answer alone, from its first piece on.
        """
        choices = tree.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                found = choice.get("logprobs")
                content = found.get("content") if isinstance(found, dict) else None
                choice["logprobs"] = (
                    self._lists(content) if isinstance(content, list) else None
                )

    def _lists(self, content: list[Any]) -> dict[str, Any]:
        entries = [entry for entry in content if isinstance(entry, dict)]
        tokens = [str(entry.get("token", "")) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.get("logprob") for entry in entries],
            "top_logprobs": [self._alternatives(entry) for entry in entries]
            if self._listed
            else None,
            "text_offset": offsets,
        }

    def _alternatives(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the likely tokens, and the chosen one, as OpenAI always adds it."""
        listed = entry.get("top_logprobs")
        items = listed if isinstance(listed, list) else []
        found = {
            str(item.get("token", "")): item.get("logprob")
            for item in items[: self._listed]
            if isinstance(item, dict)
        }
        found.setdefault(str(entry.get("token", "")), entry.get("logprob"))
        return found
