"""FP8 weights: the plain twins against arithmetic, the kernels (on a GPU or in Triton's interpreter) against them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qwen3 import kernels
from qwen3.kernels import fp8 as plain
from qwen3.kernels import reference
from qwen3.kernels.fp8 import FP8, Fp8Weight, quantize_fp8
from tests.kernels.interpreter import make_faithful

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


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
    from qwen3.kernels.gpu import fp8

    make_faithful(monkeypatch)
    return fp8


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype).to(DEVICE)


def distance(out: Tensor, right: Tensor) -> float:
    assert out.shape == right.shape
    return ((out.double() - right.double()).norm() / right.double().norm()).item()


# The plain twins


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 7)])
def test_rows_are_rounded_to_the_nearest(rng: torch.Generator, shape: tuple[int, ...]) -> None:
    weight = normal(rng, *shape, dtype=torch.float32)
    weight[..., 0, :] = 0
    found = quantize_fp8(weight)
    grid = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(FP8).float()
    grid = grid[grid.isfinite()]
    scale = weight.abs().amax(-1, keepdim=True) / 448
    assert (found.data.dtype, found.scale.dtype) == (FP8, torch.float32)
    assert torch.equal(found.scale[..., 1:, :], scale[..., 1:, :])
    nearest = (weight.unsqueeze(-1) - grid * found.scale.unsqueeze(-1)).abs().amin(-1)
    assert torch.allclose((weight - found.dequantize(torch.float32)).abs(), nearest, atol=1e-6)
    assert not found.dequantize(torch.float32)[..., 0, :].any()


def test_blocks(rng: torch.Generator) -> None:
    weight = normal(rng, 2, 200, 300, dtype=torch.float32) * torch.logspace(-3, 3, 300, device=DEVICE)
    found = quantize_fp8(weight, 128)
    assert found.scale.shape == (2, 2, 3)
    assert found.data.is_contiguous()
    for i, rows in enumerate((slice(0, 128), slice(128, 200))):
        for j, columns in enumerate((slice(0, 128), slice(128, 256), slice(256, 300))):
            part = weight[1, rows, columns]
            assert torch.equal(found.scale[1, i, j], part.abs().max() / 448)
            # half a step of 3 mantissa bits, or of the subnormals
            error = (found[1].dequantize(torch.float32)[rows, columns] - part).abs()
            assert (error <= part.abs() / 16 + found.scale[1, i, j] * 2**-10).all()


def test_an_fp8_weight_moves_and_stays(rng: torch.Generator) -> None:
    holder = nn.Linear(64, 32, bias=False)
    weight = quantize_fp8(normal(rng, 32, 64))
    del holder.weight
    holder.weight = weight
    holder.to(torch.bfloat16)
    assert (weight.data.dtype, weight.scale.dtype, weight.shape) == (FP8, torch.float32, (32, 64))
    assert set(holder.state_dict()) == {"weight.data", "weight.scale"}
    assert sum(b.nbytes for b in holder.buffers()) == 32 * 64 + 32 * 4
    moved = Fp8Weight.empty((3, 256, 130), 128, "meta").to_empty(device=DEVICE)
    assert (moved.dtype, moved.scale.shape, moved.device.type) == (FP8, (3, 2, 2), DEVICE)
    other, where = normal(rng, 32, 64), weight.data.data_ptr()
    weight.assign(other)
    assert weight.data.data_ptr() == where
    assert torch.equal(weight.dequantize(), quantize_fp8(other).dequantize())


def test_the_twin_of_a_linear_layer(rng: torch.Generator) -> None:
    x, weight, norm = normal(rng, 3, 64), quantize_fp8(normal(rng, 32, 64)), 1 + 0.3 * normal(rng, 64)
    out = plain.fp8_linear(x, weight, norm=norm, eps=EPS, silu=True)
    wanted = reference.silu_mul(reference.rms_norm(x, norm, EPS) @ weight.dequantize().t())
    assert distance(out, wanted) < 1e-3


def test_in_the_networks_own_operations(rng: torch.Generator) -> None:
    weight, x = quantize_fp8(normal(rng, 32, 64)), normal(rng, 3, 64, dtype=torch.float32)
    wanted = x @ weight.dequantize(torch.float32).t()
    with torch.no_grad():
        assert distance(kernels.linear(x, weight), wanted) < 1e-5
    up, down = quantize_fp8(normal(rng, 4, 32, 64)), quantize_fp8(normal(rng, 4, 64, 16))
    shares, chosen = torch.full((3, 2), 0.5, device=DEVICE), torch.tensor([[0, 3], [1, 3], [2, 0]], device=DEVICE)
    with kernels.use("reference"):
        out = kernels.experts(x, up, down, shares, chosen)
        same = kernels.experts(x, up.dequantize(x.dtype), down.dequantize(x.dtype), shares, chosen)
    assert torch.equal(out, same)


# The kernels


@pytest.mark.parametrize(("rows", "width", "group"), [(3, 96, 0), (5, 256, 128), (1, 320, 128)])
@pytest.mark.parametrize("with_norm", [False, True])
def test_quantizing_rows(gpu: Any, rng: torch.Generator, rows: int, width: int, group: int, with_norm: bool) -> None:
    x = (3 * normal(rng, rows, width + 16))[:, :width]
    x[0, : group or None] = 0
    norm = 1 + 0.3 * normal(rng, width) if with_norm else None
    data, scale = gpu.quantize_rows(x, norm, EPS, group=group)
    right, wanted = plain.quantize_rows(x, norm, EPS, group=group)
    assert torch.allclose(scale, wanted, rtol=2e-2)
    if norm is None:
        assert torch.equal(scale, wanted)
        assert torch.equal(data.view(torch.uint8), right.view(torch.uint8))
    spread = scale.repeat_interleave(group, 1)[:, :width] if group else scale
    assert distance(data.float() * spread, reference.rms_norm(x, norm, EPS) if with_norm else x) < 0.04


CASES = [
    # M, N, K, block, norm, residual, silu
    (1, 64, 64, 0, True, False, False),
    (3, 96, 80, 0, False, True, False),
    (1, 200, 304, 128, True, True, True),
    (5, 128, 1024, 0, True, False, True),
    (11, 64, 1040, 0, False, True, False),  # uneven
    (18, 96, 576, 0, True, True, False),  # normalised apart
    (19, 64, 1104, 0, False, True, False),  # split, uneven
    (2, 256, 256, 128, True, False, True),
    (4, 200, 1104, 128, False, True, False),  # split, uneven
    (9, 64, 2048, 128, True, False, True),  # split
    (70, 96, 192, 0, True, False, True),  # quantized activations
    (66, 192, 144, 0, False, True, False),
    (65, 256, 256, 128, True, False, True),
    (67, 130, 208, 128, False, True, False),
]


@pytest.mark.parametrize(("m", "n", "k", "block", "with_norm", "with_residual", "silu"), CASES)
def test_linear(
    gpu: Any, rng: torch.Generator, m: int, n: int, k: int, block: int, with_norm: bool, with_residual: bool, silu: bool
) -> None:
    x = (3 * normal(rng, m, k + 16))[:, :k]
    weight = quantize_fp8(normal(rng, n, k) / k**0.5 * torch.logspace(-1, 1, k, device=DEVICE), block)
    norm = 1 + 0.3 * normal(rng, k) if with_norm else None
    residual = normal(rng, m, n // 2 if silu else n) if with_residual else None
    how: dict[str, Any] = {"norm": norm, "eps": EPS, "residual": residual, "silu": silu}
    given = None if residual is None else residual.clone()
    out = gpu.fp8_linear(x, weight, **how)
    assert out.dtype == x.dtype
    if m > gpu.SKINNY_ROWS:
        data, scale = plain.quantize_rows(x, norm, EPS, group=block)
        x = data.float() * (scale.repeat_interleave(block, 1)[:, :k] if block else scale)
        how["norm"] = None
    wide = {name: value.float() if isinstance(value, Tensor) else value for name, value in how.items()}
    assert distance(out, plain.fp8_linear(x.float(), weight, **wide)) < 8e-3
    assert residual is None or torch.equal(residual, given)


def test_other_types_and_no_rows(gpu: Any, rng: torch.Generator) -> None:
    x, weight = normal(rng, 2, 64), quantize_fp8(normal(rng, 32, 64))
    assert torch.equal(gpu.fp8_linear(x.float(), weight), plain.fp8_linear(x.float(), weight))
    assert gpu.fp8_linear(x[:0], weight, silu=True).shape == (0, 16)
    half = gpu.fp8_linear(x.half(), weight, norm=normal(rng, 64, dtype=torch.float16), eps=EPS)
    assert half.dtype == torch.float16


@pytest.mark.parametrize("block", [0, 128])
def test_invariant(gpu: Any, rng: torch.Generator, block: int) -> None:
    x, weight = normal(rng, 68, 256), quantize_fp8(normal(rng, 128, 256), block)
    norm = 1 + 0.3 * normal(rng, 256)
    whole = gpu.fp8_linear(x, weight, norm=norm, eps=EPS, invariant=True)
    for rows in (slice(0, 1), slice(3, 8), slice(66, 68)):
        assert torch.equal(gpu.fp8_linear(x[rows], weight, norm=norm, eps=EPS, invariant=True), whole[rows])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.parametrize("block", [0, 128])
def test_many_rows_through_cublas(gpu: Any, rng: torch.Generator, block: int) -> None:
    x, residual, norm = normal(rng, 1000, 1024), normal(rng, 1000, 1024), 1 + 0.3 * normal(rng, 1024)
    up, down = quantize_fp8(normal(rng, 6144, 1024) / 32, block), quantize_fp8(normal(rng, 1024, 3072) / 55, block)
    h = plain.fp8_linear(x, up, norm=norm, eps=EPS, silu=True)
    assert distance(gpu.fp8_linear(x, up, norm=norm, eps=EPS, silu=True), h) < 0.06
    assert distance(gpu.fp8_linear(h, down, residual=residual), plain.fp8_linear(h, down, residual=residual)) < 0.06
