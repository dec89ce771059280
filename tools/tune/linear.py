"""Checks and tunes the products of few rows on a GPU: `PYTHONPATH=src python tools/tune/linear.py [SECTION ...]`.

Sections (SECTION:MODEL,… for some models only): check (against float32, shapes of all eight models), tune (all products
of a decode step in one graph with dependent launches; each shape's tile in turn, checked, by the time of the whole;
writes $OUT/linear_tiles.json, which is to replace src/qwen3/data/linear_tiles.json: what was not measured stays as it
is), many (the same for the 32 to 256 rows that graphs are captured for), chain (a decode step's products with what was
chosen, for 1 to 256 rows), invariant (bits, and speed). Tables go to stdout, figures to $OUT/linear.json.
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
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.kernels.gpu import elementwise, linear
from qwen3.kernels.gpu.launch import collect, compile_all
from qwen3.kernels.gpu.linear import Tile

READ = 3.1e12  # bytes a second read from an H100's memory
SHARED = 226 * 1024  # bytes of shared memory for the pipelines of a multiprocessor
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


def exact(x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor | None, silu: bool) -> Tensor:
    """In float32."""
    x = x.float()
    if norm is not None:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.float()
    right = torch.cat([x @ part.float().t() for part in weight.split(32768)], 1)
    if silu:
        gate, up = right.chunk(2, dim=-1)
        right = torch.nn.functional.silu(gate) * up
    return right if residual is None else right + residual.float()


def distance(y: Tensor, right: Tensor) -> float:
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


def run_sections(
    sections: dict[str, tuple[Callable[[], Any], Callable[[], Any]]], wanted: list[str], figures: Any, file: str
) -> None:
    """By name: what is done, and what notes the kernels that it takes. A section that fails is told, the others go on;
    `figures` go to $OUT/file after each."""
    torch.backends.cuda.matmul.allow_tf32 = False
    compile_apart([sections[name][1] for name in wanted])
    for name in wanted:
        start = time.perf_counter()
        print(f"{name}:")
        try:
            print(f"  loaded in {compiled(lambda: None):.1f} s")
            sections[name][0]()
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        print(f"[{name}: {time.perf_counter() - start:.1f} s]", flush=True)
        if "OUT" in os.environ:
            Path(os.environ["OUT"], file).write_text(json.dumps(figures, default=str))


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
        error = distance(y, exact(*args))
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


def gemm_tiles(m: int, n: int, k: int, most: int) -> list[Tile]:
    """For `_gemm`, by an estimate of its microseconds: memory, what the L2 cache delivers, arithmetic, the meeting."""
    scored = []
    for rows, tokens, split, columns, warps in product(
        (16, 32, 64, 128, 192, 256), (32, 64, 128, 256), (1, 2, 3, 4, 6, 8), (64, 128), (4, 8)
    ):
        groups, part, sums = -(-m // tokens), k // split, rows * tokens / 32 / warps
        programs, stage = -(-n // rows) * groups * split, (rows + tokens) * columns * 2
        if (
            (tokens > 32 and tokens >= 2 * m) or (tokens < 64 and groups > 1) or (rows < 64 < tokens)
            or k % (columns * split) or part < 256 or programs < 60
            or (split == 8 and rows == 32)  # spills
            or (split > 1 and (rows == 192 or programs * (rows + 1) * tokens > linear.PARTS))
            or sums > (128 if warps == 4 else 192) or (warps == 8 and sums < 32)
        ):  # fmt: skip
            continue
        fits = [
            (each, min(6, SHARED // each // stage, part // columns + 1))
            for each in (4, 3, 2, 1)
            if each <= max(1, 65536 // ((sums + 50) * 32 * warps)) and each <= -(-programs // 132)
        ]
        each, depth = next((fit for fit in fits if fit[1] >= 3), (0, 0))
        if not each:
            continue
        busy = -(-programs // 132)  # programs of the multiprocessor that has most
        loads = programs * (rows + m / groups) * part * 2 / 7e6
        alone = busy * (rows + tokens) * part * 2 / 60e3 if busy < 4 else 0.0
        work = busy * 2 * rows * tokens * part / 5.5e6
        flight = max(1.0, 48e3 / (each * (depth - 1) * rows * columns * 2)) ** 0.5
        body = max(n * k * 2 / 3e6 * flight, loads, alone, work) + 0.15 * (work + loads)
        meet = 1.5 + split * rows * tokens * 4 / 80e3 + programs * rows * tokens * 8 / 7e6 if split > 1 else 0.0
        tile = Tile(rows, columns, depth, warps, split, 256, tokens)
        scored.append((body + meet + 1.5 * -(-programs // (132 * each)), tile))
    best: list[Tile] = []
    for _, tile in sorted(scored):
        if len(best) < most and not any(
            t._replace(columns=0, depth=0) == tile._replace(columns=0, depth=0) for t in best
        ):
            best.append(tile)
    return best


def candidates(m: int, n: int, k: int, norm: bool, few: bool) -> list[Tile | None]:
    """None: PyTorch's."""
    if m == 1:
        return []
    if m <= 16:
        return [*few_tiles(m, n, k, norm, 7 if m == 8 and not few else 4), *gemm_tiles(32, n, k, 1)]
    found = gemm_tiles(m, n, k, 4 if m <= 64 else 7)
    apart = [tile._replace(apart=True) for tile in found] if norm and 32 < m <= linear.MOST_ROWS else []
    return [*found, *apart, *([None] if m >= 48 else [])]


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
            x = linear.fused_linear(mixed, o, residual=x, overwrite=x.data_ptr() != self.start.data_ptr())
            if rest:
                wide = linear.fused_linear(x, rest[0], norm=self.norm, eps=1e-6, silu=True)
                x = linear.fused_linear(wide, rest[1], residual=x, overwrite=True)
        return x

    def us(self, m: int, repeat: int, head: Tensor | None = None) -> float:
        def step(_: int) -> Tensor:
            x = self.step(m)
            return x if head is None else linear.fused_linear(x, head, norm=self.norm, eps=1e-6)

        return graph_us(step, 1, repeat)


