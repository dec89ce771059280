"""Divergences against the plain formula in float64, gradients included."""

from __future__ import annotations

import pytest
import torch

from qwen3.train.distill_losses import divergence, stored_divergence, top_of

N, H, HT, V, K = 23, 16, 12, 61, 7


def fresh(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(V, H, generator=g) / 2).to(dtype).requires_grad_()
    teacher = torch.randn(N, HT, generator=g).to(dtype)
    teacher_head = (torch.randn(V, HT, generator=g) / 2).to(dtype)
    return hidden, head, teacher, teacher_head, torch.rand(N, generator=g) < 0.7


def compare(loss: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor, wanted: object, error: float) -> None:
    (2.0 * loss).backward()
    h, w = (t.detach().double().requires_grad_() for t in (hidden, head))
    reference = wanted(h @ w.T)  # type: ignore[operator]
    (2.0 * reference).backward()
    assert abs(float(loss.detach() - reference.detach())) <= error * abs(float(reference.detach()))
    for found, exact in ((hidden, h), (head, w)):
        assert found.grad is not None
        assert exact.grad is not None
        assert (found.grad.double() - exact.grad).norm() <= error * exact.grad.norm()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_divergence(seed: int, reverse: bool, temperature: float, dtype: torch.dtype, error: float) -> None:
    hidden, head, teacher, teacher_head, kept = fresh(seed, dtype)
    loss = divergence(hidden, head, teacher, teacher_head, kept, reverse=reverse, temperature=temperature, chunk=8)
    q = (teacher.double() @ teacher_head.double().T / temperature).log_softmax(-1)

    def wanted(logits: torch.Tensor) -> torch.Tensor:
        p = (logits / temperature).log_softmax(-1)
        each = (p.exp() * (p - q)).sum(-1) if reverse else (q.exp() * (q - p)).sum(-1)
        return (each * kept).sum() * temperature**2

    compare(loss, hidden, head, wanted, error)


@pytest.mark.parametrize("seed", range(6))
def test_stored_divergence(seed: int) -> None:
    hidden, head, teacher, teacher_head, kept = fresh(seed)
    ids, logprobs, tail = top_of(teacher, teacher_head, K, chunk=5)
    loss = stored_divergence(hidden, head, ids, logprobs, tail, kept, chunk=8)

    def wanted(logits: torch.Tensor) -> torch.Tensor:
        p = logits.log_softmax(-1).gather(-1, ids)
        p_tail = 1 - p.exp().sum(-1)
        q, q_tail = logprobs.double(), tail.double()
        each = (q.exp() * (q - p)).sum(-1) + q_tail * (q_tail.log() - p_tail.log())
        return (each * kept).sum()

    compare(loss, hidden, head, wanted, 1e-5)


def test_all_tokens_stored_is_the_whole_divergence_and_fewer_are_less() -> None:
    hidden, head, teacher, teacher_head, kept = fresh(9)
    whole = divergence(hidden, head, teacher, teacher_head, kept, reverse=False)
    parts = [stored_divergence(hidden, head, *top_of(teacher, teacher_head, k), kept) for k in (1, 5, 20, V - 1)]
    assert all(a <= b + 1e-5 for a, b in zip(parts, [*parts[1:], whole], strict=True))
    assert torch.allclose(parts[-1], whole, rtol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    _, _, teacher, teacher_head, kept = fresh(3)
    hidden = teacher.clone().requires_grad_()
    head = teacher_head.clone().requires_grad_()
    loss = divergence(hidden, head, teacher, teacher_head, kept)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-4
    assert hidden.grad is not None
    assert hidden.grad.norm() < 1e-4
