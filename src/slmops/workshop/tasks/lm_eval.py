"""EleutherAI's lm-eval on any GGUF file, in the runtime that serves.

lm-eval is no dependency of ours: it is imported when it is asked for. Its three kinds of
requests are answered here; tasks, prompts, metrics and few-shot examples are its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.continuations import Continuations, open_continuations
from slmops.workshop.tasks.ask import CONTEXT_TOKENS
from slmops.workshop.tasks.chat import TaskChat, open_chat

RUNTIME = "llamacpp"
MAX_GENERATED = 256
"""Longest generated answer when a task says none; lm-eval's own default."""
MAX_TREE_TOKENS = 256
"""Longer continuations are scored from the logits of their whole window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessFigure:
    """One figure of one task, as lm-eval computed it."""

    task: str
    """lm-eval's name of the task."""
    figure: str
    """Its name of the metric and filter: ``acc,none``."""
    value: float
    """The figure."""
    standard_error: float | None
    """Of the mean; None where lm-eval gives none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessPlan:
    """What lm-eval is to run."""

    tasks: tuple[str, ...]
    """Its names of tasks."""
    include: Path | None = None
    """Folder with further task files."""
    limit: int | None = None
    """Most examples of each task."""
    shots: int | None = None
    """Examples shown first; None leaves it to the task."""
    chat: bool = False
    """Whether to ask through the model's chat template."""
    threads: int = 1
    """Processors to use."""


