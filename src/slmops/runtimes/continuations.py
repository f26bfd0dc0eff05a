"""Ranking continuations of a prompt: what a runtime may offer beyond its logits.

Scores of full logits would do too, at the price of computing a prompt once for each
continuation.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from slmops.domain.errors import InvalidInputError
from slmops.runtimes.base import Scorer, WorkerSettings, load_runtime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Continuations(Scorer, Protocol):
    """A scorer that also says how likely given continuations of a prompt are.

    Runtimes offer it with a method ``open_continuations``, of `Runtime.open_scorer`'s
    form; those without it cannot rank answers.
    """

    greedy: list[bool]
    """Of the last call of `score`: whether each continuation, as far as it was followed,
    is what greedy generation would write."""

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return token ids of a rendered prompt: special tokens are parsed and added."""
        ...

    def end_of_turn(self, following: str) -> int:
        """Return the token that ends an answer, given what the template writes behind."""
        ...

    def hold(self, tokens: Sequence[int]) -> None:
        """Compute the beginning that all prompts share, once."""
        ...

    def score(
        self,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        margin: float = math.inf,
    ) -> "list[npt.NDArray[np.float64]]":
        """Return the log-probability of each token of each continuation, nats.

        One that is certainly `margin` nats less likely than the likeliest may be left
        off early: then its array is shorter and adds up to an upper bound.
        """
        ...


def open_continuations(
    runtime: str, artefact: Path, settings: WorkerSettings
) -> Continuations:
    """Load for ranking in this process; a malformed artefact may abort it.

    Raises:
        NotFoundError: no such runtime.
        InvalidInputError: the runtime cannot rank, or refuses the artefact.
    """
    opener = getattr(load_runtime(runtime), "open_continuations", None)
    if opener is None:
        raise InvalidInputError(
            f"runtime {runtime} cannot rank labels; ask with method generate"
        )
    return cast("Continuations", opener(artefact, settings))
