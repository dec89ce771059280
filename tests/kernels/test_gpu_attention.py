"""Attention kernels against the references in float32, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.runtime.interpreter")

from qwen3.kernels import reference_engine as reference
from qwen3.kernels.gpu import attention, prefill
from qwen3.kernels.plan import BLOCK, StepPlan
from tests.kernels.interpreter import make_faithful

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def _faithful(monkeypatch: pytest.MonkeyPatch) -> None:
    make_faithful(monkeypatch)


class Step:
    """Random rows over a random cache whose unused parts are NaN: reading them shows."""

    def __init__(
        self, decode: list[int], chunks: list[tuple[int, int]] = (), *, heads: int = 4, kv_heads: int = 2,
        dim: int = 32, dtype: torch.dtype = torch.bfloat16, kv_dtype: torch.dtype | None = None, seed: int = 0,
        gap: int = 0, invariant: bool = False,
    ) -> None:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        lengths = [*decode, *(length for _, length in chunks)]
        counts = [1] * len(decode) + [count for count, _ in chunks]
        width = max(-(-n // BLOCK) for n in lengths) + 1
        needed = [-(-n // BLOCK) for n in lengths]
        order = (torch.randperm(sum(needed) + 3, generator=rng) + 1).tolist()
        tables = torch.full((len(lengths), width), -(10**6), dtype=torch.int32)  # entries behind the end are never read
        for row, need in enumerate(needed):
            tables[row, :need] = torch.tensor([order.pop() for _ in range(need)])
        self.k, self.v = (torch.full((sum(needed) + 4, BLOCK, kv_heads, dim), float("nan")) for _ in range(2))
        positions, slots = [], []
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            for at in range(length):
                block, offset = tables[row, at // BLOCK], at % BLOCK
                if at >= length - count:
                    positions.append(at)
                    slots.append(int(block) * BLOCK + offset)
                else:
                    self.k[block, offset] = torch.randn(kv_heads, dim, generator=rng)
                    self.v[block, offset] = torch.randn(kv_heads, dim, generator=rng)
        self.k, self.v = (x.to(kv_dtype or dtype).to(DEVICE) for x in (self.k, self.v))
        total, wide = sum(counts), (heads + 2 * kv_heads) * dim
        # the row stride of qkv may be larger than its width
        self.qkv = torch.randn(total, wide + gap, generator=rng).to(dtype).to(DEVICE)[:, :wide]
        self.q_weight, self.k_weight = (
            (1 + 0.3 * torch.randn(dim, generator=rng)).to(dtype).to(DEVICE) for _ in range(2)
        )
        angle = torch.arange(max(lengths)).unsqueeze(1) * 0.7 ** torch.arange(dim // 2)
        starts = torch.tensor([0, *counts]).cumsum(0)
        self.plan = StepPlan(
            *(torch.as_tensor(x, dtype=torch.int32).to(DEVICE) for x in (positions, slots, tables, starts, lengths)),
            torch.cat((angle.cos(), angle.sin()), 1).to(dtype).float().to(DEVICE),
            len(decode), max((count for count, _ in chunks), default=0), max(lengths), tuple(chunks), invariant,
        )  # fmt: skip

    def args(self, wide: bool = False) -> tuple:
        """For `attend` and `rope_cache`, with caches of their own; wide: computed in float32."""
        cast = (lambda x: x.float()) if wide else (lambda x: x)
        return (
            cast(self.qkv), self.heads, self.kv_heads, cast(self.q_weight), cast(self.k_weight), EPS, self.plan,
            self.k.clone(), self.v.clone(),
        )  # fmt: skip

    def check(self, bound: float = 1e-2, **config: int) -> Tensor:
        """`attend` (with `config`: the decode kernel alone) against the reference: result and both caches."""
        mine, theirs = self.args(), self.args(wide=True)
        if config:
            out = torch.full((len(self.qkv), self.heads * self.dim), float("nan"), dtype=self.qkv.dtype, device=DEVICE)
            attention.decode(*mine, out, config=attention.DecodeConfig(**config))
        else:
            out = attention.attend(*mine)
        close(out, reference.attend(*theirs), bound)
        for new, old in zip(mine[-2:], theirs[-2:], strict=True):
            real = ~old.float().isnan()
            assert torch.equal(real, ~new.float().isnan())  # nothing else was written
            close(new.float()[real], old.float()[real], 2e-2 if new.dtype == FP8 else 5e-3)
        return out


def close(out: Tensor, expected: Tensor, bound: float = 1e-2) -> None:
    error = (out.float() - expected).norm() / expected.norm()
    assert error < bound, error.item()


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("splits", [1, 2, 7])
def test_decode_splits(splits: int, early: bool, kv_dtype: torch.dtype) -> None:
    """Lengths around the ends of blocks, tiles and shares; 1 and 17: a share that has the new token alone."""
    step = Step([1, 2, 16, 17, 18, 33, 64, 65, 150], kv_dtype=kv_dtype, seed=splits, gap=8)
    step.check(splits=splits, chunk=16, tile=16, warps=1, early=early)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (5, 1), (10, 2), (8, 1), (16, 1)])
def test_decode_groups(heads: int, kv_heads: int) -> None:
    step = Step([40, 5, 77], heads=heads, kv_heads=kv_heads, dim=16, seed=heads)
    step.check(splits=3, chunk=16, tile=32, warps=2, early=heads == 10)
    step.check(splits=1, chunk=64, tile=16, warps=2)


def test_decode_head_size_128_and_float16() -> None:
    step = Step([35], dim=128, dtype=torch.float16, seed=5)
    step.check(splits=2, chunk=16, tile=16, warps=2, early=True)


def test_decode_loads_again_what_was_stale() -> None:
    """The first reading of a position is held to the table's length: said to be shorter than it is, it differs from
    the second reading, as it would if the step's plan had still been in the making."""
    step = Step([40, 3, 90], seed=6)
    expected = reference.attend(*step.args(wide=True))
    step.plan = replace(step.plan, cos_sin=step.plan.cos_sin[:10])
    out = torch.full(expected.shape, float("nan"), dtype=torch.bfloat16, device=DEVICE)
    attention.decode(*step.args(), out, config=attention.DecodeConfig(2, 16, 16, 1, early=True))
    close(out, expected)


