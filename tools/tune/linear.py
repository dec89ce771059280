"""Checks and tunes the products of few rows on a GPU: `PYTHONPATH=src python tools/tune/linear.py [SECTION ...]`.

Sections (SECTION:MODEL,… for some models only): check (against float32, shapes of all eight models), tune (all products
of a decode step in one graph with dependent launches; each shape's tile in turn, by the time of the whole; checks what
won and writes $OUT/linear_tiles.json, which is to replace src/qwen3/data/linear_tiles.json), chain (a decode step's
products with what was chosen, for 1 to 256 rows), invariant (bits, and speed). Tables go to stdout, figures to
$OUT/linear.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
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


@cache
def side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def graph_us(step: Callable[[int], object], count: int, repeat: int = 7) -> float:
    """Microseconds of one of `count` steps captured in a graph: median of replays. Everything was compiled before."""
    step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side_stream()):  # torch.cuda.graph collects garbage and empties caches: 50 ms a capture
        graph.capture_begin()
        for i in range(count):
            step(i)
        graph.capture_end()
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
    start, DEVICE, original = time.perf_counter(), "meta", elementwise.processors
    elementwise.processors = lambda device: (132, True)  # type: ignore[assignment]
    with collect() as found:
        for job in jobs:
            job()
    DEVICE, elementwise.processors = "cuda", original
    children = []
    for i in range(processes):
        child = os.fork()
        if child == 0:
            try:
                for kernel, grid, args, meta in found[i::processes]:
                    kernel.warmup(*args, grid=grid, **meta)
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


def few_tiles(m: int, n: int, k: int, norm: bool, most: int) -> list[Tile]:
    """For `_few`: enough weights asked for at once, few idle multiprocessors, registers that suffice."""
    scored = []
    for rows in (8, 16, 32, 64):
        for warps in (4, 8):
            for columns in (128, 256, 512, 1024, 2048):
                for depth in (1, 2, 3, 4):
                    steps = k // columns
                    if columns % (32 * warps) or k % columns or depth > steps or rows > max(16, 2 * m):
                        continue
                    near = min(2, steps) * m * columns * (1.5 if norm else 1) / (64 * warps)
                    registers = 36 + depth * rows * columns / (64 * warps) + near + max(16, m) * rows / 32
                    if registers > 215:
                        continue
                    programs = -(-n // rows)
                    fit = min(int(65536 // (registers * 32 * warps)), -(-programs // 132))
                    flight = fit * rows * columns * depth * 2
                    waves = -(-programs // 132)
                    idle = waves * 132 / programs if waves <= 4 else 1.0
                    cost = max(1.0, 48000 / flight) ** 0.5 * idle**0.5 * (1 + 0.4 * m / rows) * (1 + 0.01 * steps)
                    scored.append((cost, Tile(rows, columns, depth, warps)))
    scored.sort()
    found: list[Tile] = []
    for _, tile in scored:
        same = [t for t in found if t.rows == tile.rows]
        if (
            len(same) < (most + 1) // 2
            and len(found) < most
            and not any(t.columns * t.depth == tile.columns * tile.depth and t.warps == tile.warps for t in same)
        ):
            found.append(tile)
    return found


def matrix_tiles(m: int, n: int, k: int, most: int) -> list[Tile]:
    """For `_gemm` of up to 64 rows: heights and slices that fill the device about once with 1 to 4 programs on each."""
    scored = []
    for height in (16, 32, 64, 128):
        for split in (1, 2, 3, 4, 6, 8):
            for columns in (64, 128, 256):
                if k % (columns * split) or k // split < 256 or (split > 1 and k // split < 512 and n > 4096):
                    continue
                programs = -(-n // height) * split
                each = -(-programs // 132)
                if programs < 60 or (split > 1 and (each > 4 or programs * (height + 1) * m > linear.PARTS)):
                    continue
                stage = (height + m) * columns * 2
                depth = min(6, 220 * 1024 // min(each, 3) // stage, k // split // columns + 1)
                if depth < 2 or stage < 4096:
                    continue
                idle = each * 132 / programs if each <= 4 else 1.0
                cost = idle**0.5 * (1 + 0.4 * m / height) * (1 + 0.02 * split) * (1.05 if columns == 256 else 1.0)
                cost *= 1.1 if depth * stage * min(each, 3) < 60000 else 1.0
                scored.append((cost, Tile(height, columns, depth, 4, split, 512)))
    scored.sort()
    best: list[Tile] = []
    for _, tile in scored:
        if (tile.rows, tile.split) not in [(t.rows, t.split) for t in best] and len(best) < most:
            best.append(tile)
    return best


def many_tiles(m: int, n: int, k: int, most: int) -> list[Tile]:
    """For `_gemm` of 128 and 256 rows, by an estimate of its time."""
    scored = []
    for tokens in (64, 128, 256):
        for height in (64, 128):
            for split in (1, 2, 3, 4):
                if tokens > m or tokens * height > 16384 or k % (64 * split):
                    continue
                programs = -(-n // height) * split * -(-m // tokens)
                if split > 1 and programs * (height + 1) * tokens > linear.PARTS:
                    continue
                each = -(-programs // 132)
                work = each * 2 * height * tokens * k / split / (6e12 / 1e6)
                loads = each * (height + tokens) * k / split * 2 / 30e3
                cost = max(work, loads, n * k * 2 / 3e6) + (2.0 if split > 1 else 0.0) + 0.1 * work
                stage = (height + tokens) * 128
                scored.append(
                    (cost, Tile(height, 64, min(5, 200 * 1024 // stage // min(2, each)), 4, split, 256, tokens))
                )
    scored.sort()
    return [tile for _, tile in scored[:most]]


def candidates(m: int, n: int, k: int, norm: bool, few: bool) -> list[Tile]:
    if m == 1:
        return []
    if m <= 16:
        return few_tiles(m, n, k, norm, 7 if m == 8 and not few else 4) + matrix_tiles(m, n, k, 1)
    if m <= 64:
        return few_tiles(m, n, k, norm, 2 if few or m == 64 else 3) + matrix_tiles(m, n, k, 3)
    return many_tiles(m, n, k, 4)


class Chain:
    """All products of a decode step but the head's, in as many layers as are wanted."""

    def __init__(self, model: str, layers: int) -> None:
        self.heads, _, hidden, self.inner, _ = MODELS[model]
        self.kinds = shapes(model)[:-1]
        self.layers = layers
        self.weights = [
            [torch.empty(n, k, device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02) for _, n, k, *_ in self.kinds]
        ]
        self.weights += [[w.clone() for w in self.weights[0]] for _ in range(layers - 1)]
        self.norm = torch.ones(hidden, device=DEVICE, dtype=torch.bfloat16)
        self.start = torch.randn(256, hidden, device=DEVICE, dtype=torch.bfloat16)
        self.floor = sum(n * k * 2 for _, n, k, *_ in self.kinds) * layers / READ * 1e6

    def step(self, m: int) -> Tensor:
        x = self.start[:m]
        for qkv, o, *rest in self.weights:
            mixed = linear.fused_linear(x, qkv, norm=self.norm, eps=1e-6)[:, : self.heads * 128]
            x = linear.fused_linear(mixed, o, residual=x)
            if rest:
                wide = linear.fused_linear(x, rest[0], norm=self.norm, eps=1e-6, silu=True)
                x = linear.fused_linear(wide, rest[1], residual=x)
        return x

    def us(self, m: int, repeat: int, head: Tensor | None = None) -> float:
        def step(_: int) -> Tensor:
            x = self.step(m)
            return x if head is None else linear.fused_linear(x, head, norm=self.norm, eps=1e-6)

        return graph_us(step, 1, repeat)