def use(m: int, n: int, k: int, silu: bool, tile: Tile | None) -> None:
    linear._planned.cache_clear()
    linear.TUNED[m, n, k, silu] = tile


PLANS = {"0.6B": (14, (8, 16)), "8B": (8, (8, 16)), "4B": (8, (8, 32)), "30B-A3B": (24, (8, 32))}
MANY = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def tune_all(rows: tuple[int, ...], names: list[str]) -> None:
    for name in names:
        kinds = shapes(name)
        if name not in ("0.6B", "8B"):
            kinds = kinds[:-1]
        for m in rows or PLANS[name][1]:
            for _, n, k, norm, residual, silu in kinds:
                x, scale, rest = inputs(m, n, k, norm, residual, silu)
                weight = torch.empty(n, k, device=DEVICE, dtype=torch.bfloat16)
                before = linear.TUNED.get((m, n, k, silu), ())
                for tile in [linear.choose(m, n, k, silu), *candidates(m, n, k, norm, name not in ("0.6B", "8B"))]:
                    use(m, n, k, silu, tile)
                    linear.fused_linear(x, weight, norm=scale, eps=1e-6, residual=rest, silu=silu)
                linear.TUNED.pop((m, n, k, silu))
                if before != ():
                    use(m, n, k, silu, before)
    linear._planned.cache_clear()


Tried = list[tuple[float, Tile | None]]


