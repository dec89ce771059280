"""The searches against their slow twins and against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.kernels.packed import TABLE
from qwen3.quantize.gguf.encode import BY_NAME, encode
from qwen3.quantize.gguf.round import PLANS
from qwen3.quantize.gguf.search import Levels, Scratch, Sums, fit_range, fit_scale
from tests.quantize.gguf import slow
from tests.quantize.gguf.test_encode import error, weights


def data(x: Tensor, w: Tensor | None) -> Scratch:
    return Scratch(x.t().contiguous(), None if w is None else w.t().contiguous())


def importance(shape: torch.Size, seed: int) -> Tensor:
    return 0.05 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["Q4_0", "Q3_K", "Q6_K", "IQ4_XS"])
def test_scales_are_those_of_the_slow_twin(kind: str, weighted: bool) -> None:
    plan, x = PLANS[kind], weights(12, 32, seed=17)
    w = importance(x.shape, 3) if weighted else None
    found = fit_scale(data(x, w), plan.levels, plan.targets)
    for row, scale in enumerate(found.tolist()):
        own = [1.0] * 32 if w is None else w[row].tolist()
        values = x[row].tolist()
        other = slow.fit_scale(values, own, plan.levels, plan.targets)
        costs = [slow.cost(values, own, [slow.nearest(v / s, plan.levels) for v in values], s) for s in (scale, other)]
        assert math.isclose(*costs, rel_tol=2e-3)  # ties in float32 may fall otherwise


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["Q4_1", "Q2_K", "Q5_K"])
def test_ranges_are_those_of_the_slow_twin(kind: str, weighted: bool) -> None:
    plan, x = PLANS[kind], weights(12, 32, seed=18)
    w = importance(x.shape, 4) if weighted else None
    high = plan.levels.high
    scale, minimum = fit_range(data(x, w), plan.levels, plan.steps, signed=plan.signed)
    for row, pair in enumerate(zip(scale.tolist(), minimum.tolist(), strict=True)):
        own = [1.0] * 32 if w is None else w[row].tolist()
        values = x[row].tolist()
        other = slow.fit_range(values, own, high, plan.steps, plan.signed)
        costs = [slow.cost(values, own, slow.level(values, s, m, high), s, m) for s, m in (pair, other)]
        assert math.isclose(*costs, rel_tol=5e-3)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["Q3_K", "Q6_K", "IQ4_XS"])
def test_blocks_are_those_of_the_slow_twin(kind: str, weighted: bool) -> None:
    x = weights(3, 256, seed=21)
    w = importance(x[0].shape, 5) if weighted else None
    found = torch.empty_like(x)
    dequantize(encode(kind, x, w).view(-1), BY_NAME[kind][1], found)
    own = [1.0] * 256 if w is None else w.tolist()
    other = torch.tensor([slow.scaled(PLANS[kind], row.tolist(), own) for row in x])
    for a, b, c in zip(x, found, other, strict=True):
        assert math.isclose(error(a, b, w), error(a, c, w), rel_tol=0.01)
    assert torch.isclose(found, other, rtol=1e-4, atol=1e-7).float().mean() > 0.9


def test_the_tables_nearest_is_the_nearest() -> None:
    values = torch.cat((torch.linspace(-140, 125, 5000), torch.arange(-128, 128.5, 0.5)))
    levels = Levels(-127, 113, True)
    found = levels.nearest(values.clone())
    best = (values.unsqueeze(1) - torch.tensor(TABLE, dtype=torch.float32)).abs().amin(1)
    assert torch.allclose((values - found).abs(), best)
    assert levels.index(torch.tensor(TABLE, dtype=torch.float32)).tolist() == list(range(16))


@pytest.mark.parametrize("kind", ["Q4_0", "Q3_K", "IQ4_NL", "Q5_0"])
def test_a_groups_scale_is_near_the_best(kind: str) -> None:
    """Against every scale of a fine grid."""
    x, w = weights(8, 32, seed=2), 0.1 + torch.rand(8, 32, generator=torch.Generator().manual_seed(1))
    levels = PLANS[kind].levels
    scale = fit_scale(data(x, w), levels, PLANS[kind].targets)
    allowed = torch.tensor(sorted(TABLE) if levels.table else range(levels.low, levels.high + 1), dtype=torch.float32)

    def cost(row: int, s: Tensor) -> Tensor:
        """Of many scales [S]."""
        reached = (s[:, None] * allowed)[:, None]
        return ((x[row, :, None] - reached).square().amin(2) * w[row]).sum(1)

    found, best = [], []
    for row in range(8):
        most = float(x[row].abs().max()) / levels.high
        best.append(float(cost(row, torch.linspace(-1.3 * most, 1.3 * most, 2001)).min()))
        found.append(float(cost(row, scale[row : row + 1])[0]))
        assert found[row] < 1.25 * best[row], row  # an outlier with little weight is the hardest
    assert sum(found) < 1.1 * sum(best)


@pytest.mark.parametrize("signed", [True, False])
def test_a_groups_range_is_near_the_best(signed: bool) -> None:
    x, w = weights(6, 32, seed=3) + 0.004, torch.ones(6, 32)
    scale, minimum = fit_range(data(x, w), Levels(0, 15), PLANS["Q4_K"].steps, signed=signed)
    assert signed or bool((minimum >= 0).all())

    def cost(row: Tensor, s: Tensor, m: Tensor) -> Tensor:
        q = ((row + m[:, None]) / s[:, None]).round().clamp(0, 15)
        return (row - (s[:, None] * q - m[:, None])).square().sum(1)

    for i, row in enumerate(x):
        span = float(row.max() - row.min())
        s, m = torch.meshgrid(
            torch.linspace(0.6, 1.1, 60) * span / 15,
            -float(row.min()) + torch.linspace(-0.25, 0.15, 80) * span,
            indexing="ij",
        )
        best = cost(row, s.flatten(), m.flatten().clamp_min(0) if not signed else m.flatten()).min()
        assert cost(row, scale[i : i + 1], minimum[i : i + 1])[0] < 1.12 * best


def test_least_squares_are_those_of_another_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, generator=generator), torch.rand(20, generator=generator)
    q = torch.randint(0, 7, (20,), generator=generator).float()
    sums = Sums(*(value.sum().view(1) for value in (w, w * q, w * q * q, w * x, w * x * q)))
    scale, minimum = sums.solve(True)
    root = w.sqrt()
    matrix = torch.stack((root * q, -root), 1)
    expected = torch.linalg.lstsq(matrix, (root * x).unsqueeze(1)).solution.flatten()
    if expected[0] < 0:
        expected = torch.stack((torch.zeros(()), -(w * x).sum() / w.sum()))
    assert torch.allclose(torch.cat((scale, minimum)), expected, atol=1e-5)
    left = (w * (x - scale * q + minimum).square()).sum()
    assert math.isclose(float(sums.gain(scale, minimum)), float((w * x * x).sum() - left), rel_tol=1e-4, abs_tol=1e-5)
