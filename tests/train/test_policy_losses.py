"""Policy losses against their formulas, written out sequence by sequence in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qwen3.errors import UsageError
from qwen3.train.policy_losses import KINDS, Kind, PolicyLoss, advantages, informative, overlong_penalty

LENGTHS = (3, 1, 7, 5)


def fresh(seed: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    count = sum(LENGTHS)
    old = -torch.rand(count, generator=g, dtype=torch.float64) * 3
    logprob = (old + 0.4 * torch.randn(count, generator=g, dtype=torch.float64)).requires_grad_()
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    advantage = torch.randn(len(LENGTHS), generator=g, dtype=torch.float64)[sequence]
    reference = old + 0.2 * torch.randn(count, generator=g, dtype=torch.float64)
    return logprob, old, advantage, sequence, reference


def by_hand(kind: Kind, logprob: Any, old: Any, advantage: Any, length: int, kl: float, reference: Any) -> Any:
    """The mean that each paper writes, as Python loops over tensors of one element."""
    clips = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
    low, high = clips[kind]
    sequences, start = [], 0
    for size in LENGTHS:
        at = range(start, start + size)
        terms = []
        mean = sum(float(logprob[i].detach() - old[i]) for i in at) / size
        for i in at:
            ratio = torch.exp(logprob[i] - old[i])
            a = advantage[i]
            if kind == "gspo":
                ratio = math.exp(mean) * torch.exp(logprob[i] - logprob[i].detach())
            if kind == "cispo":
                term = -min(max(float(ratio), 1 - low), 1 + high) * a * logprob[i]
            else:
                bounded = ratio if 1 - low <= ratio <= 1 + high else (1 + high if ratio > 1 else 1 - low)
                left, right = ratio * a, bounded * a
                term = -(left if left <= right else right)
            back = reference[i] - logprob[i]
            terms.append(term + kl * (torch.exp(back) - back - 1))
        sequences.append(sum(terms))
        start += size
    if kind in ("dapo", "cispo"):
        return sum(sequences) / sum(LENGTHS)
    if kind == "dr_grpo":
        return sum(sequences) / (len(LENGTHS) * length)
    return sum(s / n for s, n in zip(sequences, LENGTHS, strict=True)) / len(LENGTHS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_values_and_gradients(kind: Kind, seed: int, kl: float) -> None:
    logprob, old, advantage, sequence, reference = fresh(seed)
    loss = PolicyLoss(kind, length=16, kl=kl)
    total, metrics = loss(logprob, old, advantage, sequence, reference)
    found = total / loss.normaliser(torch.tensor(LENGTHS))
    (gradient,) = torch.autograd.grad(found, logprob)
    wanted = by_hand(kind, logprob, old, advantage, 16, kl, reference)
    (reference_gradient,) = torch.autograd.grad(wanted, logprob)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(gradient, reference_gradient, atol=1e-12)
    assert 0 <= metrics["clipped"] <= sum(LENGTHS)
    assert metrics["kl_old"] >= 0
    assert metrics["kl_reference"] >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_in_parts_is_the_same_update(kind: Kind) -> None:
    logprob, old, advantage, sequence, _ = fresh(1)
    loss = PolicyLoss(kind, length=16)
    whole = loss(logprob, old, advantage, sequence)[0]
    first = sum(LENGTHS[:2])
    parts = [
        loss(logprob[at], old[at], advantage[at], sequence[at] - sequence[at][0])[0]
        for at in (slice(0, first), slice(first, None))
    ]
    assert torch.allclose(sum(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_the_gradient_is_the_advantages(kind: Kind) -> None:
    _, old, advantage, sequence, _ = fresh(2)
    logprob = old.clone().requires_grad_()
    total, _ = PolicyLoss(kind, length=16)(logprob, old, advantage, sequence)
    (gradient,) = torch.autograd.grad(total, logprob)
    share = 1 / torch.bincount(sequence)[sequence] if kind in ("grpo", "gspo") else 1.0
    assert torch.allclose(gradient, -advantage * share)


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert advantages(rewards, "dr_grpo").tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]
    assert advantages(rewards, "grpo").tolist() == [[1.0, -1.0, -1.0, 1.0], [0.0] * 4]
    assert informative(rewards).tolist() == [True, False]
    g = torch.Generator().manual_seed(0)
    many = advantages(torch.randn(50, 8, generator=g, dtype=torch.float64), "dapo")
    assert torch.allclose(many.mean(1), torch.zeros(50, dtype=torch.float64))
    assert torch.allclose(many.square().mean(1), torch.ones(50, dtype=torch.float64))


def test_length_is_punished_softly() -> None:
    lengths = torch.tensor([10.0, 80.0, 90.0, 100.0, 300.0])
    assert overlong_penalty(lengths, longest=100, margin=20).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_what_is_wrong_is_named() -> None:
    for arguments, message in (
        ({"kind": "ppo"}, "kind='ppo' must be one of grpo"),
        ({"kind": "dr_grpo"}, "give length"),
        ({"clip_low": -0.1}, "clip_low=-0.1"),
    ):
        with pytest.raises(UsageError, match=message):
            PolicyLoss(**arguments)  # type: ignore[arg-type]
    logprob, old, advantage, sequence, _ = fresh(0)
    with pytest.raises(UsageError, match="needs the reference"):
        PolicyLoss("grpo", kl=0.1)(logprob, old, advantage, sequence)
