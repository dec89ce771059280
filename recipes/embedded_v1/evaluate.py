"""Measure the embedded model, and say whether it may take the place of the one before.

    python -m recipes.embedded_v1.evaluate --model embedded --out runs/v0.json
    python -m recipes.embedded_v1.evaluate --model runs/embedded_v1/model --before runs/v0.json --out runs/v1.json

The same held-out problems for both, thinking, without, and on demand, one sample each at the temperature published for
thinking; the budget curve; switches; facts by heart; tools, JSON and small talk. The package's engine answers in
batches.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat import ThinkingReport, encode
from qwen3.chat.events import Result as Folded
from qwen3.checkpoint.journal import write_atomic
from qwen3.evaluate.crowd import Case, Progress, asker, drive
from qwen3.evaluate.thinking import MAX_TOKENS, answer_all, curve, head, held_out, wilson
from qwen3.tasks import FAMILIES, NEXT_FAMILIES, Problem
from qwen3.tasks.dialogue_eval import EVAL_PROMPTS
from qwen3.tasks.sums import is_fact, value_of
from qwen3.tasks.tools import check_tool_call, sample_tool_dialogue
from qwen3.train.cold_start import sample_questions
from qwen3.train.fusion import flag_obedience, some_questions
from recipes.embedded_v1.mixture import LABELLED, json_messages

BUDGETS = (0, 4, 8, 16, 32, 64, 96, 128, 192, 256, None)
MODES = {"thinking": "on", "direct": "off", "auto": "auto"}
GAIN = 3.0  # points that the mean must rise by
RL_GAIN, RL_KEPT = 15.0, 2.0  # points of pass@1 that RL must gain, and that fusion may lose again
AUTO_ACCURACY, AUTO_TOKENS = 0.95, 0.60  # of always thinking's
OLD = tuple(name for name in FAMILIES if name not in NEXT_FAMILIES)
Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured: problems of a family, of the curve, questions with switches, conversations."""

    family: int = 180
    curve: int = 2000  # 0: none
    obedience: int = 400
    conversations: int = 200
    facts: int = 1 << 20
    seed: int = 1
    max_tokens: int = MAX_TOKENS
    budgets: tuple[int | None, ...] = BUDGETS


def share(right: int, total: int) -> Result:
    low, high = wilson(right, total)
    return {"right": right, "of": total, "percent": 100 * right / max(total, 1), "interval": [low, high]}


def sampling(scale: Scale) -> SamplingParams:
    """What was published for thinking, in every mode, so that these differ in the prompt alone."""
    return SamplingParams(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, seed=scale.seed, max_tokens=scale.max_tokens
    )


def known_by_heart(problem: Problem) -> bool:
    """A held-out problem of `chain` or `divide` that `sums` trains as a fact: it measures nothing."""
    match problem.key.split():
        case ["chain", a, ("+" | "-") as sign, b]:
            return is_fact(int(a), sign, int(b))
        case ["multiply", a, b]:
            return is_fact(int(a), "*", int(b))
        case ["divide", a, b]:
            return is_fact(int(a), "/", int(b))
    return False


