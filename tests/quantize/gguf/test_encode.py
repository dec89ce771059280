"""Blocks of every type: read back by other code, no worse than plain rounding, near the best there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.kernels.packed import TABLE
from qwen3.quantize.gguf.encode import BY_NAME, WRITTEN, encode
from qwen3.quantize.gguf.round import PLANS

gguf = pytest.importorskip("gguf")
FEW = {"Q2_K": 0.32, "Q3_K": 0.19, "TQ1_0": 0.6, "TQ2_0": 0.6, "MXFP4": 0.14}  # error of bell-shaped weights


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    """As a model's: rows of different size, a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 0.03 * (0.2 + torch.rand(rows, 1, generator=generator))
    return x * (1 + 4 * (torch.rand(rows, columns, generator=generator) > 0.99))


def back(kind: str, data: Tensor, shape: torch.Size) -> Tensor:
    out = torch.empty(shape)
    dequantize(data.reshape(-1), BY_NAME[kind][1], out)
    return out


def error(x: Tensor, y: Tensor, w: Tensor | None = None) -> float:
    return float(((x - y).square() * (1 if w is None else w)).sum())


@pytest.mark.parametrize("kind", WRITTEN)
def test_another_reader_reads_the_same_numbers(kind: str) -> None:
    x = weights(12, 768, seed=len(kind))
    data = encode(kind, x)
    number, form = BY_NAME[kind]
    assert data.shape == (12, 768 // form.block * form.size)
    theirs = gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType(number))
    assert np.array_equal(theirs.reshape(x.shape), back(kind, data, x.shape).numpy())
    assert error(x, torch.from_numpy(theirs).view(x.shape)) < FEW.get(kind, 0.12) ** 2 * error(x, torch.zeros(()))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4"])
def test_no_worse_than_plain_rounding(kind: str) -> None:
    x = weights(16, 512)
    theirs = gguf.quantize(x.numpy(), gguf.GGMLQuantizationType[kind])
    ours = encode(kind, x)
    if kind == "Q8_0":
        assert np.array_equal(ours.numpy(), theirs)
    plain = torch.from_numpy(gguf.dequantize(theirs, gguf.GGMLQuantizationType[kind]))
    assert error(x, back(kind, ours, x.shape)) <= error(x, plain)


def plainly(kind: str, x: list[float]) -> list[float]:
    """A block of a K-quant or IQ4_XS by its definition, without any search: scales from the extremes, rounded."""
    plan = PLANS[kind]
    levels = sorted(TABLE) if plan.levels.table else range(plan.levels.low, plan.levels.high + 1)
    assert plan.marks is not None
    low, top = plan.marks
    groups = [x[i : i + plan.group] for i in range(0, len(x), plan.group)]
    minima = [max(0.0, -min(group)) if plan.steps else 0.0 for group in groups]
    if plan.steps:
        scales = [(max(group) + least) / plan.levels.high for group, least in zip(groups, minima, strict=True)]
    else:
        scales = [max(group, key=abs) / levels[0] for group in groups]
    d = float(np.float16(max(scales, key=abs) / (top if plan.steps else low)))
    dmin = float(np.float16(max(minima) / top))
    out = []
    for group, scale, least in zip(groups, scales, minima, strict=True):
        s = d * min(max(round(scale / d), low), top)
        m = dmin * round(least / dmin) if dmin else 0.0
        out += [s * min(levels, key=lambda level: abs(s * level - m - value)) - m for value in group]
    return out


@pytest.mark.parametrize("kind", [kind for kind, plan in PLANS.items() if plan.marks is not None])
def test_a_search_beats_extremes(kind: str) -> None:
    x = weights(24, 256, seed=5)
    plain = torch.tensor([plainly(kind, row.tolist()) for row in x])
    found = back(kind, encode(kind, x), x.shape)
    assert error(x, found) < 0.97 * error(x, plain)
    assert all(error(*pair) < 1.1 * error(pair[0], p) for p, *pair in zip(plain, x, found, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in PLANS if not kind.startswith("TQ")])
def test_importance_moves_the_error_to_where_it_counts_less(kind: str) -> None:
    x = weights(32, 512, seed=9)
    importance = torch.rand(512, generator=torch.Generator().manual_seed(4)).pow(4) + 0.01
    guided, blind = (back(kind, encode(kind, x, w), x.shape) for w in (importance, None))
    assert error(x, guided, importance) < 0.97 * error(x, blind, importance)
    assert error(x, blind) < error(x, guided)


@pytest.mark.parametrize("kind", WRITTEN)
def test_strange_blocks(kind: str) -> None:
    """Zeros, constants, a spike, numbers near the ends of float16: always finite, never far off."""
    rows = torch.zeros(9, 256)
    rows[1], rows[2], rows[3, 77], rows[4, 3] = 0.5, -0.5, 1.0, -3.0
    rows[5], rows[6] = torch.linspace(0, 1, 256), torch.linspace(-1, -0.9, 256)
    rows[7], rows[8] = 1e-9, torch.linspace(-3e4, 3e4, 256)
    found = back(kind, encode(kind, rows), rows.shape)
    assert torch.isfinite(found).all()
    assert not found[0].any()
    limit = 0.7 if kind.startswith("TQ") else 0.5 if kind == "Q2_K" else 0.3
    for row in (1, 2, 3, 4, 5, 6, 8):
        assert error(rows[row], found[row]) <= limit**2 * error(rows[row], torch.zeros(())), row


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_row_does_not_depend_on_its_neighbours(kind: str) -> None:
    x = weights(600, 256, seed=1)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(2)) + 0.1
    whole = encode(kind, x, importance)
    assert torch.equal(whole, encode(kind, x, importance))
    alone, few = encode(kind, x[571:573], importance), x[571:573]
    beside = whole[571:573].contiguous()
    # sums of so many columns may round otherwise than those of few, so a near tie may fall otherwise
    assert math.isclose(
        error(few, back(kind, alone, few.shape)), error(few, back(kind, beside, few.shape)), rel_tol=0.01
    )


@pytest.mark.parametrize(("kind", "levels"), [("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 127), ("TQ1_0", 1), ("TQ2_0", 1)])
def test_what_a_type_can_hold_it_holds_exactly(kind: str, levels: int) -> None:
    q = torch.randint(-levels + (levels > 1), levels, (4, 256), generator=torch.Generator().manual_seed(0)).float()
    q[:, ::32] = -levels
    x = q * 0.0078125
    assert torch.equal(back(kind, encode(kind, x), x.shape), x)