def try_all(
    label: str, m: int, kind: Shape, weight: Tensor, tiles: list[Tile | None], timed: Callable[[], float]
) -> Tried:
    """The tiles that multiply right, fastest first; the first of them is used from now on."""
    _, n, k, norm, residual, silu = kind
    x, scale, rest = inputs(m, n, k, norm, residual, silu)
    right, tries = exact(x, weight, scale, rest, silu), []
    for tile in dict.fromkeys(tiles):
        use(m, n, k, silu, tile)
        try:
            torch.full(
                (m, n // 2 if silu else n), float("nan"), device=DEVICE, dtype=torch.bfloat16
            )  # y gets its place
            error = distance(linear.fused_linear(x, weight, norm=scale, eps=1e-6, residual=rest, silu=silu), right)
            if error < 1e-2:
                tries.append((timed(), tile))
            else:
                print(f"  WRONG {label} m={m} {tile and tuple(tile)}: {error:.2e}")
        except Exception as error:
            print(f"  {label} m={m} {tile and tuple(tile)}: {str(error).splitlines()[0][:100]}")
    tries.sort(key=lambda entry: entry[0])
    use(m, n, k, silu, tries[0][1])
    return tries


def told(tries: Tried, each: int) -> str:
    return " ".join(f"{tuple(map(int, tile)) if tile else 'torch'}:{us / each:.2f}" for us, tile in tries)


def tune(rows: tuple[int, ...], names: list[str]) -> None:
    """Each shape's tile in turn, by the time of all products together."""
    original = dict(linear.TUNED)
    for name in names:
        few, layers = name not in ("0.6B", "8B"), PLANS[name][0]
        chain = Chain(name, layers)
        hidden = chain.kinds[0][2]
        heads = [
            torch.empty(VOCABULARY, hidden, device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02)
            for _ in range(0 if few else 2 if name == "0.6B" else 1)
        ]
        for m in rows or PLANS[name][1]:
            began = time.perf_counter()
            best = first = chain.us(m, 7)
            lines = []
            for at, kind in sorted(enumerate(chain.kinds), key=lambda entry: -entry[1][1] * entry[1][2]):
                label, n, k, norm, _, silu = kind
                tiles = [linear.choose(m, n, k, silu), *candidates(m, n, k, norm, few)]
                tries = try_all(f"{name} {label}", m, kind, chain.weights[0][at], tiles, partial(chain.us, m, 5))
                best = tries[0][0]
                lines.append(f"   {label:8}" + told(tries, layers))
                figures.setdefault("tune", []).append([name, m, label, layers, tries])
            if heads:
                kind = shapes(name)[-1]
                tiles = [linear.choose(m, VOCABULARY, hidden, False), *candidates(m, VOCABULARY, hidden, True, False)]
                tries = try_all(f"{name} head", m, kind, heads[0], tiles, partial(head_us, chain, heads, m))
                lines.append("   head    " + told(tries, 1))
                figures.setdefault("tune", []).append([name, m, "head", 1, tries])
            print(
                f"{name} m={m}: {first / layers:.2f} -> {best / layers:.2f} us a layer, "
                f"floor {chain.floor / layers:.2f} ({chain.floor / best:.0%}) [{time.perf_counter() - began:.1f} s]"
            )
            print("\n".join(lines), flush=True)
            write_tiles()
        del chain, heads
        torch.cuda.empty_cache()
    print("changed:", len([key for key in linear.TUNED if original.get(key, ()) != linear.TUNED[key]]))


def head_us(chain: Chain, heads: list[Tensor], m: int) -> float:
    x, norm = chain.start[:m], chain.norm
    return graph_us(lambda i: linear.fused_linear(x, heads[i % len(heads)], norm=norm, eps=1e-6), 4, 3)


def write_tiles() -> None:
    """In the format of src/qwen3/data/linear_tiles.json."""
    if "OUT" in os.environ:
        rows = sorted(linear.TUNED.items(), key=lambda entry: entry[0])
        lines = ",\n".join(json.dumps([*map(int, key), tile and [*map(int, tile)]]) for key, tile in rows)
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
    wanted = [section.partition(":") for section in sys.argv[1:] or ["check", "tune", "many", "chain", "invariant"]]
    every = {"tune": list(PLANS), "many": ["8B", "0.6B"], "chain": ["0.6B", "8B"]}
    before: dict[str, Callable[[list[str]], object]] = {
        "check": lambda _: check_all(),
        "tune": partial(tune_all, ()),
        "many": partial(tune_all, MANY),
        "invariant": lambda _: None,
        "chain": chain_all,
    }
    sections: dict[str, Callable[[list[str]], object]] = {
        "check": lambda _: check(),
        "tune": partial(tune, ()),
        "many": partial(tune, MANY),
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
