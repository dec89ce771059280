"""Checks and times weights of 4 and 8 bits on a GPU: `PYTHONPATH=src python tools/tune/weight_only.py [SECTION ...]`.

Sections: check (against float32: shapes of four models, every form, experts), tune (ways of cutting at shapes of 8B,
0.6B and 30B-A3B beside bfloat16's and FP8's products; writes $OUT/weight_only_tiles.json, which is to replace that in
src/qwen3/data), experts (the tiles of 30B-A3B's; $OUT/moe_tiles.json has them), chain (all products of an 8B step in
one graph, also with many rows: where PyTorch's product begins to win). Tables go to stdout, figures to
$OUT/weight_only.json. Times are medians of CUDA graphs that walk over more weights than the L2 cache holds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import fp8 as eight  # the scripts beside this one
import linear as common
import torch
from fp8 import distance, inputs, normal, wanted_for
from linear import MODELS, READ, graph_us, run_sections, shapes
from torch import Tensor

from qwen3.kernels import grouped, reference
from qwen3.kernels.gpu import fp8 as fp8_gpu
from qwen3.kernels.gpu import linear, moe, weight_only
from qwen3.kernels.gpu.linear import Tile as Cut
from qwen3.kernels.grouped import GroupWeight

figures: dict[str, Any] = {}
Form = tuple[int, int, bool, torch.dtype]  # bits, group (0: a row), minima, dtype of the scales
USUAL: dict[int, Form] = {bits: (bits, 128, False, torch.float16) for bits in (4, 8)}
FORMS: list[Form] = [
    (bits, group, mins, dtype)
    for bits in (4, 8)
    for group, mins, dtype in ((128, False, torch.bfloat16), (64, True, torch.float16), (32, False, torch.float16),
                               (32, True, torch.float32), (16, False, torch.float32), (16, True, torch.float32),
                               (0, False, torch.bfloat16))
]  # fmt: skip


def weight_of(form: Form, *shape: int) -> GroupWeight:
    """Its numbers lie around zero, and its rows have about unit length."""
    bits, group, least, dtype = form
    *rows, k = shape
    how: dict[str, Any] = {"device": common.DEVICE}
    if common.DEVICE == "meta":
        q = torch.empty(shape, dtype=torch.uint8, **how)
    else:
        q = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, **how)
    marks = (*rows, k // group if group else 1)
    scale = ((torch.rand(marks, **how) + 0.5) * 3.5 / (1 << bits) * k**-0.5).to(dtype)
    mins = ((torch.rand(marks, **how) * 0.2 - 0.6) * scale.float() * (1 << bits)).to(dtype) if least else None
    return grouped.pack(q, scale, mins, bits)


def clones(weight: GroupWeight, count: int) -> list[GroupWeight]:
    """Enough weights not to fit into the L2 cache."""
    made = ([None if t is None else t.clone() for t in weight.tensors] for _ in range(count - 1))
    return [weight, *(weight._like(tensors) for tensors in made)]


def copies(nbytes: int) -> int:
    return max(2, -(-200_000_000 // nbytes))


# Correctness first


def check_work() -> list[tuple[str, Form, int, int, int, list[bool]]]:
    work = []
    for model in ("0.6B", "8B", "30B-A3B", "32B"):
        for name, n, k, *flags in shapes(model):
            rows = (1, 3, 16, 40, 100, 300) if model in ("0.6B", "8B") and name != "head" else (1, 16, 33)
            work += [(f"{model} {name}", USUAL[8 if name == "head" else 4], m, n, k, flags) for m in rows]
            if model == "8B" and name != "head":
                work += [(f"{model} {name}", USUAL[8], m, n, k, flags) for m in (1, 16, 64)]
    return work + [("form", form, m, 4096, 4096, [False, True, False]) for form in FORMS for m in (1, 11, 48)]


def experts_of(form: Form, tokens: int) -> tuple[Tensor, GroupWeight, GroupWeight, Tensor, Tensor]:
    scores = torch.randn(tokens, 128, device=common.DEVICE)
    weights, chosen = reference.route(scores, 8, True)
    up, down = weight_of(form, 128, 1536, 2048), weight_of(form, 128, 2048, 768)
    return normal(tokens, 2048), up, down, weights.bfloat16(), chosen.int()


EXPERT_CHECKS = [(USUAL[4], 1), (USUAL[4], 13), (USUAL[4], 50), (USUAL[4], 200), (USUAL[8], 1), (USUAL[8], 200),
                 ((4, 32, True, torch.float16), 13), ((8, 16, False, torch.float32), 13)]  # fmt: skip


def check_all() -> None:
    for _, form, m, n, k, flags in check_work():
        weight_only.group_linear(normal(m, k), weight_of(form, n, k), **inputs(m, n, k, *flags))
    for form in [*FORMS, *USUAL.values()]:
        weight_only.group_rows(weight_of(form, 4096, 4096), None)
    for form, tokens in EXPERT_CHECKS:
        moe.experts(*experts_of(form, tokens))


def check() -> None:
    worst: dict[str, tuple[float, str]] = {}

    def note(kind: str, error: float, what: str) -> None:
        if not error < 1e-2:
            print(f"  WRONG {what}: {error:.2e}")
        if error > worst.get(kind, (0.0, ""))[0] or error != error:
            worst[kind] = (error, what)

    for name, form, m, n, k, flags in check_work():
        what = f"{name} {form[:3]} M={m} N={n} K={k}"
        try:
            x, weight, how = normal(m, k + 128, scale=3.0)[:, :k], weight_of(form, n, k), inputs(m, n, k, *flags)
            out = weight_only.group_linear(x, weight, **how)
            note("few" if m <= weight_only.FEW_ROWS else "more", distance(out, wanted_for(x, weight, how, False)), what)
        except Exception as error:
            print(f"  FAILED {what}: {str(error).splitlines()[0][:120]}")
    for form in FORMS:
        weight = weight_of(form, 4096, 4096)
        wide = weight.dequantize(torch.float32)
        note("rows", distance(weight_only.group_rows(weight, None), wide), f"rows {form}")
        ids = torch.randint(0, 4096, (70,), device=common.DEVICE)
        note("rows", distance(weight_only.group_rows(weight, ids), wide[ids]), f"rows {form}, chosen")
    for form, tokens in EXPERT_CHECKS:
        x, up, down, weights, chosen = experts_of(form, tokens)
        out = moe.experts(x, up, down, weights, chosen)
        wide = [part.dequantize(torch.float32) for part in (up, down)]
        note("experts", distance(out, reference.experts(x.float(), *wide, weights.float(), chosen)), f"{form} {tokens}")
    x, weight = normal(50, 4096), weight_of(USUAL[4], 4096, 4096)
    alone = torch.cat([weight_only.group_linear(row, weight, invariant=True) for row in x.split(1)])
    print(f"  invariant: {torch.equal(alone, weight_only.group_linear(x, weight, invariant=True))}")
    for kind, (error, what) in worst.items():
        print(f"  {kind:8} worst {error:.2e} ({what})")
    figures["check"] = worst


# Ways of cutting

ROWS = (1, 8, 16, 32, 64, 128, 256, 512)


def tiles_for(m: int, n: int, k: int, bits: int, norm: bool = False) -> list[Cut | None]:
    base = weight_only.choose(m, n, k, bits)
    slab = grouped.SLAB[bits]
    if m <= weight_only.FEW_ROWS:
        cuts = [
            (8, slab, 2, 4),
            (8, slab, 4, 8),
            (16, slab, 2, 4),
            (16, slab, 4, 4),
            (16, slab, 2, 8),
            (32, slab, 2, 4),
        ]
        found = [base, *(Cut(*cut) for cut in cuts if cut[0] < 32 or n >= 16384)]
        apart = [cut._replace(apart=True) for cut in found if cut is not None] if norm else []
        return list(dict.fromkeys([*found, *apart]))
    tokens = min(128, m)
    found = [base]
    for rows, warps, depth in ((64, 4, 4), (128, 8, 3)) if m <= 64 else ((64, 8, 3), (128, 8, 3), (128, 8, 4)):
        tiles = -(-n // rows) * -(-m // tokens)
        for split in {max(1, 132 // tiles), max(1, min(8, 264 // tiles))}:
            if k // split >= 512 and tiles * (rows + 1) * tokens * split <= linear.PARTS:
                found.append(Cut(rows, 128, depth, warps, split, tokens=tokens))
    return list(dict.fromkeys([*found, *([None] if m >= 256 else [])]))


def tune_work() -> list[tuple[str, int, int, int, int, list[bool], list[Cut | None]]]:
    work = []
    for model in ("8B", "0.6B", "30B-A3B"):
        for name, n, k, *flags in shapes(model):
            bits = 8 if name == "head" else 4
            rows = ROWS if model == "8B" else (1, 8, 32)
            for m in rows if name != "head" else (1, 32, 64):
                work.append((f"{model} {name}", m, n, k, bits, flags, tiles_for(m, n, k, bits, flags[0])))
            if model == "8B" and name != "head":
                work += [(f"{model} {name}", m, n, k, 8, flags, tiles_for(m, n, k, 8, flags[0])) for m in (1, 32)]
    return work


def run(x: Tensor, weight: GroupWeight, tile: Cut | None, how: dict[str, Any]) -> Tensor:
    if tile is not None:
        return weight_only.group_linear(x, weight, tile=tile, **how)
    if how["norm"] is not None:
        x, how = weight_only.elementwise.rms_norm(x, how["norm"], how["eps"]), how | {"norm": None}
    wide = weight_only.group_rows(weight, None, x.dtype)
    return linear._library(x, wide, how["residual"], how["silu"], overwrite=False)


def tune_all() -> None:
    for _, m, n, k, bits, flags, tiles in tune_work():
        how = inputs(m, n, k, *flags)
        for tile in tiles:
            if tile is not None:
                run(normal(m, k), weight_of(USUAL[bits], n, k), tile, how)
        if bits == 4:
            linear.fused_linear(normal(m, k), torch.empty(n, k, device="meta", dtype=torch.bfloat16), **how)


def tune() -> None:
    print("  shape          M bits |     us share of bytes | bf16 us  gain | fp8 us | best tile | others")
    chosen = []
    for name, m, n, k, bits, flags, tiles in tune_work():
        how, x = inputs(m, n, k, *flags), normal(m, k)
        pool = clones(weight_of(USUAL[bits], n, k), copies(n * k * bits // 8))
        wide = [normal(n, k, scale=k**-0.5) for _ in range(copies(2 * n * k))]
        found, right = [], wanted_for(x, pool[0], how, False)
        count = 20 if m <= 64 else 8
        for tile in tiles:
            try:
                error = distance(run(x, pool[0], tile, how), right)
                if not error < 1e-2:
                    print(f"  WRONG {name} M={m} {tile and tuple(tile)}: {error:.2e}")
                    continue
                found.append((graph_us(lambda i: run(x, pool[i % len(pool)], tile, how), count, 3), tile))  # noqa: B023
            except Exception as error:
                print(f"  {name} M={m} {tile and tuple(tile)}: {str(error).splitlines()[0][:100]}")
        plain = graph_us(lambda i: linear.fused_linear(x, wide[i % len(wide)], **how), count, 3)  # noqa: B023
        wide = []
        blocks = eight.pool_of(n, k, 0) if bits == 4 and m in (1, 32, 256) and "head" not in name else []
        other = graph_us(lambda i: fp8_gpu.fp8_linear(x, blocks[i % len(blocks)], **how), count, 3) if blocks else 0.0  # noqa: B023
        found.sort(key=lambda pair: pair[0])
        us, best = found[0]
        floor = pool[0].nbytes / READ * 1e6
        line = " ".join(f"{t and tuple(t[:6])}:{u:.1f}" for u, t in found[1:5])
        said = f"{us:6.1f} {floor / us:5.0%} | {plain:6.1f} {plain / us:5.2f} | {other:6.1f} | {best and tuple(best)}"
        print(f"  {name:13} {m:4} {bits:4} | {said} | {line}", flush=True)
        figures.setdefault("tune", []).append([name, m, n, k, bits, us, plain, other, [(u, t) for u, t in found]])
        chosen.append([bits, m, n, k, int(flags[2]), best and [*best]])
        weight_only.TUNED[bits, m, n, k, flags[2]] = best
    weight_only.choose.cache_clear()  # the chain that follows goes by these
    if "OUT" in os.environ:
        lines = ",\n  ".join(json.dumps(line) for line in chosen)
        about = f"On a {torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}."
        text = f' "about": [{json.dumps(about)}],\n "tiles": [\n  {lines}\n ]'
        Path(os.environ["OUT"], "weight_only_tiles.json").write_text("{\n" + text + "\n}\n")


# Experts

EXPERT_TILES = {
    1: [(0, 32, 256, 4, 4), (0, 32, 256, 4, 3), (0, 64, 256, 4, 3), (0, 64, 128, 4, 4), (0, 16, 512, 4, 3)],
    32: [(0, 64, 128, 4, 4), (0, 64, 256, 4, 3), (0, 128, 128, 4, 3)],
    64: [(0, 64, 128, 4, 3), (0, 128, 128, 8, 3)],
    256: [(32, 64, 128, 4, 4), (32, 128, 128, 4, 3), (16, 64, 128, 4, 4)],
    1024: [(64, 128, 128, 4, 3), (64, 128, 128, 8, 3), (64, 64, 128, 4, 3)],
    8192: [(128, 128, 128, 8, 3), (64, 128, 128, 8, 3), (64, 128, 128, 4, 3)],
}


def expert_jobs(tokens: int, bits: int) -> list[moe.Pair]:
    made = [moe.Tile(*cut, True) for cut in EXPERT_TILES[tokens]]
    return list(dict.fromkeys([moe.choose(f"int{bits}", tokens), *((tile, tile) for tile in made)]))


def experts_all() -> None:
    for tokens in EXPERT_TILES:
        for bits in (4, 8):
            x, up, down, weights, chosen = experts_of(USUAL[bits], tokens)
            for pair in expert_jobs(tokens, bits):
                moe.run(x, up, down, weights, chosen, None, *pair)
        wide = [torch.empty(part.shape, dtype=torch.bfloat16, device="meta") for part in (up, down)]
        moe.experts(x, *wide, weights, chosen)


def experts() -> None:
    print("  tokens bits |      us | bf16 us  gain | best tiles | others")
    plans: dict[str, dict[str, Any]] = {"int4": {}, "int8": {}}
    for tokens in EXPERT_TILES:
        plain = 0.0
        for bits in (4, 8):
            x, up, down, weights, chosen = experts_of(USUAL[bits], tokens)
            if not plain:
                wide = [part.dequantize() for part in (up, down)]
                plain = graph_us(lambda i: moe.experts(x, *wide, weights, chosen), 5, 3)  # noqa: B023
                wide = []
            pools, found = [clones(up, 3), clones(down, 3)], []
            for pair in expert_jobs(tokens, bits):
                try:
                    step = lambda i: moe.run(x, pools[0][i % 3], pools[1][i % 3], weights, chosen, None, *pair)  # noqa
                    found.append((graph_us(step, 6, 3), pair))
                except Exception as error:
                    print(f"  {tokens} {pair}: {str(error).splitlines()[0][:100]}")
            found.sort(key=lambda each: each[0])
            us, best = found[0]
            others = " ".join(f"{tuple(p[0][:5])}:{u:.1f}" for u, p in found[1:])
            print(
                f"  {tokens:6} {bits:4} | {us:7.1f} | {plain:7.1f} {plain / us:5.2f} | {[*map(tuple, best)]} | {others}"
            )
            figures.setdefault("experts", []).append([tokens, bits, us, plain, found])
            plans[f"int{bits}"][str(1_000_000_000 if tokens == 8192 else tokens)] = [[*tile] for tile in best]
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "moe_tiles.json").write_text(json.dumps(plans))


# A whole step

CHAIN = (1, 8, 32, 64, 128, 256, 512, 1024, 4096)


def step(every: list[list[Any]], product: Any, norm: Tensor, x: Tensor) -> None:
    for qkv, o, up, down in every:
        mixed = product(x, qkv, norm=norm, eps=1e-6)[:, :4096]
        x = product(mixed, o, residual=x)
        x = product(product(x, up, norm=norm, eps=1e-6, silu=True), down, residual=x)


def layer_of(bits: int) -> list[GroupWeight]:
    return [weight_of(USUAL[bits], n, k) for name, n, k, *_ in shapes("8B") if name != "head"]


def chain_all() -> None:
    for bits in (4, 8):
        for m in CHAIN:
            step([layer_of(bits)], weight_only.group_linear, normal(4096), normal(m, 4096))
    wide = [torch.empty(n, k, dtype=torch.bfloat16, device="meta") for _, n, k, *_ in shapes("8B")[:4]]
    for m in CHAIN:
        step([wide], linear.fused_linear, normal(4096), normal(m, 4096))


def chain() -> None:
    layers = MODELS["8B"][-1]
    norm = torch.ones(4096, device=common.DEVICE, dtype=torch.bfloat16)
    times: dict[str, dict[int, float]] = {}
    for kind in ("bf16", "int4", "int8"):
        if kind == "bf16":
            first: list[Any] = [normal(n, k, scale=k**-0.5) for _, n, k, *_ in shapes("8B")[:4]]
            every = [first] + [[w.clone() for w in first] for _ in range(layers - 1)]
        else:
            every = [*map(list, zip(*(clones(w, layers) for w in layer_of(int(kind[3:]))), strict=True))]
        product = linear.fused_linear if kind == "bf16" else weight_only.group_linear
        for m in CHAIN:
            start = normal(m, 4096)
            us = graph_us(lambda _: step(every, product, norm, start), 1, 3)  # noqa: B023
            times.setdefault(kind, {})[m] = us
        every = []
        torch.cuda.empty_cache()
    print("  8B, all projections of a step  M |   bf16 us | int4 us  gain | int8 us  gain")
    for m in CHAIN:
        a, b, c = (times[kind][m] for kind in ("bf16", "int4", "int8"))
        print(f"  {m:31} | {a:9.0f} | {b:8.0f} {a / b:5.2f} | {c:8.0f} {a / c:5.2f}")
    figures["chain"] = times


def main() -> None:
    sections = {
        "check": (check, check_all),
        "tune": (tune, tune_all),
        "experts": (experts, experts_all),
        "chain": (chain, chain_all),
    }
    run_sections(sections, sys.argv[1:] or list(sections), figures, "weight_only.json")


if __name__ == "__main__":
    main()