def modes(llm: LLM, scale: Scale, say: Any) -> Result:
    """Families by mode, means, levels, tokens."""
    problems = [p for p in held_out(tuple(FAMILIES), scale.family * len(FAMILIES), scale.seed) if not known_by_heart(p)]
    answers, right = {}, {}
    for name, mode in MODES.items():
        progress = Progress(len(problems), say)
        policy = ThinkingPolicy(mode=mode)  # type: ignore[arg-type]
        answers[name] = [a for _, a in answer_all(llm, problems, policy, sampling(scale), progress, name)]
        right[name] = [FAMILIES[p.family].check(p, a.content) for p, a in zip(problems, answers[name], strict=True)]
    families: Result = {}
    for family, task in FAMILIES.items():
        at = [i for i, p in enumerate(problems) if p.family == family]
        row: Result = {name: share(sum(right[name][i] for i in at), len(at)) for name in MODES}
        row["levels"] = {
            name: [
                round(100 * sum(right[name][i] for i in group) / len(group), 1)
                for level in range(1, task.levels + 1)
                if (group := [i for i in at if problems[i].level == level])
            ]
            for name in MODES
        }
        row["thinking_tokens"] = sum(report(answers["thinking"][i]).used for i in at) / len(at)
        row["auto_thinks"] = sum(report(answers["auto"][i]).mode == "on" for i in at) / len(at)
        families[family] = row
    cost = {name: sum(_extra(a) for a in answers[name]) for name in MODES}
    accurate = {name: sum(right[name]) / len(problems) for name in MODES}
    thinking = answers["thinking"]
    return {
        "problems": len(problems),
        "mean": {name: mean(families, tuple(FAMILIES), (name,)) for name in MODES},
        "mean_before": mean(families, OLD, ("thinking", "direct")),
        "auto": {
            "accuracy": accurate["auto"] / max(accurate["thinking"], 1e-9),
            "tokens": cost["auto"] / max(cost["thinking"], 1),
        },
        "closes": share(sum(report(a).ended_by == "natural" for a in thinking), len(problems)),
        "thinks_by_default": share(sum(bool(a.reasoning_content.strip()) for a in thinking), len(problems)),
        "direct_is_direct": share(sum("<think>" not in a.content for a in answers["direct"]), len(problems)),
        "families": families,
    }


def answers_of(
    llm: LLM, conversations: Sequence[Any], policy: ThinkingPolicy, params: SamplingParams, form: Form | None = None
) -> list[Folded]:
    """In order. Conversation i has the seed of `params` + i: with one seed for all, every answer would meet the same
    noise, and a choice between two ways to think would fall alike everywhere."""
    ask, found = asker(llm), dict[int, Folded]()
    cases = (
        Case(ask(conversation, form or Form(), policy, replace(params, seed=(params.seed or 0) + i)), {"number": i})
        for i, conversation in enumerate(conversations)
    )
    for case, result in drive(llm.engine, cases, 2 * llm.engine.max_batch):
        found[case.what["number"]] = result
    return [found[i] for i in range(len(found))]


def report(answer: Folded) -> ThinkingReport:
    assert answer.thinking is not None  # every finished answer has one
    return answer.thinking


def _extra(answer: Folded) -> int:
    """Tokens that are not of the answer: thinking, what was forced, what was thrown away."""
    thought = report(answer)
    return thought.used + thought.forced_tokens + thought.discarded_tokens


def mean(families: Mapping[str, Any], names: Sequence[str], of: Sequence[str]) -> float:
    """Of families and modes, each counting the same, in percent."""
    cells = [families[name][mode]["percent"] for name in names for mode in of]
    return sum(cells) / len(cells)


def facts(llm: LLM, scale: Scale) -> Result:
    """Single digits, which all were trained: what 2 + 2 is, in the wordings that failed before."""
    every = [(a, s, b) for s in "+-*/" for a in range(82) for b in range(10) if (b or s != "/") and is_fact(a, s, b)]
    names = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
    asked = [
        (text.format(a=a, s=s, b=b, w=names[s]), value_of(a, s, b))
        for a, s, b in every
        for text in ("What is {a} {s} {b}?", "{a}{s}{b}", "What's {a} {w} {b}?")
    ]  # fmt: skip
    asked = random.Random(scale.seed).sample(asked, min(len(asked), scale.facts))
    found: Result = {}
    for name in ("thinking", "direct"):
        answers = answers_of(
            llm, [text for text, _ in asked], ThinkingPolicy(mode=MODES[name]), sampling(scale)  # type: ignore[arg-type]
        )  # fmt: skip
        right = sum(
            FAMILIES["sums"].check(_number(value), a.content) for (_, value), a in zip(asked, answers, strict=True)
        )
        found[name] = share(right, len(asked))
    return found


def _number(value: int) -> Problem:
    return Problem("sums", 1, "", "", "", str(value), "")


