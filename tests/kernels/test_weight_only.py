"""Weights of 4 and 8 bits for a GPU: the plain twin against arithmetic, the kernels (on a GPU or in Triton's
interpreter) against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qwen3 import kernels
from qwen3.errors import UsageError
from qwen3.kernels import dispatch, grouped, reference, reference_engine
from qwen3.kernels.grouped import GroupWeight
from tests.kernels.interpreter import make_faithful

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
FORMS = [(4, 128, 640), (4, 384, 768), (4, 64, 192), (4, 32, 160), (4, 16, 208), (4, 0, 336), (8, 128, 256),
         (8, 32, 96), (8, 16, 112), (8, 0, 80)]  # fmt: skip
"""bits, group (0: the row), columns."""
CASES = [
    pytest.param(*form, more, marks=() if (i + more) % 2 else pytest.mark.slow)
    for i, form in enumerate(FORMS) for more in (False, True)
]  # fmt: skip
"""Each with or without something, the other half when there is time."""


@pytest.fixture(name="rng")
def fixture_rng() -> torch.Generator:
    """Fresh numbers every run; the seed is printed when a test fails."""
    generator = torch.Generator()
    print("seed", generator.seed())
    return generator


@pytest.fixture(name="gpu")
def fixture_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels."""
    pytest.importorskip("triton")
    from qwen3.kernels.gpu import weight_only

    make_faithful(monkeypatch)
    return weight_only


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype).to(DEVICE)


