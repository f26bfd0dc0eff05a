"""The distillation loss is the divergence it says, with the gradient of its definition."""

import pytest

torch = pytest.importorskip("torch")

from slmops.workshop.training.losses import (  # noqa: E402 - needs torch
    HEAD_ROWS,
    answer_loss,
    backward_by_rows,
    teacher_loss,
)
from slmops.workshop.training.untyped import Tensor  # noqa: E402


def rows(seed: int, count: int = 5, vocabulary: int = 40) -> Tensor:
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


def listed(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    best = (logits / temperature).log_softmax(1).topk(top_k, 1)
    return best.indices, best.values


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_all_tokens_listed_it_is_the_whole_divergence(temperature: float) -> None:
    student, teacher = rows(0), rows(1)
    ids, logprobs = listed(teacher, 40, temperature)
    found = teacher_loss(student, ids, logprobs, temperature=temperature)
    p = (teacher / temperature).log_softmax(1)
    q = (student / temperature).log_softmax(1)
    expected = (p.exp() * (p - q)).sum(1) * temperature**2
    assert torch.allclose(found, expected, atol=1e-5)


def test_with_some_listed_the_rest_is_one_outcome() -> None:
    student, teacher = rows(0), rows(1)
    ids, logprobs = listed(teacher, 6, 1.0)
    found = teacher_loss(student, ids, logprobs)
    p = torch.cat([logprobs, (1 - logprobs.exp().sum(1, keepdim=True)).log()], 1)
    listed_q = student.softmax(1).gather(1, ids)
    q = torch.cat([listed_q, 1 - listed_q.sum(1, keepdim=True)], 1).log()
    assert torch.allclose(found, (p.exp() * (p - q)).sum(1), atol=1e-5)
    whole = teacher_loss(student, *listed(teacher, 40, 1.0))
    assert (found <= whole + 1e-6).all()


def test_it_is_zero_with_zero_gradient_where_both_agree() -> None:
    logits = rows(2).requires_grad_()
    loss = teacher_loss(logits, *listed(logits.detach(), 6, 1.0)).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert float(logits.grad.abs().max()) < 1e-5


def test_gradients_stay_finite_where_a_model_is_sure() -> None:
    logits = torch.zeros(1, 40)
    logits[0, 3] = 200.0
    sure = logits.clone().requires_grad_()
    for teacher in (logits, rows(1, 1)):
        teacher_loss(sure, *listed(teacher, 6, 1.0)).sum().backward()
    assert torch.isfinite(sure.grad).all()


def test_gradients_by_rows_are_those_of_all_at_once() -> None:
    head = torch.nn.Linear(8, 30)
    states = torch.randn(HEAD_ROWS + 70, 8)
    targets = torch.randint(0, 30, (len(states),))
    base = torch.nn.Parameter(states.clone())
    expected = torch.nn.Parameter(states.clone())
    answer_loss(head(expected * 2), targets).sum().backward()
    wanted = head.weight.grad.clone()
    head.weight.grad = None
    total = backward_by_rows(
        base * 2, lambda part, at: answer_loss(head(part), targets[at]), 0.5
    )
    assert total == pytest.approx(answer_loss(head(states * 2), targets).sum().item())
    assert torch.allclose(base.grad, expected.grad / 2, atol=1e-6)
    assert torch.allclose(head.weight.grad, wanted / 2, atol=1e-4)
