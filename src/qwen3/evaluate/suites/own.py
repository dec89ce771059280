"""The embedded model's own tasks: problems of qwen3.tasks that no training run of it has seen (their eval split)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from qwen3.evaluate.suites.source import settings
from qwen3.evaluate.types import Answer, Item, Sampling, Score, Suite
from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES, Problem

DEFAULTS = {"count": 1000, "seed": 1}


def load(name: str, families: Sequence[str], source: str | None) -> list[Item]:
    """`count` problems in equal shares of the families, their levels in turn; the same for the same settings."""
    from qwen3.evaluate.thinking import held_out

    asked = settings(name, source, DEFAULTS)
    numbers, items = dict[str, int](), []
    for problem in held_out(families, asked["count"], asked["seed"]):
        number = numbers[problem.family] = numbers.get(problem.family, -1) + 1
        id, about = f"{problem.family}/{asked['seed']}/{number}", {"family": problem.family, "level": problem.level}
        items.append(Item(id, ({"role": "user", "content": problem.prompt},), asdict(problem), about))
    return items


def score(item: Item, answer: Answer) -> Score:
    """As the family's own verifier takes it."""
    problem = Problem(**item.gold)
    right = FAMILIES[problem.family].check(problem, answer.content)
    return Score(float(right), "right" if right else "wrong", note="" if right else f"expected {problem.answer}"[:200])


def _suite(name: str, title: str, families: Sequence[str]) -> Suite:
    return Suite(
        name=name,
        title=title,
        load=partial(load, name, families),
        score=score,
        licence="Apache-2.0",
        source="qwen3.tasks, generated",
        sampling=Sampling(max_tokens=3000),
        groups=("family", "level"),
        notes="Settings in place of a file: count=1000,seed=1.",
    )


SUITES = (
    _suite("tasks", "the embedded model's tasks", (*STEP_FAMILIES, *CONTROL_FAMILIES)),
    _suite("steps", "tasks that need steps", STEP_FAMILIES),
    _suite("controls", "tasks that need none", CONTROL_FAMILIES),
    *(_suite(name, f"task {name}", (name,)) for name in (*STEP_FAMILIES, *CONTROL_FAMILIES)),
)
