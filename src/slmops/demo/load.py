"""A steady load of real requests on the devices, counted honestly."""

import threading
from dataclasses import dataclass, field

import httpx

from slmops.wire import codec

_PROMPTS = (
    "Name one thing a shop sells.",
    "Say hello to a customer.",
    "What is two plus three?",
    "Which day comes after Monday?",
)
_TIMEOUT_S = 60.0
_OK = 200


@dataclass(slots=True)
class Counts:
    """What was sent and what failed."""

    sent: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)


class RequestLoad:
    """One thread per endpoint asks one short question after the other.

    An endpoint joins with `add` once its device serves a model; from then on every
    answer that is not a complete 200 counts as failed, swaps and rollbacks included.
    """

    def __init__(self, *, pause_s: float, answer_tokens: int = 4) -> None:
        self._pause_s = pause_s
        self._answer_tokens = answer_tokens
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.counts = Counts()

    def add(self, url: str) -> None:
        """Begin to ask the endpoint at `url` (``http://host:port``)."""
        thread = threading.Thread(target=self._ask, args=(url,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> Counts:
        """Let running requests end, and return the final counts."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
        return self.counts

    def _ask(self, url: str) -> None:
        turn = 0
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
            while not self._stop.is_set():
                problem = _one_request(client, turn, self._answer_tokens)
                with self._lock:
                    self.counts.sent += 1
                    if problem:
                        self.counts.failed += 1
                        self.counts.reasons.append(f"{url}: {problem}")
                turn += 1
                self._stop.wait(self._pause_s)


def _one_request(client: httpx.Client, turn: int, answer_tokens: int) -> str | None:
    """Ask once; return what was wrong with the answer, or None."""
    body = {
        "messages": [{"role": "user", "content": _PROMPTS[turn % len(_PROMPTS)]}],
        "max_tokens": answer_tokens,
    }
    try:
        answer = client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if answer.status_code != _OK:
        return f"status {answer.status_code}: {answer.text[:200]}"
    try:
        tree = codec.parse_json(answer.content, where="answer")
        text = tree["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        return f"malformed answer: {error}"
    return None if isinstance(text, str) else "answer without text"
