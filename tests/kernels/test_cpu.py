"""The CPU's engine operations against the references in float64, on fresh random input, and their batch invariance."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3.kernels import cpu, native, reference_engine
from qwen3.kernels.plan import BLOCK, StepPlan
from tests.model.oracle import distance

DTYPES = [torch.float32, torch.bfloat16]
LIMIT = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# Query and key heads: embedded, 0.6B and 1.7B, 4B and 8B, 14B, 32B, 30B-A3B, 235B-A22B.
LAYOUTS = [(4, 2), (16, 8), (32, 8), (40, 8), (64, 8), (32, 4), (64, 4)]


@pytest.fixture(name="seed", autouse=True)
def fixture_seed() -> int:
    """Fresh numbers every run; the seed is printed when a test fails."""
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)
    torch.manual_seed(seed)
    random.seed(seed)
    return seed


@pytest.fixture(autouse=True)
def fixture_inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(name="threads", params=[1, 2])
def fixture_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As a checkpoint's: rounded to bfloat16, whatever dtype it is held in."""
    return (torch.randn(shape) * shape[-1] ** -0.5).bfloat16().to(dtype)


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class Batch:
    """A step over a random cache. rows: (keys before the step, tokens of it); block tables shuffled or in one piece."""

    compiled = False  # which of the CPU's two

    def __init__(
        self, heads: int, kv_heads: int, dim: int, rows: list[tuple[int, int]], dtype: torch.dtype, shuffled: bool
    ) -> None:
        self.shape = (heads, kv_heads)
        needs = [-(-(old + new) // BLOCK) for old, new in rows]
        ids = list(range(1, 1 + sum(needs)))
        if shuffled:
            random.shuffle(ids)
        tables = torch.zeros(len(rows), max(needs) + 2, dtype=torch.int32)
        for row, need in enumerate(needs):
            tables[row, :need] = torch.tensor([ids.pop(0) for _ in range(need)])
        positions = torch.cat([torch.arange(old, old + new) for old, new in rows])
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([new for _, new in rows]))
        slots = tables[owner, positions // BLOCK].long() * BLOCK + positions % BLOCK
        starts = torch.tensor([0] + [new for _, new in rows]).cumsum(0)
        longest = max(old + new for old, new in rows)
        angles = torch.randn(longest, dim // 2)
        table = torch.cat((angles.cos(), angles.sin()), -1).to(dtype).float()
        decode = next((i for i, (_, new) in enumerate(rows) if new != 1), len(rows))
        self.plan = StepPlan(
            positions.int(),
            slots.int(),
            tables,
            starts.int(),
            torch.tensor([old + new for old, new in rows], dtype=torch.int32),
            table,
            decode,
            max((new for _, new in rows[decode:]), default=0),
            longest,
        )
        self.cache = [torch.randn(1 + sum(needs), BLOCK, kv_heads, dim).to(dtype) for _ in range(2)]
        self.qkv = torch.randn(len(positions), (heads + 2 * kv_heads) * dim).to(dtype)
        self.norms = [torch.rand(dim).to(dtype) + 0.5 for _ in range(2)]

    def attend(self, ops: Any, qkv: Tensor, plan: StepPlan, cache: list[Tensor]) -> Tensor:
        norms = [norm.to(qkv.dtype) for norm in self.norms]
        attend = ops.compiled_attend if self.compiled and ops is cpu else ops.attend
        return attend(qkv, *self.shape, *norms, 1e-6, plan, *cache)


ROWS = {
    "one": [(70, 1)],
    "decode": [(0, 1), (15, 1), (16, 1), (200, 1)],
    "prompt": [(0, 37)],
    "chunk": [(45, 30)],
    "mixed": [(31, 1), (5, 1), (0, 40), (33, 2), (600, 20)],
}


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels, and what runs where there are none."""
    if request.param == "compiled":
        if native.library() is None:
            pytest.skip(f"no compiled kernels: {native.state()}")
        monkeypatch.setattr(Batch, "compiled", True)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("shuffled", [False, True])
def test_attend(dtype: torch.dtype, rows: list[tuple[int, int]], shuffled: bool) -> None:
    batch = Batch(4, 2, 64, rows, dtype, shuffled)
    check_attend(batch)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), LAYOUTS)
def test_attend_at_every_models_heads(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    check_attend(Batch(heads, kv_heads, 128, [(40, 1), (3, 5)], dtype, True))


def check_attend(batch: Batch) -> None:
    dtype = batch.qkv.dtype
    exact = [cache.double() for cache in batch.cache]
    want = batch.attend(reference_engine, batch.qkv.double(), batch.plan, exact)
    for invariant in (False, True):
        cache = [held.clone() for held in batch.cache]
        out = batch.attend(cpu, batch.qkv, replace(batch.plan, invariant=invariant), cache)
        assert out.dtype == dtype
        assert distance(out, want) < LIMIT[dtype]
        for held, wanted in zip(cache, exact, strict=True):
            assert distance(held, wanted) < LIMIT[dtype]


@pytest.mark.parametrize("shuffled", [False, True])
def test_float8_cache_is_written_clamped_and_read_back(shuffled: bool) -> None:
    batch = Batch(4, 2, 64, ROWS["mixed"], torch.float32, shuffled)
    batch.qkv[:, -64:] *= 300  # values beyond 448 would be NaN
    caches = [[held.to(torch.float8_e4m3fn) for held in batch.cache] for _ in range(2)]
    want = batch.attend(reference_engine, batch.qkv, batch.plan, caches[0])
    out = batch.attend(cpu, batch.qkv, batch.plan, caches[1])
    assert distance(out, want) < 2e-3  # a key on the border between two float8 values may fall either way
    assert distance(caches[1][1].float(), caches[0][1].float()) == 0
    assert bool(out.isfinite().all())


def test_rows_without_tokens_or_keys_do_nothing() -> None:
    batch = Batch(4, 2, 64, [(20, 1), (9, 3)], torch.float32, False)
    whole = batch.attend(cpu, batch.qkv, batch.plan, batch.cache)
    plan = batch.plan
    padded = replace(
        plan,
        tables=torch.cat((plan.tables, torch.zeros_like(plan.tables[:1]))),
        starts=torch.cat((plan.starts, plan.starts[-1:])),
        lengths=torch.cat((plan.lengths, torch.zeros_like(plan.lengths[:1]))),
    )
    assert torch.equal(batch.attend(cpu, batch.qkv, padded, batch.cache), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 9, 33, 70])
@pytest.mark.parametrize("how", ["plain", "norm", "residual", "silu", "all"])
def test_fused_linear(dtype: torch.dtype, rows: int, how: str) -> None:
    x, w = torch.randn(rows, 3 * 96)[:, 96:192].to(dtype), weight(112, 96, dtype=dtype)
    options: dict[str, Any] = {}
    if how in ("norm", "all"):
        options |= {"norm": torch.rand(96).to(dtype), "eps": 1e-5}
    if how in ("silu", "all"):
        options["silu"] = True
    if how in ("residual", "all"):
        options["residual"] = torch.randn(rows, 56 if how == "all" else 112).to(dtype)
    want = reference_engine.fused_linear(x.double(), w.double(), **{k: wide(v) for k, v in options.items()})
    kept = options["residual"].clone() if "residual" in options else None
    for invariant in (False, True):
        out = cpu.fused_linear(x, w, invariant=invariant, **options)
        assert out.dtype == dtype
        assert distance(out, want) < LIMIT[dtype]
        assert kept is None or torch.equal(options["residual"], kept)


def test_fused_linear_threads(threads: int) -> None:
    """Every way through: one row and many, weights small and large, with threads and without."""
    for shape in ((64, 128), (4100, 1024)):
        w = weight(*shape)
        for rows in (1, 40, 90):
            x = torch.randn(rows, shape[1])
            assert distance(cpu.fused_linear(x, w), x.double() @ w.double().T) < LIMIT[torch.float32]


def test_weights_float16_cannot_hold_stay_float32() -> None:
    x = torch.randn(3, 64)
    for w in (torch.randn(80, 64), weight(80, 64) * 1e6, weight(80, 64) * 1e-6):
        assert cpu.packed(w) is None
        assert distance(cpu.fused_linear(x, w), x.double() @ w.double().T) < 1e-6
    assert cpu.packed(weight(80, 64).fill_(float("nan"))) is None


@pytest.mark.skipif(not cpu.has_fbgemm(), reason="this PyTorch has no FBGEMM")
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_copies_follow_their_weights(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU packs no bfloat16")
    before = cpu.packed_bytes
    x = torch.randn(2, 64).to(dtype)
    with torch.inference_mode(False):
        w = weight(96, 64, dtype=dtype)
    first = cpu.fused_linear(x, w)
    assert cpu.packed_bytes == before + 2 * 96 * 64
    with torch.inference_mode(False):
        w.mul_(2)
    assert distance(cpu.fused_linear(x, w), 2 * first) < 1e-6
    assert cpu.packed_bytes == before + 2 * 96 * 64
    monkeypatch.setattr(cpu, "pack_limit", before + 2 * 96 * 64)
    beyond = weight(96, 64, dtype=dtype)
    assert distance(cpu.fused_linear(x, beyond), x.double() @ beyond.double().T) < LIMIT[dtype]
    assert distance(cpu.fused_linear(x[:1], beyond), x[:1].double() @ beyond.double().T) < LIMIT[dtype]
    assert cpu.packed(beyond) is None
    assert torch.backends.mkldnn.enabled
    del w
    assert cpu.packed_bytes == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_fused_linear_is_batch_invariant(threads: int, dtype: torch.dtype, exact: bool) -> None:
    """A row alone, and at any place among any number of others: the same bits."""
    outputs, inputs = random.choice([(96, 64), (333, 160), (256, 3072), (1024, 512)])
    w = weight(outputs, inputs, dtype=dtype) if exact else torch.randn(outputs, inputs).to(dtype)
    x, norm = torch.randn(70, inputs).to(dtype), torch.rand(inputs).to(dtype)
    how: dict[str, Any] = {"norm": norm, "eps": 1e-6, "silu": outputs % 2 == 0, "invariant": True}
    alone = torch.cat([cpu.fused_linear(row, w, **how) for row in x.split(1)])
    for rows in random.sample(range(2, 71), 6):
        places = torch.randperm(70)[:rows]
        assert torch.equal(cpu.fused_linear(x[places], w, **how), alone[places])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_is_batch_invariant(threads: int, dtype: torch.dtype) -> None:
    """Tokens of one row, as one prompt or in any chunks, alone or among others, cache in one piece or scattered."""
    length = random.randint(20, 90)
    whole = Batch(4, 2, 64, [(0, length)], dtype, False)
    want = whole.attend(cpu, whole.qkv, replace(whole.plan, invariant=True), whole.cache)
    crowd = [(random.randint(0, 60), 1), (random.randint(0, 600), random.randint(1, 20))]
    done = 0
    held: list[Tensor] = []
    while done < length:
        size = random.choice([1, 1, 7, 16, 33])
        size = min(size, length - done)
        batch = Batch(4, 2, 64, [crowd[0], (done, size), crowd[1]], dtype, True)
        batch.norms, own = whole.norms, batch.plan.tables[1].long()
        table = batch.plan.cos_sin.clone()
        shared = min(length, len(table))
        table[:shared] = whole.plan.cos_sin[:shared]
        batch.qkv[1 : 1 + size] = whole.qkv[done : done + size]
        for index, cache in enumerate(batch.cache):
            if done:
                blocks = -(-done // BLOCK)
                cache[own[:blocks]] = held[index][:blocks]
        out = batch.attend(cpu, batch.qkv, replace(batch.plan, cos_sin=table, invariant=True), batch.cache)
        assert torch.equal(out[1 : 1 + size], want[done : done + size])
        done += size
        held = [cache[own[: -(-done // BLOCK)]] for cache in batch.cache]


@pytest.mark.usefixtures("path")
def test_two_engines_in_two_threads() -> None:
    """What a step's first layer worked out is kept for the others, and must be that step's own."""
    batches = [Batch(4, 2, 64, rows, torch.float32, True) for rows in ([(70, 1), (9, 1)], [(31, 1), (5, 1), (400, 1)])]
    alone = [batch.attend(cpu, batch.qkv, batch.plan, batch.cache) for batch in batches]

    @torch.inference_mode()
    def wrong(which: int) -> int:
        batch = batches[which]
        found = (batch.attend(cpu, batch.qkv, batch.plan, batch.cache) for _ in range(300))
        return sum(not torch.equal(out, alone[which]) for out in found)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(wrong, (0, 1))) == [0, 0]