def run_lm_eval(artefact: Path, plan: HarnessPlan) -> tuple[HarnessFigure, ...]:
    """Run tasks of lm-eval on one GGUF file.

    A worker loads it first, so a malformed file ends a child.

    Raises:
        InvalidInputError: lm-eval is not installed, a task is unknown, or the file does
            not load.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as missing:
        # Trying again changes nothing, so it is not unavailable.
        raise InvalidInputError(
            f"lm-eval is not installed ({missing.name}): pip install lm-eval"
        ) from None
    manager = TaskManager(
        include_path=str(plan.include) if plan.include is not None else None
    )
    unknown = [name for name in plan.tasks if name not in manager.all_tasks]
    if unknown:
        raise InvalidInputError(f"lm-eval knows no task {unknown[0]!r}")
    settings = WorkerSettings(threads=plan.threads, context_tokens=CONTEXT_TOKENS)
    with open_chat(RUNTIME, artefact, settings) as worker:
        scorer = open_continuations(RUNTIME, artefact, settings)
        try:
            found = simple_evaluate(
                model=_harness_model(HarnessAnswers(scorer, worker), artefact.name),
                tasks=list(plan.tasks),
                num_fewshot=plan.shots,
                limit=plan.limit,
                task_manager=manager,
                apply_chat_template=plan.chat,
                log_samples=False,
            )
        finally:
            scorer.close()
    return tuple(_figures(found["results"]))


class HarnessAnswers:
    """What lm-eval asks of a model, answered by a scorer and a worker."""

    def __init__(
        self, scorer: Continuations, worker: TaskChat, limit: int = CONTEXT_TOKENS
    ) -> None:
        self._scorer = scorer
        self._worker = worker
        self._limit = limit

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[float, bool]]:
        """Return log p of each continuation behind its context, and whether it is greedy.

        Neighbours with the same context, the choices of one question, share its
        computation. What does not fit the context is cut off at its beginning.
        """
        encoded = [self._encode(*pair) for pair in pairs]
        found: list[tuple[float, bool]] = []
        for context, group in groupby(encoded, key=lambda pair: pair[0]):
            found += self._score(context, [tokens for _, tokens in group])
        return found

    def rolling(self, text: str) -> float:
        """Return log p of a whole text, each token once, with as much context as fits."""
        tokens = self._scorer.tokenize(text)
        total, step = 0.0, self._limit - 1
        for begin in range(0, len(tokens), step):
            part = tokens[begin : begin + step]
            # A token of the window before; the last window reaches back as far as it can.
            back = min(begin, self._limit - len(part))
            before = tokens[begin - back : begin] or [self._start()]
            total += self._window(before, part)[0]
        return total

    def generate(self, prompt: str, options: Mapping[str, Any]) -> str:
        """Return a greedy answer, up to one of ``until`` or ``max_gen_toks`` tokens.

        Raises:
            InvalidInputError: the task wants sampling.
        """
        if options.get("do_sample") and options.get("temperature", 0):
            raise InvalidInputError("only greedy tasks are answered, got do_sample")
        until = options.get("until") or []
        longest = options.get("max_gen_toks", options.get("max_tokens", MAX_GENERATED))
        return self._worker.complete(
            prompt,
            max_tokens=int(longest),
            stop=[until] if isinstance(until, str) else list(until),
            where="lm-eval request",
        )

    def render(self, turns: Sequence[dict[str, str]]) -> str:
        """Return a chat as the runtime writes it."""
        return self._worker.render(turns, where="lm-eval request")

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize both together and cut, as lm-eval does: white space goes right."""
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if not kept:
            return [self._start()], self._scorer.tokenize(continuation)
        head = self._scorer.tokenize_prompt(kept)
        return head, self._scorer.tokenize_prompt(kept + continuation)[len(head) :]

    def _score(
        self, context: list[int], continuations: list[list[int]]
    ) -> list[tuple[float, bool]]:
        longest = max(map(len, continuations))
        fits = len(context) + longest <= self._limit and longest <= MAX_TREE_TOKENS
        if not fits or not all(continuations):
            return [self._window(context, tokens) for tokens in continuations]
        scored = self._scorer.score(context, continuations)
        sums = [float(each.sum()) for each in scored]
        return list(zip(sums, self._scorer.greedy, strict=True))

    def _window(self, context: list[int], tokens: list[int]) -> tuple[float, bool]:
        if not tokens:
            return 0.0, True
        room = max(self._limit - len(tokens), 1)
        window = [*context[-room:], *tokens][-self._limit :]
        logits = self._scorer.logits(window).astype(np.float64)
        begin = len(window) - len(tokens)
        if begin < 1:
            raise InvalidInputError(
                f"a continuation must have fewer than {self._limit} tokens,"
                f" got {len(tokens)}"
            )
        rows = logits[begin - 1 : -1]
        top = rows.max(axis=1)
        total = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        chosen = rows[np.arange(len(tokens)), tokens]
        return float((chosen - total).sum()), bool((chosen >= top).all())

    def _start(self) -> int:
        first = self._scorer.tokenize_prompt("")
        return first[0] if first else self._scorer.end_of_turn("")


def _harness_model(answers: HarnessAnswers, name: str) -> Any:  # noqa: ANN401
    """Wrap the answers in lm-eval's class; made here because it may not be installed."""
    from lm_eval.api.model import LM

    class GgufModel(LM):  # type: ignore[misc, unused-ignore]
        """What lm-eval talks to."""

        tokenizer_name = name

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return answers.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [answers.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [answers.generate(*request.args) for request in requests]

        def apply_chat_template(
            self,
            chat_history: Sequence[dict[str, str]],
            add_generation_prompt: bool = True,
        ) -> str:
            if not add_generation_prompt and chat_history[-1]["role"] != "assistant":
                raise InvalidInputError("a chat without answer needs its prompt")
            return answers.render(chat_history)

        def chat_template(self, chat_template: object = False) -> str:
            return f"of the file ({chat_template})"

    return GgufModel()


def _figures(results: Mapping[str, Mapping[str, Any]]) -> list[HarnessFigure]:
    found = []
    for task, values in results.items():
        for figure, value in values.items():
            name, _, kind = figure.partition(",")
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if not numeric or not kind or name.endswith("_stderr"):
                continue
            error = values.get(f"{name}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            found.append(
                HarnessFigure(
                    task=task,
                    figure=figure,
                    value=float(value),
                    standard_error=float(error)
                    if known and error is not None
                    else None,
                )
            )
    return found
