"""Factors of columns: never worse than none, and chosen where a few activations are large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from qwen3.quantize.awq import Part, find_scales, round_awq
from qwen3.quantize.gptq import row_losses
from qwen3.quantize.rtn import round_rtn
from qwen3.quantize.smooth import round_int8, smoothing
from qwen3.quantize.spec import Spec

SPEC = Spec("awq", bits=3, group=32)


def activations(columns: int, seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(columns, generator=generator).mul(spread).exp()
    return torch.randn(256, columns, generator=generator) * size


def losses(weights: list[Tensor], x: Tensor, s: Tensor, spec: Spec) -> float:
    """Of outputs, taken from the activations themselves."""
    total = 0.0
    for weight in weights:
        hessian = (x / s).T @ (x / s) / len(x)
        made = round_awq(weight * s, hessian, spec).dequantize()
        total += float(((x / s) @ made.T - x @ weight.T).square().sum())
    return total / len(x)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    spread=st.sampled_from((0.0, 2.0, 6.0)),
    bits=st.sampled_from((2, 4)),
    symmetric=st.booleans(),
)
def test_factors_are_never_worse_than_none_nor_than_plain_rounding(
    seed: int, spread: float, bits: int, symmetric: bool
) -> None:
    spec = replace(SPEC, bits=bits, symmetric=symmetric)
    x = activations(64, seed, spread)
    hessian = x.T @ x / len(x)
    weights = [torch.randn(n, 64, generator=torch.Generator().manual_seed(seed + n)) for n in (16, 8)]

    def parts() -> Iterator[Part]:
        return (Part(weight, hessian, spec) for weight in weights)

    s = find_scales(parts, x.abs().mean(0), lambda s: s)
    assert bool((s > 0).all())
    found, none = losses(weights, x, s, spec), losses(weights, x, torch.ones(64), spec)
    plain = sum(float(row_losses(round_rtn(w, bits, 32, symmetric).dequantize() - w, hessian).sum()) for w in weights)
    assert found <= none * (1 + 1e-3)
    assert none <= plain * (1 + 1e-3)


def test_a_few_large_activations_are_worth_factors() -> None:
    x = activations(128, 1, 0.0)
    x[:, :3] *= 50
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    hessian = x.T @ x / len(x)
    s = find_scales(lambda: iter([Part(weight, hessian, SPEC)]), x.abs().mean(0), lambda s: s)
    assert float(s[:3].min()) > 2 * float(s[3:].max())
    assert losses([weight], x, s, SPEC) < 0.9 * losses([weight], x, torch.ones(128), SPEC)


def test_only_factors_that_can_be_had_are_chosen() -> None:
    """As where a norm is stored in few bits."""
    x = activations(64, 3, 5.0)
    hessian = x.T @ x / len(x)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(4))
    s = find_scales(lambda: iter([Part(weight, hessian, SPEC)]), x.abs().mean(0), lambda s: s.log2().round().exp2())
    assert not torch.equal(s, torch.ones(64))
    assert torch.equal(s.log2(), s.log2().round())


def test_nothing_to_go_by_gives_ones() -> None:
    part = Part(torch.randn(8, 64), torch.zeros(64, 64), SPEC)
    assert torch.equal(find_scales(lambda: iter([part]), torch.zeros(64), lambda s: s), torch.ones(64))


def test_smoothing_lets_int8_hold_activations_that_spread_far() -> None:
    """Both sides rounded to int8, activations per token: the paper's setting."""
    x = activations(128, 5, 0.0)
    x[:, 7] *= 100
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(6))

    def error(s: Tensor) -> float:
        seen = round_int8(x / s).dequantize()  # a scale per row: per token
        return float((seen @ round_int8(weight * s).dequantize().T - x @ weight.T).square().mean())

    s = smoothing(x.abs().amax(0), weight.abs().amax(0), 0.5)
    assert error(s) < 0.1 * error(torch.ones(128))
    assert torch.equal(smoothing(torch.zeros(4), torch.ones(4), 0.5), torch.ones(4))
