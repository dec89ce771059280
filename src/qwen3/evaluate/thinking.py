"""Accuracy against the thinking budget on problems that were never trained on: what `qwen3 curve` measures.

Every budget gets the same problems, with the same sampling (what Qwen published for thinking, at every budget), so
that points differ by the budget alone. An answer counts if the family's own verifier takes it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy, __version__
from qwen3.asking import Form
from qwen3.engine import Request
from qwen3.errors import UsageError
from qwen3.evaluate.crowd import Case, Folded, Progress, Say, asker, drive
from qwen3.evaluate.machine import commit, describe
from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES, Problem
from qwen3.tasks.base import interval

BUDGETS: tuple[int | None, ...] = (0, 8, 16, 32, 64, 96, 128, 192, 256, None)
MAX_TOKENS = 3000
"""Of an answer and its thinking: three times what any held-out problem needs."""

Result = dict[str, Any]


def head(what: str, llm: LLM, command: str, **settings: Any) -> Result:
    """What a file in benchmarks/ begins with."""
    return {
        "what": what,
        "model": llm.resolved.name if llm.resolved else "in memory",
        "engine": f"qwen3 {__version__}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command,
        "settings": settings,
        "machine": describe(llm.device),
    }


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson 1927), in percent; (0, 100) of nothing."""
    low, high = interval(right, total)
    return 100 * low, 100 * high


def families_of(suite: str) -> tuple[str, ...]:
    """Families that a name means: "tasks" (all), "steps", "controls", or families' names with commas."""
    sets = {"tasks": (*STEP_FAMILIES, *CONTROL_FAMILIES), "steps": STEP_FAMILIES, "controls": CONTROL_FAMILIES}
    names = sets.get(suite) or tuple(name.strip() for name in suite.split(","))
    for name in names:
        if name not in FAMILIES:
            raise UsageError(f"there is no suite or family {name!r}; take {', '.join((*sets, *FAMILIES))}")
    return names


def budgets_of(text: str) -> tuple[int | None, ...]:
    """Budgets of a comma-separated list in rising order: whole numbers, and "none" for unlimited."""
    found: set[int | None] = set()
    for word in text.split(","):
        if word.strip() != "none" and not word.strip().isdecimal():
            raise UsageError(f"budgets must be whole numbers or 'none', with commas between, not {word.strip()!r}")
        found.add(None if word.strip() == "none" else int(word))
    return tuple(sorted(found, key=lambda budget: math.inf if budget is None else budget))


def held_out(names: Sequence[str], count: int, seed: int, split: str = "eval") -> list[Problem]:
    """`count` problems of a split in equal shares of the families, their levels in turn; no problem twice as far as a
    family has so many. The same for the same arguments."""
    out: list[Problem] = []
    for i, name in enumerate(names):
        rng, task = random.Random(f"{seed}/{name}"), FAMILIES[name]
        share = count * (i + 1) // len(names) - count * i // len(names)
        seen: dict[str, Problem] = {}
        tried = 0
        while len(seen) < share and tried < 20 * share:
            problem = task.sample(rng, tried % task.levels + 1, split=split)
            seen.setdefault(problem.key, problem)
            tried += 1
        out += seen.values()
        out += (task.sample(rng, j % task.levels + 1, split=split) for j in range(share - len(seen)))
    return out


def policy_of(budget: int | None) -> ThinkingPolicy:
    """Thinking with at most so many tokens; 0 is the empty block."""
    return ThinkingPolicy(budget=0) if budget == 0 else ThinkingPolicy("on", budget=budget)


def answer_all(
    llm: LLM,
    problems: Sequence[Problem],
    policy: ThinkingPolicy | None,
    sampling: SamplingParams,
    progress: Progress,
    what: str,
    work: Callable[[Problem], float] = lambda problem: 1.0,
) -> list[tuple[Request, Folded]]:
    """Requests and results in order. Problem i has the seed `sampling.seed` + i; those that take longest begin
    first."""
    ask, found = asker(llm), {}
    order = sorted(range(len(problems)), key=lambda i: -len(problems[i].trace) - len(problems[i].reply))
    cases = (
        Case(ask(problems[i].prompt, Form(), policy, replace(sampling, seed=(sampling.seed or 0) + i)), {"number": i})
        for i in order
    )
    for case, result in drive(llm.engine, cases, 2 * llm.engine.max_batch):
        found[case.what["number"]] = case.request, result
        progress.add(work(problems[case.what["number"]]), what)
    return [found[i] for i in range(len(problems))]


