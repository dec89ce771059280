"""Training on one GPU, checked and then measured: `PYTHONPATH=src python tools/train_bench.py SECTION... [--tiny]`.

Sections: parity (every fast path against its reference), attention (the ways to attend, timed), dense06b (Qwen3-0.6B,
one document of 8,192 tokens a row), embedded (18M parameters, short documents), moe (layers of 30B-A3B's shape beside
dense ones of the same active size), lora8b (an adapter on 8B), fp8 (products in 8 bits, checked, then beside bf16),
optim (the optimiser alone). Each prints a table and
writes `$OUT/train_bench_SECTION.json`; --tiny runs them all on a CPU in seconds, to show that they work. Needs torch
and numpy (Triton on a GPU) and what `qwen3` needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.model.lora import LoraConfig
from qwen3.train import moe
from qwen3.train.adapters import add_lora
from qwen3.train.forward import AttentionPlan, BatchTensors, attend, plan_attention, to_tensors
from qwen3.train.fp8 import Fp8, fp8_linear
from qwen3.train.losses import linear_cross_entropy
from qwen3.train.optim import OptimConfig, Optimizer
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample
from qwen3.train.trainer import CrossEntropy, Trainer, flops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
TINY = False
OPTIONS: dict[str, Any] = {}


def shape(**values: Any) -> dict[str, Any]:
    return {"bos_token_id": 0, "eos_token_id": 1, **values}


DENSE_06B = shape(
    vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    intermediate_size=3072, tie_word_embeddings=True,
)  # fmt: skip
DENSE_8B = shape(
    vocab_size=151936, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=12288,
)  # fmt: skip
EMBEDDED = shape(
    vocab_size=8320, hidden_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=1024, tie_word_embeddings=True, rope_theta=1e4,
)  # fmt: skip
MOE_LAYERS = shape(
    vocab_size=8192, hidden_size=2048, num_hidden_layers=3, num_attention_heads=32, num_key_value_heads=4,
    intermediate_size=6144, tie_word_embeddings=True, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
)  # fmt: skip
SMALL = shape(
    vocab_size=640, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    intermediate_size=128, tie_word_embeddings=True,
)  # fmt: skip


def config(values: dict[str, Any]) -> ModelConfig:
    if TINY:
        sparse = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        values = SMALL | (sparse if values.get("num_experts") else {})
    return ModelConfig(**values)


def random_model(values: dict[str, Any], dtype: torch.dtype = DTYPE, device: torch.device = DEVICE) -> Qwen3:
    torch.manual_seed(0)
    model = Qwen3(config(values), device=device, dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0, 0.02)
    return model


def batch_of(rows: int, length: int, lengths: Iterable[int], vocabulary: int, seed: int = 0) -> PackedBatch:
    """Random tokens in documents of these lengths, as many as fit."""
    rng = np.random.default_rng(seed)
    samples, room = [], rows * length
    for n in lengths:
        if n > room:
            break
        room -= n
        trained = np.arange(n) > 0
        samples.append(TokenSample(rng.integers(0, vocabulary, n).astype(np.int32), trained))
    return pack(samples, rows, length, 0)[0]


def short_lengths(seed: int, longest: int) -> Iterable[int]:
    """Lengths of conversations: 40 to 600 tokens, some long ones."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(min(longest, rng.choice([rng.integers(40, 200), rng.integers(100, 600)])))


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], budget: float, least: int = 3) -> float:
    """Seconds a call, warmed up, over at least `least` calls and about `budget` seconds."""
    work()
    wait()
    begin = time.perf_counter()
    work()
    wait()
    count = max(least, int(budget / max(time.perf_counter() - begin, 1e-6)))
    begin = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - begin) / count