def use(m: int, n: int, k: int, silu: bool, tile: Tile | None) -> None:
    linear._planned.cache_clear()
    linear.TUNED.pop((m, n, k, silu), None)
    if tile is not None:
        linear.TUNED[m, n, k, silu] = tile


PLANS = {"0.6B": (14, (8, 16, 32, 64, 128, 256)), "8B": (8, (8, 16, 32, 64, 128, 256)), "4B": (8, (8, 32)),
         "30B-A3B": (24, (8, 32))}  # fmt: skip


def tune_all(names: list[str]) -> None:
    for name in names:
        kinds = shapes(name)
        if name not in ("0.6B", "8B"):
            kinds = kinds[:-1]
        for m in PLANS[name][1]:
            for _, n, k, norm, residual, silu in kinds:
                x, scale, rest = inputs(m, n, k, norm and m <= linear.MOST_ROWS, residual, silu)
                y = torch.empty((m, n // 2 if silu else n), device=DEVICE, dtype=torch.bfloat16)
                weight = torch.empty(n, k, device=DEVICE, dtype=torch.bfloat16)
                for tile in [linear.choose(m, n, k, silu), *candidates(m, n, k, norm, name not in ("0.6B", "8B"))]:
                    if tile is not None:
                        how = linear.plan(m, n, k, silu, tile, True, x.device)
                        linear.start(how, x, weight, scale, 1e-6, rest, y)


def tune(names: list[str]) -> None:
    """Each shape's tile in turn, by the time of all products together."""
    original = dict(linear.TUNED)
    for name in names:
        few = name not in ("0.6B", "8B")
        layers, rows = PLANS[name]
        chain = Chain(name, layers)
        heads = [
            torch.empty(VOCABULARY, chain.kinds[0][2], device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02)
            for _ in range(0 if few else 2 if name == "0.6B" else 1)
        ]
        for m in rows:
            began = time.perf_counter()
            best = chain.us(m, 7)
            first, lines = best, []
            for label, n, k, norm, _, silu in sorted(chain.kinds, key=lambda kind: -kind[1] * kind[2]):
                now = linear.choose(m, n, k, silu)
                tries = [(best, now)]
                for tile in candidates(m, n, k, norm, few):
                    if tile == now:
                        continue
                    use(m, n, k, silu, tile)
                    try:
                        tries.append((chain.us(m, 5), tile))
                    except Exception as error:
                        print(f"  {name} {label} m={m} {tuple(tile)}: {str(error).splitlines()[0][:100]}")
                tries.sort(key=lambda entry: entry[0])
                best = tries[0][0]
                use(m, n, k, silu, tries[0][1])
                verify(f"{name} {label}", m, n, k, silu, weight_of=chain)
                lines.append(f"   {label:8}" + " ".join(f"{tuple(t) if t else t}:{u / layers:.2f}" for u, t in tries))
                figures.setdefault("tune", []).append([name, m, label, layers, [(u, t) for u, t in tries]])
            if heads:
                lines.append("   " + tune_head(chain, heads, m))
            print(
                f"{name} m={m}: {first / layers:.2f} -> {best / layers:.2f} us a layer, "
                f"floor {chain.floor / layers:.2f} ({chain.floor / best:.0%}) [{time.perf_counter() - began:.1f} s]"
            )
            print("\n".join(lines), flush=True)
            torch.cuda.empty_cache()
        del chain, heads
        torch.cuda.empty_cache()
    write_tiles()
    print("changed:", len([key for key in linear.TUNED if original.get(key) != linear.TUNED[key]]))


def verify(label: str, m: int, n: int, k: int, silu: bool, weight_of: Chain) -> None:
    """What was just chosen, against float32."""
    at, (_, _, _, norm, residual, _) = next((i, kind) for i, kind in enumerate(weight_of.kinds) if kind[1:3] == (n, k))
    x, scale, rest = inputs(m, n, k, norm, residual, silu)
    weight = weight_of.weights[0][at]
    y = linear.fused_linear(x, weight, norm=scale, eps=1e-6, residual=rest, silu=silu)
    error = distance(y, x, weight, scale, rest, silu)
    if not error < 1e-2:
        print(f"  WRONG {label} m={m}: {error:.2e} by {linear.choose(m, n, k, silu)}")


def tune_head(chain: Chain, heads: list[Tensor], m: int) -> str:
    n, k = heads[0].shape
    x, norm = chain.start[:m], chain.norm
    tries: list[tuple[float, Tile | None]] = []
    now = linear.choose(m, n, k, False)
    for tile in [now, *[t for t in candidates(m, n, k, True, False) if t != now]]:
        use(m, n, k, False, tile)
        tries.append(
            (graph_us(lambda i: linear.fused_linear(x, heads[i % len(heads)], norm=norm, eps=1e-6), 4, 3), tile)
        )
    tries.sort(key=lambda entry: entry[0])
    use(m, n, k, False, tries[0][1])
    return "head    " + " ".join(f"{tuple(t) if t else t}:{u:.0f}" for u, t in tries)


def write_tiles() -> None:
    """In the format of src/qwen3/data/linear_tiles.json."""
    if "OUT" in os.environ:
        rows = sorted([m, n, k, int(silu), list(tile)] for (m, n, k, silu), tile in linear.TUNED.items())
        lines = ",\n".join(json.dumps(row) for row in rows)
        device = json.dumps(torch.cuda.get_device_name())
        Path(os.environ["OUT"], "linear_tiles.json").write_text(f'{{"device": {device}, "tiles": [\n{lines}\n]}}\n')


ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def chain_all(names: list[str]) -> None:
    for model in names:
        one = Chain(model, 1)
        head = torch.empty(VOCABULARY, one.kinds[0][2], device=DEVICE, dtype=torch.bfloat16)
        for m in ROWS:
            linear.fused_linear(one.step(m), head, norm=one.norm, eps=1e-6)


def chain(names: list[str]) -> None:
    """All products of a decode step, attention left out."""
    print("chain          m   us/step   layers     head  floor us  share  tok/s at most")
    for model in names:
        every = Chain(model, MODELS[model][-1])
        head = torch.empty(VOCABULARY, every.kinds[0][2], device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02)
        floor = every.floor + head.numel() * 2 / READ * 1e6

        for m in ROWS:
            layers = every.us(m, 5)
            us = every.us(m, 5, head)
            print(
                f"{model:12} {m:3} {us:9.0f} {layers:8.0f} {us - layers:8.0f} {floor:9.0f} {floor / us:6.1%} "
                f"{m * 1e6 / us:10.0f}",
                flush=True,
            )
            figures.setdefault("chain", []).append([model, m, us, layers, floor])
        del every, head
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
    wanted = [section.partition(":") for section in sys.argv[1:] or ["check", "tune", "chain", "invariant"]]
    every = {"tune": list(PLANS), "chain": ["0.6B", "8B"]}
    before: dict[str, Callable[[list[str]], object]] = {
        "check": lambda _: check_all(),
        "tune": tune_all,
        "invariant": lambda _: None,
        "chain": chain_all,
    }
    sections: dict[str, Callable[[list[str]], object]] = {
        "check": lambda _: check(),
        "tune": tune,
        "invariant": lambda _: invariant(),
        "chain": chain,
    }
    listed = [(name, models.split(",") if models else every.get(name, [])) for name, _, models in wanted]
    compile_apart([partial(before[name], models) for name, models in listed])
    for name, models in listed:
        start = time.perf_counter()
        try:
            print(f"ready in {compiled(lambda: before[name](models)):.1f} s")  # noqa: B023
            sections[name](models)
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        print(f"[{name}: {time.perf_counter() - start:.1f} s]", flush=True)
        if "OUT" in os.environ:
            Path(os.environ["OUT"], "linear.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
