"""The engine on a CUDA device, at the size that counts. Needs torch, transformers and pytest:

    python -m pytest tests/engine/test_gpu_engine.py -m gpu
    PYTHONPATH=src:. python tests/engine/test_gpu_engine.py [name ...] [--budget SECONDS] [--requests 50000]

As a script it prints one line for each test, goes on after failures and ends inside its budget.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwen3.checkpoint.fp8 import fp8_weights
from qwen3.config import ModelConfig
from qwen3.engine import Engine
from qwen3.model import Qwen3
from qwen3.model.load import quantize_model
from tests.engine.stress import (
    Counter,
    Counts,
    check_empty,
    containment,
    counting,
    invariance,
    mixed,
    random_network,
    transformers_twin,
)  # fmt: skip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(1200),
]
DEVICE = "cuda"
REQUESTS = 50_000
MIXED = 10_000
PROMPTS, TOKENS = 208, 128
DENSE = ModelConfig(
    vocab_size=32000,
    hidden_size=1024,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=8,
    intermediate_size=3072,
    bos_token_id=None,
    eos_token_id=None,
)
MOE = ModelConfig(
    vocab_size=32000,
    hidden_size=1024,
    num_hidden_layers=6,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=3072,
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=384,
    bos_token_id=None,
    eos_token_id=None,
)


def compare(config: ModelConfig, fp8: bool = False) -> dict[str, Any]:
    """The containment test's findings as numbers; AssertionError where a token is outside the other's top 5."""
    model = random_network(config, DEVICE, torch.bfloat16, seed=1)
    tensors = None
    if fp8:
        model, tensors = in_fp8(model)
    twin = transformers_twin(model, tensors)
    engine = Engine(model, max_len=1024, blocks=8000)
    found = containment(engine, twin, PROMPTS, TOKENS)
    engine.close()
    out = {
        "prompts": found.prompts,
        "differing": found.differing,
        "worst_rank": found.worst,
        "outside_top5": sum(max(pair) > 5 for pair in found.ranks),
        "logprob_error": round(found.logprob_error, 4),
    }
    assert found.worst <= 5, out
    assert found.logprob_error < (0.25 if fp8 else 0.1), out
    return out


def in_fp8(model: Qwen3) -> tuple[Qwen3, dict[str, torch.Tensor]]:
    """The model with FP8 weights, and what these are as bf16 tensors under our parameters' names."""
    quantize_model(model)
    return model, {name: weight.dequantize(model.dtype) for name, weight in fp8_weights(model).items()}


def test_dense_against_transformers() -> dict[str, Any]:
    return compare(DENSE)


def test_moe_against_transformers() -> dict[str, Any]:
    return compare(MOE)


def test_fp8_against_transformers() -> dict[str, Any]:
    return compare(DENSE, fp8=True)


def test_fp8_moe_against_transformers() -> dict[str, Any]:
    return compare(MOE, fp8=True)


def numbers(found: Counts, started: float) -> dict[str, Any]:
    return {
        "requests": found.requests,
        "cancelled": found.cancelled,
        "preempted": found.preempted,
        "cached_tokens": found.cached_tokens,
        "tokens": found.tokens,
        "broken": len(found.broken),
        "seconds": round(time.perf_counter() - started, 1),
    }


def count(kv_dtype: str | None = None, requests: int | None = None) -> dict[str, Any]:
    started = time.perf_counter()
    counter = Counter(DEVICE)
    engine = Engine(counter.model, counter.tokenizer, max_batch=256, max_len=1024, blocks=1400, kv_dtype=kv_dtype)
    found = counting(engine, counter, requests or REQUESTS, crowd=400, say=lambda line: print(line, flush=True))
    out = numbers(found, started)
    for prompt, expected, output in found.broken[:3]:
        print("broken:", {"prompt": prompt[-12:], "expected": expected, "output": output}, flush=True)
    assert not found.broken, out
    assert found.preempted > 0, out
    assert found.cached_tokens > 0, out
    check_empty(engine)
    engine.close()
    return out


def test_counting() -> dict[str, Any]:
    return count()


def test_counting_with_fp8_kv() -> dict[str, Any]:
    return count("fp8", max(1000, REQUESTS // 10))


def test_blocks_come_back() -> dict[str, Any]:
    model = random_network(DENSE, DEVICE, torch.bfloat16, seed=3)
    engine = Engine(model, max_batch=128, max_len=512, blocks=600)
    reasons = mixed(engine, MIXED, crowd=200)
    assert sum(reasons.values()) == MIXED
    assert set(reasons) <= {"cancelled", "stop", "length"}, reasons
    check_empty(engine)
    engine.close()
    return reasons


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_batch_invariance(config: ModelConfig) -> dict[str, bool]:
    model = random_network(config, DEVICE, torch.bfloat16, seed=4)
    found = invariance(model, prompt=300, tokens=64, crowd=40)
    assert found == dict.fromkeys(found, True), found
    return found


SCRIPT: dict[str, Callable[[], Any]] = {
    "dense": test_dense_against_transformers,
    "moe": test_moe_against_transformers,
    "invariance": lambda: test_batch_invariance(DENSE),
    "invariance-moe": lambda: test_batch_invariance(MOE),
    "fp8": test_fp8_against_transformers,
    "fp8-moe": test_fp8_moe_against_transformers,
    "mixed": test_blocks_come_back,
    "counting-kv8": test_counting_with_fp8_kv,
    "counting": test_counting,
}


def main() -> int:
    global DEVICE, REQUESTS, MIXED, PROMPTS
    options = argparse.ArgumentParser()
    options.add_argument("names", nargs="*", help=f"of {', '.join(SCRIPT)}; none: all")
    options.add_argument("--budget", type=float, default=300, help="seconds; no test starts after them")
    options.add_argument("--requests", type=int, default=REQUESTS, help="of the counting test")
    options.add_argument("--mixed", type=int, default=MIXED)
    options.add_argument("--prompts", type=int, default=PROMPTS, help="of the comparisons with transformers")
    options.add_argument("--device", default=DEVICE, help="cpu: to try the script itself")
    options.add_argument("--out", help="file for the findings as JSON")
    chosen = options.parse_args()
    DEVICE, REQUESTS, MIXED, PROMPTS = chosen.device, chosen.requests, chosen.mixed, chosen.prompts
    started, findings = time.perf_counter(), {}
    for name in chosen.names or SCRIPT:
        if time.perf_counter() - started > chosen.budget:
            findings[name] = {"skipped": "no time left"}
            continue
        begun = time.perf_counter()
        try:
            findings[name] = {"ok": True, "found": SCRIPT[name]()}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            findings[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        findings[name]["seconds"] = round(time.perf_counter() - begun, 1)
        gc.collect()
        if DEVICE != "cpu":
            torch.cuda.empty_cache()
        print(f"== {name}: {json.dumps(findings[name])}", flush=True)
    if chosen.out:
        with open(chosen.out, "w", encoding="utf-8") as file:
            json.dump(findings, file, indent=1)
    return 0 if all(found.get("ok") for found in findings.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
