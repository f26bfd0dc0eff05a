"""What is minimised, position by position, and gradients without all logits at once."""

from collections.abc import Callable

import torch
from torch.nn import functional

from slmops.workshop.training.untyped import Tensor

HEAD_ROWS = 256
"""Positions whose logits are in memory together: 50 MB for 49,152 tokens."""


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each position, (positions,) nats.

    Args:
        logits: (positions, vocabulary) fp32.
        targets: (positions,) true tokens.
    """
    return functional.cross_entropy(logits, targets, reduction="none")


def teacher_loss(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return the KL divergence of the student from the teacher, (positions,) nats.

    Forward divergence over the teacher's listed tokens and one outcome for all others,
    a lower bound of that over the whole vocabulary (data-processing inequality). The
    student's mass on the others is summed up from its own logits, not as one minus the
    rest, whose gradient explodes where that is nearly nothing.

    Args:
        logits: (positions, vocabulary) fp32 of the student.
        ids: (positions, k) the teacher's listed tokens.
        logprobs: (positions, k) their log-probabilities at this temperature.
        temperature: divides the student's logits; the loss is multiplied by its square,
            so that gradients keep their size (Hinton et al. 2015, section 2.1).
    """
    scaled = logits / temperature
    total = scaled.logsumexp(1, keepdim=True)
    listed = scaled.gather(1, ids) - total
    terms = (logprobs.exp() * (logprobs - listed)).sum(1)
    if ids.shape[1] < logits.shape[1]:
        others = scaled.scatter(1, ids, float("-inf")).logsumexp(1) - total[:, 0]
        rest = (1 - logprobs.exp().sum(1)).clamp(min=0)
        terms = terms + torch.where(
            rest > 0, rest * (rest.clamp(min=1e-30).log() - others), 0.0
        )
    return terms * temperature**2


def backward_by_rows(
    hidden: Tensor,
    loss_of: Callable[[Tensor, slice], Tensor],
    scale: float,
) -> float:
    """Add the gradients of a sum of losses, a few positions' logits at a time.

    Args:
        hidden: (positions, width) states that the model computed, with their graph.
        loss_of: gives the (rows,) losses of ``hidden[rows]`` and which rows they are.
        scale: of the gradients.

    Returns:
        The sum of losses, not scaled.
    """
    leaf = hidden.detach().requires_grad_()
    total = 0.0
    for first in range(0, len(leaf), HEAD_ROWS):
        rows = slice(first, first + HEAD_ROWS)
        loss = loss_of(leaf[rows], rows).sum()
        (loss * scale).backward()
        total += float(loss.detach())
    hidden.backward(leaf.grad)
    return total
