"""Adapters on one GPU, checked and then measured: `PYTHONPATH=src:. python tools/adapters_bench.py [SECTION...]`.

checks: gradients of adapters beside bf16 and nf4 bases, dense and experts, against float32 on the CPU; requests with
several adapters in one batch against each merged model. decode: steps and prompts of Qwen3-8B's shape on random
weights, without adapters, with two of rank 16 that some rows or all use. train: an update of QLoRA beside LoRA's, and
its memory. Prints what it finds and writes `$OUT/adapters_bench.json`; --tiny runs all on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwen3.config import ModelConfig
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.model import Qwen3
from qwen3.train.adapters import LoraConfig, add_lora, merge
from qwen3.train.forward import Forward, to_tensors
from qwen3.train.nf4 import hold_nf4, memory
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import pack
from qwen3.train.samples import completion_sample
from qwen3.train.trainer import CrossEntropy, Trainer
from tests.adapting import random_adapter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
SMALL: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 128, "intermediate_size": 512, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SPARSE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
DENSE_8B = SMALL | {
    "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 12288, "tie_word_embeddings": False,
}  # fmt: skip
BASES: dict[str, Callable[[Qwen3], Any]] = {"bf16": lambda model: model, "nf4": hold_nf4}


def random_model(values: dict[str, Any], device: torch.device, dtype: torch.dtype, std: float = 0.02) -> Qwen3:
    torch.manual_seed(0)
    model = Qwen3(ModelConfig(**values), device=device, dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0, std)
    return model


def gradients(values: dict[str, Any], compress: Callable[[Qwen3], Any]) -> float:
    """Relative distance of an adapter's gradients from those in float32 on the CPU, with the same weights."""
    model = random_model(values, torch.device("cpu"), torch.float32, 0.06).bfloat16().float()
    ids = [torch.randint(0, 640, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (60, 31, 50)]
    batch, _ = pack([completion_sample([], one) for one in ids], 2, 128, 0)
    found = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (DEVICE, DTYPE)):
        mine = compress(copy.deepcopy(model)).to(device).to(dtype)
        trained = add_lora(mine, LoraConfig(rank=4), seed=1)
        with torch.no_grad():
            for i, p in enumerate(trained.values()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
        tensors = to_tensors(batch, device)
        hidden = Forward(mine)(tensors)[0][tensors.documents > 0]
        (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1], device=device)).sum().backward()
        found.append(torch.cat([p.grad.flatten().double().cpu() for p in trained.values() if p.grad is not None]))
    return float((found[1] - found[0]).norm() / found[0].norm())


def served(values: dict[str, Any]) -> float:
    """Mean distance of log-probabilities from those of each adapter's merged model, for a mixed batch."""
    model = random_model(values, DEVICE, DTYPE, 0.06)
    adapters = {name: random_adapter(model.config, rank, seed=rank, gain=0.3) for name, rank in (("a", 8), ("b", 20))}
    networks = {n: merge(copy.deepcopy(model).float(), x) for n, x in adapters.items()} | {None: model.float()}
    model = random_model(values, DEVICE, DTYPE, 0.06)
    engine = Engine(model, max_batch=16, max_len=512, blocks=256, adapters={"a": adapters["a"]})
    params = SamplingParams(temperature=1, seed=1, max_tokens=24, logprobs=0, ignore_eos=True).resolved("instruct")
    asked = [Request([*range(9 * i, 9 * i + 40)], params, adapter=name) for i, name in enumerate(("a", None, "b", "a"))]
    for request in asked:
        if request.adapter == "b":
            engine.load_adapter("b", adapters["b"])
        engine.add(request)
        engine.advance()
    while engine.has_work:
        engine.advance()
    errors = []
    for request in asked:
        with torch.no_grad():
            logits = networks[request.adapter](torch.tensor([request.ids + request.output], device=DEVICE))[0].double()
        truth = logits.log_softmax(-1)[len(request.ids) - 1 : -1]
        for row, entry in zip(truth, request.logprobs, strict=True):
            errors.append(abs(float(row[entry.id]) - entry.logprob))
    engine.close()
    return sum(errors) / len(errors)