def curve(
    llm: LLM,
    suite: str = "tasks",
    budgets: Sequence[int | None] = BUDGETS,
    problems: int = 2000,
    seed: int = 1,
    say: Say = lambda line: None,
    command: str = "",
) -> Result:
    """Accuracy at each budget, as one result object.

    Each point: budget (None: unlimited), right, of, percent, interval (Wilson, 95 %), thinking_tokens and
    completion_tokens (means), closed (share of the thoughts that the budget ended) and right by family. Of all: rise
    (points from the first to the last), half_width (the widest interval's), monotone: no point's interval lies below
    that of a smaller budget, and below_none: budgets whose interval lies below that of budget 0. These are apart, and
    budget 0 is not asked to be the lowest, because it is no cut thought but the other mode: an answer without one.
    """
    if llm.mode != "hybrid":
        raise UsageError(f"this model's mode is {llm.mode!r}: a curve needs one that thinks and answers at once")
    if not budgets or problems < 1:
        raise UsageError("give at least one budget and one problem")
    names = families_of(suite)
    chosen = held_out(names, problems, seed)
    sampling = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, seed=seed, max_tokens=MAX_TOKENS)

    def work(budget: int | None) -> Callable[[Problem], float]:
        return lambda p: 40 + len(p.reply) + min(len(p.trace), 3 * (len(p.trace) if budget is None else budget))

    progress = Progress(sum(sum(map(work(budget), chosen)) for budget in budgets), say)
    points = []
    for budget in budgets:
        what = f"budget {'none' if budget is None else budget}"
        pairs = answer_all(llm, chosen, policy_of(budget), sampling, progress, what, work(budget))
        answers = [result for _, result in pairs]
        points.append(_point(budget, chosen, answers))
        low, high = points[-1]["interval"]
        say(f"{what}: {points[-1]['percent']:.1f} % right [{low:.1f}, {high:.1f}]")
    return {
        **head("accuracy against thinking budget", llm, command, suite=suite, problems=len(chosen), seed=seed),
        "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": MAX_TOKENS},
        "points": points,
        "rise": points[-1]["percent"] - points[0]["percent"],
        "half_width": max((p["interval"][1] - p["interval"][0]) / 2 for p in points),
        "monotone": rises([point for point in points if point["budget"] != 0]),
        "below_none": [p["budget"] for p in points if points[0]["budget"] == 0 and not rises([points[0], p])],
        "seconds": time.monotonic() - progress.start,
    }


def rises(points: Sequence[Result]) -> bool:
    """Whether no interval lies wholly below one of an earlier point."""
    best = 0.0
    for point in points:
        low, high = point["interval"]
        if high < best:
            return False
        best = max(best, low)
    return True


def _point(budget: int | None, problems: Sequence[Problem], answers: Sequence[Any]) -> Result:
    right = [FAMILIES[p.family].check(p, a.content) for p, a in zip(problems, answers, strict=True)]
    by_family: dict[str, list[int]] = {}
    for problem, good in zip(problems, right, strict=True):
        counts = by_family.setdefault(problem.family, [0, 0])
        counts[0] += good
        counts[1] += 1
    total = len(problems)
    return {
        "budget": budget,
        "right": sum(right),
        "of": total,
        "percent": 100 * sum(right) / total,
        "interval": wilson(sum(right), total),
        "thinking_tokens": sum(a.thinking.used for a in answers) / total,
        "completion_tokens": sum(a.usage.completion_tokens for a in answers) / total,
        "closed": sum(a.thinking.ended_by == "budget" for a in answers) / total,
        "most_used": max(a.thinking.used for a in answers),
        "families": {name: {"right": good, "of": of} for name, (good, of) in by_family.items()},
    }
