"""The pipeline in small, on one CPU thread: python -m recipes.embedded_v1.small --out FILE.json [--minutes 10]

A model of 0.4M parameters learns one family, numbered sums and products modulo 7, thinking tersely (65 %) or carefully,
directly, and behind thoughts that were cut at any token; then reinforcement learning asks it. What is shown: whether
RL raises pass@1, and whether accuracy rises with the budget from none on, which it did not for v0.
"""

from __future__ import annotations

import argparse
import random
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.evaluate.machine import commit, describe
from qwen3.evaluate.thinking import policy_of, rises, wilson
from qwen3.tasks import is_eval
from qwen3.tokenizer import Tokenizer
from qwen3.train.cold_start import Question
from qwen3.train.conversations import Renderer
from qwen3.train.mixture import Source
from qwen3.train.optim import OptimConfig
from qwen3.train.pretrain import Pretrain
from qwen3.train.recipe import Recipe
from qwen3.train.rl import RL
from qwen3.train.samples import TokenSample
from qwen3.train.start import train
from recipes.embedded_v1.evaluate import answers_of, write
from recipes.embedded_v1.stages import Size

RANKS, MODULUS, MOST = 512, 7, 8
BUDGETS = (0, 2, 4, 8, 12, 16, 24, 32, 48, 64, None)
SHAPE = Size(width=96, layers=4, heads=3, kv_heads=1, head_dim=32, ffn=192)


@cache
def renderer() -> Renderer:
    return Renderer(Tokenizer.from_pretrained().prefix(RANKS), "qwen3")


def question(rng: random.Random, split: str = "train", terse: float = 0.65) -> Question:
    """One to eight steps, all equally often. The trace is terse (every second value) or careful."""
    while True:
        values, shown, lines = [rng.randrange(MODULUS)], [], []
        count = rng.randint(1, MOST)
        for label in "abcdefgh"[:count]:
            sign, n, before = rng.choice("+*"), rng.randrange(1, MODULUS), values[-1]
            values.append((before + n if sign == "+" else before * n) % MODULUS)
            shown.append(f"{label}{sign}{n}")
            lines.append(f"{label}{before}{sign}{n}={values[-1]}")
        key = f"small {values[0]} {' '.join(shown)}"
        if is_eval(key) is (split == "eval"):
            break
    if rng.random() < terse:
        lines = [f"{'abcdefgh'[i - 1]}{values[i]}" for i in sorted({*range(2, count, 2), count})]
    answer = str(values[-1])
    return Question(key, f"{values[0]} {' '.join(shown)}", lambda text: text.strip() == answer, "small", count,
                    "\n".join(lines), answer)  # fmt: skip


def sample(rng: random.Random, kind: str) -> TokenSample:
    asked = question(rng)
    messages = [
        {"role": "user", "content": asked.prompt},
        {"role": "assistant", "reasoning_content": asked.trace, "content": asked.reply},
    ]
    if kind == "cut":
        return renderer().stopped(messages, rng.random(), "tokens").sample(kind)
    return renderer().turn(messages, thinking=kind == "thinking").sample(kind)


def recipe(out: Path, updates: int, rl_updates: int) -> Recipe:
    sources = tuple(Source(k, w, partial(sample, kind=k)) for k, w in (("thinking", 60), ("direct", 20), ("cut", 20)))
    config = SHAPE.config() | {"vocab_size": RANKS + 32, "bos_token_id": RANKS, "eos_token_id": RANKS + 2}
    return Recipe(
        "small", config,
        (
            Pretrain("cold", sources=sources, updates=updates, tokens_per_update=4096, length=256, carry=False,
                     optim=OptimConfig(matrix_lr=0.02, vector_lr=0.003), decay=0.4, evaluate_every=0),
            RL("rl", source=question, updates=rl_updates, prompts_per_update=32, samples_per_prompt=16, max_prompt=64,
               max_tokens=96, loss="dr_grpo", clip_high=0.28, lr=1e-3, max_batch=256, refills=0, invariant=False,
               agree_mean=0.05, agree_tail=1.0),
        ),
        out=str(out), device="cpu",
    )  # fmt: skip


def passed(model: str, questions: int, policy: ThinkingPolicy, temperature: float) -> dict[str, Any]:
    """Held-out questions, once each."""
    rng = random.Random("held out")
    asked = [question(rng, "eval") for _ in range(questions)]
    plain = SamplingParams(temperature=temperature, top_p=1.0, top_k=0, seed=1, max_tokens=160)
    with LLM(model, device="cpu", max_batch=256) as llm:
        answers = answers_of(llm, [q.prompt for q in asked], policy, plain)
    right = sum(q.check(a.content) for q, a in zip(asked, answers, strict=True))
    thought = sum(a.thinking.used for a in answers if a.thinking) / len(asked)
    low, high = wilson(right, questions)
    return {"percent": 100 * right / questions, "interval": [low, high], "thinking_tokens": thought}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/small"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rl-updates", type=int, default=30)
    parser.add_argument("--questions", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, cpu = time.monotonic(), time.process_time()
    result = train(recipe(args.run, args.updates, args.rl_updates))
    found: dict[str, Any] = {
        "what": "v1's pipeline in small: RL after terse and careful thoughts, budgets after cut ones",
        "date": time.strftime("%Y-%m-%d"), "commit": commit(),
        "command": f"python -m recipes.embedded_v1.small --updates {args.updates} --rl-updates {args.rl_updates}",
        "machine": describe(torch.device("cpu")), "questions": args.questions, "stages": result["stages"],
    }  # fmt: skip
    for name, folder in (("before RL", "after-cold"), ("after RL", "model")):
        model = str(args.run / folder)
        points = [{"budget": b, **passed(model, args.questions, policy_of(b), 0.6)} for b in BUDGETS]
        found[name] = {
            "thinking at temperature 1": passed(model, args.questions, ThinkingPolicy("on"), 1.0),
            "direct at temperature 1": passed(model, args.questions, ThinkingPolicy("off"), 1.0),
            "curve": points,
            "monotone, no thought included": rises(points),
        }
        print(name, found[name])
    found["seconds"] = round(time.monotonic() - began)
    found["cpu_seconds"] = round(time.process_time() - cpu)
    write(args.out, found)


if __name__ == "__main__":
    main()
