"""Tunes weights of few bits for 1 to 8 rows on a GPU: `PYTHONPATH=src python tools/tune/stationary.py [SECTION ...]`.

Sections: few (products of 8B and 30B-A3B: tiles in use beside those of `kernels.gpu.stationary`; writes
$OUT/weight_only_tiles.json), experts (30B-A3B's, int4 beside bfloat16; writes $OUT/moe_tiles.json), chain (all products
of an 8B step in one graph), bench (not by default: one row, every variant). Both files replace those of src/qwen3/data:
what was not measured stays as it is. Every variant is compared with float32 before it is timed. Tables go to stdout,
figures to $OUT/stationary.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import weight_only as few_bits  # the scripts beside this one
from fp8 import distance, inputs, normal, wanted_for
from linear import READ, graph_us, run_sections, shapes

from qwen3.kernels import grouped, reference
from qwen3.kernels.gpu import linear, moe, weight_only
from qwen3.kernels.gpu.launch import cdiv
from qwen3.kernels.gpu.linear import Tile as Cut

ROWS = (1, 2, 4, 8)
PROCESSORS, REGISTERS = 132, 65536  # of an H100; registers of each
figures: dict[str, Any] = {}


def registers(steps: int, rows: int, depth: int, bits: int) -> int:
    """About how many a thread wants: activations, what sums begin with, words of this tile and of those ahead."""
    return 40 + (20 if bits == 4 else 8) * steps + steps * rows // 2 * (depth + 1)


@cache
def stationary_tiles(n: int, k: int, bits: int, most: int = 14) -> list[Cut]:
    """The likeliest: programs that fill the multiprocessors evenly, each with 24 to 100 KB of weights on their way."""
    slabs, found = cdiv(k, grouped.SLAB[bits]), []
    for warps in (4, 8, 16):
        for split in (1, 2, 3, 4, 6):
            steps = cdiv(cdiv(slabs, split), warps)
            if slabs % (split * warps) or steps > (4 if bits == 4 else 8):
                continue
            for rows, depth in ((8, 1), (8, 2), (16, 1), (16, 2), (32, 1)):
                wanted = registers(steps, rows, depth, bits)
                if wanted > (140 if warps == 16 else 235):
                    continue
                fitting = max(1, REGISTERS // (32 * warps * min(255, int(wanted * 1.15))))
                for programs in {1, min(fitting, 4)}:
                    flight = programs * depth * steps * warps * rows * 64
                    walkers, tiles = PROCESSORS * programs, cdiv(n, rows)
                    each = tiles / min(tiles, max(1, walkers // split))
                    used = min(1.0, tiles * split / walkers) * each / -(-each // 1)
                    if programs > fitting or not 24 << 10 <= flight <= 100 << 10 or used < 0.7:
                        continue
                    if split > 1 and tiles > linear.ARRIVALS:
                        continue
                    worth = used - 0.03 * (split - 1) + 0.01 * (programs - 1) - 0.1 * abs(flight / (48 << 10) - 1)
                    found.append((worth, Cut(rows, grouped.SLAB[bits], depth, warps, split, walkers=walkers)))
    found.sort(reverse=True)
    return list(dict.fromkeys(cut for _, cut in found))[:most]


def work() -> list[tuple[str, int, int, int, int, list[bool], list[Cut]]]:
    found = []
    for model in ("8B", "30B-A3B"):
        for name, n, k, *flags in shapes(model):
            bits = 8 if name == "head" else 4
            for m in ROWS if name != "head" else (1, 8):
                before = [tile for tile in few_bits.tiles_for(m, n, k, bits, flags[0]) if tile]
                before = [tile for tile in before if not tile.walkers][: 4 if name != "head" else 2]
                kept = weight_only.choose(m, n, k, bits, flags[2])
                more = [tile._replace(apart=True) for tile in before[:2]] if flags[0] else []
                tiles = [*([kept] if kept else []), *before, *more, *stationary_tiles(n, k, bits)]
                found.append((f"{model} {name}", m, n, k, bits, flags, list(dict.fromkeys(tiles))))
    return found


def few_all() -> None:
    for _, m, n, k, bits, flags, tiles in work():
        how, weight = inputs(m, n, k, *flags), few_bits.weight_of(few_bits.USUAL[bits], n, k)
        for tile in tiles:
            weight_only.group_linear(normal(m, k), weight, tile=tile, **how)
        linear.fused_linear(normal(m, k), torch.empty(n, k, device="meta", dtype=torch.bfloat16), **how)


def timed(x: Any, pool: Any, tile: Cut, how: dict[str, Any], right: Any, count: int) -> float | str:
    """Microseconds, or what is wrong with it."""
    try:
        error = distance(weight_only.group_linear(x, pool[0], tile=tile, **how), right)
        if not error < 1e-2:
            return f"WRONG, {error:.2e}"
        return graph_us(lambda i: weight_only.group_linear(x, pool[i % len(pool)], tile=tile, **how), count, 5)
    except Exception as error:
        return "FAILED, " + (str(error).splitlines() or [repr(error)])[0][:100]


def measure(every: bool) -> None:
    print("  shape          M bits |     us  of memory  before | bf16 us  gain | best tile")
    for name, m, n, k, bits, flags, tiles in work():
        if every and m > 1:
            continue
        how, x = inputs(m, n, k, *flags), normal(m, k)
        pool = few_bits.clones(few_bits.weight_of(few_bits.USUAL[bits], n, k), few_bits.copies(n * k * bits // 8))
        right, count = wanted_for(x, pool[0], how, False), 24 if "head" not in name else 6
        found = []
        for tile in tiles:
            us = timed(x, pool, tile, how, right, count)
            if isinstance(us, str):
                print(f"  {name} M={m} {tuple(tile)}: {us}")
            else:
                found.append((us, tile))
        wide = [normal(n, k, scale=k**-0.5) for _ in range(few_bits.copies(2 * n * k))]
        plain = graph_us(lambda i: linear.fused_linear(x, wide[i % len(wide)], **how), count, 5)  # noqa: B023
        wide = []
        found.sort(key=lambda pair: pair[0])
        us, best = found[0]
        before = min((u for u, tile in found if not tile.walkers), default=float("nan"))
        share = pool[0].nbytes / READ * 1e6 / us
        print(f"  {name:13} {m:4} {bits:4} | {us:6.1f} {share:8.0%} {before:11.1f} | {plain:7.1f} {plain / us:5.2f} |"
              f" {tuple(best)}", flush=True)  # fmt: skip
        if every:
            for u, tile in found:
                print(f"      {u:7.1f}  {tuple(tile)}")
        figures.setdefault("bench" if every else "few", []).append([name, m, n, k, bits, us, plain, before, found])
        if not every:
            weight_only.TUNED[bits, m, n, k, flags[2]] = best
            save_tiles({(bits, m, n, k, int(flags[2])): [*best]})


@cache
def table(name: str) -> dict[str, Any]:
    return json.loads((resources.files("qwen3") / "data" / name).read_text())


def today() -> str:
    return f"With tools/tune/stationary.py on a {torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}."


def save_tiles(new: dict[tuple[int, ...], list[Any]]) -> None:
    data = table("weight_only_tiles.json")
    tiles = {tuple(line[:5]): line[5] for line in data["tiles"]} | new
    data["tiles"] = [[*key, tile] for key, tile in tiles.items()]
    if "OUT" in os.environ:
        lines = ",\n  ".join(json.dumps(line) for line in data["tiles"])
        about = ",\n  ".join(json.dumps(line) for line in dict.fromkeys([*data["about"], today()]))
        text = f'{{\n "about": [\n  {about}\n ],\n "tiles": [\n  {lines}\n ]\n}}\n'
        Path(os.environ["OUT"], "weight_only_tiles.json").write_text(text)


def few() -> None:
    measure(every=False)
    weight_only.choose.cache_clear()  # the chain that follows goes by these


def bench() -> None:
    measure(every=True)


# Experts: rows of weights, tiles ahead, warps, programs in all; a step is a slab in each warp.

UP = [(16, 2, 8, 264), (16, 1, 8, 264), (16, 2, 8, 528), (16, 1, 8, 528), (16, 1, 4, 528), (16, 2, 16, 264),
      (32, 1, 8, 264), (32, 1, 8, 528), (8, 2, 8, 528)]  # fmt: skip
DOWN = [(16, 2, 2, 1056), (32, 1, 2, 528), (32, 1, 2, 1056), (16, 1, 2, 2112), (16, 2, 4, 528), (16, 2, 8, 528),
        (32, 1, 4, 528), (16, 1, 1, 2112), (32, 1, 2, 2112)]  # fmt: skip


def tile_of(rows: int, depth: int, warps: int, walkers: int) -> moe.Tile:
    return moe.Tile(0, rows, 0, warps, depth, True, walkers)


def experts_all() -> None:
    for tokens in ROWS:
        x, up, down, weights, chosen = few_bits.experts_of(few_bits.USUAL[4], tokens)
        before = moe.choose("int4", tokens)
        for cut, low in [*zip(UP, DOWN, strict=True)]:
            moe.run(x, up, down, weights, chosen, None, tile_of(*cut), tile_of(*low))
        moe.run(x, up, down, weights, chosen, None, *before)
        wide = [torch.empty(part.shape, dtype=torch.bfloat16, device="meta") for part in (up, down)]
        moe.experts(x, *wide, weights, chosen)


def experts() -> None:
    print("  tokens |      us  before | bf16 us  gain | best tiles")
    data = table("moe_tiles.json")
    for tokens in ROWS:
        x, up, down, weights, chosen = few_bits.experts_of(few_bits.USUAL[4], tokens)
        wide = [part.dequantize() for part in (up, down)]
        right = reference.experts(x.float(), *(w.float() for w in wide), weights.float(), chosen)
        plain = graph_us(lambda i: moe.experts(x, *wide, weights, chosen), 8, 5)  # noqa: B023
        wide, found = [], []
        pools = few_bits.clones(up, 3), few_bits.clones(down, 3)
        # Other experts in each step, so that their weights are not in the cache.
        turns = [chosen] + [(chosen + 17 * i) % 128 for i in range(1, 8)]

        def run(pair: moe.Pair) -> float:
            error = distance(moe.run(x, up, down, weights, chosen, None, *pair), right)  # noqa: B023
            if not error < 1e-2:
                print(f"  {tokens} {pair}: WRONG, {error:.2e}")  # noqa: B023
                return float("inf")
            return graph_us(lambda i: moe.run(x, pools[0][i % 3], pools[1][i % 3], weights, turns[i % 8], None, *pair),  # noqa: B023
                            24, 5)  # fmt: skip

        def attempt(pair: moe.Pair) -> None:
            try:
                found.append((run(pair), pair))  # noqa: B023
            except Exception as error:
                print(f"  {tokens} {pair}: FAILED, {(str(error).splitlines() or [repr(error)])[0][:100]}")  # noqa: B023

        attempt(moe.choose("int4", tokens))
        before, first = found[0][0], tile_of(*DOWN[0])
        for cut in UP:
            attempt((tile_of(*cut), first))
        best_up = min(found[1:], key=lambda each: each[0])[1][0] if len(found) > 1 else tile_of(*UP[0])
        for cut in DOWN[1:]:
            attempt((best_up, tile_of(*cut)))
        attempt((best_up, moe.choose("int4", tokens)[1]))
        found.sort(key=lambda each: each[0])
        us, best = found[0]
        print(f"  {tokens:6} | {us:7.1f} {before:7.1f} | {plain:7.1f} {plain / us:5.2f} | {[*map(tuple, best)]}")
        print("      " + " ".join(f"{[*map(tuple, pair)]}:{u:.1f}" for u, pair in found[1:]), flush=True)
        figures.setdefault("experts", []).append([tokens, us, before, plain, found])
        data["tiles"]["int4"][str(tokens)] = [[*tile] for tile in best]
    if "OUT" in os.environ:
        about = [*data["about"], today()]
        kinds = ",\n  ".join(f"{json.dumps(kind)}: {json.dumps(own)}" for kind, own in data["tiles"].items())
        text = ",\n  ".join(map(json.dumps, about))
        Path(os.environ["OUT"], "moe_tiles.json").write_text(
            f'{{\n "about": [\n  {text}\n ],\n "tiles": {{\n  {kinds}\n }}\n}}\n'
        )


def chain() -> None:
    few_bits.chain()
    figures["chain"] = few_bits.figures["chain"]


def main() -> None:
    few_bits.CHAIN = ROWS
    sections = {
        "few": (few, few_all),
        "experts": (experts, experts_all),
        "chain": (chain, few_bits.chain_all),
        "bench": (bench, few_all),
    }
    run_sections(sections, sys.argv[1:] or ["few", "experts", "chain"], figures, "stationary.json")


if __name__ == "__main__":
    main()