def test_decode_twice_over_the_same_counters() -> None:
    """The counters are zero again after each launch; so the order of arrival never shows: the bits are the same."""
    step = Step([100, 30, 64], seed=9)
    config = {"splits": 4, "chunk": 16, "tile": 16, "warps": 1}
    assert torch.equal(step.check(**config), step.check(**config))
    assert not attention._counters(DEVICE).any()


def test_decode_padding_rows() -> None:
    """A padding row (length 1, block 0) changes nothing for the others and writes to block 0 alone."""
    step = Step([20, 37], seed=3)
    plan = step.plan
    padded = replace(
        plan,
        positions=torch.cat((plan.positions, plan.positions.new_zeros(2))),
        slots=torch.cat((plan.slots, plan.slots.new_zeros(2))),
        tables=torch.cat((plan.tables, torch.zeros_like(plan.tables))),
        lengths=torch.cat((plan.lengths, torch.ones_like(plan.lengths))),
        starts=torch.arange(5, dtype=torch.int32, device=DEVICE),
        decode=4,
    )
    args, wide = step.args(), step.args(wide=True)
    out = attention.attend(torch.cat((args[0], args[0])), *args[1:6], padded, *args[7:])
    close(out[:2], reference.attend(*wide))
    assert torch.isfinite(out.float()).all()
    assert all(torch.equal(a[1:].isnan(), b[1:].isnan()) for a, b in zip(args[-2:], wide[-2:], strict=True))


