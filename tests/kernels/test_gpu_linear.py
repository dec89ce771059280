"""Fused products of few rows and the row kernels, on the GPU or in Triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen3.kernels import reference
from qwen3.kernels.gpu import elementwise, linear
from qwen3.kernels.gpu.linear import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cannot multiply matrices of bfloat16 and cuts it off where a GPU rounds.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16
ROUNDING = {torch.bfloat16: 6e-3 if DEVICE == "cuda" else 1.5e-2, torch.float16: 1e-3, torch.float32: 1e-6}
EPS = 1e-6


@pytest.fixture(name="rng")
def fixture_rng() -> torch.Generator:
    """Fresh numbers every run; the seed is printed when a test fails."""
    generator = torch.Generator()
    print("seed", generator.seed())
    return generator


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype).to(DEVICE)


def distance(out: Tensor, right: Tensor) -> float:
    assert out.shape == right.shape
    return ((out.double() - right).norm() / right.norm()).item()


def exact(x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor | None, silu: bool) -> Tensor:
    x, weight = x.double(), weight.double()
    if norm is not None:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * norm.double()
    y = x @ weight.t()
    if silu:
        gate, up = y.chunk(2, dim=-1)
        y = gate / (1 + torch.exp(-gate)) * up
    return y if residual is None else y + residual.double()


def case(
    rng: torch.Generator, m: int, n: int, k: int, norm: bool, residual: bool, silu: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x of size 3, so that a forgotten norm is seen; its rows stand apart."""
    x = (3 * normal(rng, m, k + 16, dtype=dtype))[:, :k]
    weight = normal(rng, n, k, dtype=dtype) / k**0.5
    scale = (1 + 0.3 * normal(rng, k, dtype=dtype)) if norm else None
    return x, weight, scale, normal(rng, m, n // 2 if silu else n, dtype=dtype) if residual else None


def run(
    x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor | None, silu: bool, y: Tensor, tile: Tile
) -> None:
    how = linear.plan(len(x), *weight.shape, silu, tile, False, x.device)
    linear.start(how, x, weight, norm, EPS, residual, y)


FLAGS = [(False, False, False), (True, False, False), (False, True, False), (True, False, True), (True, True, True)]


@pytest.mark.parametrize(("norm", "residual", "silu"), FLAGS)
@pytest.mark.parametrize("m", [1, 3, 17])
def test_fused_linear(rng: torch.Generator, m: int, norm: bool, residual: bool, silu: bool) -> None:
    dtype = torch.bfloat16 if m == 1 else DTYPE
    x, weight, scale, rest = case(rng, m, 80, 144, norm, residual, silu, dtype)
    before = x.clone(), None if rest is None else rest.clone()
    y = linear.fused_linear(x, weight, norm=scale, eps=EPS, residual=rest, silu=silu)
    assert y.dtype == dtype
    assert distance(y, exact(x, weight, scale, rest, silu)) < ROUNDING[dtype]
    assert torch.equal(x, before[0])
    assert rest is None or torch.equal(rest, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("m", [1, 5])
def test_other_dtypes(rng: torch.Generator, m: int, dtype: torch.dtype) -> None:
    x, weight, scale, rest = case(rng, m, 48, 64, True, True, False, dtype)
    y = linear.fused_linear(x, weight, norm=scale, eps=EPS, residual=rest)
    assert y.dtype == dtype
    assert distance(y, exact(x, weight, scale, rest, False)) < ROUNDING[dtype]


def test_float16_leaves_room_for_the_norms_weight(rng: torch.Generator) -> None:
    x, weight = (
        20000 * normal(rng, 2, 64, dtype=torch.float16).clamp(-2, 2),
        normal(rng, 32, 64, dtype=torch.float16) / 8,
    )
    scale = torch.full((64,), 8.0, dtype=torch.float16, device=DEVICE)
    y = linear.fused_linear(x, weight, norm=scale, eps=EPS)
    assert distance(y, exact(x, weight, scale, None, False)) < ROUNDING[torch.float16]


@pytest.mark.parametrize(("norm", "residual", "silu"), FLAGS)
def test_many_rows(rng: torch.Generator, norm: bool, residual: bool, silu: bool) -> None:
    x, weight, scale, rest = case(rng, 65, 64, 128, norm, residual, silu, DTYPE)
    y = linear.fused_linear(x, weight, norm=scale, eps=EPS, residual=rest, silu=silu)
    assert distance(y, exact(x, weight, scale, rest, silu)) < 2 * ROUNDING[DTYPE]


@pytest.mark.parametrize("tile", [Tile(4, 64, 1, 4), Tile(8, 128, 2, 2), Tile(2, 64, 3, 1), Tile(16, 256, 1, 4)])
@pytest.mark.parametrize("k", [128, 176])
def test_gemv_tiles(rng: torch.Generator, tile: Tile, k: int) -> None:
    """Every way of cutting gives the same product: rows and columns left over, few steps and many."""
    for silu in (False, True):
        x, weight, scale, rest = case(rng, 1, 40, k, True, True, silu, torch.bfloat16)
        y = torch.full((1, 20 if silu else 40), float("nan"), dtype=torch.float32, device=DEVICE)
        run(x, weight, scale, rest, silu, y, tile)
        assert distance(y, exact(x, weight, scale, rest, silu)) < 1e-5


@pytest.mark.parametrize("m", [2, 13, 21])
@pytest.mark.parametrize(
    "tile", [Tile(8, 64, 1, 2), Tile(16, 128, 2, 4), Tile(32, 32, 3, 1), Tile(16, 32, 2, 1), Tile(8, 64, 9, 2)]
)
def test_few_tiles(rng: torch.Generator, tile: Tile, m: int) -> None:
    """The same for `_few`: few steps, which are written out, and many; columns left over."""
    for silu, norm, k in ((False, True, 192), (True, True, 272), (False, False, 528)):
        x, weight, scale, rest = case(rng, m, 40, k, norm, True, silu, DTYPE)
        y = torch.full((m, 20 if silu else 40), float("nan"), dtype=torch.float32, device=DEVICE)
        run(x, weight, scale, rest, silu, y, tile)
        assert distance(y, exact(x, weight, scale, rest, silu)) < ROUNDING[DTYPE]


@pytest.mark.parametrize("m", [2, 21])
@pytest.mark.parametrize(
    "tile",
    [
        *(Tile(16, 32, 2, 4, 1, 0, 8), Tile(32, 64, 3, 4, 2), Tile(64, 16, 3, 1, 3), Tile(16, 128, 2, 4, 4, 0, 8)),
        *(Tile(48, 32, 2, 4, 1, 0, 16), Tile(24, 64, 2, 4, 1)),
    ],
)
def test_gemm_tiles(rng: torch.Generator, tile: Tile, m: int) -> None:
    """The same, with K in slices (the last may be short or empty), over several tiles of rows; twice the same bits.

    Slices meet in several pieces; 48 and 24 rows are two tiles in one program."""
    for silu in (False, True):
        x, weight, scale, rest = case(rng, m, 56, 208, True, True, silu, DTYPE)
        found = []
        for _ in range(1 if tile.split == 1 else 2):
            y = torch.full((m, 28 if silu else 56), float("nan"), dtype=torch.float32, device=DEVICE)
            run(x, weight, scale, rest, silu, y, tile)
            found.append(y)
        assert distance(found[0], exact(x, weight, scale, rest, silu)) < ROUNDING[DTYPE]
        assert torch.equal(found[0], found[-1])
        assert not linear.workspace(x.device)[1].any()  # left as found


def test_invariant(rng: torch.Generator) -> None:
    """A row's bits do not depend on its neighbours, its place or how many there are."""
    x, weight, scale, rest = case(rng, 70, 80, 96, True, True, True, DTYPE)
    assert rest is not None
    options = {"norm": scale, "eps": EPS, "silu": True, "invariant": True}
    together = linear.fused_linear(x, weight, residual=rest, **options)
    assert distance(together, exact(x, weight, scale, rest, True)) < ROUNDING[DTYPE]
    for rows in ([0], [69], [66, 3], list(range(5, 25))):
        alone = linear.fused_linear(x[rows], weight, residual=rest[rows], **options)
        # The interpreter multiplies by NumPy, which does not promise that.
        assert (
            torch.equal(alone, together[rows]) if DEVICE == "cuda" else distance(alone, together[rows].double()) < 1e-3
        )


def test_choices_serve_fewer_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next number of rows that was measured, but never beyond the next power of two; None is PyTorch's."""
    at48, at64, at128 = Tile(64, 64, 4, 4, 1), Tile(128, 64, 4, 4, 1), Tile(192, 64, 4, 8, 1, apart=True)
    chosen = {48: at48, 64: at64, 96: None, 128: at128}
    monkeypatch.setattr(linear, "TUNED", {(rows, 640, 512, False): tile for rows, tile in chosen.items()})
    for rows, tile in ((33, at48), (48, at48), (49, at64), (65, None), (96, None), (97, at128), (128, at128)):
        assert linear.choose(rows, 640, 512, False) == tile
    assert linear.choose(129, 640, 512, False) is None
    assert linear.choose(17, 640, 512, False) == linear.choose(32, 640, 512, False) != at48


def test_a_norm_apart_and_one_inside(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, scale, rest = case(rng, 9, 80, 144, True, False, False, DTYPE)
    for apart in (False, True):
        monkeypatch.setattr(linear, "TUNED", {(9, 80, 144, False): Tile(48, 16, 3, 4, 1, apart=apart)})
        linear._planned.cache_clear()
        y = linear.fused_linear(x, weight, norm=scale, eps=EPS)
        assert distance(y, exact(x, weight, scale, rest, False)) < ROUNDING[DTYPE]
    linear._planned.cache_clear()


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 48, 64, 96, 128, 192, 256])
def test_choices_fit(rows: int) -> None:
    """Shapes of all eight models: slices cover K, the workspace holds them, shared memory (227 KB) too."""
    shapes = []
    for hidden, heads, kv_heads, inner in (
        *((1024, 16, 8, 3072), (2048, 16, 8, 6144), (2560, 32, 8, 9728), (4096, 32, 8, 12288), (5120, 40, 8, 17408)),
        *((5120, 64, 8, 25600), (2048, 32, 4, 768), (4096, 64, 4, 1536), (512, 4, 2, 1024)),
    ):
        shapes += [((heads + 2 * kv_heads) * 128, hidden), (hidden, heads * 128)]
        shapes += [(2 * inner, hidden), (hidden, inner), (151936, hidden)]
    for n, k in shapes:
        for silu in (False, True):
            tile = linear.choose(rows, n, k, silu)
            if tile is None:
                assert rows > 32
                continue
            assert tile.columns <= k
            if tile.split == 0:
                assert rows == 1 or (tile.columns % (32 * tile.warps) == 0 and rows <= 16)
                continue
            height = tile.tokens or max(8, linear.next_power_of_2(rows))
            tiles = -(-n // tile.rows) * -(-rows // height)
            assert tile.split == 1 or (tiles <= linear.ARRIVALS and tile.rows == linear.next_power_of_2(tile.rows))
            assert tile.split == 1 or tiles * tile.split * (tile.rows + 1) * height <= linear.PARTS
            assert (tile.rows + height) * tile.columns * 2 * tile.depth <= 226 * 1024
            assert tile.columns * tile.split <= k


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 64), (5, 3, 96), (2, 2560), (0, 64)])
def test_row_kernels(rng: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, scale = 3 * normal(rng, *shape, dtype=dtype), 1 + 0.3 * normal(rng, shape[-1], dtype=dtype)
    for out, right in (
        (elementwise.rms_norm(x, scale, EPS), reference.rms_norm(x, scale, EPS)),
        (elementwise.silu_mul(x), reference.silu_mul(x)),
    ):
        assert out.shape == right.shape
        assert out.dtype == right.dtype
        assert not x.numel() or distance(out, right.double()) < ROUNDING[dtype]


def test_row_kernels_take_rows_that_stand_apart(rng: torch.Generator) -> None:
    x = normal(rng, 4, 160, dtype=torch.float32)
    part, scale = x[:, 32:128], normal(rng, 96, dtype=torch.float32)
    assert distance(elementwise.rms_norm(part, scale, EPS), reference.rms_norm(part, scale, EPS).double()) < 1e-6
    assert distance(elementwise.silu_mul(part), reference.silu_mul(part).double()) < 1e-6