def some(
    rng: torch.Generator, bits: int, group: int, *shape: int, mins: bool = False, dtype: torch.dtype = torch.float16
) -> GroupWeight:
    """A weight whose numbers lie around zero."""
    q = torch.randint(0, 1 << bits, shape, generator=rng, dtype=torch.uint8)
    marks = (*shape[:-1], shape[-1] // group if group else 1)
    scale = ((torch.rand(marks, generator=rng) + 0.2) / (1 << bits)).to(dtype)
    low = ((torch.rand(marks, generator=rng) * 0.2 - 0.6) * scale.float() * (1 << bits)).to(dtype) if mins else None
    return grouped.pack(*(t if t is None else t.to(DEVICE) for t in (q, scale, low)), bits)


def distance(out: Tensor, right: Tensor) -> float:
    assert out.shape == right.shape
    return ((out.double() - right.double()).norm() / right.double().norm()).item()


# The plain twin


@pytest.mark.parametrize(("bits", "group", "columns"), FORMS)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_what_is_packed_comes_out(
    rng: torch.Generator, bits: int, group: int, columns: int, lead: tuple[int, ...]
) -> None:
    q = torch.randint(0, 1 << bits, (*lead, 5, columns), generator=rng, dtype=torch.uint8)
    groups = columns // group if group else 1
    scale, mins = (torch.randn(*lead, 5, groups, generator=rng).half() for _ in range(2))
    weight = grouped.pack(q, scale, mins, bits)
    assert weight.shape == q.shape
    for found, given in zip(weight.parts(), (q, scale, mins), strict=True):
        assert torch.equal(found, given)  # type: ignore[arg-type]
    wide = [marks.float().repeat_interleave(columns // groups, -1) for marks in (scale, mins)]
    assert torch.equal(weight.dequantize(torch.float32), q.float() * wide[0] + wide[1])
    plain = grouped.pack(q, scale, None, bits).dequantize(torch.float32)
    assert torch.equal(plain, (q.float() - (1 << bits - 1)) * wide[0])


@pytest.mark.parametrize(("bits", "columns", "groups"), [(5, 128, 1), (4, 96, 2), (8, 100, 3)])
def test_what_no_kernel_takes_is_refused(bits: int, columns: int, groups: int) -> None:
    with pytest.raises(UsageError, match="take 4 or 8 bits"):
        grouped.pack(torch.zeros(2, columns, dtype=torch.uint8), torch.ones(2, groups), None, bits)


def test_weights_of_different_kinds_become_one(rng: torch.Generator) -> None:
    """An attention's matrices may be stored in different ways: they are multiplied as one all the same."""
    same = [some(rng, 4, 128, rows, 256) for rows in (3, 8)]
    whole = GroupWeight.cat(same)
    assert (whole.bits, whole.group, whole.shape) == (4, 128, (11, 256))
    parts = [same[0], some(rng, 8, 16, 5, 256), some(rng, 4, 32, 2, 256, mins=True)]
    for some_parts, least in ((parts, False), (parts[:2], True)):
        whole = GroupWeight.cat(some_parts)
        assert (whole.bits, whole.group, whole.mins is None) == (8, 16, least)
        plain = torch.cat([part.dequantize(torch.float32) for part in some_parts])
        assert torch.allclose(whole.dequantize(torch.float32), plain, atol=1e-6)
    experts = GroupWeight.stack(parts[:1] * 2)
    assert torch.equal(experts[1].dequantize(), parts[0].dequantize())


def test_a_weight_moves_and_stays(rng: torch.Generator) -> None:
    holder = nn.Linear(64, 32, bias=False)
    weight = some(rng, 4, 32, 32, 64, mins=True)
    before = weight.dequantize()
    del holder.weight
    holder.weight = weight
    holder.to(torch.bfloat16)
    assert (weight.scale.dtype, weight.data.dtype, weight.shape) == (torch.float16, torch.int32, (32, 64))
    assert torch.equal(weight.dequantize(), before)
    assert weight.nbytes == 32 * 64 + 2 * 2 * 32 * 2  # half a slab of 128 is empty


def test_in_the_networks_own_operations(rng: torch.Generator) -> None:
    weight, x = some(rng, 4, 32, 32, 64), normal(rng, 2, 3, 64, dtype=torch.float32)
    wide = weight.dequantize(torch.float32)
    with torch.no_grad():
        assert distance(kernels.linear(x, weight), x @ wide.t()) < 1e-5
        ids = torch.tensor([[3, 3], [31, 0]], device=DEVICE)
        assert torch.equal(nn.functional.embedding(ids, weight), weight.dequantize()[ids])
    up, down = some(rng, 8, 32, 4, 32, 64, mins=True), some(rng, 4, 16, 4, 64, 16)
    shares, chosen = torch.full((3, 2), 0.5, device=DEVICE), torch.tensor([[0, 3], [1, 3], [2, 0]], device=DEVICE)
    with kernels.use("reference"), torch.no_grad():
        out = kernels.experts(x[0], up, down, shares, chosen)
        same = kernels.experts(x[0], up.dequantize(x.dtype), down.dequantize(x.dtype), shares, chosen)
    assert torch.equal(out, same)


def test_gradients_flow_past_it(rng: torch.Generator) -> None:
    weight, x = some(rng, 4, 32, 32, 64, mins=True), normal(rng, 3, 64, dtype=torch.float32).requires_grad_()
    outer = normal(rng, 3, 32, dtype=torch.float32)
    kernels.linear(x, weight).backward(outer)
    assert x.grad is not None
    assert distance(x.grad, outer @ weight.dequantize(torch.float32)) < 1e-5
    experts, ends = some(rng, 4, 32, 2, 32, 64), torch.tensor([1, 3], dtype=torch.int32, device=DEVICE)
    out = kernels.grouped_linear(x, experts, ends)
    wide = experts.dequantize(torch.float32)
    assert distance(out, torch.cat([x[:1] @ wide[0].t(), x[1:] @ wide[1].t()])) < 1e-5


# The kernels


def wanted(x: Tensor, weight: GroupWeight, **how: Any) -> Tensor:
    wide = {name: value.float() if isinstance(value, Tensor) else value for name, value in how.items()}
    return reference_engine.fused_linear(x.float(), weight.dequantize(torch.float32), **wide)


@pytest.mark.parametrize(("bits", "group", "columns", "mins"), CASES)
def test_rows_are_unpacked(gpu: Any, rng: torch.Generator, bits: int, group: int, columns: int, mins: bool) -> None:
    weight = some(rng, bits, group, 21, columns, mins=mins)
    assert torch.allclose(gpu.group_rows(weight, None, torch.float32), weight.dequantize(torch.float32), atol=1e-6)
    ids = torch.tensor([[20, 3, 3], [0, 7, 1]], device=DEVICE, dtype=torch.int32)
    found = gpu.group_rows(weight, ids, torch.float32)
    assert torch.allclose(found, weight.dequantize(torch.float32)[ids.long()], atol=1e-6)


@pytest.mark.parametrize(("bits", "group", "columns", "mins"), CASES)
def test_few_rows(gpu: Any, rng: torch.Generator, bits: int, group: int, columns: int, mins: bool) -> None:
    weight = some(rng, bits, group, 40, columns, mins=mins)  # 40 rows: no whole tiles
    rows, tile = (3, gpu.linear.Tile(16, 0, 2, 2)) if mins else (11, gpu.linear.Tile(8, 0, 3, 4))
    x, how = normal(rng, rows, columns + 16)[:, :columns], {}
    how["residual"] = normal(rng, rows, 40)
    assert distance(gpu.group_linear(x, weight, tile=tile, **how), wanted(x, weight, **how)) < 5e-3
    how = {"norm": 1 + 0.3 * normal(rng, columns), "eps": EPS, "silu": True}
    for apart in (False, True):
        found = gpu.group_linear(x, weight, tile=tile._replace(apart=apart), **how)
        assert distance(found, wanted(x, weight, **how)) < 2e-2


@pytest.mark.parametrize(("bits", "group", "columns", "mins"), CASES)
def test_rows_that_stay_in_registers(
    gpu: Any, rng: torch.Generator, bits: int, group: int, columns: int, mins: bool
) -> None:
    """Tiles of 40 rows for a few programs: some get one tile less, splits meet, warps may have nothing."""
    weight, Tile = some(rng, bits, group, 40, columns, mins=mins), gpu.linear.Tile
    cuts = [
        (3, Tile(16, 0, 1, 2, 1, walkers=2)),
        (1, Tile(16, 0, 2, 4, 2, walkers=4)),
        (8, Tile(32, 0, 1, 1, 1, walkers=9)),
    ]
    for dtype in (torch.bfloat16, torch.float16):
        for rows, tile in cuts[mins:] if dtype == torch.bfloat16 else cuts[:1]:
            x, how = normal(rng, rows, columns + 16, dtype=dtype)[:, :columns], {}
            how["residual"] = normal(rng, rows, 40, dtype=dtype)
            assert distance(gpu.group_linear(x, weight, tile=tile, **how), wanted(x, weight, **how)) < 5e-3
            how = {"norm": 1 + 0.3 * normal(rng, columns, dtype=dtype), "eps": EPS, "silu": True}
            assert distance(gpu.group_linear(x, weight, tile=tile, **how), wanted(x, weight, **how)) < 2e-2


def test_too_many_rows_to_stay(gpu: Any, rng: torch.Generator) -> None:
    with pytest.raises(UsageError, match="9 rows"):
        gpu.group_linear(
            normal(rng, 9, 128), some(rng, 4, 128, 16, 128), tile=gpu.linear.Tile(16, 0, 1, 1, 1, walkers=1)
        )


@pytest.mark.parametrize(("bits", "group", "columns", "split"), CASES)
def test_many_rows(gpu: Any, rng: torch.Generator, bits: int, group: int, columns: int, split: bool) -> None:
    weight = some(rng, bits, group, 40, columns, mins=split)
    tile = gpu.linear.Tile(32, 128, 2, 4, 2 if split else 1, tokens=16)
    x, how = normal(rng, 21, columns), {"residual": normal(rng, 21, 40)}
    assert distance(gpu.group_linear(x, weight, tile=tile, **how), wanted(x, weight, **how)) < 5e-3
    assert distance(gpu.group_linear(x, weight, tile=tile, silu=True), wanted(x, weight, silu=True)) < 2e-2


def test_float16_and_chosen_tiles(gpu: Any, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = some(rng, 4, 64, 48, 192)
    for rows in (1, 9, 18):
        x = normal(rng, rows, 192, dtype=torch.float16)
        assert distance(gpu.group_linear(x, weight), wanted(x, weight)) < 2e-3
        bits = normal(rng, rows, 192)
        assert distance(gpu.group_linear(bits, weight), wanted(bits, weight)) < 5e-3
    x = normal(rng, 5, 192)
    alone = torch.cat([gpu.group_linear(row, weight, invariant=True) for row in x.split(1)])
    assert torch.equal(gpu.group_linear(x, weight, invariant=True), alone)
    monkeypatch.setattr(gpu, "MOST_ROWS", 4)
    gpu.choose.cache_clear()
    assert distance(gpu.group_linear(x, weight, silu=True), wanted(x, weight, silu=True)) < 1e-2
    gpu.choose.cache_clear()
    assert gpu.group_linear(x[:0], weight).shape == (0, 48)


@pytest.mark.parametrize(("bits", "group", "mins"), [(4, 128, False), (4, 32, True), (8, 64, False), (8, 16, True)])
@pytest.mark.parametrize("kind", ["stationary", "masked", "listed"])
def test_experts(gpu: Any, rng: torch.Generator, bits: int, group: int, mins: bool, kind: str) -> None:
    from qwen3.kernels.gpu import moe

    up = some(rng, bits, group, 6, 64, 128, mins=mins)
    down = some(rng, bits, 32 if group > 32 else group, 6, 128, 32, mins=mins)
    x, residual = normal(rng, 5, 128), normal(rng, 5, 128)
    weights, chosen = reference.route(normal(rng, 5, 6, dtype=torch.float32), 2, True)
    chosen[1, 1] = -1
    weights = weights.bfloat16().float()
    tile = moe.Tile(16 if kind == "listed" else 0, 32, 64, 4, 2, kind != "listed", 20 * (kind == "stationary"))
    out = moe.run(x, up, down, weights.bfloat16(), chosen.int(), residual, tile, tile)
    wide = [part.dequantize(torch.float32) for part in (up, down)]
    right = reference.experts(x.float(), *wide, weights, chosen, residual=residual.float())
    assert distance(out, right) < 1e-2


def test_the_first_kernel_of_a_step(gpu: Any, rng: torch.Generator) -> None:
    from qwen3.kernels.gpu import inputs

    weight = some(rng, 8, 32, 50, 96)
    state = [torch.tensor(v, dtype=torch.int32, device=DEVICE) for v in ([1, 2], [0, 7, 49], [0, 3, 18])]
    tables = torch.randint(0, 9, (3, 4), generator=rng, dtype=torch.int32).to(DEVICE)
    x, *rest = inputs.decode_inputs(*state, tables, weight)
    right, *others = reference_engine.decode_inputs(*state, tables, weight.dequantize())
    assert torch.allclose(x.float(), right.float(), atol=1e-2)
    for found, given in zip(rest[:4], others[:4], strict=True):
        assert torch.equal(found, given)


def test_the_table_knows_them() -> None:
    assert {"group_linear", "group_rows"} <= set(dispatch.available())
