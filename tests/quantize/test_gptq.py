"""GPTQ against an independent one, against plain rounding, and what it makes of broken Hessians."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.gptq import Factor, factor, round_gptq, row_losses
from qwen3.quantize.rtn import encode, fit, round_rtn


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and H of activations that go together and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) * torch.rand(columns, generator=generator).pow(2)
    x = x @ (torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator))
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


def loss(made: Tensor, weight: Tensor, hessian: Tensor) -> float:
    return float(row_losses(made - weight, hessian).sum())


def obq(weight: Tensor, hessian: Tensor, order: Tensor, bits: int, group: int, damp: float) -> Tensor:
    """The update of Optimal Brain Quantization (arXiv:2208.11580, equations 2 and 3), in float64: H⁻¹ is made smaller
    by Gaussian elimination column by column, no Cholesky factor, no blocks. -> ŵ."""
    left = weight.double()[:, order]
    inverse = hessian.double()[order][:, order]
    inverse.diagonal().add_(damp * hessian.double().diagonal().mean())
    inverse = torch.linalg.inv(inverse)
    cost = torch.linalg.cholesky(inverse, upper=True).diagonal().float() ** -2  # what each step's diagonal will be
    out = torch.empty_like(left)
    scale = torch.empty(0)
    for i in range(weight.shape[1]):
        if i % group == 0:
            scale, _ = fit(left[:, i : i + group].float(), bits, group, True, metric=cost[i : i + group])
        q = encode(left[:, i : i + 1].float(), scale, None, bits, 1)
        out[:, i] = ((q.double() - (1 << (bits - 1))) * scale.double())[:, 0]
        error = (left[:, i] - out[:, i]) / inverse[i, i]
        left -= error.unsqueeze(1) * inverse[i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return out[:, order.argsort()].float()


@pytest.mark.parametrize(("bits", "columns"), [(2, 160), (4, 160), (4, 288), (8, 160)])
@pytest.mark.parametrize("how", [(False, False), (True, True), (True, False)])
def test_it_is_optimal_brain_quantization(bits: int, columns: int, how: tuple[bool, bool]) -> None:
    weight, hessian = problem(24, columns, bits + columns)
    found = factor(hessian, 32, act_order=how[0], static_groups=how[1])
    made = round_gptq(weight, found, bits, 32, True).dequantize()
    own = obq(weight, hessian, found.order, bits, 32, 0.01)
    # a number that falls between two by float32's rounding moves all that follow it: losses are alike, most rows equal
    assert loss(made, weight, hessian) == pytest.approx(loss(own, weight, hessian), rel=0.02)
    assert float((made - own).abs().lt(1e-6).all(1).float().mean()) > 0.7


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from((2, 3, 4, 8)),
    group=st.sampled_from((32, 64, 128)),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    static_groups=st.booleans(),
    seed=st.integers(0, 999),
)
def test_no_row_is_worse_than_rounded_plainly(
    bits: int, group: int, symmetric: bool, act_order: bool, static_groups: bool, seed: int
) -> None:
    weight, hessian = problem(8, 128, seed)
    found = factor(hessian, group, act_order=act_order, static_groups=static_groups)
    made = round_gptq(weight, found, bits, group, symmetric)
    assert int(made.q.max()) < 1 << bits
    assert bool((made.scale > 0).all())
    assert (made.order is not None) <= (act_order and not static_groups and group < 128)
    losses = row_losses(made.dequantize() - weight, hessian)
    if made.order is None:
        plain = row_losses(round_rtn(weight, bits, group, symmetric).dequantize() - weight, hessian)
        assert bool((losses <= plain * (1 + 1e-4) + 1e-7).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_is_far_better_where_activations_go_together(bits: int) -> None:
    weight, hessian = problem(64, 256, 7)
    plain = loss(round_rtn(weight, bits, 128, True).dequantize(), weight, hessian)
    losses = [
        loss(
            round_gptq(weight, factor(hessian, 128, act_order=a, static_groups=s), bits, 128, True).dequantize(),
            weight,
            hessian,
        )
        for a, s in ((False, False), (True, True), (True, False))
    ]
    assert losses[0] < 0.6 * plain
    assert losses[1] < losses[0]
    assert losses[2] < losses[0]


def test_an_order_is_stored_only_where_groups_are_torn_apart() -> None:
    weight, hessian = problem(8, 128, 1)
    torn = round_gptq(weight, factor(hessian, 32, static_groups=False), 4, 32, False)
    assert torn.order is not None
    assert torn.order.dtype == torch.int32
    assert torn.order.bincount().tolist() == [32] * 4
    assert round_gptq(weight, factor(hessian, 32), 4, 32, False).order is None


def test_columns_that_nothing_reaches_are_rounded_to_nearest() -> None:
    weight, hessian = problem(16, 128, 2)
    hessian[:, 40:50] = hessian[40:50] = 0
    made = round_gptq(weight, factor(hessian, 32, act_order=False), 8, 32, True)
    assert float((made.dequantize() - weight)[:, 40:50].abs().max()) <= float(made.scale.max()) * 0.51
    nothing = round_gptq(weight, factor(torch.zeros(128, 128), 32), 4, 32, True)
    assert torch.equal(nothing.dequantize(), round_rtn(weight, 4, 32, True).dequantize())


def test_a_singular_hessian_is_damped_until_it_has_a_factor() -> None:
    x = torch.ones(1, 128) * 1e3
    hessian = x.T @ x
    hessian[0, 1] += 30  # as rounding may leave it: not positive definite
    hessian[1, 0] += 30
    found = factor(hessian, 32, damp=1e-6)
    assert found.damp > 1e-6
    assert isinstance(found, Factor)


def test_hessians_that_cannot_be_used_are_refused() -> None:
    broken = torch.eye(64)
    broken[3, 3] = float("nan")
    with pytest.raises(UsageError, match="NaN or infinite"):
        factor(broken, 32)
    with pytest.raises(UsageError, match="no Cholesky factor"):
        factor(torch.diag(torch.tensor([1.0, -1e9] * 32)), 32)
