"""Checks and times products with FP8 weights on a GPU: `PYTHONPATH=src python tools/tune/fp8.py [SECTION ...]`.

Sections: check (against float32, shapes of all eight models), rows (quantizing activations), skinny and many (ways of
cutting and cuBLAS at 8B shapes, few rows and many), chain (all products of a step in one graph). Tables go to stdout,
figures to $OUT/fp8.json. Times are medians of CUDA graphs that walk over more weights than the L2 cache holds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import linear as common  # the script beside this one
import torch
from linear import MODELS, READ, compiled, graph_us, run_sections, shapes
from torch import Tensor

from qwen3.kernels import fp8 as plain
from qwen3.kernels.fp8 import FP8, Fp8Weight, quantize_fp8
from qwen3.kernels.gpu import elementwise, fp8
from qwen3.kernels.gpu.linear import Tile as Cut

PEAK = 1.473e15  # FP8 operations a second of an H100's matrix units, measured
figures: dict[str, Any] = {}
Case = tuple[str, int, int, int, bool, bool, bool, int]  # name, M, N, K, norm, residual, silu, block


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=common.DEVICE, dtype=torch.bfloat16) * scale


def weight_of(n: int, k: int, block: int) -> Fp8Weight:
    if common.DEVICE == "meta":
        return Fp8Weight.empty((n, k), block, "meta")
    return quantize_fp8(normal(n, k, scale=k**-0.5), block)


def inputs(m: int, n: int, k: int, norm: bool, residual: bool, silu: bool) -> dict[str, Any]:
    rest = normal(m, n // 2 if silu else n) if residual else None
    return {"norm": 1 + 0.3 * normal(k) if norm else None, "eps": 1e-6, "residual": rest, "silu": silu}


def cases() -> list[Case]:
    found: list[Case] = []
    for model in MODELS:
        for name, n, k, *flags in shapes(model):
            for m in (1, 40, 130, 1000) if model == "8B" else (1, 1000) if model == "0.6B" else (16, 130):
                for block in (0, 128) if model in ("8B", "30B-A3B") else (0,):
                    if name != "head":
                        found.append((f"{model} {name}", m, n, k, *flags, block))
    return found


def wanted_for(x: Tensor, weight: Fp8Weight, how: dict[str, Any], quantized: bool) -> Tensor:
    """float32, with the activations as they are or rounded as the kernel is to round them."""
    norm, residual = how["norm"], how["residual"]
    if quantized:
        data, scale = plain.quantize_rows(x, norm, how["eps"], group=weight.block)
        wide = data.float() * (scale.repeat_interleave(weight.block, 1) if weight.block else scale)
    else:
        wide = x.float()
        if norm is not None:
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + how["eps"]) * norm.float()
    right = wide @ weight.dequantize(torch.float32).t()
    if how["silu"]:
        gate, up = right.chunk(2, dim=-1)
        right = torch.nn.functional.silu(gate) * up
    return right if residual is None else right + residual.float()


def distance(out: Tensor, right: Tensor) -> float:
    return ((out.float() - right).norm() / right.norm()).item()


def check_all() -> None:
    for _, m, n, k, *flags, block in cases():
        x = normal(m, k + 128, scale=3.0)[:, :k]
        try:
            fp8.fp8_linear(x, weight_of(n, k, block), **inputs(m, n, k, *flags))
        except Exception as error:  # cuBLAS without a device; `check` says what fails on one
            print(f"  not prepared: M={m} N={n} K={k} block={block}: {str(error).splitlines()[0][:100]}")


def check() -> None:
    worst: dict[str, tuple[float, str]] = {}
    for name, m, n, k, *flags, block in cases():
        x, weight, how = normal(m, k + 128, scale=3.0)[:, :k], weight_of(n, k, block), inputs(m, n, k, *flags)
        try:
            out = fp8.fp8_linear(x, weight, **how)
        except Exception as error:
            print(f"  FAILED {name} M={m} block={block}: {str(error).splitlines()[0][:160]}")
            continue
        many = m > fp8.SKINNY_ROWS
        error = distance(out, wanted_for(x, weight, how, many))
        if not error < 1e-2:
            print(f"  WRONG {name} M={m} block={block} {flags}: {error:.2e}")
        entries = [(f"M={m} block={block}", error)]
        if many:
            entries.append(
                (f"M={m} block={block} against exact activations", distance(out, wanted_for(x, weight, how, False)))
            )
        for key, value in entries:
            value = value if value == value else float("inf")
            worst[key] = max(worst.get(key, (0.0, "")), (value, name))
    for key, (value, name) in worst.items():
        print(f"  {key:45} {value:.1e} {name}")
    figures["check"] = worst
    for block in (0, 128):
        weight, x = weight_of(24576, 4096, block), normal(3000, 4096)
        how = inputs(1, 24576, 4096, True, False, True)
        together = fp8.fp8_linear(x, weight, invariant=True, **how)
        same = [
            torch.equal(fp8.fp8_linear(x[rows], weight, invariant=True, **how), together[rows])
            for rows in (slice(5, 6), slice(3, 40), slice(1000, 1100))
        ]
        print(f"  invariant block={block}: same bits {same}")


def rows_jobs() -> list[tuple[str, int, int, Callable[[], Any]]]:
    jobs = []
    for m in (64, 256, 16384):
        for k, norm, group in ((4096, True, 0), (4096, False, 0), (12288, False, 0), (4096, True, 128)):
            x, gain = normal(m, k), normal(k) if norm else None
            name = f"M={m} K={k} {'norm' if norm else ''} group={group}"

            def job(x: Tensor = x, gain: Tensor | None = gain, group: int = group) -> Any:
                return fp8.quantize_rows(x, gain, 1e-6, group=group)

            jobs.append((name, x.numel() * 2, m * k, job))
    return jobs


def rows() -> None:
    compiled(lambda: [job() for *_, job in rows_jobs()])
    for group in (0, 128):
        x = normal(300, 4096)
        (data, scale), (right, wanted) = fp8.quantize_rows(x, group=group), plain.quantize_rows(x, group=group)
        same = torch.equal(data.view(torch.uint8), right.view(torch.uint8)) and torch.equal(scale, wanted)
        print(f"  quantize_rows group={group} equals its twin bit for bit: {same}")
    for name, read, written, job in rows_jobs():
        us = graph_us(lambda _: job(), 10)  # noqa: B023
        print(f"  {name:32} {us:8.1f} us {(read + written) / us / 1e3:6.0f} GB/s")
        figures.setdefault("rows", []).append([name, us, read + written])


def pool_of(n: int, k: int, block: int) -> list[Fp8Weight]:
    """Enough weights not to fit into the L2 cache."""
    first = weight_of(n, k, block)
    copies = max(2, -(-200_000_000 // (n * k)))
    return [first] + [Fp8Weight(first.data.view(torch.uint8).clone().view(FP8), first.scale.clone(), block)
                      for _ in range(copies - 1)]  # fmt: skip


def skinny_tiles(m: int, n: int, k: int, silu: bool) -> list[Cut]:
    base = fp8.skinny_tile(m, n, k, silu, 0)
    if m == 1:
        cuts = [(2, 4096, 3, 4), (4, 4096, 1, 4), (4, 4096, 2, 4), (8, 2048, 1, 4), (8, 2048, 2, 4), (8, 4096, 1, 8)]
        return list(dict.fromkeys([base, *(Cut(*cut) for cut in cuts if cut[1] * cut[2] <= k)]))
    if m <= 16:
        cuts = [(16, 1024, 1, 4), (16, 1024, 1, 8), (32, 512, 1, 4), (32, 1024, 1, 8), (32, 1024, 2, 8)]
        cuts += [(32, 2048, 1, 16), (16, 2048, 1, 16)]
        if m <= 8:
            cuts += [(16, 1024, 2, 4), (32, 1024, 2, 4)] if k <= 4096 else [(16, 2048, 2, 8)]
        return list(dict.fromkeys([base, *(Cut(*cut) for cut in cuts), gemm_cut(n, k)]))
    found = [base, base._replace(ahead=0), Cut(64, 128, 5, 4, base.split, 512), Cut(64, 256, 3, 4, base.split, 512)]
    found += [base._replace(split=s) for s in (base.split // 2, base.split * 2) if s and k // s >= 512]
    found.append(Cut(128, 128, 4, 8, max(1, min(base.split * 2, k // 512)), 512))
    return list(dict.fromkeys(found + ([Cut(32, 512, 1, 8), Cut(64, 512, 1, 8)] if m == 32 and k <= 4096 else [])))


def gemm_cut(n: int, k: int) -> Cut:
    """What 32 rows get if nothing was measured."""
    return fp8.skinny_tile(32, n, k, False, 128)


def skinny_work() -> list[tuple[str, int, int, int, list[bool], list[Cut]]]:
    work = []
    for name, n, k, *flags in shapes("8B"):
        for m in (1, 8, 16, 32, 64):
            if name != "head":
                work.append((name, m, n, k, flags, skinny_tiles(m, n, k, flags[2])))
    return work


def skinny_all() -> None:
    for _, m, n, k, flags, tiles in skinny_work():
        for tile in tiles:
            fp8.fp8_linear(normal(m, k), weight_of(n, k, 0), tile=tile, **inputs(m, n, k, *flags))
        fp8.fp8_linear(normal(m, k), weight_of(n, k, 128), **inputs(m, n, k, *flags))


def skinny() -> None:
    """Also writes $OUT/fp8_tiles.json, which is to replace src/qwen3/data/fp8_tiles.json."""
    print("  shape      M      us  GB/s share | block us | best tile | others")
    chosen = []
    for name, m, n, k, flags, tiles in skinny_work():
        x, how = normal(m, k), inputs(m, n, k, *flags)
        weights, blocks = pool_of(n, k, 0), pool_of(n, k, 128)

        def timed(tile: Cut | None, pool: list[Fp8Weight]) -> float:
            return graph_us(lambda i: fp8.fp8_linear(x, pool[i % len(pool)], tile=tile, **how), 20, 3)  # noqa: B023

        found, right = [], wanted_for(x, weights[0], how, False)
        for tile in tiles:
            try:
                error = distance(fp8.fp8_linear(x, weights[0], tile=tile, **how), right)
                if not error < 1e-2:
                    print(f"  WRONG {name} M={m} {tuple(tile)}: {error:.2e}")
                    continue
                found.append((timed(tile, weights), tile))
            except Exception as error:
                print(f"  {name} M={m} {tuple(tile)}: {str(error).splitlines()[0][:100]}")
        found.sort(key=lambda pair: pair[0])
        us, best = found[0]
        rate = n * k / us / 1e3
        print(
            f"  {name:8} {m:3} {us:7.1f} {rate:5.0f} {rate * 1e9 / READ:4.0%} | {timed(None, blocks):6.1f} | "
            f"{tuple(best)} | " + " ".join(f"{tuple(t)}:{u:.1f}" for u, t in found[1:])
        )
        figures.setdefault("skinny", []).append([name, m, n, k, [(u, *t) for u, t in found]])
        chosen.append([m, n, k, int(flags[2]), [*best]])
        fp8.TUNED[m, n, k, flags[2]] = best
    fp8.skinny_tile.cache_clear()  # the chain that follows goes by these
    if "OUT" in os.environ:
        head = {"device": torch.cuda.get_device_name(), "tiles": []}
        lines = ",\n".join(json.dumps(line) for line in chosen)
        Path(os.environ["OUT"], "fp8_tiles.json").write_text(json.dumps(head)[:-2] + "\n" + lines + "\n]}\n")


def gemm_tiles(m: int, n: int, k: int) -> list[Cut]:
    base = fp8.gemm_tile(m, n, k)
    found = [base, base._replace(ahead=512), Cut(64, 128, 4, 4, 1, tokens=64), Cut(128, 128, 4, 4, 1, tokens=64)]
    found += [Cut(64, 128, 4, 4, 1, tokens=128), Cut(128, 128, 4, 8, 1, tokens=128)]
    found += [base._replace(split=s) for s in (base.split // 2, base.split * 2) if s and k // s >= 1024 and m <= 256]
    return list(dict.fromkeys(found))


MANY = (96, 128, 256, 512, 1024, 4096, 16384)


def many_work() -> Iterator[tuple[str, int, int, int, dict[str, Any], list[Cut]]]:
    for name, n, k, *flags in shapes("8B"):
        for m in MANY:
            if name != "head":
                yield name, m, n, k, inputs(m, n, k, False, *flags[1:]), gemm_tiles(m, n, k)


def many_all() -> None:
    for _, m, n, k, how, tiles in many_work():
        for block in (0, 128) if m <= 512 else ():
            x, weight = fp8.quantize_rows(normal(m, k), group=block), weight_of(n, k, block)
            for tile in tiles:
                fp8.multiply(*x, weight, how["residual"], how["silu"], torch.bfloat16, tile)
    elementwise.silu_mul(normal(96, 24576))


def many() -> None:
    print("  shape      M  floor us | as chosen: us TFLOP/s | block 128, as chosen | tiles")
    for name, m, n, k, how, tiles in many_work():
        flops, count = 2.0 * m * n * k, 8 if m <= 1024 else 3
        line: dict[str, float] = {}
        for block in (0, 128):
            (data, scale), pool = fp8.quantize_rows(normal(m, k), group=block), pool_of(n, k, block)
            for tile in [None, *tiles] if m <= 512 and not block else [None]:
                try:
                    line[f"{block} {tile and tuple(tile)}"] = graph_us(
                        lambda i: fp8.multiply(
                            data, scale, pool[i % len(pool)], how["residual"], how["silu"], torch.bfloat16, tile  # noqa: B023
                        ), count, 3)  # fmt: skip
                except Exception as error:
                    print(f"  {name} M={m} block={block} {tile}: {str(error).splitlines()[0][:100]}")
        floor = max(flops / PEAK, n * k / READ) * 1e6
        ours, blocks = line.pop("0 None", float("inf")), line.pop("128 None", float("inf"))
        print(
            f"  {name:8} {m:5} {floor:7.1f} | {ours:7.1f} {flops / ours / 1e6:5.0f} | {blocks:7.1f} | "
            + " ".join(f"{tile[2:]}:{us:.1f}" for tile, us in sorted(line.items(), key=lambda pair: pair[1]))
        )
        figures.setdefault("many", []).append([name, m, n, k, ours, blocks, line])


def chain_step(every: list[list[Fp8Weight]], norm: Tensor, start: Tensor, heads: int) -> None:
    x = start
    for qkv, o, up, down in every:
        mixed = fp8.fp8_linear(x, qkv, norm=norm, eps=1e-6)[:, : heads * 128]
        x = fp8.fp8_linear(mixed, o, residual=x)
        x = fp8.fp8_linear(fp8.fp8_linear(x, up, norm=norm, eps=1e-6, silu=True), down, residual=x)


CHAIN = (1, 8, 32, 64, 128, 256, 1024, 16384)


def chain_all() -> None:
    heads, _, hidden, *_ = MODELS["8B"]
    layer = [weight_of(n, k, 0) for name, n, k, *_ in shapes("8B") if name != "head"]
    for m in CHAIN[:6]:
        chain_step([layer], normal(hidden), normal(m, hidden), heads)


def chain() -> None:
    heads, _, hidden, _, layers = MODELS["8B"]
    kinds = [(n, k) for name, n, k, *_ in shapes("8B") if name != "head"]
    layer = [weight_of(n, k, 0) for n, k in kinds]
    every = [layer] + [[Fp8Weight(w.data.clone(), w.scale.clone()) for w in layer] for _ in range(layers - 1)]
    size = sum(n * k for n, k in kinds) * layers
    print("  8B, all projections of a step       M   us/step  floor us share  tok/s at most")
    for m in CHAIN:
        start, norm = normal(m, hidden), torch.ones(hidden, device=common.DEVICE, dtype=torch.bfloat16)
        us = graph_us(lambda _: chain_step(every, norm, start, heads), 1, 3)  # noqa: B023
        floor = max(size / READ, 2.0 * m * size / PEAK) * 1e6
        print(f"  {m:37} {us:9.0f} {floor:9.0f} {floor / us:5.0%} {m * 1e6 / us:10.0f}")
        figures.setdefault("chain", []).append([m, us, floor])


def main() -> None:
    sections = {
        "check": (check, check_all),
        "rows": (rows, lambda: None),
        "skinny": (skinny, skinny_all),
        "many": (many, many_all),
        "chain": (chain, chain_all),
    }
    run_sections(sections, sys.argv[1:] or list(sections), figures, "fp8.json")


if __name__ == "__main__":
    main()
