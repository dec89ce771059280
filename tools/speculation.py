#!/usr/bin/env python3
"""What speculative decoding is worth, and that it changes no distribution: prints tables, writes JSON.

    python tools/speculation.py chi2 [--samples 100000]     # CPU, minutes: drawn sequences against exact probabilities
    python tools/speculation.py ngram [--pairs 6]           # CPU, minutes: the embedded model, prompt lookup on and off
    python tools/speculation.py draft                       # a GPU: 8B with a 0.6B draft, acceptance set by hand

Every section names what it expects, and the exit code is 1 where that does not hold. Needs torch only. The JSON goes to
--out, else into the folder $OUT, else here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwen3 import LLM, ModelConfig, SamplingParams, ThinkingPolicy, family  # noqa: E402
from qwen3.engine import Engine, Request  # noqa: E402
from qwen3.engine.draft import DraftModel  # noqa: E402
from qwen3.engine.speculate import Controller  # noqa: E402
from qwen3.model import Qwen3  # noqa: E402

# Distribution

VOCAB, LENGTH = 16, 4
RULES = {
    "plain": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "filtered": {"temperature": 0.8, "top_k": 9, "top_p": 0.92, "min_p": 0.0, "presence_penalty": 0.7},
}


@contextlib.contextmanager
def always_guessing() -> Iterator[None]:
    """As many guesses as there are, whatever they cost."""
    begin, lengths = Controller.begin, Controller.lengths

    def all_of_them(self: Controller, tracks: Sequence[Any], available: Sequence[int] | None = None) -> list[int]:
        most = [self.longest] * len(tracks) if available is None else available
        return [min(self.longest, n) for n in most]

    Controller.begin = lambda self, rows: begin(self, rows) or True  # type: ignore[method-assign]
    Controller.lengths = all_of_them  # type: ignore[method-assign]
    try:
        yield
    finally:
        Controller.begin, Controller.lengths = begin, lengths  # type: ignore[method-assign]


def tiny(seed: int, layers: int) -> Qwen3:
    """A random network of 64 tokens whose distributions are neither flat nor sharp."""
    config = ModelConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=128, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=60,
        eos_token_id=61, dtype="float32",
    )  # fmt: skip
    model, generator = Qwen3(config, device="cpu", dtype=torch.float32), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                gain = 1.6 if "embed" in name else 1.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain * parameter.shape[1] ** -0.5)
    return model.eval()


def exact(model: Qwen3, prompt: list[int], rules: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probability of every continuation by LENGTH tokens: the rules by the book, in float64."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    seen = set(prompt)
    for step in range(LENGTH):
        prefixes = list(found)
        logits = []
        for start in range(0, len(prefixes), 256):
            ids = torch.tensor([[*prompt, *prefix] for prefix in prefixes[start : start + 256]])
            with torch.inference_mode():
                logits.append(model(ids)[:, -1, :VOCAB].double())
        longer = {}
        for prefix, row in zip(prefixes, torch.cat(logits).tolist(), strict=True):
            for token, p in enumerate(by_the_book(row, rules, Counter(prefix), seen)):
                if p > 0:
                    longer[*prefix, token] = found[prefix] * p
        found = longer
        assert step >= 0
    return found


def by_the_book(z: list[float], rules: dict[str, Any], said: Counter[int], prompt: set[int]) -> list[float]:
    z = [value - rules.get("presence_penalty", 0.0) * (said[i] > 0) for i, value in enumerate(z)]
    top = max(z)
    p = [math.exp((value - top) / rules["temperature"]) for value in z]
    if rules["top_k"]:
        border = sorted(p)[-rules["top_k"]]
        p = [value if value >= border else 0.0 for value in p]
    total = math.fsum(p)
    p = [value / total for value in p]
    if rules["top_p"] < 1:
        mass = 0.0
        for border in sorted(p, reverse=True):
            mass += border
            if mass >= rules["top_p"]:
                break
        p = [value if value >= border else 0.0 for value in p]
    total = math.fsum(p)
    return [value / total for value in p]


def p_value(counts: Counter[Any], expected: dict[Any, float]) -> tuple[float, int]:
    """Of Pearson's chi-squared; cells that expect fewer than 5 are one. Its degrees of freedom."""
    draws = sum(counts.values())
    if any(expected.get(cell, 0.0) == 0 for cell in counts):
        return 0.0, 0
    cells = [(counts[cell], draws * p) for cell, p in expected.items() if draws * p >= 5]
    cells.append((draws - sum(seen for seen, _ in cells), draws - sum(value for _, value in cells)))
    if cells[-1][1] < 5:
        cells.pop()
    value = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return tail(value, len(cells) - 1), len(cells) - 1


