"""Checks and tunes attention on a GPU: `PYTHONPATH=src python tools/tune/attention.py [SECTION ...]`.

Sections: check (against float32, shapes of all eight models; bits of the invariant mode), decode (configurations, in
graphs of dependent launches that walk over more cache than L2 holds), mixed (the same for 16 to 256 rows of very
different lengths, checked first; the fastest also between products of the model's sizes), few (8 and 16 short rows),
prefill (tiles; cuDNN and
torch's flash beside them; what cuDNN's first call of a shape costs), chunks (small ones behind a long context, whose
keys are divided), step (whole `attend` calls, RoPE, host time of a call). Tables go to stdout, the best of each case
last; all figures to $OUT/attention.json.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen3.kernels import reference_engine as reference
from qwen3.kernels.gpu import attention, prefill
from qwen3.kernels.gpu.attention import DecodeConfig
from qwen3.kernels.gpu.launch import collect, compile_all
from qwen3.kernels.gpu.linear import fused_linear
from qwen3.kernels.plan import BLOCK, StepPlan

READ = 3.1e12  # bytes a second read from an H100's memory
D = 128
HEADS = {
    "0.6B": (16, 8), "8B": (32, 8), "30B-A3B": (32, 4), "14B": (40, 8), "32B": (64, 8), "235B": (64, 4),
    "embedded": (4, 2),
}  # fmt: skip
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
EPS = 1e-6
figures: dict[str, Any] = {}
summary: list[str] = []


class Case:
    """Random rows (decode lengths, then (tokens, length) of chunks) over `layers` random caches, blocks shuffled."""

    def __init__(
        self, model: str, decode: list[int], chunks: list[tuple[int, int]] = [], *,  # noqa: B006
        kv: torch.dtype = BF16, layers: int = 1, poison: bool = False, invariant: bool = False,
    ) -> None:  # fmt: skip
        self.heads, self.kv_heads = HEADS[model]
        lengths = [*decode, *(length for _, length in chunks)]
        counts = [1] * len(decode) + [count for count, _ in chunks]
        needed = [-(-n // BLOCK) for n in lengths]
        order = torch.randperm(sum(needed)) + 1
        tables = torch.full((len(lengths), max(needed) + 1), -(10**6), dtype=torch.int32)
        at = 0
        for row, need in enumerate(needed):
            tables[row, :need] = order[at : at + need]
            at += need
        positions = torch.cat([torch.arange(n - c, n) for n, c in zip(lengths, counts, strict=True)])
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(counts))
        slots = tables[rows, positions // BLOCK] * BLOCK + positions % BLOCK
        self.tokens, self.dtype = len(positions), BF16
        shape = (layers, sum(needed) + 1, BLOCK, self.kv_heads, D)
        self.k, self.v = (torch.empty(shape, dtype=BF16, device="cuda").normal_() for _ in range(2))
        if poison:
            used = torch.zeros(shape[1] * BLOCK, dtype=torch.bool)
            for row, (n, c) in enumerate(zip(lengths, counts, strict=True)):
                old = torch.arange(n - c)
                used[tables[row, old // BLOCK] * BLOCK + old % BLOCK] = True
            for x in (self.k, self.v):
                x.view(layers, -1, self.kv_heads, D)[:, ~used.cuda()] = float("nan")
        self.k, self.v = self.k.to(kv), self.v.to(kv)
        self.qkv = torch.randn(self.tokens, (self.heads + 2 * self.kv_heads) * D, device="cuda").to(BF16)
        self.weights = tuple((1 + 0.2 * torch.randn(D, device="cuda")).to(BF16) for _ in range(2))
        angle = torch.arange(max(lengths)).unsqueeze(1) / 1e6 ** (torch.arange(D // 2) * 2 / D)
        ints = (positions, slots, tables, torch.tensor([0, *counts]).cumsum(0), torch.tensor(lengths))
        self.plan = StepPlan(
            *(x.to(torch.int32).cuda() for x in ints), torch.cat((angle.cos(), angle.sin()), 1).to(BF16).float().cuda(),
            len(decode), max((c for c, _ in chunks), default=0), max(lengths), tuple(chunks), invariant,
        )  # fmt: skip
        self.out = torch.full((self.tokens, self.heads * D), float("nan"), dtype=BF16, device="cuda")
        self.bytes = sum(n - 1 for n in decode) * self.kv_heads * D * 2 * self.k.element_size()
        self.flops = 4 * D * self.heads * sum(c * (n - c) + c * c / 2 for c, n in chunks)

    def args(self, layer: int = 0) -> tuple[Any, ...]:
        return self.qkv, self.heads, self.kv_heads, *self.weights, EPS, self.plan, self.k[layer], self.v[layer]

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k, v = self.args()
        k, v = k.clone(), v.clone()
        out = reference.attend(qkv.float(), heads, kv_heads, q_weight.float(), k_weight.float(), eps, plan, k, v)
        return out, k, v

    def decode(self, config: DecodeConfig | None, layer: int = 0) -> None:
        attention.decode(*self.args(layer), self.out, config=config)

    def attend(self, layer: int = 0) -> Tensor:
        return attention.attend(*self.args(layer))

    def chunks(self, q: Tensor, tiles: prefill.Tiles | None, splits: int | None = 1, layer: int = 0) -> None:
        out = self.out.view(self.tokens, self.heads, D)
        prefill.chunks(q, self.plan, self.k[layer], self.v[layer], out, tiles=tiles, splits=splits)


def error(x: Tensor, y: Tensor) -> float:
    return float((x.float() - y.float()).norm() / y.float().norm())


def compiled(*calls: Callable[[], Any]) -> None:
    with collect() as jobs:
        for call in calls:
            call()
    compile_all(jobs)


def timed(call: Callable[..., Any], *args: Any, repeats: int = 5, **named: Any) -> float:
    """Median seconds of a call."""
    call(*args, **named)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for first, last in marks:
        first.record()
        call(*args, **named)
        last.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in marks) / 1e3


def replayed(step: Callable[[int], Any], layers: int, least: int = 24, repeats: int = 5) -> float:
    """Seconds of one step in a graph that walks over the layers, at least `least` steps."""
    steps = [i % layers for i in range(max(least, layers))]
    step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in steps:
            step(layer)
    return timed(graph.replay, repeats=repeats) / len(steps)


SMALL = [
    DecodeConfig(64, chunk, tile, warps, stages, early)
    for tile, warps, stages, early in ((16, 1, 1, True), (32, 2, 1, True), (32, 4, 1, True), (64, 4, 1, True),
                                       (32, 2, 3, False), (64, 4, 3, False))
    for chunk in (32, 64, 128)
    if chunk >= tile
]  # fmt: skip
LARGE = [
    DecodeConfig(splits, 512, tile, warps, stages, early)
    for tile, warps, stages, early in ((32, 1, 4, False), (32, 2, 4, False), (64, 2, 3, False), (64, 4, 3, False),
                                       (64, 4, 4, False), (128, 4, 3, False), (64, 4, 1, True), (32, 4, 1, True))
    for splits in (1, 4)
]  # fmt: skip

SHARES = ((1, 512), (2, 512), (4, 512), (4, 256), (8, 256), (8, 128), (16, 128), (16, 64))
MIXED = [
    DecodeConfig(splits, chunk, tile, warps, stages, early)
    for tile, warps, stages, early in ((64, 4, 3, False), (64, 4, 3, True), (64, 4, 4, True), (64, 2, 3, True),
                                       (32, 4, 4, True), (32, 2, 3, True), (32, 2, 4, True), (16, 1, 4, True),
                                       (64, 4, 1, True), (32, 2, 1, True), (16, 1, 1, True))
    for splits, chunk in SHARES
]  # fmt: skip
HIDDEN = {"0.6B": 1024, "8B": 4096, "30B-A3B": 2048}


def check() -> None:
    worst: dict[str, float] = {}

    def note(name: str, value: float, bound: float = 1e-2) -> None:
        worst[name] = max(worst.get(name, 0.0), value)
        if not value < bound:
            print("WRONG", name, value, flush=True)

    lengths = [1, 2, 16, 17, 64, 65, 300, 1500, 3000]
    chunks = [(200, 200), (65, 700), (1, 33), (300, 2000)]
    configs = [DecodeConfig(8, 64, 32, 4, 1, True), DecodeConfig(4, 512, 64, 4), DecodeConfig(1, 512, 64, 4)]
    cases = [
        (m, kv, Case(m, lengths, chunks, kv=kv, poison=True))
        for m in HEADS for kv in (BF16, FP8) if kv == BF16 or m in ("0.6B", "14B", "30B-A3B")
    ]  # fmt: skip
    began = time.perf_counter()
    jobs: list[Any] = [partial(c.decode, f) for _, _, c in cases for f in configs]
    jobs += [c.attend for _, _, c in cases]
    single = {m: Case(m, [], [(300, 300)], invariant=True) for m in ("0.6B", "14B", "30B-A3B")}
    jobs += [c.attend for c in single.values()]
    compiled(*jobs)
    summary.append(f"check: compiled in {time.perf_counter() - began:.1f} s")
    for model, kv, case in cases:
        name = f"{model} {'fp8' if kv == FP8 else 'bf16'}"
        out, k, v = case.expected()
        for config in configs:
            case.out.fill_(float("nan"))
            case.decode(config)
            note(f"{name} decode", error(case.out[: len(lengths)], out[: len(lengths)]))
        note(f"{name} attend", error(case.attend(), out))
        for mine, theirs in ((case.k[0], k), (case.v[0], v)):
            real = ~theirs.float().isnan()
            if not torch.equal(real, ~mine.float().isnan()):
                print("WRONG", name, "cache: other slots were written")
            note(f"{name} cache", error(mine.float()[real], theirs.float()[real]), 2e-2)
    for model, case in single.items():
        whole = case.attend()
        note(f"{model} invariant", error(whole, case.expected()[0]))
        p = case.plan
        for cuts in ([0, 128, 299, 300], [0, 1, 2, 77, 300]):
            for a, b in pairwise(cuts):
                one = int(b - a == 1)
                part = replace(
                    p, positions=p.positions[a:b], slots=p.slots[a:b], starts=torch.tensor([0, b - a]).int().cuda(),
                    lengths=torch.tensor([b]).int().cuda(), decode=one, max_query=0 if one else b - a,
                    chunks=() if one else ((b - a, b),),
                )  # fmt: skip
                out = attention.attend(case.qkv[a:b], *case.args()[1:6], part, case.k[0], case.v[0])
                if not torch.equal(out, whole[a:b]):
                    print("WRONG", model, "invariant bits", a, b)
    keep_step, prefill.DENSE_STEP = prefill.DENSE_STEP, 512
    for model in ("0.6B", "8B", "14B", "30B-A3B"):
        for chunk in ((1024, 1024), (1100, 1100), (1024, 2048), (600, 1112)):
            for kv in (BF16, FP8):
                case = Case(model, [700], [chunk], kv=kv)
                bound = 5e-2 if kv == FP8 else 1e-2
                note(f"{model} cuDNN {chunk}", error(case.attend(), case.expected()[0]), bound)
    prefill.DENSE_STEP = keep_step
    figures["check"] = worst
    bad = max(worst.items(), key=lambda item: item[1] if item[1] == item[1] else 9.0)
    summary.append(f"check: largest error {bad[1]:.4f} ({bad[0]}) of {len(worst)}")


def decode() -> None:
    draw = random.Random(1)
    mixed = [int(min(2000, max(100, draw.gauss(800, 400)))) for _ in range(256)]
    short = [300]
    dense = [(m, BF16, n) for m in ("0.6B", "8B") for n in (short, [4000], [32000], short * 8, short * 32, mixed)]
    work = [*dense, *(("30B-A3B", BF16, n) for n in (short, short * 32, mixed))]
    work += [(m, FP8, n) for m in ("0.6B", "8B") for n in (short, [32000], mixed)]
    warm = [Case(m, [40], kv=kv) for m, kv in dict.fromkeys((m, kv) for m, kv, _ in work)]
    began = time.perf_counter()
    compiled(*(partial(c.decode, f) for c in warm for f in SMALL + LARGE))
    table = [f"compiled in {time.perf_counter() - began:.1f} s"]
    for model, kv, lengths in work:
        size = sum(lengths) * HEADS[model][1] * D * 2 * (2 if kv == BF16 else 1)
        layers = min(48, max(2, -(-200_000_000 // size)))
        case = Case(model, lengths, kv=kv, layers=layers)
        rows = len(lengths)
        found = []
        for config in LARGE if rows > 32 else SMALL if rows < 32 else SMALL + LARGE:
            config = replace(config, splits=min(config.splits, max(4, 128 // rows)))
            seconds = replayed(partial(case.decode, config), layers)
            found.append((seconds, config))
        found.sort(key=lambda item: item[0])
        chosen = replayed(partial(case.decode, None), layers)
        name = f"{model:8} R={rows:3} n={sum(lengths) // rows:5} {'fp8 ' if kv == FP8 else 'bf16'}"
        best = ", ".join(
            f"{s * 1e6:.1f}us {c.splits}/{c.chunk}/{c.tile}/{c.warps}/{c.stages}{'e' if c.early else ''}"
            for s, c in found[:4]
        )
        share = case.bytes / READ / found[0][0]
        table.append(
            f"{name} default {chosen * 1e6:7.1f}us | best {share:4.0%} of {READ / 1e12} TB/s | {best} | "
            f"worst {found[-1][0] * 1e6:.1f}us"
        )
        print(table[-1], flush=True)
        figures[f"decode {name}"] = [{"us": s * 1e6, **asdict(c)} for s, c in found]
    for model in ("0.6B", "8B"):
        case = Case(model, [1], layers=2)
        floor = replayed(partial(case.decode, None), 2)
        table.append(f"{model:8} R=1 n=1: {floor * 1e6:.2f} us (fixed cost in a chain)")
    summary.extend(["decode: splits/chunk/tile/warps/stages, e: first tile early", *table])


def short(config: DecodeConfig) -> str:
    c = config
    return f"{c.splits}/{c.chunk}/{c.tile}/{c.warps}/{c.stages}{'e' if c.early else ''}"


def mixed(sizes: Sequence[int] = (16, 32, 64, 96, 128, 192, 256), low: int = 300, high: int = 1800) -> None:
    """Rows sorted by length, longest first, as the engine has them."""
    draw = random.Random(2)
    work = [(m, n) for n in sizes for m in HIDDEN]
    lengths = {n: sorted((draw.randint(low, high) for _ in range(n)), reverse=True) for _, n in work}
    began = time.perf_counter()
    edges = sorted([1, 2, 16, 17, 64, 65, 128, 129, 256, 257, 1024, *lengths[sizes[0]]], reverse=True)
    tested = [Case(m, edges, kv=kv, poison=True) for m in HIDDEN for kv in (BF16, FP8)]
    layers = {m: Layer(m) for m in HIDDEN}
    jobs = [partial(c.decode, f) for c in tested for f in MIXED if c.k.dtype == BF16 or f.chunk == 128]
    for (m, n), c in ((job, c) for job in work for c in tested):
        if (c.heads, c.kv_heads, c.k.dtype) == (*HEADS[m], BF16):
            jobs.append(partial(c.decode, attention.decode_config(n, c.kv_heads, 4096)))
            one = layers[m]
            jobs += [partial(fused_linear, x[:n], w) for x, w in ((one.x, one.first), (one.seen, one.last))]
    compiled(*jobs)
    table = [f"compiled in {time.perf_counter() - began:.1f} s"]
    wrong = 0.0
    for case in tested:
        right = case.expected()[0]
        for config in MIXED:
            if case.k.dtype == BF16 or config.chunk == 128:
                case.out.fill_(float("nan"))
                case.decode(config)
                found = error(case.out, right)
                wrong = max(wrong, found) if found == found else found
                if not found < 1e-2:
                    print("WRONG", case.heads, case.kv_heads, case.k.dtype, short(config), found, flush=True)
    table.append(f"largest error {wrong:.4f}")
    print("\n".join(table), flush=True)
    del tested, case
    shares: dict[int, list[dict[DecodeConfig, float]]] = {}
    for model, rows in work:
        size = sum(lengths[rows]) * HEADS[model][1] * D * 4
        case = Case(model, lengths[rows], layers=(count := min(8, max(2, -(-200_000_000 // size)))))
        found = {f: replayed(partial(case.decode, f), count, least=6, repeats=3) for f in MIXED}
        order = sorted(found, key=found.__getitem__)
        kept = attention.decode_config(rows, case.kv_heads, 4096)
        found[kept] = replayed(partial(case.decode, None), count)
        name = f"{model:7} R={rows:3}"
        line = [f"{short(f)} {found[f] * 1e6:.1f}us {case.bytes / READ / found[f]:.0%}" for f in (kept, *order[:5])]
        table.append(f"{name} now {line[0]} | best " + ", ".join(line[1:]))
        whole = {f: replayed(partial(layers[model].run, case, f), count, least=8) for f in {kept, *order[:5]}}
        best = min(whole, key=whole.__getitem__)
        table.append(f"{'':14} between products: now {whole[kept] * 1e6:.1f}us | best " + ", ".join(
            f"{short(f)} {whole[f] * 1e6:.1f}" for f in sorted(whole, key=whole.__getitem__)[:3]
        ))  # fmt: skip
        print("\n".join(table[-2:]), flush=True)
        shares.setdefault(rows * case.kv_heads, []).append({f: s / found[order[0]] for f, s in found.items()})
        figures[f"mixed {low}-{high} {name}"] = {
            "alone": [{"us": s * 1e6, **asdict(f)} for f, s in found.items()],
            "between products": [{"us": s * 1e6, **asdict(f)} for f, s in whole.items()], "best": asdict(best),
        }  # fmt: skip
        del case
    for pairs, cases in sorted(shares.items()):
        regret = {f: max(case[f] for case in cases) for f in MIXED}
        order = sorted(regret, key=regret.__getitem__)[:5]
        table.append(f"pairs {pairs:5}: " + ", ".join(f"{short(f)} +{regret[f] - 1:.1%}" for f in order))
    summary.extend(
        ["mixed: splits/chunk/tile/warps/stages, e: early; share of 3.1 TB/s; by pairs: + worst loss", *table]
    )


class Layer:
    """A layer's products around attention, at a model's sizes."""

    def __init__(self, model: str) -> None:
        heads, kv_heads = HEADS[model]
        hidden = HIDDEN[model]
        self.first = torch.randn((heads + 2 * kv_heads) * D, hidden, device="cuda").div(hidden**0.5).to(BF16)
        self.last = torch.randn(hidden, heads * D, device="cuda").div((heads * D) ** 0.5).to(BF16)
        self.x = torch.randn(256, hidden, device="cuda").to(BF16)
        self.seen = torch.randn(256, heads * D, device="cuda").to(BF16)

    def run(self, case: Case, config: DecodeConfig, layer: int) -> None:
        keep, case.qkv = case.qkv, fused_linear(self.x[: case.tokens], self.first)
        case.decode(config, layer)
        fused_linear(case.out, self.last)
        case.qkv = keep


def cudnn_first(*shape: Any) -> tuple[float, float]:
    """Milliseconds of the first and of the second call of a shape: q, k, v, causal."""
    times = []
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        prefill._cudnn(*shape[:3], causal=shape[3], lse=True)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e3)
    return times[0], times[1]


def prefill_section() -> None:
    tiles = [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 2), (64, 128, 4, 2),
             (128, 64, 4, 2), (128, 64, 4, 3)]  # fmt: skip
    work = [((n, n),) for n in (1024, 4096, 8192, 16384, 32768)] + [((2048, 32768),), ((1024, 1024),) * 8]
    table = []
    warm = [Case(m, [], [(256, 256)]) for m in ("0.6B", "8B")]
    queries = [torch.randn(256, c.heads, D, device="cuda").to(BF16) for c in warm]
    for tile in tiles:
        try:
            compiled(*(partial(c.chunks, q, tile) for c, q in zip(warm, queries, strict=True)))
        except Exception as exc:
            table.append(f"{tile}: {exc!r}"[:120])
    for model in ("0.6B", "8B"):
        for chunks in work:
            case = Case(model, [], list(chunks))
            q = torch.randn(case.tokens, case.heads, D, device="cuda").to(BF16)
            name = f"{model} {len(chunks)}x{chunks[0]}"
            found = []
            for tile in tiles:
                try:
                    found.append((timed(case.chunks, q, tile, repeats=3), tile))
                except Exception as exc:  # a tile that does not fit
                    print(name, tile, repr(exc)[:100], flush=True)
            found.sort()
            line = f"{name:24} Triton " + ", ".join(f"{case.flops / s / 1e12:.0f}T {t}" for s, t in found[:3])
            figures[f"prefill {name}"] = [(s, t) for s, t in found]
            try:
                count, length = chunks[0]
                k = torch.randn(length, case.kv_heads, D, device="cuda").to(BF16)
                v = case.qkv.new_empty(length, (case.heads + 2 * case.kv_heads) * D).normal_()
                v = v[:, -case.kv_heads * D :].unflatten(1, (case.kv_heads, D))
                one = q[:count]
                if count == length:
                    first, _ = cudnn_first(one, k, v, True)
                    seconds = timed(prefill._cudnn, one, k, v, causal=True, lse=False, repeats=3)
                    work_here = case.flops / len(chunks)
                else:
                    past = length - count
                    first, _ = cudnn_first(one, k[:past], v[:past], False)
                    seconds = timed(prefill._cudnn, one, k[:past], v[:past], causal=False, lse=True, repeats=3)
                    work_here = 4 * D * case.heads * count * past
                line += f" | cuDNN {work_here / seconds / 1e12:.0f}T, first call {first:.0f} ms"
                figures[f"cudnn {name}"] = (seconds, first)
                if count == length:
                    views = [x.transpose(0, 1).unsqueeze(0) for x in (one, k, v)]
                    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                        sdpa = F.scaled_dot_product_attention
                        flash = timed(sdpa, *views, is_causal=True, enable_gqa=True, repeats=3)
                    line += f" | flash {work_here / flash / 1e12:.0f}T"
            except Exception as exc:
                line += f" | {exc!r}"[:160]
            table.append(line)
            print(line, flush=True)
    firsts = []
    for n, s, causal in ((5000, 5000, True), (5120, 5120, True), (6016, 6016, True), (2048, 6000, False),
                         (1777, 7777, False), (8192, 8192, False)):  # fmt: skip
        q, k, v = (torch.randn(length, h, D, device="cuda").to(BF16) for length, h in ((n, 16), (s, 8), (s, 8)))
        firsts.append(f"{n}x{s}: {cudnn_first(q, k, v, causal)[0]:.0f}")
    table.append("cuDNN first calls, ms: " + ", ".join(firsts))
    summary.extend(["prefill: (queries, keys, warps, stages)", *table])


def chunks_section() -> None:
    """As in a step's graph: the host knows bounds alone. us for shares of the keys: 1, 4, 8, what is chosen."""
    ways = (1, 4, 8, None)
    table = []
    for model in ("0.6B", "8B"):
        for context in (1000, 8000, 30000):
            for size in (64, 128, 256, 512):
                layers = 4 if context < 30000 else 2
                case = Case(model, [], [(size, context + size)], layers=layers)
                case.plan = replace(case.plan, chunks=(), max_length=40960)
                q = torch.randn(size, case.heads, D, device="cuda").to(BF16)
                found, wrong = [], 0.0
                for splits in ways:
                    case.chunks(q, None, splits)
                    if splits == 1:
                        right = case.out.clone()
                        if context == 1000:
                            theirs = reference.paged_attention(q.float(), case.plan, case.k[0], case.v[0])
                            wrong = error(right, theirs.flatten(1))
                    wrong = max(wrong, error(case.out, right))
                    found.append(replayed(partial(case.chunks, q, None, splits), layers))
                name = f"{model:4} {size:3} tokens at {context:5}"
                figures[f"chunks {name}"] = {str(way): seconds * 1e6 for way, seconds in zip(ways, found, strict=True)}
                table.append(f"{name}: " + " ".join(f"{seconds * 1e6:7.1f}" for seconds in found) + f" | {wrong:.4f}")
                print(table[-1], "WRONG" if not wrong < 1e-2 else "", flush=True)
    summary.extend(["chunks: us with 1, 4, 8, auto shares | largest error", *table])