def checks() -> list[dict[str, Any]]:
    loose, found = DEVICE.type == "cuda", []
    for shape, values in (("dense", SMALL), ("experts", SMALL | SPARSE)):
        errors = {f"gradients, {name} base": (gradients(values, made), 0.05) for name, made in BASES.items()}
        errors["log-probabilities of a mixed batch"] = served(values), 0.06
        for name, (error, allowed) in errors.items():
            found.append({"shape": shape, "check": name, "error": error, "ok": error <= (allowed if loose else 1e-3)})
    return found


def decoding(values: dict[str, Any], rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Tokens a second of decode steps, and of prompts."""
    tiny = DEVICE.type == "cpu"
    model = random_model(values, DEVICE, DTYPE)
    adapters = {name: random_adapter(model.config, 16, seed=i, gain=0.01) for i, name in enumerate("ab")}
    engine = Engine(model, max_batch=max(rows), max_len=1024, prefix_cache=False, blocks=None if not tiny else 512)
    steps, found = 8 if tiny else 96, []
    cases: dict[str, tuple[str | None, ...]] = {
        "none is loaded": (None,), "loaded, nobody asks": (None,), "half of the rows": ("a", None),
        "two adapters": ("a", "b"),
    }  # fmt: skip
    for label, names in cases.items():
        if label == "loaded, nobody asks":
            for name, adapter in adapters.items():
                engine.load_adapter(name, adapter)
        for count in rows:
            params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True).resolved("instruct")
            for timed in (False, True):
                asked = [Request([i + 1] * 64, params, adapter=names[i % len(names)]) for i in range(count)]
                for request in asked:
                    engine.add(request)
                while not all(request.clock.first_token for request in asked) and engine.overlap is False:
                    engine.advance()
                for _ in range(4):
                    engine.advance()
                _wait()
                begin, ran = time.perf_counter(), 0
                while engine.has_work:
                    engine.advance()
                    ran += 1
                _wait()
                seconds = time.perf_counter() - begin
                if timed:
                    found.append({"adapters": label, "rows": count, "ms/step": 1e3 * seconds / max(1, ran)})
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True).resolved("instruct")
        size = 64 if tiny else 960
        for _ in range(2):
            asked = [Request([i + 1] * size, params, adapter=names[i % len(names)]) for i in range(8)]
            _wait()
            begin = time.perf_counter()
            for request in asked:
                engine.add(request)
            while engine.has_work:
                engine.advance()
            _wait()
            seconds = time.perf_counter() - begin
        found.append({"adapters": label, "rows": f"prompts 8 × {size}", "tok/s": 8 * size / seconds})
    engine.close()
    return found


def training(values: dict[str, Any], length: int) -> list[dict[str, Any]]:
    found = []
    for name, compress in BASES.items():
        model = compress(random_model(values, DEVICE, DTYPE))
        if name == "nf4":
            print(memory(model), flush=True)
        add_lora(model, LoraConfig(rank=16))
        trainer = Trainer(model, OptimConfig(kind="adamw", vector_lr=2e-4))
        ids = torch.randint(0, values["vocab_size"], (length,)).tolist()
        batch, _ = pack([completion_sample([], ids)], 1, length, 0)
        losses = [trainer.update([batch], CrossEntropy())["loss"] for _ in range(2)]
        _wait()
        begin = time.perf_counter()
        for _ in range(4):
            losses.append(trainer.update([batch], CrossEntropy())["loss"])
        _wait()
        speed = 4 * length / (time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0
        found.append({"base": name, "tok/s": speed, "GB": peak, "loss": losses[0], "loss later": losses[-1]})
        del model, trainer
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return found


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=["checks", "decode", "train", []])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    args = parser.parse_args()
    result: dict[str, Any] = {"torch": torch.__version__, "device": str(DEVICE)}
    big = SMALL if args.tiny else DENSE_8B
    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "checks": checks,
        "decode": lambda: decoding(big, (1, 4) if args.tiny else (1, 8, 64)),
        "train": lambda: training(big, 128 if args.tiny else 8192),
    }
    for name in args.sections or sections:
        result[name] = sections[name]()
        for row in result[name]:
            print(name, *(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        Path(args.out, "adapters_bench.json").write_text(json.dumps(result, indent=1))
    return int(any(not row["ok"] for row in result.get("checks", ())))


if __name__ == "__main__":
    sys.exit(main())