def tail(value: float, freedom: int) -> float:
    return torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(value / 2).double()).item()


def same_p_value(one: Counter[Any], two: Counter[Any]) -> float:
    """That two sets of draws, equally many, have one distribution."""
    cells = [(one[cell], two[cell]) for cell in {*one, *two} if one[cell] + two[cell] >= 10]
    rest = [sum(counts.values()) - sum(pair[i] for pair in cells) for i, counts in enumerate((one, two))]
    cells += [(rest[0], rest[1])] if sum(rest) >= 10 else []
    return tail(sum((a - b) ** 2 / (a + b) for a, b in cells), len(cells) - 1)


def draw(engine: Engine, prompt: list[int], rules: dict[str, Any], seeds: range) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for start in range(0, len(seeds), 512):
        some = []
        for seed in seeds[start : start + 512]:
            params = SamplingParams(seed=seed, max_tokens=LENGTH, ignore_eos=True, **rules).resolved("instruct")
            some.append(Request(list(prompt), params))
            engine.add(some[-1])
        while engine.has_work:
            engine.advance()
        for request in some:
            if request.error is not None:
                raise request.error
            found.append(tuple(request.output))
    return found


def chi2(samples: int) -> dict[str, Any]:
    rng = random.Random(0)
    prompt = [rng.randrange(VOCAB) for _ in range(300)]  # nearly every pair has occurred: prompt lookup finds something
    model, out, good = tiny(1, 2), {}, True
    ways: dict[str, Any] = {"off": None, "ngram": "ngram", "draft": DraftModel(tiny(2, 1))}
    for rule, rules in RULES.items():
        expected = exact(model, prompt, rules)
        counted: dict[str, Counter[tuple[int, ...]]] = {}
        for number, (way, speculation) in enumerate(ways.items()):
            options = {} if speculation is None else {"speculation": speculation, "draft_tokens": LENGTH - 1}
            with always_guessing():
                engine = Engine(model, vocab_size=VOCAB, max_batch=64, max_len=512, **options)
                right, guessed = count_guesses(engine)
                began = time.perf_counter()
                drawn = draw(engine, prompt, rules, range(number * samples, (number + 1) * samples))
                took = time.perf_counter() - began
                engine.close()
            counted[way] = Counter(drawn)
            p, freedom = p_value(counted[way], expected)
            against_off = same_p_value(counted["off"], counted[way]) if way != "off" else None
            row = {
                "samples": samples, "cells": freedom + 1, "p": p, "p_against_off": against_off,
                "guesses": sum(guessed), "right": sum(right), "seconds": took,
            }  # fmt: skip
            ok = p > 1e-3 and (against_off is None or (against_off > 1e-3 and sum(right) > samples / 20))
            good &= ok
            out[f"{rule} {way}"] = row
            other = "" if against_off is None else f"  against off {against_off:.4f}"
            print(f"{rule:9}{way:6} p {p:.4f}{other}  guesses {sum(guessed):,}, right {sum(right):,}  {'ok' * ok}")
    return {"expected": "p > 0.001 everywhere", "ok": good, "rows": out}


