"""Routing and expert products in Triton against their plain twins, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import interpreter

from qwen3.errors import UsageError
from qwen3.kernels import reference, reference_engine
from qwen3.kernels.fp8 import quantize_fp8
from qwen3.kernels.gpu import launch, moe, routing
from qwen3.kernels.gpu.moe import Tile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
E, H, M, K = 8, 64, 32, 2
SMALL = {
    "swapped": (Tile(0, 32, 32, 4, 2, True), Tile(0, 16, 16, 4, 2, True)),
    "dense": (Tile(0, 16, 32, 4, 2, False), Tile(0, 64, 32, 4, 2, False)),
    "listed": (Tile(16, 32, 32, 4, 2, False), Tile(16, 32, 32, 4, 2, False)),
    "listed swapped": (Tile(16, 64, 64, 4, 2, True), Tile(16, 32, 32, 4, 2, True)),
}


@pytest.fixture(autouse=True)
def _loop_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter takes int() of one-element arrays for a loop's bounds, which numpy 2.4 refuses."""
    patch_tensor = interpreter._patch_lang_tensor

    def tensor(kind: type, scope: Any) -> None:
        patch_tensor(kind, scope)
        scope.set_attr(kind, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", tensor)


def case(tokens: int, seed: int, experts: int = E) -> tuple[torch.Tensor, ...]:
    """x, gate_up, down, weights and chosen of `tokens` tokens, residual: float32."""
    g = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(tokens, H, generator=g).to(DEVICE) for _ in range(2))
    gate_up = torch.randn(experts, 2 * M, H, generator=g).to(DEVICE) * H**-0.5
    down = torch.randn(experts, H, M, generator=g).to(DEVICE) * M**-0.5
    weights, chosen = reference.route(torch.randn(tokens, experts, generator=g).to(DEVICE), K, True)
    return x, gate_up, down, weights, chosen.int(), residual


def error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(3, 128, 8), (2, 6, 3)])
def test_route_equals_reference(tokens: int, experts: int, k: int, normalise: bool) -> None:
    logits = torch.randn(tokens, experts, device=DEVICE) * 3
    counts = torch.randint(1, k + 1, (tokens,), dtype=torch.int32, device=DEVICE)
    for given in (None, counts):
        weights, chosen = routing.route(logits, k, normalise, counts=given)
        wanted, picks = reference.route(logits, k, normalise, counts=given)
        assert chosen.dtype == torch.int32
        assert chosen.long().equal(picks)
        torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=1e-7)


def test_route_takes_the_lower_expert_of_a_tie_and_infinities() -> None:
    logits = torch.zeros(1, 16, device=DEVICE)
    logits[0, 3], logits[0, 9] = float("-inf"), 5.0
    weights, chosen = routing.route(logits, 4, True)
    assert chosen.tolist() == [[9, 0, 1, 2]]
    assert float(weights.sum()) == pytest.approx(1)
    logits = torch.full((1, 16), float("-inf"), device=DEVICE)
    logits[0, 5] = 0.0
    assert routing.route(logits, 3, True)[1].tolist() == [[5, 0, 1]]


def test_route_keeps_bfloat16() -> None:
    logits = torch.randn(4, 128, device=DEVICE).bfloat16()
    weights, _ = routing.route(logits, 8, True)
    wanted, _ = reference.route(logits, 8, True)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights, wanted, rtol=1e-2, atol=1e-3)


def test_route_of_no_tokens() -> None:
    weights, chosen = routing.route(torch.empty(0, 8, device=DEVICE), 2, True)
    assert weights.shape == chosen.shape == (0, 2)


