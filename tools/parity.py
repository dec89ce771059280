"""Is the trainer's loss that of `transformers` and a plain PyTorch loop? The same first weights, the same rows, AdamW.

    python tools/parity.py --updates 200 --out benchmarks/2026-11-22-train-parity-cpu.json

A tiny dense model and a tiny mixture of experts, float32 on the CPU. The loop knows nothing of ours: its network is
transformers', its optimiser torch.optim.AdamW in two groups (weight decay on hidden matrices only), its rows are plain
tensors, its gradient is clipped by torch. The balance of experts is written out from its formula (Qiu et al. 2025).
What is compared is the loss of each update: the largest relative difference. Rounding alone turns one expert into
another sooner or later, so transformers is also compared with itself, from weights that differ by a part in 10^7.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qwen3.checkpoint import save_checkpoint
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.train.initial import init_weights
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import pack
from qwen3.train.samples import TokenSample
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.trainer import CrossEntropy, Trainer

ROWS, LENGTH, PARTS = 4, 64, 2  # rows of a micro-batch, their tokens, micro-batches of an update
OPTIM = OptimConfig("adamw", matrix_lr=3e-3, vector_lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
BALANCE = 0.01


def config_of(kind: str) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 160, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "dtype": "float32",
    }  # fmt: skip
    if kind == "moe":
        shape |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return ModelConfig(**shape)


def rows_of(update: int) -> list[np.ndarray[Any, Any]]:
    """[PARTS][ROWS, LENGTH] ids with something to learn: each row counts up by a step of its own, with errors."""
    rng = random.Random(update)
    parts = []
    for _ in range(PARTS):
        rows = []
        for _ in range(ROWS):
            start, step = rng.randrange(512), rng.randint(1, 9)
            row = [(start + i * step) % 512 if rng.random() < 0.9 else rng.randrange(512) for i in range(LENGTH)]
            rows.append(row)
        parts.append(np.array(rows, dtype=np.int32))
    return parts


def scale_of(update: int, updates: int) -> float:
    return warmup_stable_decay(update, updates, warmup=max(1, updates // 20), decay=updates // 2)


def ours(model: Qwen3, updates: int) -> list[float]:
    trainer = Trainer(model, OPTIM, balance=BALANCE if model.config.num_experts else 0.0)
    losses = []
    for update in range(updates):
        batches = []
        for rows in rows_of(update):
            samples = [TokenSample(row, np.arange(LENGTH) > 0) for row in rows]
            batches.append(pack(samples, ROWS, LENGTH, 0)[0])
        losses.append(trainer.update(batches, CrossEntropy(), scale_of(update, updates))["loss"])
    return losses


def theirs(folder: Path, updates: int, noise: float = 0.0) -> list[float]:
    """noise: relative, of the first weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator))
    named = dict(model.named_parameters())
    decayed = [p for n, p in named.items() if p.dim() >= 2 and "embed" not in n and "mlp.gate." not in n]
    others = [p for p in named.values() if all(p is not d for d in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIM.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIM.matrix_lr, betas=OPTIM.betas, eps=OPTIM.eps,
    )  # fmt: skip
    sparse = bool(getattr(model.config, "num_experts", 0))
    losses = []
    for update in range(updates):
        parts = [torch.from_numpy(rows).long() for rows in rows_of(update)]
        outs = [model(input_ids=ids, output_router_logits=True) if sparse else model(input_ids=ids) for ids in parts]
        count = PARTS * ROWS * (LENGTH - 1)
        nll = sum(
            F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            for out, ids in zip(outs, parts, strict=True)
        )
        loss = nll / count
        total = loss
        if sparse:
            for layer in range(model.config.num_hidden_layers):
                p = torch.cat([out.router_logits[layer] for out in outs]).softmax(-1)
                top = p.topk(model.config.num_experts_per_tok).indices.flatten()
                share = torch.bincount(top, minlength=p.shape[-1]) / len(top)
                total = total + BALANCE * p.shape[-1] * (share * p.mean(0)).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        for group in optimizer.param_groups:
            group["lr"] = OPTIM.matrix_lr * scale_of(update, updates)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def apart(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """at: the update of the largest difference. near: updates before the first one above 10^-4."""
    each = [abs(a - b) / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "largest_relative_difference": max(each), "at": int(np.argmax(each)) + 1,
        "mean_relative_difference": math.fsum(each) / len(each),
        "near": next((i for i, x in enumerate(each) if x > 1e-4), len(each)),
    }  # fmt: skip


def compare(kind: str, updates: int, itself: bool = False) -> dict[str, Any]:
    """{"first", "last": ours; what `apart` gives; "transformers_against_itself": the same, where asked for}."""
    config = config_of(kind)
    model = Qwen3(config, device="cpu", dtype=torch.float32)
    init_weights(model, 0)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "m", model)
        began = time.perf_counter()
        mine = ours(model, updates)
        middle = time.perf_counter()
        other = theirs(Path(folder) / "m", updates)
        end = time.perf_counter()
        again = (
            {"transformers_against_itself": apart(theirs(Path(folder) / "m", updates, 1e-7), other)} if itself else {}
        )
        seconds = {"ours": round(middle - began, 1), "theirs": round(end - middle, 1)}
    return {
        "kind": kind, "parameters": config.num_parameters(), "updates": updates,
        "tokens_per_update": PARTS * ROWS * LENGTH, "first": mine[0], "last": mine[-1], "last_theirs": other[-1],
        "seconds": seconds, **apart(mine, other), **again,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import transformers

    words, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    report = {
        "name": "loss parity with transformers and a plain loop", "command": " ".join(["python", *sys.argv]),
        "machine": "2 shared EPYC cores", "commit": commit.stdout.strip(), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": [compare(kind, args.updates, itself=True) for kind in ("dense", "moe")],
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