def step() -> None:
    lines = []
    for chunk in ((1024, 1024), (8192, 32768), (32768, 32768)):
        for model in ("0.6B", "8B"):
            case = Case(model, [], [chunk])
            with_library = timed(case.attend, repeats=3)
            keep, prefill.DENSE_STEP = prefill.DENSE_STEP, 1 << 40
            alone = timed(case.attend, repeats=3)
            prefill.DENSE_STEP = keep
            rope = timed(attention.rope_cache, *case.args())
            moved = case.qkv.numel() * 2 * case.qkv.element_size()
            lines.append(
                f"attend {model} {chunk}: {with_library * 1e3:.3f} ms ({case.flops / with_library / 1e12:.0f}T), "
                f"Triton alone {alone * 1e3:.3f} ms ({case.flops / alone / 1e12:.0f}T), "
                f"RoPE {rope * 1e6:.0f} us ({moved / rope / 1e9:.0f} GB/s)"
            )
    for name, case in (("decode", Case("0.6B", [300])), ("prompt of 1024", Case("0.6B", [], [(1024, 1024)]))):
        attention.attend(*case.args())
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(100):
            attention.attend(*case.args())
        host = (time.perf_counter() - began) / 100
        torch.cuda.synchronize()
        lines.append(f"host time of attend, {name}: {host * 1e6:.0f} us")
    for rows in (1, 32):
        for invariant in (False, True):
            case = Case("0.6B", [300] * rows, layers=24, invariant=invariant)
            seconds = replayed(case.attend, 24)
            lines.append(f"attend 0.6B, {rows} rows of 300, invariant {invariant}: {seconds * 1e6:.1f} us")
    figures["step"] = lines
    summary.extend(lines)


SECTIONS = {
    "check": check, "decode": decode, "mixed": mixed, "few": partial(mixed, (8, 16), 128, 400),
    "prefill": prefill_section, "chunks": chunks_section, "step": step,
}  # fmt: skip


def main() -> None:
    torch.manual_seed(int(time.time()))
    for name in sys.argv[1:] or SECTIONS:
        began = time.perf_counter()
        try:
            SECTIONS[name]()
        except Exception:
            summary.append(f"{name}: FAILED {traceback.format_exc()[-700:]}")
            traceback.print_exc()
        summary.append(f"-- {name}: {time.perf_counter() - began:.1f} s")
    out = Path(os.environ.get("OUT", "."))
    (out / "attention.json").write_text(json.dumps(figures, indent=1, default=str))
    print("\n".join(["", "==== attention", *summary]))


if __name__ == "__main__":
    main()
