"""Chunked losses against the plain formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qwen3.train.losses import linear_cross_entropy, token_logprobs

N, H, V = 37, 16, 101


def fresh(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(V, H, generator=g) / 2).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=g)
    labels[torch.rand(N, generator=g) < 0.3] = -100
    return hidden, weight, labels, torch.rand(N, generator=g)


def exact(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    return h, w, (h @ w.T).log_softmax(-1)


def close(found: torch.Tensor, wanted: torch.Tensor, error: float) -> None:
    assert (found.double() - wanted).norm() <= error * wanted.norm()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [5, 16, 64])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_cross_entropy_and_its_gradients(seed: int, chunk: int, dtype: torch.dtype, error: float) -> None:
    hidden, weight, labels, weights = fresh(seed, dtype)
    loss = linear_cross_entropy(hidden, weight, labels, weights, chunk)
    (3.0 * loss).backward()
    h, w, logp = exact(hidden, weight)
    wanted = (F.nll_loss(logp, labels, reduction="none", ignore_index=-100) * weights).sum()
    (3.0 * wanted).backward()
    close(loss.detach(), wanted.detach(), error)
    for found, reference in ((hidden, h), (weight, w)):
        assert found.grad is not None
        assert reference.grad is not None
        close(found.grad, reference.grad, error)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_logprobs_entropies_and_gradients_of_any_function_of_them(seed: int, dtype: torch.dtype, error: float) -> None:
    hidden, weight, labels, weights = fresh(seed, dtype)
    logprob, entropy = token_logprobs(hidden, weight, labels, 8)
    ((logprob * 0.3).exp() * weights).sum().backward()
    h, w, logp = exact(hidden, weight)
    kept = labels != -100
    chosen = torch.where(kept, logp.gather(-1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    ((chosen * 0.3).exp() * weights).sum().backward()
    close(logprob.detach(), chosen.detach(), error)
    close(entropy, torch.where(kept, -(logp.exp() * logp).sum(-1), 0.0).detach(), error)
    for found, reference in ((hidden, h), (weight, w)):
        assert found.grad is not None
        assert reference.grad is not None
        close(found.grad, reference.grad, error)


def test_nothing_trained_is_no_loss_and_no_gradient() -> None:
    hidden, weight, labels, _ = fresh(0, torch.float32)
    labels.fill_(-100)
    loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels, _ = fresh(1, torch.float32)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    token_logprobs(hidden, weight, labels)[0].sum().backward()
    assert weight.grad is None
