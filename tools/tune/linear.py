"""Checks and tunes the products of few rows on a GPU: `PYTHONPATH=src python tools/tune/linear.py [SECTION ...]`.

Sections: check (against float32, shapes of all eight models), sweep (ways of cutting; prints lines for `linear.TUNED`),
invariant (bits, and speed), chain (all products of a decode step in one graph, with and without dependent launch).
Tables go to stdout, figures to $OUT/linear.json. Times are medians of CUDA graphs that walk over more weights than the
L2 cache holds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from qwen3.kernels.gpu import elementwise, linear
from qwen3.kernels.gpu.launch import collect, compile_all
from qwen3.kernels.gpu.linear import Tile

READ = 3.1e12  # bytes a second read from an H100's memory
# name: heads, key heads, hidden, inner (0: experts, not here), layers
MODELS = {
    "0.6B": (16, 8, 1024, 3072, 28),
    "8B": (32, 8, 4096, 12288, 36),
    "4B": (32, 8, 2560, 9728, 36),
    "30B-A3B": (32, 4, 2048, 0, 48),
    "32B": (64, 8, 5120, 25600, 64),
    "1.7B": (16, 8, 2048, 6144, 28),
    "14B": (40, 8, 5120, 17408, 40),
    "235B": (64, 4, 4096, 0, 94),
}
VOCABULARY = 151936
Shape = tuple[str, int, int, bool, bool, bool]  # name, N, K, norm, residual, silu
figures: dict[str, Any] = {}
DEVICE = "cuda"


def shapes(model: str) -> list[Shape]:
    heads, kv_heads, hidden, inner, _ = MODELS[model]
    found = [
        ("qkv", (heads + 2 * kv_heads) * 128, hidden, True, False, False),
        ("o", hidden, heads * 128, False, True, False),
    ]
    if inner:
        found.append(("gate_up", 2 * inner, hidden, True, False, True))
        found.append(("down", hidden, inner, False, True, False))
    return [*found, ("head", VOCABULARY, hidden, True, False, False)]


def inputs(
    m: int, n: int, k: int, norm: bool, residual: bool, silu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)

    x = 3 * normal(m, k + 128)[:, :k]
    return x, 1 + 0.3 * normal(k) if norm else None, normal(m, n // 2 if silu else n) if residual else None


def distance(y: Tensor, x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor | None, silu: bool) -> float:
    """‖y − right‖ / ‖right‖, right in float32."""
    x = x.float()
    if norm is not None:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.float()
    right = torch.cat([x @ part.float().t() for part in weight.split(32768)], 1)
    if silu:
        gate, up = right.chunk(2, dim=-1)
        right = torch.nn.functional.silu(gate) * up
    if residual is not None:
        right = right + residual.float()
    return ((y.float() - right).norm() / right.norm()).item()


def graph_us(step: Callable[[int], None], count: int, repeat: int = 7) -> float:
    """Microseconds of one of `count` steps captured in a graph: median of replays. Everything was compiled before."""
    step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            step(i)
    times = []
    for _ in range(repeat + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / count)
    return statistics.median(times[2:])


def compiled(jobs: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with collect() as found:
        jobs()
    compile_all(found)
    return time.perf_counter() - start


def compile_apart(jobs: list[Callable[[], Any]], processes: int = 14) -> None:
    """Fill Triton's cache from forked processes: must run before this one has touched the GPU."""
    global DEVICE
    start, DEVICE, original = time.perf_counter(), "meta", linear._processors
    linear._processors = lambda device: (132, True)
    with collect() as found:
        for job in jobs:
            job()
    DEVICE, linear._processors = "cuda", original
    children = []
    for i in range(processes):
        child = os.fork()
        if child == 0:
            try:
                compile_all(found[i::processes], 1)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    linear.workspace.cache_clear()
    print(f"{len(found)} kernels compiled apart in {time.perf_counter() - start:.1f} s", flush=True)


Case = tuple[str, int, int, int, bool, bool, bool]


def check_cases() -> list[Case]:
    cases: list[Case] = []
    for model in MODELS:
        for name, n, k, norm, residual, silu in shapes(model):
            rows = (1, 3, 16, 32, 64, 100) if model in ("0.6B", "8B") and name != "head" else (1, 32)
            cases += [(f"{model} {name}", m, n, k, norm, residual, silu) for m in rows]
    return cases