def conversations(llm: LLM, scale: Scale) -> Result:
    """Small talk in both modes, held-out tool calls, and JSON: asked for, and bound by a schema without being told."""
    talk = 0
    for mode in ("on", "off"):
        answers = answers_of(
            llm, [prompt for prompt, _ in EVAL_PROMPTS], ThinkingPolicy(mode=mode), sampling(scale)
        )  # fmt: skip
        talk += sum(passes(a.content) for (_, passes), a in zip(EVAL_PROMPTS, answers, strict=True))
    rng, prompts, references = random.Random(f"{scale.seed}/tools"), [], []
    for _ in range(scale.conversations):
        messages, tools = sample_tool_dialogue(rng, split="eval")
        at = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        prompts.append(encode(messages[:at], tokenizer=llm.tokenizer, tools=tools).ids)
        references.append((messages[: at + 1], tools))
    calls = llm.generate(prompts, sampling(scale))
    asked = [json_messages(random.Random(f"{scale.seed}/json/{i}"), "eval") for i in range(scale.conversations)]
    spoken = answers_of(llm, [messages[:-1] for messages, _ in asked], ThinkingPolicy(mode="on"), sampling(scale))
    bound = 0
    plain = held_out(("sums",), scale.conversations // 2, scale.seed)
    schema = {"type": "object", "properties": {"result": {"type": "integer", "minimum": -9999, "maximum": 9999}},
              "required": ["result"], "additionalProperties": False}  # fmt: skip
    form, on = Form.of(schema=schema), ThinkingPolicy(mode="on")
    under = answers_of(llm, [p.prompt for p in plain], on, sampling(scale), form)
    for p, a in zip(plain, under, strict=True):
        bound += _loaded(a.content) == {"result": int(p.answer)}
    return {
        "talk": share(talk, 2 * len(EVAL_PROMPTS)),
        "tools": share(sum(check_tool_call(*r, c) for r, c in zip(references, calls, strict=True)), len(calls)),
        "json": share(sum(_loaded(a.content) == w for (_, w), a in zip(asked, spoken, strict=True)), len(asked)),
        "schema": share(bound, len(plain)),
    }


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def skills(llm: LLM, questions: int = 192, seed: int = 7, max_tokens: int = 512) -> dict[str, float]:
    """What RL is to raise, at temperature 1 on held-out problems of the labelled families: pass@1, the share of careful
    thoughts, how often either kind is right, and tokens. For `RL.evaluate`."""
    asked = sample_questions(questions, seed, dict.fromkeys(LABELLED, 1.0), split="eval")
    plain = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=seed, max_tokens=max_tokens)
    answers = answers_of(llm, [q.prompt for q in asked], ThinkingPolicy(mode="on"), plain)
    right = [q.check(a.content) for q, a in zip(asked, answers, strict=True)]
    terse = [any("-" in line.split(":")[0] for line in a.reasoning_content.splitlines()) for a in answers]

    def part(kind: bool) -> float:
        chosen = [good for good, short in zip(right, terse, strict=True) if short is kind]
        return sum(chosen) / len(chosen) if chosen else 0.0

    return {
        "held_out": sum(right) / len(asked),
        "careful": 1 - sum(terse) / len(asked),
        "careful_right": part(False),
        "terse_right": part(True),
        "thought": sum(a.thinking.used for a in answers if a.thinking) / len(asked),
    }


def measure(llm: LLM, scale: Scale, command: str, say: Any = print) -> Result:
    began = time.monotonic()
    found = head("embedded model on held-out problems", llm, command, family=scale.family, seed=scale.seed)
    found |= modes(llm, scale, say)
    found["facts"] = facts(llm, scale)
    found |= conversations(llm, scale)
    found["obedience"] = flag_obedience(llm, some_questions(scale.obedience, scale.seed))
    found["skills"] = skills(llm, min(400, 2 * scale.family), scale.seed, min(512, scale.max_tokens))
    if scale.curve:
        found["curve"] = curve(llm, ",".join(FAMILIES), scale.budgets, scale.curve, scale.seed, say)
    return found | {"seconds": time.monotonic() - began}