@pytest.mark.parametrize("layer", [0, 1, 16, 47])
def test_uniform_logits_equal_reference(layer: int) -> None:
    ids = torch.tensor([0, 1, 151935, 77], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([0, 40959, 3, 262143], dtype=torch.int32, device=DEVICE)
    out = routing.uniform_logits(ids, positions, layer, 128)
    assert out.equal(reference_engine.uniform_logits(ids, positions, layer, 128))
    assert float(out.min()) > 0
    assert float(out.max()) < 1


def test_uniform_logits_choose_uniformly() -> None:
    tokens, experts, k = 20_000, 32, 4
    ids = torch.arange(tokens) % 50
    chosen = reference_engine.uniform_logits(ids, torch.arange(tokens), 3, experts).topk(k).indices
    expected = tokens * k / experts
    assert (chosen.flatten().bincount(minlength=experts) - expected).abs().max() < 6 * expected**0.5
    pairs = torch.zeros(experts, experts).index_put_((chosen[:, 0], chosen[:, 1]), torch.ones(tokens), accumulate=True)
    off = pairs[~torch.eye(experts, dtype=torch.bool)]
    assert float(off.sub(off.mean()).square().sum() / off.mean()) == pytest.approx(len(off), rel=0.25)
    assert not chosen.equal(reference_engine.uniform_logits(ids, torch.arange(tokens), 4, experts).topk(k).indices)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("kind", SMALL)
def test_experts_equal_reference(kind: str, tokens: int) -> None:
    x, gate_up, down, weights, chosen, residual = case(tokens, seed=tokens)
    add = residual if tokens > 1 else None
    out = moe.run(x, gate_up, down, weights, chosen, add, *SMALL[kind])
    assert error(out, reference.experts(x, gate_up, down, weights, chosen, residual=add)) < 2e-6


@pytest.mark.parametrize("kind", SMALL)
def test_skipped_experts_leave_no_trace(kind: str) -> None:
    tokens = 5
    x, gate_up, down, weights, chosen, residual = case(tokens, seed=9)
    counts = torch.ones(tokens, dtype=torch.int32, device=DEVICE)
    counts[tokens // 2 + 1 :] = K
    weights, chosen = routing.route(torch.randn(tokens, E, device=DEVICE), K, True, counts=counts)
    assert (chosen < 0).any()
    out = moe.run(x, gate_up, down, weights, chosen, residual, *SMALL[kind])
    assert error(out, reference.experts(x, gate_up, down, weights, chosen, residual=residual)) < 2e-6


@pytest.mark.parametrize("kind", ["swapped", "dense", "listed"])
def test_all_tokens_on_the_same_experts(kind: str) -> None:
    x, gate_up, down, weights, chosen, _ = case(37, seed=4)
    chosen[:] = torch.tensor([6, 1], dtype=torch.int32)
    out = moe.run(x, gate_up, down, weights, chosen, None, *SMALL[kind])
    assert error(out, reference.experts(x, gate_up, down, weights, chosen)) < 2e-6


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("block", [0, 128])
def test_fp8_weights(kind: str, block: int) -> None:
    x, gate_up, down, weights, chosen, residual = case(9, seed=11)
    wide, tall = quantize_fp8(gate_up, block), quantize_fp8(down, block)
    out = moe.run(x, wide, tall, weights, chosen, residual, *SMALL[kind])
    plain = wide.dequantize(torch.float32), tall.dequantize(torch.float32)
    assert error(out, reference.experts(x, *plain, weights, chosen, residual=residual)) < 2e-6


def test_fp8_blocks_within_an_expert() -> None:
    """More than one block each way, and gate and up rows in different ones."""
    g = torch.Generator().manual_seed(1)
    gate_up = torch.randn(2, 512, 256, generator=g).to(DEVICE) * torch.logspace(-2, 1, 512, device=DEVICE)[:, None]
    down = torch.randn(2, 256, 256, generator=g).to(DEVICE) * torch.logspace(-1, 1, 256, device=DEVICE)
    wide, tall = quantize_fp8(gate_up, 128), quantize_fp8(down, 128)
    chosen = torch.tensor([[0, 1]], dtype=torch.int32, device=DEVICE)
    weights = torch.tensor([[0.75, 0.25]], device=DEVICE)
    x = torch.randn(1, 256, generator=g).to(DEVICE) / 16
    wanted = reference.experts(x, wide.dequantize(torch.float32), tall.dequantize(torch.float32), weights, chosen)
    for tiles in (
        (Tile(0, 128, 64, 4, 2, True), Tile(0, 128, 128, 4, 2, True)),
        (Tile(16, 128, 128, 4, 2, False), Tile(16, 128, 64, 4, 2, False)),
    ):
        assert error(moe.run(x, wide, tall, weights, chosen, None, *tiles), wanted) < 5e-6


@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_public_entry(tokens: int) -> None:
    x, gate_up, down, weights, chosen, residual = case(tokens, seed=2)
    for add in (None, residual):
        out = moe.experts(x, gate_up, down, weights, chosen, residual=add)
        assert error(out, reference.experts(x, gate_up, down, weights, chosen, residual=add)) < 2e-6 or not tokens


def test_invariant_computes_a_token_the_same_way_in_any_batch() -> None:
    """Bitwise on a GPU. The interpreter's matrix product depends on a row's place, so there: the same kernels."""
    x, gate_up, down, weights, chosen, residual = case(19, seed=5)
    whole = moe.experts(x, gate_up, down, weights, chosen, residual=residual, invariant=True)
    assert error(whole, reference.experts(x, gate_up, down, weights, chosen, residual=residual)) < 2e-6
    kernels = []
    for rows in (slice(0, 19), slice(0, 1), slice(7, 8), slice(3, 9)):
        part = (x[rows], gate_up, down, weights[rows], chosen[rows])
        with launch.collect() as jobs:
            moe.experts(*part, residual=residual[rows], invariant=True)
        kernels.append([(kernel, meta) for kernel, _, _, meta in jobs])
        out = moe.experts(*part, residual=residual[rows], invariant=True)
        assert out.equal(whole[rows]) if DEVICE.type == "cuda" else error(out, whole[rows]) < 1e-6
    assert all(found == kernels[0] for found in kernels)


def test_uneven_sizes_are_refused() -> None:
    x, gate_up, down, weights, chosen, _ = case(2, seed=3)
    with pytest.raises(UsageError, match="multiples of 16"):
        moe.run(x, gate_up[:, :40], down[:, :, :20].contiguous(), weights, chosen, None, *SMALL["dense"])


def test_every_plan_runs() -> None:
    """The shipped tiles, clipped to small sizes, compute what they should."""
    x, gate_up, down, weights, chosen, _ = case(1, seed=8)
    wanted = reference.experts(x, gate_up, down, weights, chosen)
    for plans in moe.tables().values():
        for tiles in plans.values():
            if any(tile.walkers for tile in tiles):  # of few bits: see test_weight_only.py
                continue
            assert error(moe.run(x, gate_up, down, weights, chosen, None, *tiles), wanted) < 2e-6


@pytest.mark.parametrize("tokens", [1, 3, 63, 700])
@pytest.mark.parametrize("seen", [512, 16])
def test_listing_is_by_expert_and_in_order(tokens: int, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair once, in tiles of its expert that are full but for the last, counted by one launch or two."""
    monkeypatch.setattr(routing, "SEEN", seen)
    monkeypatch.setattr(routing, "BLOCKS", 5)
    bm, slots = 16, min(tokens * K, tokens * K // 16 + 7)
    chosen = torch.rand(tokens, 7, generator=torch.Generator().manual_seed(tokens)).argsort(1)[:, :K].int()
    chosen[chosen == 3] = -1
    order, tiles = routing.list_pairs(chosen.to(DEVICE), 7, bm)
    assert (len(order), len(tiles)) == (slots * bm, slots)
    found: dict[int, list[int]] = {expert: [] for expert in range(7)}
    for tile, info in enumerate(tiles.tolist()):
        expert, used = divmod(info, 65536)
        assert len(found[expert]) % bm == 0 or not used
        found[expert] += order[tile * bm : tile * bm + used].tolist()
    assert found == {e: (chosen.flatten() == e).nonzero()[:, 0].tolist() for e in range(7)}


@pytest.mark.parametrize("kind", ["bf16", "fp8", "fp8-128"])
def test_shipped_tables_serve_every_count(kind: str) -> None:
    for tokens in (1, 2, 32, 64, 65, 256, 257, 1024, 10**6):
        gate, low = moe.choose(kind, tokens)
        assert gate.bm == low.bm
        assert (gate.bm == 0) == (tokens <= 64)
