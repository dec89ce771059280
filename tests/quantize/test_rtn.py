"""Scales and zero points of groups, and the numbers under them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.errors import UsageError
from qwen3.quantize.fp8 import round_fp8
from qwen3.quantize.rtn import round_rtn
from qwen3.quantize.smooth import round_int8
from qwen3.quantize.spec import BITS


def weights(rows: int, columns: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    group=st.sampled_from((32, 64, 128, 256)),
    symmetric=st.booleans(),
    search=st.booleans(),
    seed=st.integers(0, 999),
    scale=st.sampled_from((0.0, 1e-9, 1e-6, 0.02, 1.0, 1e4)),
    shift=st.sampled_from((0.0, 3.0)),
)
def test_numbers_fit_their_bits_and_the_error_is_bounded(
    bits: int, group: int, symmetric: bool, search: bool, seed: int, scale: float, shift: float
) -> None:
    weight = (weights(5, 256, seed) + shift) * scale
    try:
        made = round_rtn(weight, bits, group, symmetric, search=search)
    except UsageError:  # with few bits a scale may be as large as the weights
        assert float(weight.abs().max()) > torch.finfo(torch.float16).max
        return
    assert made.q.dtype == torch.uint8
    assert int(made.q.max()) < 1 << bits
    assert made.scale.shape == (5, 256 // group)
    assert bool((made.scale > 0).all())
    assert bool(torch.isfinite(made.scale).all())
    assert (made.zero is None) == symmetric
    assert made.zero is None or int(made.zero.max()) < 1 << bits
    if not search:  # within half a step of its value, or a whole one at the end that has a number less
        step = made.scale.float().repeat_interleave(group, 1)
        error, least = (made.dequantize() - weight).abs(), (1 << bits) * 2.0**-25  # a subnormal scale's rounding
        assert bool((error <= step * 1.01 + 1e-3 * weight.abs() + least).all())


def test_what_the_numbers_can_say_is_kept_exactly() -> None:
    q = torch.randint(0, 16, (3, 64), generator=torch.Generator().manual_seed(1))
    q[:, ::32], q[:, 1::32] = 0, 15
    weight = (q - 8) * 0.125
    assert torch.equal(round_rtn(weight, 4, 32, False).dequantize(), weight)
    found = round_rtn(weight, 4, 32, True)  # the symmetric numbers are the same ones: -8 … 7
    assert torch.equal(found.dequantize(), weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_searched_scales_are_never_worse_and_at_few_bits_much_better(bits: int, symmetric: bool) -> None:
    weight = weights(64, 256, bits)
    errors = [
        (round_rtn(weight, bits, 128, symmetric, search=search).dequantize() - weight).square().view(64, 2, 128).sum(-1)
        for search in (False, True)
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-6)).all())
    if bits <= 3:
        assert float(errors[1].sum()) < 0.8 * float(errors[0].sum())


def test_metric_says_which_columns_matter() -> None:
    weight, importance = weights(32, 128, 3), torch.ones(128)
    importance[:8] = 1000.0
    plain, weighted = (round_rtn(weight, 3, 64, True, metric=m).dequantize() - weight for m in (None, importance))
    assert float((weighted.square() * importance).sum()) < 0.7 * float((plain.square() * importance).sum())
    blocks = torch.stack([torch.diag(part) for part in importance.view(2, 64)])  # the same, written as covariances
    assert torch.equal(round_rtn(weight, 3, 64, True, metric=blocks).dequantize(), weighted + weight)


def test_groups_of_zeros_and_values_below_float16_have_scales() -> None:
    weight = torch.zeros(2, 64)
    weight[1, 32:] = 1e-9
    made = round_rtn(weight, 4, 32, True)
    assert float(made.scale[0, 0]) == 2.0**-14
    assert bool((made.scale > 0).all())
    assert bool((made.dequantize() - weight).abs().max() <= 1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    weight = torch.ones(4, 64)
    weight[2, 3] = value
    for rounding in (lambda: round_rtn(weight, 4, 32, True), lambda: round_int8(weight), lambda: round_fp8(weight)):
        with pytest.raises(UsageError, match="NaN or infinite"):
            rounding()


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit float16"):
        round_rtn(torch.full((2, 32), 1e9), 4, 32, True)


def test_int8_rows() -> None:
    weight = weights(16, 64, 4) * torch.logspace(-3, 3, 16).unsqueeze(1)
    weight[3] = 0
    made = round_int8(weight)
    assert made.data.dtype == torch.int8
    assert int(made.data.min()) >= -127
    assert bool((made.scale > 0).all())
    assert bool(((made.dequantize() - weight).abs() <= made.scale / 2 * 1.001).all())


@pytest.mark.parametrize(("scale", "shape"), [("tensor", (1,)), ("channel", (200, 1)), ("block", (2, 3))])
def test_fp8_scales(scale: str, shape: tuple[int, ...]) -> None:
    weight = weights(200, 300, 5) * torch.logspace(-2, 2, 200).unsqueeze(1)
    weight[7] = 0
    made = round_fp8(weight, scale)
    assert made.data.dtype == torch.float8_e4m3fn
    assert made.scale.shape == shape
    assert bool((made.scale > 0).all())
    normal = made.dequantize().abs() > made.scale.max() * 2.0**-5
    assert float(((made.dequantize() - weight).abs() / weight.abs())[normal].max()) < 2.0**-4 * 1.01
