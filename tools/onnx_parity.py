#!/usr/bin/env python3
"""Greedy tokens of exported models in onnxruntime and onnxruntime-genai beside those of this engine.

    python tools/onnx_parity.py --prompts 200 --tokens 32 --out benchmarks/DATE-onnx-parity.json

Each variant is exported, then continues the same prompts (problems of every task family) one at a time in both
runtimes; the engine runs the weights as they were exported (rounded, then widened to float32). Where tokens differ,
the first difference and its margin count: how far the engine's logits of the two tokens are apart, beside the spread
(standard deviation) of the logits there. Needs onnx, onnxruntime and onnxruntime-genai.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]
TIMED = 20  # prompts that the engine continues one at a time, for its speed; all of them at once for the tokens
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32-plain": {"fused": False},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
    "int4-zeros": {"weights": "int4", "symmetric": False},
    "int4-level-4": {"weights": "int4", "accuracy_level": 4},
    "int4-plain": {"weights": "int4", "fused": False},
    "fp16": {"weights": "fp16"},
}


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--model", default="embedded")
    options.add_argument("--variants", default=",".join(VARIANTS))
    options.add_argument("--prompts", type=int, default=200)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    from qwen3 import LLM
    from qwen3.evaluate.machine import commit, describe

    llm = LLM(chosen.model, dtype="float32")
    prompts = _prompts(llm, chosen.prompts)
    table: dict[str, Any] = {}
    result = {
        "what": "greedy tokens of ONNX exports beside the engine's, one thread, one prompt at a time",
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(torch.device("cpu")),
        "commit": commit(),
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxruntime-genai", "torch")},
        "model": chosen.model,
        "prompts": len(prompts),
        "tokens": chosen.tokens,
        "variants": table,
    }
    for name in chosen.variants.split(","):
        with tempfile.TemporaryDirectory() as folder:
            table[name] = _variant(llm, Path(folder), VARIANTS[name], prompts, chosen.tokens)
        print(name, json.dumps(table[name]), flush=True)
        if chosen.out:
            chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _prompts(llm: Any, count: int) -> list[list[int]]:
    import random

    from qwen3.chat import encode
    from qwen3.tasks import FAMILIES

    families, found = list(FAMILIES.values()), []
    for i in range(count):
        task, random_state = families[i % len(families)], random.Random(i)
        problem = task.sample(random_state, 1 + i // len(families) % task.levels, split="eval")
        found.append(list(encode([{"role": "user", "content": problem.prompt}], tokenizer=llm.tokenizer).ids))
    return found


def _variant(llm: Any, folder: Path, how: dict[str, Any], prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    from qwen3.checkpoint.names import official_views
    from qwen3.checkpoint.source import open_source
    from qwen3.engine import Engine
    from qwen3.model import load_model
    from qwen3.quantize.onnx import export
    from qwen3.quantize.onnx.export import weights_of

    report = export(llm.resolved.path, folder, **how)
    model = load_model(llm.resolved.path, "cpu", "float32")
    with closing(open_source(llm.resolved.path, model.config)) as source, torch.no_grad():
        held = weights_of(source, **{k: v for k, v in how.items() if k not in ("fused", "accuracy_level")})
        for name, view in official_views(model.config, dict(model.named_parameters())).items():
            view.copy_(held.exported(name))
    ends = set(json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"])
    engine = Engine(model, max_batch=16, max_len=max(map(len, prompts)) + tokens)
    wanted = []
    for first in range(0, len(prompts), 16):
        wanted += _engine(engine, prompts[first : first + 16], tokens, ends)
    started = time.perf_counter()
    alone = [_engine(engine, [ids], tokens, ends)[0] for ids in prompts[:TIMED]]
    assert alone == wanted[: len(alone)]
    row: dict[str, Any] = {
        "export_seconds": round(report.seconds, 2),
        "logits_off": report.logits_off,
        "bytes": sum(size for name, (size, _) in report.files.items() if name.startswith("model.onnx")),
        "engine": {"tokens_per_second": round(sum(map(len, alone)) / (time.perf_counter() - started), 1)},
    }
    for name, make in (("onnxruntime", _onnxruntime), ("onnxruntime-genai", _genai)):
        run = make(folder, model.config, how.get("accuracy_level", 0))
        run(prompts[0], tokens, ends)
        started = time.perf_counter()
        found = [run(ids, tokens, ends) for ids in prompts]
        spent = time.perf_counter() - started
        if name == "onnxruntime-genai":  # keeps no end token
            wanted = [ids[:-1] if ids[-1] in ends else ids for ids in wanted]
        differ = [(i, a, b) for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b]
        row[name] = {
            "differ": len(differ),
            "margins": [_margin(model, prompts[i], a, b) for i, a, b in differ],
            "tokens_per_second": round(sum(map(len, found)) / spent, 1),
        }
    return row


def _engine(engine: Any, prompts: list[list[int]], tokens: int, ends: set[int]) -> list[list[int]]:
    """The best token each time, up to an end token. No rules for thinking, no rows of the vocabulary left out: the
    other runtimes know of neither."""
    from qwen3.engine import Request, SamplingParams

    params = SamplingParams(max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    requests = [Request(ids, params) for ids in prompts]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.advance()
    found = []
    for ids in (list(request.output) for request in requests):
        end = next((i for i, id in enumerate(ids) if id in ends), len(ids))
        found.append(ids[: end + 1])
    return found


@torch.no_grad()
def _margin(model: Any, prompt: list[int], wanted: list[int], found: list[int]) -> dict[str, float]:
    at = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    if at is None:  # one ends, the other goes on
        return {"at": min(len(wanted), len(found))}
    logits = model(torch.tensor([prompt + wanted[:at]]), last_only=True)[0, -1]
    margin = float(logits[wanted[at]] - logits[found[at]])
    return {"at": at, "margin": round(margin, 5), "spread": round(float(logits.std()), 3)}


Run = Callable[[list[int], int, set[int]], list[int]]


def _onnxruntime(folder: Path, config: Any, level: int) -> Run:
    """A loop over the model as docs/onnx.md has it."""
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    session = onnxruntime.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    half = next(each.type for each in session.get_inputs() if each.name.startswith("past")) == "tensor(float16)"
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float16 if half else np.float32)

    def run(prompt: list[int], tokens: int, ends: set[int]) -> list[int]:
        out: list[int] = []
        fed, cache = prompt, {name.replace("present", "past_key_values"): empty for name in names[1:]}
        while len(out) < tokens and not (out and out[-1] in ends):
            mask = np.ones((1, len(prompt) + len(out)), np.int64)
            logits, *present = session.run(None, {"input_ids": np.array([fed]), "attention_mask": mask, **cache})
            cache = dict(zip(cache, present, strict=True))
            fed = [int(logits[0, -1].argmax())]
            out += fed
        return out

    return run


def _genai(folder: Path, config: Any, level: int) -> Run:
    import onnxruntime_genai

    settings = onnxruntime_genai.Config(str(folder))
    settings.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    model = onnxruntime_genai.Model(settings)

    def run(prompt: list[int], tokens: int, ends: set[int]) -> list[int]:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        return list(map(int, generator.get_sequence(0)[len(prompt) :]))

    return run


if __name__ == "__main__":
    sys.exit(main())