def count_guesses(engine: Engine) -> tuple[list[int], list[int]]:
    right: list[int] = []
    guessed: list[int] = []
    inner = engine._verify

    def verify(drafted: Any) -> int:
        guessed.append(len(drafted.tokens))
        right.append(inner(drafted))
        return right[-1]

    engine._verify = verify  # type: ignore[method-assign]
    return right, guessed


# Prompt lookup

ARRAY = {
    "type": "array", "minItems": 14, "maxItems": 14,
    "items": {
        "type": "object", "required": ["name", "age", "tame"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "tame": {"type": "boolean"},
        },
    },
}  # fmt: skip
LINES = ["The hungry fox found a red bell on the hill.", "A kind crow shared its bread with the turtle."]
COPIES = {"type": "array", "minItems": 10, "maxItems": 10, "items": {"enum": LINES}}
ANIMALS = ("fox", "bear", "owl", "crow", "turtle", "cat")


def workloads(number: int) -> dict[str, tuple[bool, list[dict[str, Any]]]]:
    """By name: whether the text repeats itself, and what is asked, one after the other."""
    off = ThinkingPolicy(mode="off")
    farm: dict[str, Any] = {"messages": "List the animals of the farm.", "thinking": off}
    farm["sampling"] = SamplingParams(seed=number, max_tokens=500)
    wild = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "max_tokens": 250, "ignore_eos": True}
    stories: list[dict[str, Any]] = []
    for i, animal in enumerate(ANIMALS):
        told = {"messages": f"Tell me a story about a {animal}.", "thinking": off}
        stories.append({**told, "sampling": SamplingParams(seed=100 * number + i, max_tokens=200)})
    sums = [
        {"messages": f"What is {27 + number} * {14 + i}?", "sampling": SamplingParams(seed=number, max_tokens=200)}
        for i in range(5)
    ]
    noise = [{**stories[i], "sampling": SamplingParams(seed=100 * number + i, **wild)} for i in range(2)]
    return {
        "JSON array": (True, [{**farm, "schema": ARRAY}]),
        "copied lines": (True, [{**farm, "schema": COPIES}]),
        "stories": (False, stories),
        "sums, thought over": (False, sums),
        "noise": (False, noise),
    }


def ngram(pairs: int) -> dict[str, Any]:
    base = LLM()
    # On one thread the process's own time is the time on an idle machine, whoever else works on this one.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    options = {"mode": base.mode, "prefix_cache": False}
    plain, guessing = (
        LLM.of(base.model, base.tokenizer, **options),
        LLM.of(base.model, base.tokenizer, speculation="ngram", **options),
    )
    times: dict[str, list[tuple[float, float]]] = {}
    tokens: Counter[str] = Counter()
    differ = 0
    for number in range(-1, pairs):  # the first round warms up
        for name, (_, asked) in workloads(number).items():
            taken: dict[int, float] = {}
            texts = {}
            for llm in (plain, guessing) if number % 2 else (guessing, plain):
                began = clock()
                results = [llm.chat(**one) for one in asked]
                taken[id(llm)] = clock() - began
                texts[id(llm)] = [(result.reasoning_content, result.content) for result in results]
            if number >= 0:
                differ += texts[id(plain)] != texts[id(guessing)]
                times.setdefault(name, []).append((taken[id(plain)], taken[id(guessing)]))
                tokens[name] += sum(result.usage.completion_tokens for result in results)
    rows, good = {}, differ == 0
    for name, (repeats, _) in workloads(0).items():
        ratios = sorted(off / on for off, on in times[name])
        ratio = sum(off for off, _ in times[name]) / sum(on for _, on in times[name])
        median = statistics.median(ratios)
        ok = median >= (1.5 if repeats else 0.97)
        good &= ok
        rows[name] = {
            "repeats": repeats, "ratio": ratio, "median": median, "ratios": ratios, "tokens": tokens[name],
            "plain_tokens_per_second": tokens[name] / sum(off for off, _ in times[name]),
        }  # fmt: skip
        print(f"{name:20} {median:5.2f}x (all {ratio:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f})  {'ok' * ok}")
    print(f"texts that differ: {differ}")
    return {
        "expected": "median >= 1.5 where text repeats, >= 0.97 elsewhere",
        "ok": good,
        "differ": differ,
        "rows": rows,
    }


