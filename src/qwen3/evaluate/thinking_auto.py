"""What `mode="auto"` buys: accuracy and tokens beside always thinking, never thinking, and choosing at random.

The suite is half step tasks, half controls, fixed by what the package has: every family of `qwen3.tasks` and the
checked small talk of `qwen3.tasks.dialogue_eval`, families of a half in equal shares, levels in turn, problems of the
evaluation split. Figures are given for all of it and, apart, for problems whose reference answer is short: an answer of
a thousand tokens is the same in every mode and says nothing about the decision to think.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat import ThinkingReport
from qwen3.engine.sampler import TokenLogprob
from qwen3.engine.trial import THRESHOLD, TOP, Trial
from qwen3.errors import Qwen3Error
from qwen3.evaluate.crowd import Case, Progress, Say, asker, drive
from qwen3.evaluate.thinking import MAX_TOKENS, Result, head, held_out
from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES
from qwen3.tasks.dialogue_eval import EVAL_PROMPTS

SHORT = 128
"""Tokens of a reference answer that count as few."""
GOAL, MOST_TOKENS, ABOVE_RANDOM = 0.95, 0.60, 0.08
THRESHOLDS = (0.06, 0.08, 0.1, 0.11, 0.12, 0.13, 0.14, 0.16, 0.2)
_RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """A problem, whatever it comes from."""

    family: str
    level: int
    prompt: str
    check: Callable[[str], bool]
    answer_tokens: int  # of the reference; 0: there is none


def suite(llm: LLM, problems: int, seed: int, split: str = "eval") -> list[Item]:
    """Half step tasks, half controls."""

    def items(names: Sequence[str], count: int) -> list[Item]:
        return [
            Item(p.family, p.level, p.prompt, partial(FAMILIES[p.family].check, p), len(encode(p.reply)))
            for p in held_out(names, count, seed, split)
        ]

    encode = llm.tokenizer.encode_plain
    half = problems // 2
    talk = half // (len(CONTROL_FAMILIES) + 1)
    return [
        *items(STEP_FAMILIES, half),
        *items(CONTROL_FAMILIES, half - talk),
        *(Item("talk", 1, *EVAL_PROMPTS[i % len(EVAL_PROMPTS)], 0) for i in range(talk)),
    ]


@dataclass(frozen=True)
class Runs:
    """Arrays over the suite's problems. Of always, never and auto: right, tokens (all that were generated), extra
    (those that are not of the answer: thinking, what was forced or thrown away, tags). thought: whether auto did."""

    weight: Floats
    right: dict[str, Floats]
    tokens: dict[str, Floats]
    extra: dict[str, Floats]
    thought: Floats

    def figures(self) -> dict[str, float]:
        """Weighted means, and what the criterion asks."""

        def mean(values: Floats) -> float:
            return float((self.weight * values).sum() / self.weight.sum())

        right = {name: mean(values) for name, values in self.right.items()}
        rate = mean(self.thought)
        random = rate * right["always"] + (1 - rate) * right["never"]
        return {
            **{f"accuracy_{name}": value for name, value in right.items()},
            **{f"tokens_{name}": mean(values) for name, values in self.tokens.items()},
            **{f"extra_{name}": mean(values) for name, values in self.extra.items()},
            "thinking_rate": rate,
            "of_always_accuracy": right["auto"] / max(right["always"], 1e-9),
            "of_always_tokens": mean(self.tokens["auto"]) / mean(self.tokens["always"]),
            "of_always_extra": mean(self.extra["auto"]) / max(mean(self.extra["always"]), 1e-9),
            "accuracy_random": random,
            "above_random": right["auto"] - random,
        }

    def take(self, chosen: NDArray[np.int64]) -> Runs:
        """These problems, with repetitions."""
        right, tokens, extra = (
            {name: values[chosen] for name, values in d.items()} for d in (self.right, self.tokens, self.extra)
        )
        return Runs(self.weight[chosen], right, tokens, extra, self.thought[chosen])


def weights(items: Sequence[Item], kept: Sequence[bool]) -> Floats:
    """Each half counts the same, and each family of a half; 0 for what is not kept."""
    counts: dict[str, int] = {}
    for item, keep in zip(items, kept, strict=True):
        counts[item.family] = counts.get(item.family, 0) + keep
    steps = sum(1 for name, count in counts.items() if count and name in STEP_FAMILIES)
    rest = sum(1 for name, count in counts.items() if count) - steps
    return np.array(
        [
            0.5 / (steps if item.family in STEP_FAMILIES else rest) / counts[item.family] if keep else 0.0
            for item, keep in zip(items, kept, strict=True)
        ]
    )


def summary(runs: Runs, seed: int = 0) -> dict[str, Any]:
    """`Runs.figures` with 95 % bootstrap intervals (over problems), and whether the criteria are met."""
    found = runs.figures()
    there = np.flatnonzero(runs.weight)
    rng = np.random.default_rng(seed)
    drawn = [runs.take(rng.choice(there, len(there))).figures() for _ in range(_RESAMPLES)]
    keys = ("of_always_accuracy", "of_always_tokens", "of_always_extra", "above_random", "thinking_rate")
    intervals = {key: np.percentile([figures[key] for figures in drawn], [2.5, 97.5]).tolist() for key in keys}
    met = {
        "accuracy": found["of_always_accuracy"] >= GOAL,
        "all_tokens": found["of_always_tokens"] <= MOST_TOKENS,
        "thinking_tokens": found["of_always_extra"] <= MOST_TOKENS,
        "above_random": found["above_random"] >= ABOVE_RANDOM,
    }
    return {"problems": len(there), **found, "intervals": intervals, "met": met}


def floors(items: Sequence[Item], runs: Runs) -> dict[str, float]:
    """Least shares of always-thinking's tokens at which the accuracy goal can be had with nothing thrown away: by who
    knows each outcome in advance, and by who knows family and level."""
    gain = runs.right["always"] - runs.right["never"]
    groups: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault((item.family, item.level), []).append(i)
    alone = [[i] for i in range(len(items))]
    out = {}
    for name, parts in (("outcomes", alone), ("levels", list(groups.values()))):
        for what, cost in (("tokens", runs.tokens), ("extra", runs.extra)):
            more = cost["always"] - cost["never"]
            choices = [(float((runs.weight * gain)[p].sum()), float((runs.weight * more)[p].sum())) for p in parts]
            missing = float((runs.weight * (GOAL * runs.right["always"] - runs.right["never"])).sum())
            spent = float((runs.weight * cost["never"]).sum())
            for gained, price in sorted(((g, c) for g, c in choices if g > 0), key=lambda pair: pair[1] / pair[0]):
                share = min(1.0, max(0.0, missing / gained))
                missing, spent = missing - share * gained, spent + share * price
            out[f"{name}_{what}"] = spent / float((runs.weight * cost["always"]).sum())
    return out


def auto(
    llm: LLM,
    problems: int = 2000,
    seed: int = 1,
    threshold: float | None = None,
    split: str = "eval",
    say: Say = lambda line: None,
    command: str = "",
) -> Result:
    """The suite always, never and on demand, as one result object: `all` and `short` (see the module) with figures,
    floors and `sweep`, what other thresholds would have given, worked out from the runs without thinking; by family."""
    items = suite(llm, problems, seed, split)
    progress = Progress(3 * len(items), say)
    start = time.monotonic()
    policies = {
        "never": ThinkingPolicy("off"),
        "always": ThinkingPolicy("on"),
        "auto": ThinkingPolicy("auto", threshold=threshold),
    }
    answers = {name: _ask(llm, items, policy, seed, progress, name) for name, policy in policies.items()}
    right = {
        name: np.array([float(item.check(a.content)) for item, a in zip(items, found, strict=True)])
        for name, found in answers.items()
    }
    tokens = {name: np.array([float(a.tokens) for a in found]) for name, found in answers.items()}
    after = llm.tokenizer.control.end_think
    extra = {
        name: np.array([float(a.tokens - len(_after_thinking(a.ids, after))) for a in found])
        for name, found in answers.items()
    }
    thought = np.array([float(a.report.mode == "on") for a in answers["auto"]])
    short = [item.answer_tokens <= SHORT for item in items]
    out: Result = {
        **head("mode auto beside always and never", llm, command, problems=len(items), seed=seed, split=split),
        "threshold": THRESHOLD if threshold is None else threshold,
        "window": max(a.report.window or 0 for a in answers["auto"]),
        "discarded": sum(a.report.discarded_tokens for a in answers["auto"]),
    }
    for name, kept in (("all", [True] * len(items)), ("short", short)):
        runs = Runs(weights(items, kept), right, tokens, extra, thought)
        out[name] = {**summary(runs, seed), "floors": floors(items, runs), "sweep": _sweep(answers["never"], runs)}
    out["families"] = _by_family(items, right, tokens, thought)
    out["seconds"] = time.monotonic() - start
    return out


@dataclass(frozen=True)
class _Answer:
    content: str
    ids: Sequence[int]
    tokens: int
    report: ThinkingReport
    logprobs: list[TokenLogprob]


def _ask(
    llm: LLM, items: Sequence[Item], policy: ThinkingPolicy, seed: int, progress: Progress, what: str
) -> list[_Answer]:
    """An answer to each item, in order. Item i has the seed `seed` + i."""
    ask, found = asker(llm), {}
    plain = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, max_tokens=MAX_TOKENS)
    sampling = replace(plain, logprobs=TOP if policy.off else None)
    cases = (
        Case(ask(item.prompt, Form(), policy, replace(sampling, seed=seed + i)), {"number": i})
        for i, item in enumerate(items)
    )
    for case, result in drive(llm.engine, cases, 2 * llm.engine.max_batch):
        request = case.request
        if request.error is not None or result.usage is None or result.thinking is None:
            raise request.error or Qwen3Error(f"a request of the suite ended without a report: {items[0].prompt}")
        found[case.what["number"]] = _Answer(
            result.content, request.output, result.usage.completion_tokens, result.thinking, request.logprobs
        )
        progress.add(1, what)
    return [found[i] for i in range(len(items))]


def _after_thinking(ids: Sequence[int], end_think: int) -> Sequence[int]:
    """What follows the think block, its blank line apart."""
    return ids[ids.index(end_think) + 2 :] if end_think in ids else ids


def _sweep(never: Sequence[_Answer], runs: Runs) -> list[dict[str, float]]:
    """For each threshold: accuracy, tokens and rate if doubt had been judged on the answers given without thinking."""
    out = []
    for threshold in THRESHOLDS:
        looked = np.zeros(len(never))
        for i, answer in enumerate(never):
            trial = Trial(threshold)
            for place, entry in enumerate(answer.logprobs):
                trial.observe(entry)
                verdict = trial.verdict(over=place == len(answer.logprobs) - 1)
                if verdict is not None:
                    looked[i] = trial.looked if verdict == "think" else 0
                    break
        thinks = looked > 0
        pick = {
            kind: np.where(thinks, values["always"] + bonus, values["never"])
            for kind, values, bonus in (
                ("right", runs.right, 0.0),
                ("tokens", runs.tokens, looked),
                ("extra", runs.extra, looked),
            )
        }
        found = Runs(
            runs.weight,
            runs.right | {"auto": pick["right"]},
            runs.tokens | {"auto": pick["tokens"]},
            runs.extra | {"auto": pick["extra"]},
            thinks.astype(np.float64),
        ).figures()
        keys = ("of_always_accuracy", "of_always_tokens", "of_always_extra", "thinking_rate", "above_random")
        out.append({"threshold": threshold, **{key: found[key] for key in keys}})
    return out


def _by_family(
    items: Sequence[Item], right: dict[str, Floats], tokens: dict[str, Floats], thought: Floats
) -> dict[str, Any]:
    out = {}
    for name in dict.fromkeys(item.family for item in items):
        at = [i for i, item in enumerate(items) if item.family == name]
        out[name] = {
            "of": len(at),
            "right": {mode: float(values[at].mean()) for mode, values in right.items()},
            "tokens": {mode: float(values[at].mean()) for mode, values in tokens.items()},
            "thinking_rate": float(thought[at].mean()),
        }
    return out