def check_one(pool: Tensor, case: Case) -> tuple[Tensor, tuple[Any, ...]]:
    _, m, n, k, norm, residual, silu = case
    x, scale, rest = inputs(m, n, k, norm, residual, silu)
    weight = pool[: n * k].view(n, k)
    y = linear.fused_linear(x, weight, norm=scale, eps=1e-6, residual=rest, silu=silu)
    return y, (x, weight, scale, rest, silu)


def check_all() -> None:
    pool = torch.empty(VOCABULARY * 5120, device=DEVICE, dtype=torch.bfloat16)
    for case in check_cases():
        check_one(pool, case)


def check() -> None:
    """The choices in use, at the shapes of all models."""
    cases = check_cases()
    print(f"check: {len(cases)} products, ready in {compiled(check_all):.1f} s")
    pool = torch.randn(VOCABULARY * 5120, device=DEVICE, dtype=torch.bfloat16) * 0.02
    worst: dict[int, tuple[float, str]] = {}
    for case in cases:
        name, m = case[:2]
        y, args = check_one(pool, case)
        error = distance(y, *args)
        if not error < 1e-2:
            print(f"  WRONG {name} m={m}: {error:.2e}")
        worst[m] = max(worst.get(m, (0.0, "")), (error if error == error else float("inf"), name))
    print("  worst per m:", {m: f"{e:.1e} {name}" for m, (e, name) in worst.items()})
    figures["check"] = worst
    for m in (1, 7, 4096):
        x, scale = (
            torch.randn(m, 4096, device=DEVICE, dtype=torch.bfloat16),
            torch.randn(4096, device=DEVICE).bfloat16(),
        )
        wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        right = scale * wide.to(x.dtype)
        gate, up = x.chunk(2, dim=-1)
        errors = [
            ((elementwise.rms_norm(x, scale, 1e-6) - right).float().norm() / right.float().norm()).item(),
            ((elementwise.silu_mul(x) - torch.nn.functional.silu(gate) * up).float().norm() / x.norm()).item(),
        ]
        print(f"  rms_norm, silu_mul m={m}: {errors[0]:.1e} {errors[1]:.1e}")


def vector_tiles(n: int, k: int) -> list[Tile]:
    wide = next(c for c in (2048, 1024, 512, 256) if k % c == 0)
    steps = k // wide
    tries = [linear.choose(1, n, k, False)]
    for height, depth, warps in (
        (2, 2, 4),
        (4, 1, 4),
        (4, 2, 4),
        (4, 4, 4),
        (8, 1, 4),
        (8, 2, 8),
        (16, 1, 4),
        (16, 1, 8),
    ):
        tile = Tile(height, wide, min(depth, steps), warps)
        if height * wide * tile.depth <= 16384 * warps // 4 and tile not in tries and n // height >= 128:
            tries.append(tile)
    return tries[:7]


