"""Divergences against the plain formula in float64, gradients included."""

from __future__ import annotations

import pytest
import torch

from qwen3.train.distill_losses import divergence, sampled_divergence, stored_divergence, top_of

N, H, HT, V, K = 23, 16, 12, 61, 7


def fresh(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(V, H, generator=g) / 2).to(dtype).requires_grad_()
    teacher = torch.randn(N, HT, generator=g).to(dtype)
    teacher_head = (torch.randn(V, HT, generator=g) / 2).to(dtype)
    return hidden, head, teacher, teacher_head, torch.rand(N, generator=g)


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


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reverse", [1.0, 0.0, 0.3])
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (2.5, 0.25)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_divergence(
    seed: int, reverse: float, temperature: float, share: float, dtype: torch.dtype, error: float
) -> None:
    hidden, head, teacher, teacher_head, weights = fresh(seed, dtype)
    labels = torch.arange(N) % V
    loss, seen = divergence(
        hidden, head, teacher, teacher_head, reverse=reverse, temperature=temperature, labels=labels,
        cross_entropy=share, weights=weights, chunk=8,
    )  # fmt: skip
    q = (teacher.double() @ teacher_head.double().T / temperature).log_softmax(-1)

    def each(logits: torch.Tensor) -> torch.Tensor:
        p = (logits / temperature).log_softmax(-1)
        back, ahead = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
        return reverse * back + (1 - reverse) * ahead

    def wanted(logits: torch.Tensor) -> torch.Tensor:
        found = (1 - share) * each(logits) * temperature**2 + share * hard_loss(logits, labels)
        return (found * weights).sum()

    compare(loss, hidden, head, wanted, error)
    logits = hidden.detach().double() @ head.detach().double().T
    p = (logits / temperature).softmax(-1)
    spread = {
        "kl": each(logits),
        "entropy": -(p * p.log()).sum(-1),
        "top": p.gather(-1, q.argmax(-1, keepdim=True))[:, 0],
    }
    for name, exact in spread.items():
        assert (seen[name].double() - exact).norm() <= error * exact.norm(), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (1.7, 0.25)])
def test_stored_divergence(seed: int, temperature: float, share: float) -> None:
    hidden, head, teacher, teacher_head, weights = fresh(seed)
    labels = torch.arange(N) % V
    ids, logprobs, tail = top_of(teacher, teacher_head, K, temperature, chunk=5)
    assert torch.allclose(logprobs.exp().sum(-1) + tail, torch.ones(N))
    loss, seen = stored_divergence(
        hidden, head, ids, logprobs, tail, temperature=temperature, labels=labels, cross_entropy=share,
        weights=weights, chunk=8,
    )  # fmt: skip

    def each(logits: torch.Tensor) -> torch.Tensor:
        p = (logits / temperature).log_softmax(-1).gather(-1, ids)
        p_tail = 1 - p.exp().sum(-1)
        q, q_tail = logprobs.double(), tail.double()
        return (q.exp() * (q - p)).sum(-1) + q_tail * (q_tail.log() - p_tail.log())

    def wanted(logits: torch.Tensor) -> torch.Tensor:
        found = (1 - share) * each(logits) * temperature**2 + share * hard_loss(logits, labels)
        return (found * weights).sum()

    compare(loss, hidden, head, wanted, 1e-5)
    assert torch.allclose(seen["kl"].double(), each(hidden.detach().double() @ head.detach().double().T), rtol=1e-4)


def test_all_tokens_stored_is_the_whole_divergence_and_fewer_are_less() -> None:
    hidden, head, teacher, teacher_head, _ = fresh(9)
    whole = divergence(hidden, head, teacher, teacher_head, reverse=0.0)[0]
    parts = [stored_divergence(hidden, head, *top_of(teacher, teacher_head, k))[0] for k in (1, 5, 20, V - 1, V)]
    assert all(a <= b + 1e-5 for a, b in zip(parts, [*parts[1:], whole], strict=True))
    assert torch.allclose(parts[-1], whole, rtol=1e-4)


def test_the_sampled_estimate_is_the_divergence_on_average_and_so_is_its_gradient() -> None:
    """Every token of the vocabulary as a sample, weighted with its probability: the expectation itself."""
    hidden, head, teacher, teacher_head, _ = (t.detach() for t in fresh(4))
    p = (hidden @ head.T).softmax(-1)
    labels = torch.arange(V).repeat(N)
    many, back = hidden.repeat_interleave(V, 0).requires_grad_(), teacher.repeat_interleave(V, 0)
    loss, seen = sampled_divergence(many, head, back, teacher_head, labels, weights=p.flatten(), chunk=50)
    loss.backward()
    alone = hidden.clone().requires_grad_()
    whole, exact = divergence(alone, head, teacher, teacher_head)
    whole.backward()
    assert torch.allclose(loss.detach(), whole.detach(), rtol=1e-4)
    assert torch.allclose((seen["kl"] * p.flatten()).view(N, V).sum(-1), exact["kl"], rtol=1e-3, atol=1e-5)
    assert many.grad is not None
    assert alone.grad is not None
    assert torch.allclose(many.grad.view(N, V, H).sum(1), alone.grad, atol=1e-4)


@pytest.mark.parametrize("kind", ["reverse", "forward", "stored", "sampled"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str) -> None:
    _, _, teacher, teacher_head, _ = fresh(3)
    hidden = teacher.clone().requires_grad_()
    head = teacher_head.clone().requires_grad_()
    if kind == "stored":
        loss, _ = stored_divergence(hidden, head, *top_of(teacher, teacher_head, K))
    elif kind == "sampled":
        loss, _ = sampled_divergence(hidden, head, teacher, teacher_head, torch.arange(N))
    else:
        loss, _ = divergence(hidden, head, teacher, teacher_head, reverse=float(kind == "reverse"))
    loss.backward()
    assert abs(float(loss.detach())) < 2e-5
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden.grad.norm() < 1e-5
    assert head.grad.norm() < 1e-5
