"""How fast reinforcement learning samples: rollouts of the package's own engine, as `qwen3 train rl` makes them.

    python tools/rollout_bench.py --model embedded --out OUT/rollouts.json
    python tools/rollout_bench.py --tiny                                     # the wiring, on a CPU

A round is --prompts questions with --samples answers each, all asked for at once; tokens are those sampled, seconds the
whole call, rendering of prompts left out. After the measured rounds one is repeated under Python's profiler (where the
host's time goes) and one under torch's (how long the device is busy, and with what).
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwen3 import LLM
from qwen3.chat import encode
from qwen3.evaluate.machine import describe
from qwen3.tasks import FAMILIES
from qwen3.train.cold_start import Question
from qwen3.train.rollout import Prompt, rollouts

CUDA = torch.cuda.is_available()


def prompts_of(llm: LLM, families: list[str], count: int) -> list[Prompt]:
    rng, found = random.Random("rollout bench"), []
    for number in range(count):
        question = Question.of(FAMILIES[families[number % len(families)]].sample(rng, None))
        messages = [{"role": "user", "content": question.prompt}]
        ids = encode(messages, tokenizer=llm.tokenizer, enable_thinking=True, template=llm.template).ids
        found.append(Prompt(ids, True))
    return found


def host(work: Callable[[], Any]) -> list[str]:
    """The calls that take longest themselves. (A thread that looks at stacks would see, above all, who lets go of
    Python's lock.)"""
    profile, text = cProfile.Profile(), io.StringIO()
    profile.runcall(work)
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(45)
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    return [line.replace(str(Path(__file__).parents[1]), "") for line in lines[2:]]


def device(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds that the device is busy in a round, and its twelve longest kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        whole = time.perf_counter() - began
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type.name == "CUDA"
    )  # fmt: skip
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    top = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)[:16]
    return {
        "seconds": round(whole, 3), "busy_seconds": round(busy / 1e6, 3), "kernels": len(spans),
        "top": [f"{e.self_device_time_total / 1e3:8.1f} ms {e.count:7} {e.key[:90]}" for e in top],
    }  # fmt: skip


def one(llm: LLM, prompts: list[Prompt], args: argparse.Namespace) -> dict[str, Any]:
    engine, rounds, counter = llm.engine, [], iter(range(10_000))

    def work() -> list[Any]:
        return rollouts(engine, prompts, args.samples, f"round {next(counter)}", max_tokens=args.max_tokens)

    for _ in range(1 + args.rounds):
        engine.scheduler.pool.forget()  # as after an update of the weights
        steps, began = engine.steps, time.perf_counter()
        found = [one for group in work() for one in group]
        seconds, tokens = time.perf_counter() - began, sum(len(one) - one.forced for one in found)
        rounds.append({
            "seconds": round(seconds, 3), "tokens": tokens, "steps": engine.steps - steps,
            "tokens_per_second": round(tokens / seconds), "longest": max(map(len, found)),
        })  # fmt: skip
        print(json.dumps(rounds[-1]), flush=True)
    best = max(row["tokens_per_second"] for row in rounds[1:])
    result = {"max_batch": engine.max_batch, "tokens_per_second": best, "warm_up": rounds[0], "rounds": rounds[1:]}
    if args.profile:
        engine.scheduler.pool.forget()
        result["host"] = host(work)
        if CUDA:
            engine.scheduler.pool.forget()
            result["device"] = device(work)
        print(json.dumps({key: result.get(key) for key in ("host", "device")}, indent=1), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--families", default="track,cups,sums", help="of questions, or all")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--max-batch", default="1024", help="one or several, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.tiny:
        args.prompts, args.samples, args.max_tokens, args.max_batch, args.rounds = 2, 4, 24, "8", 1
    families = sorted(FAMILIES) if args.families == "all" else args.families.split(",")
    found = []
    for batch in map(int, args.max_batch.split(",")):
        with LLM(args.model, max_batch=batch, context=512 + args.max_tokens) as llm:
            found.append(one(llm, prompts_of(llm, families, args.prompts), args))
    words, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    report = {
        "name": "rollouts of reinforcement learning", "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"), "machine": describe(torch.device("cuda" if CUDA else "cpu")),
        "commit": commit.stdout.strip(), "samples": args.prompts * args.samples, "found": found,
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps([{k: v for k, v in row.items() if k in ("max_batch", "tokens_per_second")} for row in found]))


if __name__ == "__main__":
    main()