# A draft model


@contextlib.contextmanager
def accepting(chance: float) -> Iterator[None]:
    """Each guess is right with this chance, whatever was drawn."""
    from qwen3.engine.device_sampler import DeviceSampler

    inner = DeviceSampler.verify

    def verify(
        self: DeviceSampler, logits: torch.Tensor, rows: torch.Tensor, drafts: torch.Tensor, out: torch.Tensor,
        accept: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        inner(self, logits, rows, drafts, out, torch.rand(drafts.shape, device=drafts.device) < chance)
        # The host looks whether the tokens are the guesses.
        taken = out[:, :-1, 0]
        drafts.copy_(torch.where(out[:, 1:, 0] >= 0, taken, torch.where(taken == 0, 1, 0)))

    DeviceSampler.verify = verify  # type: ignore[method-assign]
    try:
        yield
    finally:
        DeviceSampler.verify = inner  # type: ignore[method-assign]


def draft(chance: float = 0.8, guesses: int = 4, tokens: int = 512, runs: int = 3) -> dict[str, Any]:
    from qwen3.evaluate.workloads import random_model
    from qwen3.tokenizer import Tokenizer

    device, tokenizer = torch.device("cuda"), Tokenizer.from_pretrained()
    large, small = (
        random_model(family.MODELS[name].config, device, torch.bfloat16) for name in ("Qwen3-8B", "Qwen3-0.6B")
    )
    options = {"blocks": 1024, "max_batch": 4, "context": 4096, "prefix_cache": False}
    rng, rows = random.Random(0), {}
    with accepting(chance), always_guessing():
        plain = LLM.of(large, tokenizer, **options)
        guessing = LLM.of(large, tokenizer, speculation=DraftModel(small, tokenizer), draft_tokens=guesses, **options)
        right, guessed = count_guesses(guessing.engine)
        speeds: dict[str, list[float]] = {"plain": [], "guessing": []}
        for run, (name, llm) in itertools.product(range(-1, runs), (("plain", plain), ("guessing", guessing))):
            ids = [rng.randrange(1000, 100_000) for _ in range(64)]
            params = SamplingParams(
                seed=run + 1, max_tokens=tokens, ignore_eos=True, temperature=0.7, top_k=20, top_p=0.8
            )
            if run < 0:
                right.clear(), guessed.clear()
            result = llm.generate([ids], params)[0]
            if run >= 0:
                speeds[name].append(result.timing.decode_tokens_per_second)
    ratio = statistics.median(speeds["guessing"]) / statistics.median(speeds["plain"])
    rows = {
        "chance": chance, "guesses": guesses, "tokens_per_second": speeds, "ratio": ratio,
        "tokens_per_step": 1 + sum(right) / max(len(right), 1), "guessed": sum(guessed), "right": sum(right),
    }  # fmt: skip
    print(json.dumps(rows, indent=1))
    return {"expected": "ratio >= 1.6", "ok": ratio >= 1.6, "rows": rows}


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("section", choices=["chi2", "ngram", "draft"], nargs="+")
    options.add_argument("--samples", type=int, default=100_000)
    options.add_argument("--pairs", type=int, default=6)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    calls = {"chi2": lambda: chi2(given.samples), "ngram": lambda: ngram(given.pairs), "draft": draft}
    for section in given.section:
        try:
            found[section] = calls[section]()
        except Exception as error:
            found[section] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            print(f"{section}: {found[section]['error']}", file=sys.stderr)
            if len(given.section) == 1:
                raise
    name = f"{datetime.date.today()}-speculation-{'-'.join(given.section)}.json"
    out = given.out or Path(os.environ.get("OUT", ".")) / name
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(found[section]["ok"] for section in given.section) else 1


if __name__ == "__main__":
    raise SystemExit(main())