@pytest.mark.parametrize(
    ("rows", "kv_heads", "length"),
    [(1, 8, 300), (1, 8, 40960), (8, 8, 300), (64, 8, 4096), (256, 8, 2000), (512, 4, 9), (32, 8, 40960),
     (64, 8, 40960), (256, 8, 262144)],
)  # fmt: skip
def test_decode_config(rows: int, kv_heads: int, length: int) -> None:
    """Powers of two that the kernel can take, and enough programs for 132 multiprocessors where there are the keys."""
    config = attention.decode_config(rows, kv_heads, length)
    assert config.chunk % config.tile == 0
    assert config.tile % BLOCK == 0
    assert config.splits & (config.splits - 1) == 0
    programs = rows * kv_heads * min(config.splits, -(-length // config.chunk))
    assert programs >= min(132, rows * kv_heads * length // 64)
    assert rows * kv_heads <= attention._COUNTERS
    assert length / config.splits <= 1 << 16  # of one row, for one multiprocessor


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("gap", [0, 16])
def test_rope_cache(kv_dtype: torch.dtype, gap: int) -> None:
    step = Step([7, 30], [(19, 40), (3, 3)], heads=12, kv_heads=4, kv_dtype=kv_dtype, gap=gap, seed=gap)
    mine, theirs = step.args(), step.args(wide=True)
    keys = torch.full((22, 4, 32), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    expected = reference.rope_cache(*theirs)
    close(attention.rope_cache(*mine, first=2, keys=keys), expected[2:])
    close(keys.float(), mine[-2].view(-1, 4, 32)[step.plan.slots[2:].long()].float(), 4e-2)
    assert mine[-2].float().isnan().sum() == theirs[-2].float().isnan().sum() + 2 * 4 * 32
    close(attention.rope_cache(*mine), expected)
    for new, old in zip(mine[-2:], theirs[-2:], strict=True):
        real = ~old.float().isnan()
        assert torch.equal(real, ~new.float().isnan())
        close(new.float()[real], old.float()[real], 2e-2)


def test_float8_saturates() -> None:
    step = Step([3], kv_dtype=FP8)
    step.qkv.fill_(1e4)
    mine = step.args()
    attention.attend(*mine)
    assert mine[-1].view(-1, 2, 32)[step.plan.slots.long()].float().eq(448).all()


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (5, 1), (16, 1)])
def test_chunks_and_mixed_steps(heads: int, kv_heads: int, kv_dtype: torch.dtype) -> None:
    """Decode rows, fresh prompts and chunks with context, shorter and longer than a tile, in one step."""
    step = Step(
        [5, 41], [(70, 70), (1, 90), (33, 100), (12, 20)],
        heads=heads, kv_heads=kv_heads, dim=16, kv_dtype=kv_dtype, seed=heads, gap=8,
    )  # fmt: skip
    step.check()


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_chunks_with_divided_keys(splits: int, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of 64 keys and more, the last with the diagonal: contexts that leave some empty, all but one, and none."""
    monkeypatch.setattr(prefill, "SHARE", 64)
    monkeypatch.setattr(prefill, "_splits", lambda programs, plan: splits)
    for heads, kv_heads, chunks in ((4, 2, [(40, 420), (9, 9), (1, 65), (1, 64), (70, 200)]), (5, 1, [(33, 357)])):
        shape = {"heads": heads, "kv_heads": kv_heads, "dim": 16, "kv_dtype": kv_dtype, "gap": 8}
        Step([5, 41], chunks, seed=splits, **shape).check()


def test_divided_keys_where_the_host_knows_bounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a graph: a chunk of fewer tokens than there is room for. What is behind them stays as it was."""
    monkeypatch.setattr(prefill, "SHARE", 64)
    step = Step([], [(20, 400)], seed=8)
    step.plan = replace(step.plan, chunks=(), max_query=150, max_length=4096)
    assert prefill._splits(6, step.plan) == prefill.MOST
    args = step.args(wide=True)
    q = reference.rope_cache(*args)
    room = torch.cat((q, torch.full((130, *q.shape[1:]), float("nan"), device=DEVICE))).bfloat16()
    out = torch.full_like(room, 7.0)
    prefill.chunks(room, step.plan, *args[-2:], out)
    close(out[:20], reference.paged_attention(q, step.plan, *args[-2:]))
    assert out[20:].eq(7).all()


@pytest.mark.parametrize(
    ("programs", "chunks", "bound", "splits"),
    [(16, (), 40960, 16), (24, (), 40960, 11), (256, (), 40960, 1), (512, (), 40960, 1), (8, (), 2048, 2),
     (8, ((64, 700),), 40960, 1), (32, ((128, 30000), (9, 9)), 32000, 8)],
)  # fmt: skip
def test_how_keys_are_divided(programs: int, chunks: tuple, bound: int, splits: int) -> None:
    assert prefill._splits(programs, replace(Step([1]).plan, chunks=chunks, max_length=bound)) == splits


def test_paged_attention_takes_decode_rows_too() -> None:
    step = Step([5, 41], [(20, 70)], seed=1)
    args = step.args(wide=True)
    q = reference.rope_cache(*args)
    out = torch.empty_like(q, dtype=torch.bfloat16)
    prefill.chunks(q.bfloat16(), step.plan, *args[-2:], out)
    close(out, reference.paged_attention(q, step.plan, *args[-2:]))


def test_invariant_bits() -> None:
    """The same tokens alone, among others, in chunks and one by one: the same bits."""
    whole = Step([], [(90, 90)], invariant=True, seed=2)
    args = whole.args()
    expected = attention.attend(*args)
    close(expected, reference.attend(*whole.args(wide=True)))
    for cuts in ([0, 37, 89, 90], [0, 64, 65, 66, 90]):
        caches = [torch.full_like(x, float("nan")) for x in args[-2:]]
        for first, last in pairwise(cuts):
            plan = part(whole.plan, first, last)
            out = attention.attend(args[0][first:last], *args[1:6], plan, *caches)
            assert torch.equal(out, expected[first:last])
    other = Step([30], [(11, 50)], invariant=True, seed=4)
    crowd = join(other, whole)
    out = attention.attend(*crowd.args())
    assert torch.equal(out[-90:], expected)


def part(plan: StepPlan, first: int, last: int) -> StepPlan:
    """Tokens first … last - 1 of the plan's only row; a single one as a decode row."""
    count = last - first
    new = plan.starts.new_tensor
    return replace(
        plan, positions=plan.positions[first:last], slots=plan.slots[first:last], starts=new([0, count]),
        lengths=new([last]), decode=int(count == 1), max_query=0 if count == 1 else count, max_length=last,
        chunks=() if count == 1 else ((count, last),),
    )  # fmt: skip


def join(a: Step, b: Step) -> Step:
    """Both steps' rows in one; b has chunks alone."""
    both, shift = Step([1]), len(a.k)
    both.__dict__.update(b.__dict__)
    both.k, both.v = torch.cat((a.k, b.k)), torch.cat((a.v, b.v))
    both.qkv = torch.cat((a.qkv, b.qkv))
    p, o = a.plan, b.plan
    width = max(p.tables.shape[1], o.tables.shape[1])
    tables = [torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (p.tables, o.tables + shift)]
    both.plan = replace(
        o, positions=torch.cat((p.positions, o.positions)), slots=torch.cat((p.slots, o.slots + shift * BLOCK)),
        tables=torch.cat(tables), starts=torch.cat((p.starts, o.starts[1:] + p.starts[-1])),
        lengths=torch.cat((p.lengths, o.lengths)), decode=p.decode, max_query=max(p.max_query, o.max_query),
        max_length=max(p.max_length, o.max_length), chunks=(*p.chunks, *o.chunks),
    )  # fmt: skip
    return both


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (4, 1, 16), (5, 1, 16), (8, 1, 16), (4, 4, 16)])
def test_whole_prompts(
    heads: int, kv_heads: int, dim: int, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts from one token to several tiles among chunks with context; with so few in all, the cache is read."""
    monkeypatch.setattr(prefill, "PROMPT_TOKENS", 200)
    monkeypatch.setattr(prefill, "SHARE", 64)
    monkeypatch.setattr(prefill, "_splits", lambda programs, plan: 3 if kv_heads == 2 else 1)
    chunks = [(1, 1), (64, 64), (9, 200), (33, 33), (65, 65), (1, 90), (40, 40), (2, 2)]
    step = Step(
        [5, 41], chunks, heads=heads, kv_heads=kv_heads, dim=dim, kv_dtype=kv_dtype, seed=heads, gap=8
    )  # fmt: skip
    assert prefill.has_prompts(step.plan)
    step.check(bound=5e-2 if kv_dtype == FP8 else 1e-2)  # keys are used as they were before the cache's rounding
    alone = Step([], [(70, 70), (130, 130)], heads=heads, kv_heads=kv_heads, dim=dim, seed=heads)
    monkeypatch.setattr(prefill, "_prefill", None)  # nothing is left for it
    alone.check()


def test_more_prompts_than_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PROMPT_TOKENS", 1)
    counts = [1 + i * 7 % 5 for i in range(300)]
    Step([4], [(n, n) for n in counts], heads=1, kv_heads=1, dim=16, seed=3).check()


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize(("count", "length"), [(48, 48), (37, 37), (40, 72), (64, 80), (20, 21)])
def test_dense_path(count: int, length: int, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long chunks: multiples of the step through the library (here its plain twin), the rest through the kernel."""
    monkeypatch.setattr(prefill, "DENSE_STEP", 16)
    if DEVICE == "cpu":
        monkeypatch.setattr(prefill, "_cudnn", plain)
    # the chunk's own keys are used as they were before they were rounded for the cache
    Step([], [(count, length)], kv_dtype=kv_dtype, seed=count).check(bound=5e-2 if kv_dtype == FP8 else 1e-2)
    step = Step([9, 4], [(count, length)], seed=count)
    assert prefill.dense_tokens(step.plan) == (0 if (length - count) % 16 else count // 16 * 16)
    step.check()


def plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, lse: bool) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * q.shape[-1] ** -0.5
    if causal:
        scores += torch.full(scores.shape[1:], float("-inf")).triu(1)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q.dtype).contiguous()
    return out, scores.logsumexp(-1) if lse else out.new_empty(0)