def distance(found: Tensor, right: Tensor) -> float:
    a, b = found.detach().double().cpu(), right.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def table(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[f"{row[n]:.4g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names] for row in rows]
    widths = [max(len(n), *(len(line[i]) for line in lines)) for i, n in enumerate(names)]
    for line in [names, *lines]:
        print(
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    sys.stdout.flush()


# --- sections: each returns the rows of its table


def parity() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def check(name: str, error: float, allowed: float) -> None:
        rows.append({"check": name, "error": error, "allowed": allowed, "ok": bool(error <= allowed)})

    loose = 0.012 if DEVICE.type == "cuda" else 1e-4
    length = 128 if TINY else 1024
    for name, lengths in (("ragged", short_lengths(0, length)), ("whole", [length] * 9)):
        tensors = to_tensors(batch_of(2, length, lengths, 500), DEVICE)
        for kind in ["varlen", *(["flex"] if DEVICE.type == "cuda" else []), *(["equal"] if name == "whole" else [])]:
            try:
                check(f"attention {kind} {name}", attention_error(tensors, kind), loose)
            except Exception as error:
                rows.append({"check": f"attention {kind} {name}", "ok": False, "note": repr(error)[:200]})
    check("grouped product, forward and backward", grouped_error(), loose)
    check("sparse block against the reference network", sparse_error(), loose)
    check("head's gradient, in chunks", head_error(), loose)
    for kind in ("adamw", "muon"):
        check(
            f"one step of {kind} against float32 on the CPU", step_error(kind), 0.08 if DEVICE.type == "cuda" else 1e-4
        )
    compiled, plain, dense = losses("layers"), losses("none"), losses("none", attention="dense")
    check(
        "loss: compiled against plain, 3 updates", max(abs(a - b) for a, b in zip(compiled, plain, strict=True)), 0.05
    )
    check("loss: packed against dense attention", max(abs(a - b) for a, b in zip(plain, dense, strict=True)), 0.05)
    for how in ("layers", "attention"):
        again = losses("none", checkpointing=how)
        check(f"loss: checkpointing {how}", max(abs(a - b) for a, b in zip(plain, again, strict=True)), 0.02)
    return rows


def qkv(tensors: BatchTensors, heads: int, kv: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    rows, length = tensors.ids.shape
    torch.manual_seed(1)
    # as the network gives them: [B, T, H, D], turned
    made = [torch.randn(rows, length, n, width, device=DEVICE).to(dtype) for n in (heads, kv, kv)]
    return [t.requires_grad_() for t in made]


def attended(plan: AttentionPlan, parts: list[Tensor]) -> Tensor:
    return attend(plan, *(t.transpose(1, 2) for t in parts)).transpose(1, 2)


def attention_error(tensors: BatchTensors, fast: Any) -> float:
    parts = qkv(tensors, 16, 8, 128, DTYPE)
    wide = [t.detach().float().requires_grad_() for t in parts]
    kept = (tensors.documents > 0)[..., None, None]
    weight = torch.randn_like(wide[0]) * kept
    results = []
    asked: list[tuple[list[Tensor], Any]] = [(parts, fast), (wide, "dense")]
    for inputs, how in asked:
        out = attended(plan_attention(tensors, inputs[0].dtype, how), inputs)
        (out.float() * weight).sum().backward()
        results.append([out * kept, *(t.grad for t in inputs)])
    return max(distance(a, b) for a, b in zip(*results, strict=True) if a is not None and b is not None)


def grouped_error() -> float:
    torch.manual_seed(2)
    counts = torch.tensor([13, 0, 40, 1, 64, 0, 7, 131])
    ends = counts.cumsum(0).int().to(DEVICE)
    x = torch.randn(int(counts.sum()), 64, device=DEVICE).to(DTYPE).requires_grad_()
    w = torch.randn(8, 48, 64, device=DEVICE).to(DTYPE).requires_grad_()
    wide_x, wide_w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    right = torch.cat([part @ w.T for part, w in zip(wide_x.split(counts.tolist()), wide_w, strict=True)])
    outer = torch.randn_like(right)
    right.backward(outer)
    found = kernels.grouped_linear(x, w, ends)
    found.backward(outer.to(DTYPE))
    pairs = ((found, right), (x.grad, wide_x.grad), (w.grad, wide_w.grad))
    return max(distance(a, b) for a, b in pairs if a is not None and b is not None)


def sparse_error() -> float:
    small = SMALL | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    model = Qwen3(ModelConfig(**small), device=DEVICE, dtype=DTYPE)
    block: Any = model.layers[0].mlp
    torch.manual_seed(3)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(2, 50, 64, device=DEVICE).to(DTYPE)
    outer = torch.randn_like(x)
    results = []
    for forward in (moe.sparse_forward, type(block).forward):
        mine = x.clone().requires_grad_()
        out = forward(block, mine)[0]
        results.append([out, *torch.autograd.grad(out, [mine, *block.parameters()], outer)])
    return max(distance(a, b) for a, b in zip(*results, strict=True))


def head_error() -> float:
    torch.manual_seed(4)
    vocabulary, count = (500, 64) if TINY else (151936, 2048)
    hidden = torch.randn(count, 64, device=DEVICE).to(DTYPE).requires_grad_()
    head = (torch.randn(vocabulary, 64, device=DEVICE) * 0.2).to(DTYPE).requires_grad_()
    labels = torch.randint(0, vocabulary, (count,), device=DEVICE)
    wide = [t.detach().float().requires_grad_() for t in (hidden, head)]
    right = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T, labels, reduction="sum")
    right.backward()
    found = linear_cross_entropy(hidden, head, labels, chunk=count // 3)
    found.backward()
    pairs = ((found, right), (hidden.grad, wide[0].grad), (head.grad, wide[1].grad))
    return max(distance(a, b) for a, b in pairs if a is not None and b is not None)


def step_error(kind: Any) -> float:
    """Relative distance of the change that two steps make, from the same gradients."""
    changes = []
    for device, dtype in ((DEVICE, DTYPE), (torch.device("cpu"), torch.float32)):
        torch.manual_seed(5)
        model = Qwen3(ModelConfig(**SMALL), device="cpu", dtype=torch.float32)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        gradients = [[torch.randn(p.shape).bfloat16().float() for p in model.parameters()] for _ in range(2)]
        model = model.bfloat16().to(device).to(dtype)
        optimizer = Optimizer(dict(model.named_parameters()), model.config, OptimConfig(kind=kind))
        before = {n: t.double().cpu().clone() for n, t in optimizer.master.items()}
        for step in gradients:
            for p, g in zip(model.parameters(), step, strict=True):
                p.grad = g.to(device, p.dtype)
            optimizer.step(1.0)
        changes.append(torch.cat([(t.double().cpu() - before[n]).flatten() for n, t in optimizer.master.items()]))
    return distance(*changes)


def losses(compiling: Any, **options: Any) -> list[float]:
    model = random_model(SMALL | {"head_dim": 64})
    trainer = Trainer(model, compiling=compiling if DEVICE.type == "cuda" else "none", **options)
    batches = [batch_of(2, 128 if TINY else 512, short_lengths(i, 128), 500, i) for i in range(2)]
    return [trainer.update(batches, CrossEntropy())["loss"] for _ in range(3)]


def attention() -> list[dict[str, Any]]:
    rows = []
    shapes = [
        ("4 × 8192 whole", 4, 8192, [8192] * 4, 16, 8),
        ("32 × 4096 short", 32, 4096, short_lengths(0, 600), 4, 2),
    ]
    if TINY:
        shapes = [("2 × 128 whole", 2, 128, [128] * 2, 4, 2), ("2 × 128 short", 2, 128, short_lengths(0, 60), 4, 2)]
    for name, count, length, lengths, heads, kv in shapes:
        batch = batch_of(count, length, lengths, 500)
        tensors = to_tensors(batch, DEVICE)
        pairs = float((np.diff(batch.bounds()).astype(float) ** 2).sum()) / 2
        for kind in ("equal", "flex", "varlen"):
            if (kind == "equal" and not tensors.whole) or (kind == "flex" and DEVICE.type == "cpu"):
                continue
            try:
                rows.append({"shape": name, "kind": kind} | attention_speed(tensors, kind, heads, kv, pairs))
            except Exception as error:
                rows.append({"shape": name, "kind": kind, "note": repr(error)[:200]})
    return rows


def attention_speed(tensors: BatchTensors, kind: Any, heads: int, kv: int, pairs: float) -> dict[str, Any]:
    parts = qkv(tensors, heads, kv, 32 if TINY else 128, DTYPE)
    work = 4 * pairs * heads * parts[0].shape[-1]
    outer = torch.randn_like(parts[0])
    plan = plan_attention(tensors, DTYPE, kind)
    torch._dynamo.reset()
    turned = torch.compile(attended) if DEVICE.type == "cuda" else attended
    with torch.no_grad():
        forward = seconds_of(lambda: turned(plan, parts), 0.2)

    def both() -> None:
        torch.autograd.grad(turned(plan, parts), parts, outer)

    whole = seconds_of(both, 0.3)
    planning = seconds_of(lambda: plan_attention(tensors, DTYPE, kind), 0.05)
    return {
        "forward ms": forward * 1e3, "TFLOP/s": work / forward / 1e12,
        "backward ms": (whole - forward) * 1e3, "backward TFLOP/s": 2.5 * work / (whole - forward) / 1e12,
        "plan ms": planning * 1e3,
    }  # fmt: skip


def measure(
    values: dict[str, Any], batches: list[PackedBatch], optim: OptimConfig, label: str, **how: Any
) -> dict[str, Any]:
    """One update after the other on one micro-batch each: speed, memory, and where the time goes."""
    torch.cuda.empty_cache() if DEVICE.type == "cuda" else None
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    micro, rank = how.pop("micro", 1), how.pop("rank", 0)
    begin = time.perf_counter()
    model = random_model(values)
    if rank:
        add_lora(model, LoraConfig(rank=rank))
    trainer = Trainer(model, optim, **({"compiling": OPTIONS["compiling"]} | how))
    groups = [[batches[(i * micro + j) % len(batches)] for j in range(micro)] for i in range(len(batches))]
    turn = iter(range(1 << 30))

    def update() -> Any:
        return trainer.update(groups[next(turn) % len(groups)], CrossEntropy())

    first = update()["loss"]
    wait()
    start = time.perf_counter() - begin
    update()
    per_update = seconds_of(update, OPTIONS["seconds"])
    tokens = sum(b.ids.size for b in groups[0])
    work = sum(flops(trainer.model.config, b) for b in groups[0])
    last = update()
    row = {
        "what": label, "tok/s": tokens / per_update, "MFU %": 100 * work / per_update / 989e12,
        "GFLOP/token": work / tokens / 1e9, "ms/update": per_update * 1e3, "tokens/update": tokens,
        "start s": start, "GB": last._known.get("memory", 0.0), "loss": first, "loss later": last["loss"],
    }  # fmt: skip
    row |= phases(trainer, groups[0][0], per_update)
    print(json.dumps(row), flush=True)  # a call that is cut off keeps what it has measured
    if DEVICE.type == "cuda" and OPTIONS["profile"]:
        profile(update, label)
    return row


def phases(trainer: Trainer, batch: PackedBatch, whole: float) -> dict[str, float]:
    """Milliseconds of the forward (gradients prepared), the head with its gradients, the backward and the optimiser."""
    tensors = to_tensors(batch, DEVICE)
    loss = CrossEntropy()
    forward = seconds_of(lambda: trainer.forward(tensors), 0.5)
    hidden = trainer.forward(tensors)[0].detach().flatten(0, 1).requires_grad_()
    head = seconds_of(lambda: loss(hidden, trainer.head, tensors), 0.3)

    def both() -> None:
        trainer.forward(tensors)[0].sum().backward()
        for p in trainer.model.parameters():
            p.grad = None

    backward = seconds_of(both, 0.5) - forward
    for p in trainer.optimizer.params.values():
        p.grad = torch.zeros_like(p)
    trainer.optimizer.collect()

    def step() -> None:
        trainer.optimizer._fresh = False
        trainer.optimizer.step(0.0)

    found = {"forward": forward, "head": head, "backward": backward, "optim": seconds_of(step, 0.3)}
    return {f"{name} ms": value * 1e3 for name, value in found.items()}


def profile(update: Callable[[], Any], label: str) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        update()
        wait()
    device = [e for e in found.key_averages() if str(e.device_type).endswith("CUDA")]
    kernels = [(e.key, e.self_device_time_total / 1e3, e.count) for e in device]
    kinds = {
        "attention": r"attention|flash|fmha|sdpa|cudnn.*(fprop|bprop)|flex",
        "product": r"gemm|cutlass|nvjet|cublas",
        "fused": "^triton",
    }
    sums = dict.fromkeys([*kinds, "other"], 0.0)
    for name, ms, _ in kernels:
        sums[next((k for k, pattern in kinds.items() if re.search(pattern, name, re.I)), "other")] += ms
    print(f"profile of {label}: " + ", ".join(f"{k} {v:.1f} ms" for k, v in sums.items()))
    table([{"kernel": n[:100], "ms": ms, "count": c} for n, ms, c in sorted(kernels, key=lambda k: -k[1])[:18]])


def dense06b() -> list[dict[str, Any]]:
    rows = []
    for count, kind in OPTIONS["dense"]:
        length = 128 if TINY else 8192
        batches = [batch_of(count, length, [length] * count, 600 if TINY else 151936, i) for i in range(2)]
        rows.append(measure(DENSE_06B, batches, OptimConfig(kind=kind), f"0.6B, {count} × {length}, {kind}"))
    return rows


def embedded() -> list[dict[str, Any]]:
    rows, length = (2, 128) if TINY else (32, 4096)
    batches = [batch_of(rows, length, short_lengths(i, 120 if TINY else 4096), 500, i) for i in range(4)]
    kinds = OPTIONS["attentions"] or [None]
    return [
        measure(EMBEDDED, batches, OptimConfig(), f"embedded, {rows} × {length}, {kind or 'chosen'}", attention=kind)
        for kind in kinds
    ]  # fmt: skip


def moe_layers() -> list[dict[str, Any]]:
    rows = []
    count, length = (2, 128) if TINY else (8, 4096)
    dense = {k: v for k, v in MOE_LAYERS.items() if "expert" not in k and k != "moe_intermediate_size"}
    batches = [batch_of(count, length, [length] * count, 600, i) for i in range(2)]
    for name, values in (("dense twin", dense), ("mixture of experts", MOE_LAYERS)):
        row = measure(values, batches, OptimConfig(kind="adamw"), f"{name}, {count} × {length}")
        work = row["GFLOP/token"] * row["tokens/update"] * 1e9
        row["layers MFU %"] = 100 * work / ((row["ms/update"] - row["optim ms"]) / 1e3) / 989e12
        rows.append(row)
    rows.append(
        {
            "what": "share of dense, without the optimiser",
            "layers MFU %": 100 * rows[1]["layers MFU %"] / rows[0]["layers MFU %"],
        }
    )
    return rows


def optim() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    kinds: tuple[Any, ...] = ("adamw", "muon")
    for kind in kinds:
        model = random_model(DENSE_06B)
        optimizer = Optimizer(dict(model.named_parameters()), model.config, OptimConfig(kind=kind))
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        collecting = time.perf_counter()
        optimizer.collect()
        wait()
        collecting = time.perf_counter() - collecting

        def step(optimizer: Optimizer = optimizer) -> None:
            optimizer._fresh = False
            optimizer.step(1.0)

        rows.append({"what": f"0.6B {kind}", "step ms": seconds_of(step, 0.5) * 1e3, "collect ms": collecting * 1e3})
    return rows


def lora8b() -> list[dict[str, Any]]:
    """Qwen3-8B's shape with an adapter of rank 16 at every matrix, one document of 8,192 tokens."""
    count, length = (2, 128) if TINY else (1, 8192)
    batches = [batch_of(count, length, [length] * count, 600, i) for i in range(2)]
    adamw = OptimConfig(kind="adamw", vector_lr=2e-4)
    return [measure(DENSE_8B, batches, adamw, f"LoRA on 8B, {count} × {length}", rank=4 if TINY else 16)]


def fp8() -> list[dict[str, Any]]:
    """The products against their twin in float32, then layers of the 8B's shape and the 0.6B with and without."""
    rows: list[dict[str, Any]] = []
    for rows_wise in (False, True):
        apart = fp8_error(rows_wise)
        name = f"product and gradients, {'rowwise' if rows_wise else 'one scale'}"
        rows.append({"what": name, "error": apart, "ok": apart < 0.01})
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        return rows
    layers8b = DENSE_8B | {"num_hidden_layers": 8, "vocab_size": 8192, "tie_word_embeddings": True}
    length = 128 if TINY else 8192
    for label, values in (("8 layers of 8B", layers8b), ("0.6B", DENSE_06B)):
        batches = [batch_of(2, length, [length] * 2, 600 if TINY else 8192, i) for i in range(2)]
        kinds: tuple[Fp8, ...] = (False, True, "rowwise")
        for kind in kinds:
            name = "bf16" if kind is False else "rowwise" if kind == "rowwise" else "one scale"
            how = OptimConfig(kind="adamw", matrix_lr=3e-4, vector_lr=3e-4)
            rows.append(measure(values, batches, how, f"{label}, 2 × {length}, {name}", fp8=kind))
    return rows


def fp8_error(rowwise: bool) -> float:
    """Relative distance of the product and both gradients from the twin's, at the most."""
    torch.manual_seed(6)
    x, weight = (torch.randn(n, 256, device=DEVICE).to(DTYPE).requires_grad_() for n in (512, 384))
    outer = torch.randn(512, 384, device=DEVICE).to(DTYPE)
    results = []
    for where in (DEVICE, torch.device("cpu")):
        a, b = (t.detach().to(where).requires_grad_() for t in (x, weight))
        out = fp8_linear(a, b, rowwise)
        results.append([out, *torch.autograd.grad(out, (a, b), outer.to(where))])
    return max(distance(mine, right.to(DEVICE)) for mine, right in zip(*results, strict=True))


SECTIONS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "parity": parity, "attention": attention, "optim": optim, "dense06b": dense06b, "embedded": embedded,
    "moe": moe_layers, "lora8b": lora8b, "fp8": fp8,
}  # fmt: skip


def main() -> int:
    global TINY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "all"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--seconds", type=float, default=6.0, help="of measured updates in each row")
    parser.add_argument("--compiling", default="layers", choices=["none", "layers", "whole"])
    parser.add_argument("--dense", default="4:adamw,4:muon", help="comma-separated ROWS:OPTIMISER for dense06b")
    parser.add_argument("--attentions", default="", help="comma-separated kinds for embedded; none: what is chosen")
    parser.add_argument("--no-profile", action="store_true")
    args = parser.parse_args()
    TINY = args.tiny
    OPTIONS.update(
        seconds=0.05 if TINY else args.seconds,
        compiling=args.compiling if DEVICE.type == "cuda" else "none",
        dense=[(int(n), kind) for n, kind in (part.split(":") for part in args.dense.split(","))],
        attentions=[a for a in args.attentions.split(",") if a],
        profile=not args.no_profile,
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    failed = 0
    for name in SECTIONS if "all" in args.sections else args.sections:
        print(f"\n== {name} ({machine}, torch {torch.__version__})", flush=True)
        begin = time.perf_counter()
        result: dict[str, Any] = {"section": name, "machine": machine, "torch": torch.__version__, "tiny": TINY}
        try:
            result["rows"] = SECTIONS[name]()
            table(result["rows"])
            failed += any(row.get("ok") is False for row in result["rows"])
        except Exception:
            result["error"] = traceback.format_exc()
            print(result["error"], flush=True)
            failed += 1
        result["seconds"] = time.perf_counter() - begin
        print(f"{name}: {result['seconds']:.1f} s", flush=True)
        Path(args.out, f"train_bench_{name}.json").write_text(json.dumps(result, indent=1))
        torch._dynamo.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
