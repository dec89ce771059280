"""Where a decode step on the CPU spends its time: one step of a model's shape, made of the engine's operations.

    PYTHONPATH=src OMP_NUM_THREADS=2 python tools/tune/cpu.py [--model 0.6B] [--dtype bfloat16] [--context 1024]

Prints the read bandwidth, each operation's µs (median, and best) and bytes, the step's, and the same step of the
references, in interleaved rounds: other users of the cores then slow all of them alike. JSON to $OUT/cpu.json if set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qwen3.kernels import cpu, reference_engine
from qwen3.kernels.plan import BLOCK, StepPlan

SHAPES = {  # layers, hidden, heads, kv heads, intermediate, vocabulary
    "embedded": (6, 512, 4, 2, 1024, 8320),
    "0.6B": (28, 1024, 16, 8, 3072, 151936),
    "1.7B": (28, 2048, 16, 8, 6144, 151936),
}
DIM = 128


class Network:
    """Random weights, rounded to bfloat16 as published ones are, and a paged cache."""

    def __init__(self, name: str, dtype: torch.dtype, rows: int, context: int) -> None:
        self.layers, self.hidden, self.heads, self.kv_heads, width, self.vocabulary = SHAPES[name]
        self.rows, self.context = rows, context

        def weight(*shape: int) -> Tensor:
            return (torch.randn(shape, dtype=torch.bfloat16) * 0.02).to(dtype)

        fused = (self.heads + 2 * self.kv_heads) * DIM
        h = self.hidden
        self.weights = [
            (weight(fused, h), weight(h, self.heads * DIM), weight(2 * width, h), weight(h, width))
            for _ in range(self.layers)
        ]
        self.table = weight(self.vocabulary, h)
        self.norm, self.head_norm = torch.ones(h, dtype=dtype), torch.ones(DIM, dtype=dtype)
        per_row = -(-context // BLOCK)
        self.cache = torch.zeros(2, self.layers, 1 + rows * per_row, BLOCK, self.kv_heads, DIM, dtype=dtype)
        self.tables = (1 + torch.arange(rows * per_row, dtype=torch.int32)).view(rows, per_row)
        self.cos_sin = torch.randn(context, DIM)

    def plan(self, size: int = 1) -> StepPlan:
        """The rows' last `size` tokens."""
        own = torch.arange(self.context - size, self.context, dtype=torch.int32).repeat(self.rows, 1)
        slots = self.tables.gather(1, (own // BLOCK).long()) * BLOCK + own % BLOCK
        starts = torch.arange(self.rows + 1, dtype=torch.int32) * size
        lengths = torch.full((self.rows,), self.context, dtype=torch.int32)
        decode = self.rows if size == 1 else 0
        return StepPlan(
            own.flatten(), slots.flatten(), self.tables, starts, lengths, self.cos_sin, decode, size, self.context
        )

    def step(self, ops: dict[str, Callable[..., Tensor]], size: int = 1) -> Tensor:
        """ids -> logits of each row's last token, greedy choice included."""
        linear, attend, plan = ops["fused_linear"], ops["attend"], self.plan(size)
        x = torch.nn.functional.embedding(plan.positions, self.table)
        for layer, (qkv, o, gate_up, down) in enumerate(self.weights):
            k, v = self.cache[0, layer], self.cache[1, layer]
            y = linear(x, qkv, norm=self.norm, eps=1e-6)
            y = attend(y, self.heads, self.kv_heads, self.head_norm, self.head_norm, 1e-6, plan, k, v)
            x = linear(y, o, residual=x)
            x = linear(linear(x, gate_up, norm=self.norm, eps=1e-6, silu=True), down, residual=x)
        last = x if size == 1 else x.index_select(0, plan.starts[1:].long() - 1)
        return linear(last, self.table, norm=self.norm, eps=1e-6).argmax(-1)


def rounds(cases: dict[str, Callable[[], object]], count: int) -> dict[str, tuple[float, float]]:
    """µs (median, best) of each case: `count` interleaved rounds of six runs, the first of which only warms up."""
    # One thread's own time leaves out what the core did for others.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(count):
        for name, case in cases.items():
            case()
            for _ in range(5):
                start = clock()
                case()
                times[name].append((clock() - start) * 1e6)
    return {name: (statistics.median(t), min(t)) for name, t in times.items()}


def operations(net: Network) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """One layer's operations and the head, each over all layers' weights, and the bytes of weights each must read."""
    plan = net.plan()
    x = torch.randn(net.rows, net.hidden).to(net.table.dtype)
    wide = torch.randn(net.rows, net.weights[0][1].shape[1]).to(x.dtype)
    middle = torch.randn(net.rows, net.weights[0][3].shape[1]).to(x.dtype)
    qkv = torch.randn(net.rows, net.weights[0][0].shape[0]).to(x.dtype)

    def each(index: int, given: Tensor, **how: object) -> Callable[[], object]:
        return lambda: [cpu.fused_linear(given, w[index], **how) for w in net.weights]  # type: ignore[arg-type]

    def attend() -> object:
        return [
            cpu.attend(qkv, net.heads, net.kv_heads, net.head_norm, net.head_norm, 1e-6, plan, *net.cache[:, layer])
            for layer in range(net.layers)
        ]

    cases: dict[str, Callable[[], object]] = {
        "norm+qkv": each(0, x, norm=net.norm, eps=1e-6),
        "attend": attend,
        "o+residual": each(1, wide, residual=x),
        "norm+gate_up+silu": each(2, x, norm=net.norm, eps=1e-6, silu=True),
        "down+residual": each(3, middle, residual=x),
        "norm+head": lambda: cpu.fused_linear(x, net.table, norm=net.norm, eps=1e-6),
    }
    size = [2 * sum(w[i].numel() for w in net.weights) for i in range(4)]
    held = 2 * net.cache[0, :, 0, 0].numel() * net.rows * net.context * net.cache.element_size()
    return cases, dict(zip(cases, (size[0], held, size[1], size[2], size[3], 2 * net.table.numel()), strict=True))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="embedded")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    net = Network(given.model, getattr(torch, given.dtype), given.rows, max(given.context, given.prefill))
    start = time.perf_counter()
    cpu.pack_limit = 1 << 40
    for weight in (net.table, *(w for layer in net.weights for w in layer)):
        cpu.packed(weight)
    packing = time.perf_counter() - start
    block = torch.ones(1 << 26)
    cases, sizes = operations(net)
    plain = {name: getattr(reference_engine, name) for name in ("fused_linear", "attend")}
    cases["step"] = lambda: net.step(cpu.OPERATIONS)
    cases["step, references"] = lambda: net.step(plain)
    cases["prefill"] = lambda: net.step(cpu.OPERATIONS, given.prefill)
    cases["read 256 MB"] = lambda: block.sum()
    sizes["read 256 MB"] = block.numel() * 4
    sizes["step"] = sum(sizes[name] for name in list(cases)[:6])
    found = rounds(cases, given.rounds)
    print(f"{given.model} {given.dtype} rows {given.rows} context {given.context} threads {torch.get_num_threads()}")
    print(f"packed {cpu.packed_bytes / 1e6:.0f} MB in {packing:.2f} s; prefill {given.prefill} tokens a row")
    for name, (middle, best) in found.items():
        speed = f"{sizes[name] / best / 1e3:7.1f} GB/s" if name in sizes else ""
        print(f"{name:20s}{middle:10.0f} µs   best {best:10.0f} {speed}")
    print(f"step: {1e6 / found['step'][0] * given.rows:.0f} tok/s, best {1e6 / found['step'][1] * given.rows:.0f}")
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "cpu.json").write_text(json.dumps({**vars(given), "packing_s": packing, "us": found}))


if __name__ == "__main__":
    main()
