"""Checks and times the expert kernels on this GPU; the measured tiles go into src/qwen3/data/moe_tiles.json.

PYTHONPATH=src OUT=folder python tools/tune/moe.py [what] [seconds to spend, default 60]

what: "many" (default): checks, lists, the tiles of many pairs; "tables": those of the table's other sizes, and FP8.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench_cudagraph

from qwen3.kernels import reference, reference_engine
from qwen3.kernels.fp8 import Fp8Weight, quantize_fp8
from qwen3.kernels.gpu import launch, moe, routing
from qwen3.kernels.gpu.moe import INVARIANT, Tile

E, TOP = 128, 8
SHAPES = {"30B-A3B": (2048, 768), "235B-A22B": (4096, 1536)}
READ = 3.1e12
BEGIN = time.monotonic()
WHAT = next((word for word in sys.argv[1:] if word.isalpha()), "many")
LIMIT = float(next((word for word in sys.argv[1:] if not word.isalpha()), 60))
report: dict[str, Any] = {"torch": torch.__version__, "rows": []}

FEW = [
    Tile(0, 64, 128, 4, 3, True), Tile(0, 64, 64, 4, 6, True), Tile(0, 128, 64, 4, 5, True),
    Tile(0, 64, 128, 4, 4, True),
]  # fmt: skip
LISTED = [
    Tile(32, 64, 128, 4, 4, True), Tile(32, 64, 128, 4, 3, True), Tile(32, 128, 128, 4, 3, True),
    Tile(64, 128, 64, 4, 4, True), Tile(64, 128, 64, 4, 4, False), Tile(128, 128, 64, 4, 3, False),
]  # fmt: skip
WIDE, DEEP, HALF = Tile(128, 256, 64, 8, 3, False), Tile(128, 256, 64, 8, 4, False), Tile(128, 128, 64, 4, 3, False)
MANY = [WIDE, HALF, DEEP, Tile(128, 128, 64, 4, 3, True), Tile(128, 128, 128, 8, 3, True)]


def seconds(run: Callable[..., Any], pair: moe.Pair) -> float:
    """Median GPU time of run(*pair), replayed from a graph; infinity for tiles that need more than the device has."""
    torch.cuda.synchronize()
    try:
        return float(do_bench_cudagraph(lambda: run(*pair), rep=5, return_mode="median")) / 1000
    except OutOfResources:
        return float("inf")


def section(work: Callable[..., None], *args: Any) -> None:
    if time.monotonic() - BEGIN > LIMIT:
        print("skipped for time:", work.__name__, args[:1])
        return
    start = time.monotonic()
    try:
        work(*args)
    except Exception:
        traceback.print_exc(limit=4)
        print("FAILED", work.__name__, args[:1])
    torch.cuda.synchronize()
    print(f"# {work.__name__} {args[:1]} {time.monotonic() - start:.1f} s", flush=True)


def weights_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    h, m = SHAPES[name]
    gate_up = torch.empty(E, 2 * m, h, device="cuda", dtype=torch.bfloat16).normal_(0, h**-0.5)
    return gate_up, torch.empty(E, h, m, device="cuda", dtype=torch.bfloat16).normal_(0, m**-0.5)


def batch(tokens: int, h: int, seed: int) -> tuple[torch.Tensor, ...]:
    ids = torch.randint(0, 10000, (tokens,), device="cuda", dtype=torch.int32)
    positions = torch.full_like(ids, seed)
    weights, chosen = routing.route(routing.uniform_logits(ids, positions, seed, E), TOP, True)
    return torch.randn(tokens, h, device="cuda").bfloat16(), weights, chosen


def truth(x: torch.Tensor, gate_up: Any, down: Any, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        if expert < 0:
            continue
        wide, tall = gate_up[expert], down[expert]
        if isinstance(wide, Fp8Weight):
            wide, tall = wide.dequantize(torch.float32), tall.dequantize(torch.float32)
        gate, up = F.linear(x[token].float(), wide.float()).chunk(2, -1)
        out.index_add_(0, token, F.linear(F.silu(gate) * up, tall.float()) * weights[token, slot].float()[:, None])
    return out


def error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


def check_small() -> None:
    for tokens in (1, 7, 4096):
        logits = torch.randn(tokens, E, device="cuda") * 2
        counts = torch.randint(1, TOP + 1, (tokens,), device="cuda", dtype=torch.int32)
        for given in (None, counts):
            weights, chosen = routing.route(logits, TOP, True, counts=given)
            wanted, picks = reference.route(logits, TOP, True, counts=given)
            assert chosen.long().equal(picks), "route: chosen"
            torch.testing.assert_close(weights, wanted, rtol=1e-4, atol=1e-6)
        ids = torch.randint(0, 151936, (tokens,), device="cuda", dtype=torch.int32)
        for layer in (0, 1, 16, 47):
            got = routing.uniform_logits(ids, ids // 3, layer, E)
            assert got.equal(reference_engine.uniform_logits(ids, ids // 3, layer, E)), "uniform_logits"
    with launch.collect() as noted:
        for tokens in (65, 700):
            for bm in (32, 64, 128):
                routing.list_pairs(torch.empty(tokens, TOP, device="cuda", dtype=torch.int32), E, bm)
    launch.compile_all(noted)
    for tokens in (1, 65, 256, 700, 4096, 32768):
        chosen = batch(tokens, 16, tokens)[2]
        if tokens % 2:
            chosen[:, 5:] = -1
        for bm in (32, 128):
            check_list(chosen, bm, *routing.list_pairs(chosen, E, bm))
    print("route, uniform_logits and list_pairs ok", flush=True)


def check_list(chosen: torch.Tensor, bm: int, order: torch.Tensor, tiles: torch.Tensor) -> None:
    flat = chosen.flatten()
    mine = torch.arange(bm, device="cuda") < (tiles & 65535)[:, None]
    found, experts = order.view(-1, bm)[mine].long(), (tiles >> 16)[:, None].expand(-1, bm)[mine]
    wanted = torch.argsort(torch.where(flat < 0, E, flat), stable=True)[: int((flat >= 0).sum())]
    assert found.equal(wanted), "list: order"
    assert experts.equal(flat[found]), "list: experts"


def check(name: str, gate_up: torch.Tensor, down: torch.Tensor) -> None:
    h = down.shape[1]
    kinds: dict[str, tuple[Any, Any]] = {"bf16": (gate_up, down)}
    if name == "30B-A3B":
        kinds |= {"fp8": packed(gate_up, down, 0), "fp8-128": packed(gate_up, down, 128)}
    batches = []
    for tokens in (1, 9, 32, 64, 100, 700, 3000):
        x, weights, chosen = batch(tokens, h, tokens)
        if tokens % 2 == 0:
            chosen[:, 5:], weights[:, 5:] = -1, 0
        batches.append((x, weights, chosen, torch.randn_like(x)))

    def each(kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        for x, weights, chosen, residual in batches:
            for invariant in (False, True):
                label = f"{len(x)}{'i' if invariant else ''}"
                yield label, moe.experts(x, *kinds[kind], weights, chosen, residual=residual, invariant=invariant)

    with launch.collect() as jobs:
        for kind in kinds:
            list(each(kind))
    launch.compile_all(jobs)
    for kind, pair in kinds.items():
        wanted = [truth(x, *pair, weights, chosen) + residual.float() for x, weights, chosen, residual in batches]
        found = [(label, error(out, wanted[i // 2])) for i, (label, out) in enumerate(each(kind))]
        print(name, kind, *(f"{label}:{off:.4f}{'' if off < 6e-3 else '!!'}" for label, off in found))
    x, weights, chosen = batch(700, h, 1)
    whole = moe.experts(x, gate_up, down, weights, chosen, invariant=True)
    same = all(
        moe.experts(x[a:b], gate_up, down, weights[a:b], chosen[a:b], invariant=True).equal(whole[a:b])
        for a, b in ((0, 1), (31, 32), (100, 164), (3, 500))
    )
    again = moe.experts(x, gate_up, down, weights, chosen)
    print(name, "invariant bitwise", same, "| default tiles give the same bits", again.equal(whole),
          "| repeats", again.equal(moe.experts(x, gate_up, down, weights, chosen)),
          "| dense same bits",
          moe.experts(x[:32], gate_up, down, weights[:32], chosen[:32]).equal(whole[:32]))  # fmt: skip


def packed(gate_up: torch.Tensor, down: torch.Tensor, block: int) -> tuple[Fp8Weight, Fp8Weight]:
    """Expert by expert: the float32 in between would not fit at once."""

    def stack(weight: torch.Tensor) -> Fp8Weight:
        parts = [quantize_fp8(one, block) for one in weight]
        data = torch.stack([part.data.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
        return Fp8Weight(data, torch.stack([part.scale for part in parts]), block)

    return stack(gate_up), stack(down)


def sweep(name: str, wide: Any, tall: Any, kind: str, tokens: int, gates: list[Any], lows: list[Any]) -> None:
    """All gate tiles with the first down tile that goes with them, then all down tiles with the best gate tile."""
    h, m = SHAPES[name]
    sets = [batch(tokens, h, seed) for seed in range(6 if tokens < 1000 else 1)]
    residual = torch.randn_like(sets[0][0])

    def go(gate: Any, low: Any) -> None:
        for x, weights, chosen in sets:
            moe.run(x, wide, tall, weights, chosen, residual, gate, low)

    def mates(tile: Any, others: list[Any]) -> list[Any]:
        return [other for other in others if other.bm == tile.bm]

    with launch.collect() as jobs:
        for gate in gates:
            for low in mates(gate, lows):
                go(gate, low)
    launch.compile_all(jobs)

    def time_of(gate: Any, low: Any) -> float:
        try:
            return seconds(go, (gate, low)) / len(sets)
        except Exception as problem:
            print("failed", gate, low, str(problem)[:200])
            return float("inf")

    first = {gate: time_of(gate, mates(gate, lows)[0]) for gate in gates}
    found = {}
    for gate in sorted(first, key=first.__getitem__)[: 1 if tokens < 100 else 2]:
        for low in mates(gate, lows):
            found[gate, low] = time_of(gate, low)
    (gate, low), best = min(found.items(), key=lambda item: item[1])
    size = 1 if isinstance(wide, Fp8Weight) else 2
    distinct = sum(len(chosen.unique()) for _, _, chosen in sets) / len(sets)
    floor = max(distinct * 3 * h * m * size / READ, tokens * TOP * 6 * h * m / 8e14)
    row = {"model": name, "kind": kind, "tokens": tokens, "distinct": distinct,
           "us": best * 1e6, "floor_us": floor * 1e6,
           "gb_s": distinct * 3 * h * m * size / best / 1e9, "tflop_s": tokens * TOP * 6 * h * m / best / 1e12,
           "gate": gate, "low": low, "gates": [(tile, first[tile] * 1e6) for tile in gates],
           "lows": [(*pair, value * 1e6) for pair, value in found.items()]}  # fmt: skip
    report["rows"].append(row)
    print(name, kind, tokens, "| gates", *(f"{tuple(tile)}:{first[tile] * 1e6:.1f}" for tile in gates))
    print("   lows", *(f"{tuple(pair[1])}:{value * 1e6:.1f}" for pair, value in found.items()))


def timed(work: Callable[[], Any]) -> float:
    return seconds(lambda *_: work(), INVARIANT) * 1e6


def small_times() -> None:
    for tokens in (64, 128, 256, 512, 1024, 4096, 16384, 32768):
        chosen, bm = batch(tokens, 16, 1)[2], 32 if tokens <= 256 else 64 if tokens <= 1024 else 128
        found = {"list": timed(partial(routing.list_pairs, chosen, E, bm))}
        if tokens in (256, 32768):
            ids = torch.arange(tokens, device="cuda", dtype=torch.int32)
            logits = routing.uniform_logits(ids, ids, 3, E)
            found["route"] = timed(partial(routing.route, logits, TOP, True))
            found["uniform_logits"] = timed(partial(routing.uniform_logits, ids, ids, 3, E))
        print("small", tokens, *(f"{key}:{us:.2f} us" for key, us in found.items()), flush=True)
        report[f"small {tokens}"] = found


def profile(name: str, wide: Any, tall: Any, tokens: int) -> None:
    """Time of each kernel with the tiles of the table."""
    x, weights, chosen = batch(tokens, SHAPES[name][0], 1)
    moe.experts(x, wide, tall, weights, chosen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(5):
            moe.experts(x, wide, tall, weights, chosen)
        torch.cuda.synchronize()
    events = [event for event in seen.key_averages() if event.device_time_total]
    print("profile", name, tokens, *(f"{event.key[:24]}:{event.device_time_total / 5:.1f}" for event in events))


def main() -> None:
    report["device"] = torch.cuda.get_device_name()
    print(report["device"], report["torch"], WHAT, flush=True)
    if WHAT == "many":
        section(check_small)
    gate_up, down = weights_of("30B-A3B")
    if WHAT == "many":
        section(check, "30B-A3B", gate_up, down)
        big = weights_of("235B-A22B")
        section(check, "235B-A22B", *big)
        del big
        section(small_times)
        for tokens in (32768, 16384, 8192):
            section(sweep, "30B-A3B", gate_up, down, "bf16", tokens, MANY, MANY)
        section(profile, "30B-A3B", gate_up, down, 32768)
    if WHAT == "tables":
        tables(gate_up, down)
    for row in report["rows"]:
        print(f"{row['model']:10} {row['kind']:8} {row['tokens']:6} {row['distinct']:6.1f} experts {row['us']:9.1f} us "
              f"{row['gb_s']:6.0f} GB/s {row['tflop_s']:5.0f} TFLOP/s  {row['floor_us'] / row['us']:4.0%} of floor  "
              f"{tuple(row['gate'])} {tuple(row['low'])}")  # fmt: skip
    out = Path(os.environ.get("OUT", "."))
    (out / "moe.json").write_text(json.dumps(report))


def tables(gate_up: torch.Tensor, down: torch.Tensor) -> None:
    name = "30B-A3B"
    for tokens, tiles in ((1, FEW), (32, FEW), (256, LISTED[:2]), (512, LISTED[::4]), (2048, [*LISTED[4:], WIDE])):
        section(sweep, name, gate_up, down, "bf16", tokens, tiles, tiles)
    wide, tall = packed(gate_up, down, 0)
    low_bits = ((1, FEW), (64, FEW), (256, LISTED[:4]), (1024, LISTED[3:4] + MANY[3:]), (4096, MANY[3:]))
    for tokens, tiles in low_bits:
        section(sweep, name, wide, tall, "fp8", tokens, tiles, tiles)
    wide, tall = packed(gate_up, down, 128)
    more = [MANY[3], Tile(128, 128, 64, 8, 3, True)]
    section(sweep, name, wide, tall, "fp8-128", 4096, more, more)


if __name__ == "__main__":
    main()
