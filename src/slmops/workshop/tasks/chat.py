"""A worker asked over its HTTP interface: what an application would send and get."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.address import open_client
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.worker import start_worker
from slmops.workshop.tasks.marking import RawAnswer

TIMEOUT_S = 300.0
"""Longest wait for one answer."""
_SHOWN_CHARACTERS = 200
_ANSWER, _NEXT = "Ja", "Weiter"

Turns = Sequence[dict[str, str]]


class TaskChat:
    """Asks one worker; messages name the example, never its text."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def render(self, turns: Turns, *, where: str) -> str:
        """Return the prompt as the runtime writes it, by the model's chat template.

        Raises:
            InvalidInputError: the template refuses the turns.
            UnavailableError: the worker did not answer.
        """
        tree = self._post("/apply-template", {"messages": list(turns)}, where)
        return str(tree["prompt"])

    def written_behind_answers(self) -> str:
        """Return what the template writes between an answer and the end of the next turn."""
        turns = [
            {"role": "user", "content": _NEXT},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        whole = self.render(turns, where="chat template")
        return whole.rpartition(_ANSWER)[2].partition(_NEXT)[0]

    def answer(
        self,
        turns: Turns,
        *,
        max_tokens: int,
        schema: object | None,
        where: str,
    ) -> RawAnswer:
        """Ask for a greedy answer.

        Args:
            turns: the chat so far.
            max_tokens: longest answer.
            schema: JSON Schema the runtime must hold the answer to; None for none.
            where: of the example, for messages.
        """
        body: dict[str, Any] = {
            "messages": list(turns),
            "temperature": 0,
            "max_tokens": max_tokens,
            # What an earlier request left in the cache must not decide an answer.
            "cache_prompt": False,
        }
        if schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        tree = self._post("/v1/chat/completions", body, where)
        try:
            choice = tree["choices"][0]
            return RawAnswer(
                text=str(choice["message"]["content"] or ""),
                finished=choice["finish_reason"] != "length",
            )
        except (KeyError, IndexError, TypeError):
            raise UnavailableError(
                f"{where}: the worker answered in an unknown form"
            ) from None

    def complete(
        self, prompt: str, *, max_tokens: int, stop: Sequence[str], where: str
    ) -> str:
        """Return the greedy continuation of a prompt that is rendered already.

        Args:
            prompt: text; special tokens in it are parsed.
            max_tokens: longest continuation.
            stop: texts that end it; they are not part of it.
            where: of the request, for messages.
        """
        body = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "temperature": 0,
            "stop": list(stop),
            "cache_prompt": False,
        }
        return str(self._post("/completion", body, where)["content"])

    def _post(self, path: str, body: object, where: str) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{where}: the worker did not answer: {type(error).__name__}"
            ) from None
        if answer.is_client_error:
            raise InvalidInputError(
                f"{where}: refused by the runtime: {answer.text[:_SHOWN_CHARACTERS]}"
            )
        if not answer.is_success:
            raise UnavailableError(
                f"{where}: the worker answered {answer.status_code}:"
                f" {answer.text[:_SHOWN_CHARACTERS]}"
            )
        tree: dict[str, Any] = answer.json()
        return tree


@contextmanager
def open_chat(
    runtime: str, artefact: Path, settings: WorkerSettings
) -> Iterator[TaskChat]:
    """Have a worker up for a block.

    Raises:
        InvalidInputError: the artefact does not load.
        UnavailableError: the runtime is not installed.
    """
    with (
        start_worker(runtime, artefact, settings) as worker,
        open_client(worker.address, timeout_s=TIMEOUT_S) as http,
    ):
        yield TaskChat(http)