def matrix_tiles(m: int, n: int, k: int) -> list[Tile]:
    """Heights and slices that fill the device about once with 1 to 4 programs on a multiprocessor."""
    scored = []
    rows = max(8, triton.next_power_of_2(m))
    for height in (16, 32, 64, 128):
        for split in (1, 2, 3, 4, 6, 8):
            for columns in (64, 128, 256):
                if k % (columns * split) or k // split < 256 or (split > 1 and k // split < 512 and n > 4096):
                    continue
                programs = -(-n // height) * split
                each = -(-programs // 132)
                if programs < 60 or (split > 1 and (each > 4 or programs * (height + 1) * rows > linear.PARTS)):
                    continue
                stage = (height + rows) * columns * 2
                depth = min(6, 220 * 1024 // min(each, 3) // stage, k // split // columns + 1)
                if depth < 2 or stage < 4096:
                    continue
                idle = each * 132 / programs if each <= 4 else 1.0
                cost = idle**0.5 * (1 + 0.4 * rows / height) * (1 + 0.02 * split) * (1.05 if columns == 256 else 1.0)
                cost *= 1.1 if depth * stage * min(each, 3) < 60000 else 1.0
                scored.append((cost, Tile(height, columns, depth, 4, split, 512)))
    scored.sort()
    best = [linear.choose(rows, n, k, False)]
    seen: dict[tuple[int, int], int] = {}
    for _, tile in scored:
        if seen.setdefault((tile.rows, tile.split), 0) < 1 + (len(best) < 3) and tile not in best:
            seen[tile.rows, tile.split] += 1
            best.append(tile)
    best = best[:6]
    return [*best, best[1]._replace(ahead=0)]


def sweep_work(names: list[str]) -> list[tuple[str, int, int, int, list[bool], list[Tile]]]:
    work = []
    for model in names:
        few = model not in ("0.6B", "8B")
        for name, n, k, *flags in shapes(model):
            if few and name == "head":
                continue
            for m in (1, 32) if few else (1, 8, 32, 64):
                tiles = vector_tiles(n, k) + matrix_tiles(8, n, k)[1:3] if m == 1 else matrix_tiles(m, n, k)
                tiles = tiles[: 4 if few or m == 64 else 9]
                work.append((f"{model} {name}", m, n, k, flags, tiles))
    return work


def prepare(
    pool: Tensor, m: int, n: int, k: int, flags: list[bool], tile: Tile, pdl: bool = True
) -> Callable[[int], None]:
    x, scale, rest = inputs(m, n, k, *flags)
    y = torch.empty((m, n // 2 if flags[2] else n), device=DEVICE, dtype=torch.bfloat16)
    copies = max(1, min(pool.numel() // (n * k), -(-200_000_000 // (n * k * 2))))
    weights = [pool[i * n * k : (i + 1) * n * k].view(n, k) for i in range(copies)]
    block = max(8, triton.next_power_of_2(m))
    return lambda i: linear.run(x, weights[i % copies], scale, 1e-6, rest, flags[2], y, block, tile, pdl)


def sweep_all(names: list[str]) -> None:
    pool = torch.empty(1 << 30, device=DEVICE, dtype=torch.bfloat16)
    for _, m, n, k, flags, tiles in sweep_work(names):
        for tile in tiles:
            prepare(pool, m, n, k, flags, tile)(0)


def sweep(names: list[str]) -> None:
    work = sweep_work(names)
    print(
        f"sweep: {sum(len(w[-1]) for w in work)} ways of cutting, ready in {compiled(lambda: sweep_all(names)):.1f} s"
    )
    pool = torch.randn(1 << 30, device=DEVICE, dtype=torch.bfloat16) * 0.02
    print("shape              m  us     GB/s share  no-pdl  cublas  best")
    start = time.perf_counter()
    for label, m, n, k, flags, tiles in work:
        count = 6 if n == VOCABULARY else 20
        found = []
        for tile in tiles:
            try:
                found.append((graph_us(prepare(pool, m, n, k, flags, tile), count, 3), tile))
            except Exception as error:
                print(f"  {label} m={m} {tuple(tile)}: {str(error).splitlines()[0][:100]}")
        found.sort()
        us, best = found[0]
        plain = float("nan")
        if label.split()[0] in ("0.6B", "8B"):
            compiled(lambda: prepare(pool, m, n, k, flags, best, False)(0))  # noqa: B023
            plain = graph_us(prepare(pool, m, n, k, flags, best, False), count, 3)
        x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
        weights = pool[: pool.numel() // (n * k) * n * k].view(-1, k, n)[: max(1, -(-200_000_000 // (n * k * 2)))]
        weights = weights.view(-1, n, k)
        out = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
        blas = graph_us(lambda i: torch.mm(x, weights[i % len(weights)].t(), out=out), count, 3)  # noqa: B023
        rate = n * k * 2 / us / 1e3
        others = " ".join(f"{tuple(t)}:{u:.1f}" for u, t in found[1:])
        print(
            f"{label:17} {m:2} {us:7.1f} {rate:5.0f} {rate * 1e9 / READ:4.0%} {plain:7.1f} {blas:7.1f}  "
            f"{tuple(best)} | {others}"
        )
        linear.TUNED[m, n, k, flags[2]] = best
        figures.setdefault("sweep", []).append([label, m, n, k, us, plain, blas, [(u, *t) for u, t in found]])
    print(f"measured in {time.perf_counter() - start:.1f} s; for TUNED:")
    for key, tile in linear.TUNED.items():
        print(f"    {key}: Tile{tuple(tile)},")


def chain_of(model: str) -> None:
    heads, _, hidden, _, layers = MODELS[model]
    kinds = shapes(model)
    layer = [torch.empty(n, k, device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02) for _, n, k, *_ in kinds[:-1]]
    every = [layer] + [[w.clone() for w in layer] for _ in range(layers - 1)]
    head = torch.empty(VOCABULARY, hidden, device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02)
    norm = torch.ones(hidden, device=DEVICE, dtype=torch.bfloat16)
    floor = (sum(n * k * 2 for _, n, k, *_ in kinds[:-1]) * layers + head.numel() * 2) / READ * 1e6

    def step(start: Tensor) -> None:
        x = start
        for qkv, o, gate_up, down in every:
            mixed = linear.fused_linear(x, qkv, norm=norm, eps=1e-6)[:, : heads * 128]
            x = linear.fused_linear(mixed, o, residual=x)
            wide = linear.fused_linear(x, gate_up, norm=norm, eps=1e-6, silu=True)
            x = linear.fused_linear(wide, down, residual=x)
        linear.fused_linear(x, head, norm=norm, eps=1e-6)

    if DEVICE == "meta":
        for m in (1, 8, 32):
            step(torch.empty(m, hidden, device=DEVICE, dtype=torch.bfloat16))
        return
    original = linear._processors
    for m in (1, 8, 32):
        start = torch.randn(m, hidden, device=DEVICE, dtype=torch.bfloat16)
        for pdl in (True, False):
            linear._processors = lambda device, pdl=pdl: (132, pdl)
            try:
                compiled(lambda: step(start))  # noqa: B023
                us = graph_us(lambda _: step(start), 1, 5)  # noqa: B023
            finally:
                linear._processors = original
            print(f"{model:12} {m:3} {pdl!s:5} {us:9.0f} {floor:9.0f} {floor / us:6.1%} {m * 1e6 / us:10.0f}")
            figures.setdefault("chain", []).append([model, m, pdl, us, floor])


def chain(names: list[str]) -> None:
    """All products of a decode step, attention left out: what launches cost between them."""
    print("chain          m  pdl    us/step  floor us  share  tok/s at most")
    for model in names:
        chain_of(model)
        torch.cuda.empty_cache()


def invariant() -> None:
    weight = torch.randn(24576, 4096, device=DEVICE, dtype=torch.bfloat16) * 0.02
    x, norm = torch.randn(8192, 4096, device=DEVICE, dtype=torch.bfloat16), torch.rand(4096, device=DEVICE).bfloat16()
    options: dict[str, Any] = {"norm": norm, "eps": 1e-6, "silu": True, "invariant": True}
    together = linear.fused_linear(x, weight, **options)
    same = [
        torch.equal(linear.fused_linear(x[rows], weight, **options), together[rows])
        for rows in (slice(5, 6), slice(8191, 8192), slice(3, 40), slice(1000, 1100), slice(64, 3000))
    ]
    print("invariant: same bits", same, "(all must be True)")
    for m in (1, 32, 256, 8192):
        part = x[:m]
        us = graph_us(lambda _: linear.fused_linear(part, weight, **options), 4, 5)  # noqa: B023
        blas = graph_us(lambda _: torch.mm(part, weight.t()), 4, 5)  # noqa: B023
        tera = 2 * m * weight.numel() / us / 1e6
        print(
            f"  m={m}: {us:.0f} us, {weight.numel() * 2 / us / 1e3:.0f} GB/s, {tera:.0f} TFLOP/s; cublas {blas:.0f} us"
        )
        figures.setdefault("invariant", []).append([m, us, blas])


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = [section.partition(":") for section in sys.argv[1:] or ["check", "sweep", "invariant", "chain"]]
    every = {"sweep": ["0.6B", "8B", "30B-A3B", "4B", "32B"], "chain": ["0.6B", "8B"]}
    listed = [(name, models.split(",") if models else every.get(name, [])) for name, _, models in wanted]
    before = {
        "check": lambda models: check_all(),
        "sweep": sweep_all,
        "invariant": lambda models: None,
        "chain": lambda models: [chain_of(model) for model in models],
    }
    compile_apart([lambda name=name, models=models: before[name](models) for name, models in listed])
    for name, models in listed:
        start = time.perf_counter()
        try:
            if name in every:
                {"sweep": sweep, "chain": chain}[name](models)
            else:
                {"check": check, "invariant": invariant}[name]()
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        print(f"[{name}: {time.perf_counter() - start:.1f} s]", flush=True)
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "linear.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
