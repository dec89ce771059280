"""Measure the embedded model: python -m recipes.embedded_v0.evaluate --model FOLDER --out benchmarks/FILE.json

Held-out problems of every family, the same ones in both modes, one sample each at the published temperature for
thinking (0.6) in both, so that the modes differ in the prompt alone. The answers come from the package's own engine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import encode
from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES, Problem
from qwen3.tasks.dialogue import EVAL_PROMPTS
from qwen3.tasks.tools import check_tool_call, sample_tool_dialogue


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), in percent."""
    if total == 0:
        return (0.0, 100.0)
    z, p = 1.96, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return round(100 * (middle - half), 1), round(100 * (middle + half), 1)


def share(right: int, total: int) -> dict[str, Any]:
    return {
        "right": right,
        "of": total,
        "percent": round(100 * right / max(total, 1), 2),
        "interval": wilson(right, total),
    }


def held_out(per_family: int, seed: int) -> list[Problem]:
    """Problems of the evaluation split, levels in turn, no problem twice (as far as a family has so many)."""
    problems = []
    for name, task in FAMILIES.items():
        rng, seen = random.Random(f"{seed}/{name}"), set()
        for i in range(per_family * 20):
            p = task.sample(rng, i % task.levels + 1, split="eval")
            if p.key not in seen:
                seen.add(p.key)
                problems.append(p)
            if len(seen) == per_family:
                break
    return problems


def run_mode(llm: LLM, problems: list[Problem], mode: str, sampling: SamplingParams, batch: int) -> list[Any]:
    """Results in the order of the problems; the longest-looking ones run together."""
    results: dict[int, Any] = {}
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].trace) + len(problems[i].reply))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        conversations = [[{"role": "user", "content": problems[i].prompt}] for i in chosen]
        answers = llm.chat_batch(conversations, thinking=ThinkingPolicy(mode=mode), sampling=sampling)
        results.update(zip(chosen, answers, strict=True))
        print(f"{mode or 'default'}: {len(results)}/{len(problems)}", flush=True)
    return [results[i] for i in range(len(problems))]


def thirteen_grams(llm: LLM, problems: list[Problem], draws: int) -> dict[str, Any]:
    """Share of held-out problem statements with a 13-token run that also occurs in drawn training statements.

    Numbers and names make a problem; wordings are shared on purpose, so a run counts only if it holds a digit or is
    the whole statement.
    """

    def runs(text: str) -> set[tuple[int, ...]]:
        ids = llm.tokenizer.encode_plain(text)
        return {tuple(ids[i : i + 13]) for i in range(max(1, len(ids) - 12))}

    rng, seen, keys = random.Random("13-grams"), set(), set()
    names = list(FAMILIES)
    for i in range(draws):
        p = FAMILIES[names[i % len(names)]].sample(rng)
        seen |= runs(p.key)
        keys.add(p.key)
    touched: dict[str, int] = dict.fromkeys(names, 0)
    for p in problems:
        touched[p.family] += bool(runs(p.key) & seen)
    return {"drawn": draws, "same_problem": sum(p.key in keys for p in problems), "with_shared_run": touched}