def verdict(before: Result, after: Result, rl: Mapping[str, float] | None = None) -> Result:
    """Whether `after` may be released: {"pass", "failed": reasons, "checks": what was looked at, "near": warnings}.

    A family is worse in a mode where its interval lies wholly below the one before; where the share alone lies below
    that, it is named as near. rl: "before" and "after" of pass@1 around RL, in percent.
    """
    checks: dict[str, bool] = {}
    near = []
    rows = [(f"{name} {mode}", before["families"][name][mode], after["families"][name][mode])
            for name in OLD for mode in ("thinking", "direct")]  # fmt: skip
    rows += [(name, before[name], after[name]) for name in ("talk", "tools", "schema")]
    for what, old, new in rows:
        told = f"{what}: {old['percent']:.1f} → {new['percent']:.1f} %"
        checks[f"not worse, {told}"] = new["interval"][1] >= old["interval"][0]
        if new["percent"] < old["interval"][0] <= new["interval"][1]:
            near.append(told)
    gain = after["mean_before"] - before["mean_before"]
    checks[f"mean of the twelve families in both modes rises by {GAIN:g} points: {gain:+.1f}"] = gain >= GAIN
    points = after["curve"]["points"]
    text = " ".join(f"{p['percent']:.0f}" for p in points)
    checks[f"accuracy rises with the budget, from none on: {text}"] = (
        after["curve"]["monotone"] and not after["curve"]["below_none"] and len(points) >= 8
    )
    auto = after["auto"]
    checks[f"auto has {AUTO_ACCURACY:.0%} of thinking's accuracy: {auto['accuracy']:.1%}"] = (
        auto["accuracy"] >= AUTO_ACCURACY
    )
    checks[f"auto costs at most {AUTO_TOKENS:.0%} of thinking's tokens: {auto['tokens']:.1%}"] = (
        auto["tokens"] <= AUTO_TOKENS
    )
    obeyed = after["obedience"]["obeyed"]
    checks[f"switches are obeyed in 99 %: {obeyed:.1%}"] = obeyed >= 0.99
    for name in ("thinking", "direct"):
        fact = after["facts"][name]["percent"]
        checks[f"facts of single digits are right in 99 %, {name}: {fact:.1f}"] = fact >= 99
    closes = after["closes"]["percent"]
    checks[f"thinking closes by itself in 99.5 %: {closes:.1f}"] = closes >= 99.5
    if rl is not None:
        raised, lost = rl["after"] - rl["before"], rl["after"] - 100 * after["skills"]["held_out"]
        checks[f"RL raises pass@1 by {RL_GAIN:g} points: {raised:+.1f}"] = raised >= RL_GAIN
        checks[f"of which fusion loses at most {RL_KEPT:g}: {lost:.1f}"] = lost <= RL_KEPT
    failed = [text for text, good in checks.items() if not good]
    return {"pass": not failed, "failed": failed, "near": near, "checks": checks}


def table(found: Result) -> str:
    lines = [f"{'family':10}{'thinking':>22}{'direct':>22}{'auto':>8}{'thinks':>8}{'tokens':>8}"]
    for name, row in found["families"].items():
        cells = [
            f"{row[m]['percent']:.1f} ({row[m]['interval'][0]:.0f}–{row[m]['interval'][1]:.0f})"
            for m in list(MODES)[:2]
        ]
        lines.append(f"{name:10}{cells[0]:>22}{cells[1]:>22}{row['auto']['percent']:>8.1f}{row['auto_thinks']:>8.0%}"
                     f"{row['thinking_tokens']:>8.0f}")  # fmt: skip
    return "\n".join(lines)


def write(path: Path, found: Any) -> None:
    write_atomic(path, [json.dumps(found, indent=1).encode() + b"\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="what this script wrote of the model before: the verdict is added")
    parser.add_argument("--per-family", type=int, default=Scale.family)
    parser.add_argument("--curve", type=int, default=Scale.curve)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device")
    args = parser.parse_args()
    scale = Scale(family=args.per_family, curve=args.curve)
    with LLM(None if args.model == "embedded" else args.model, device=args.device, max_batch=args.batch) as llm:
        found = measure(llm, scale, f"python -m recipes.embedded_v1.evaluate --model {args.model}")
    if args.before:
        found["verdict"] = verdict(json.loads(args.before.read_text()), found)
    write(args.out, found)
    print(table(found))
    print(
        json.dumps({k: found.get(k) for k in ("mean", "mean_before", "auto", "facts", "verdict", "seconds")}, indent=1)
    )


if __name__ == "__main__":
    main()