def conversation_checks(llm: LLM, seed: int, sampling: SamplingParams) -> dict[str, Any]:
    """Small talk in both modes, and held-out tool calls with thinking."""
    right, wrong = 0, []
    for mode in ("on", "off"):
        asked = [prompt for prompt, _ in EVAL_PROMPTS]
        results = llm.chat_batch(asked, thinking=ThinkingPolicy(mode=mode), sampling=sampling)
        for (prompt, passes), result in zip(EVAL_PROMPTS, results, strict=True):
            if passes(result.content):
                right += 1
            else:
                wrong.append({"prompt": prompt, "mode": mode, "content": result.content})
    rng, prompts, references = random.Random(f"{seed}/tools"), [], []
    for _ in range(200):
        messages, tools = sample_tool_dialogue(rng, split="eval")
        at = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        prompts.append(encode(messages[:at], tokenizer=llm.tokenizer, tools=tools).ids)
        references.append((messages[: at + 1], tools))
    calls = llm.generate(prompts, sampling)
    tool_right = sum(check_tool_call(*reference, call) for reference, call in zip(references, calls, strict=True))
    return {"talk": share(right, right + len(wrong)), "talk_failures": wrong, "tools": share(tool_right, len(calls))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-family", type=int, default=180)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--answers", type=Path, help="also write every answer there, one JSON line each")
    args = parser.parse_args()

    started = time.time()
    llm = LLM(args.model, device=args.device, max_batch=args.batch)
    problems = held_out(args.per_family, args.seed)
    sampling = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, seed=args.seed, max_tokens=3000)
    answers = {mode: run_mode(llm, problems, mode, sampling, args.batch) for mode in ("on", "off")}
    free = run_mode(llm, problems[:: max(1, len(problems) // 400)], None, sampling, args.batch)

    right = {
        m: [FAMILIES[p.family].check(p, r.content) for p, r in zip(problems, answers[m], strict=True)] for m in answers
    }
    families, levels = {}, {}
    for name, task in FAMILIES.items():
        at = [i for i, p in enumerate(problems) if p.family == name]
        families[name] = {
            "needs_steps": task.needs_steps,
            "thinking": share(sum(right["on"][i] for i in at), len(at)),
            "direct": share(sum(right["off"][i] for i in at), len(at)),
            "thinking_tokens": round(sum(answers["on"][i].thinking.used for i in at) / len(at), 1),
        }
        levels[name] = {
            m: [
                share(sum(right[m][i] for i in group), len(group))["percent"]
                for level in range(1, task.levels + 1)
                if (group := [i for i in at if problems[i].level == level])
            ]
            for m in answers
        }

    def mean(names: tuple[str, ...], mode: str) -> float:
        return round(sum(families[n][mode]["percent"] for n in names) / len(names), 2)

    closed = sum(r.thinking.ended_by == "model" for r in answers["on"])
    obeyed_on = sum(bool(r.reasoning_content) for r in free)
    obeyed_off = sum(not r.reasoning_content and "<think>" not in r.content for r in answers["off"])
    every = tuple(FAMILIES)
    report = {
        "what": "embedded model, held-out problems, pass@1 at temperature 0.6, top-p 0.95, top-k 20",
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "machine": f"{platform.machine()}, {args.device or 'default device'}, torch {torch.__version__}",
        "problems": len(problems),
        "mean": {mode: mean(every, mode) for mode in ("thinking", "direct")},
        "steps": {mode: mean(STEP_FAMILIES, mode) for mode in ("thinking", "direct")},
        "controls": {mode: mean(CONTROL_FAMILIES, mode) for mode in ("thinking", "direct")},
        "thinking_closes": share(closed, len(problems)),
        "switch_obeyed": {
            "default thinks": share(obeyed_on, len(free)),
            "off answers at once": share(obeyed_off, len(problems)),
        },
        "families": families,
        "levels": levels,
        "overlap": thirteen_grams(llm, problems, 60000),
        **conversation_checks(llm, args.seed, sampling),
        "seconds": round(time.time() - started),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.answers:
        with open(args.answers, "w", encoding="utf-8") as file:
            for mode, results in answers.items():
                for p, r, ok in zip(problems, results, right[mode], strict=True):
                    line = {"family": p.family, "level": p.level, "mode": mode, "right": ok, "prompt": p.prompt}
                    line |= {"answer": p.answer, "content": r.content, "reasoning": r.reasoning_content}
                    file.write(json.dumps(line | {"finish": r.finish_reason}) + "\n")
    for name, row in families.items():
        cells = [f"{m} {row[m]['percent']:6.1f} {row[m]['interval']}" for m in ("thinking", "direct")]
        print(f"{name:10s} {'  '.join(cells)}  {row['thinking_tokens']:6.1f} tokens")
    keys = ("mean", "steps", "controls", "thinking_closes", "switch_obeyed", "talk", "tools", "overlap", "seconds")
    print(json.dumps({key: report[key] for key in keys}, indent=1))


if __name__ == "__main__":
    main()
