"""Reasoning Gym: procedural problems with verifiers (Stojanovski et al. 2025, arXiv 2505.24760); new ones at any seed.

Not all of its data sets are here: some verifiers run what the model wrote as Python (`eval`, or sympy's parser, which
is the same), and no answer runs in our process.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.suites.source import settings
from qwen3.evaluate.types import Answer, Item, Score, Suite

ASK = "Put your final answer, and nothing else, between <answer> and </answer>."
RUNS_ANSWERS = {
    *("binary_matrix", "codeio", "countdown", "intermediate_integration", "n_queens", "number_sorting"),
    *("polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
}
"""Data sets whose verifier (of 0.1.25) evaluates the answer, or whose generator runs programs."""
CHANGING = {"isomorphic_strings", "list_functions", "ransom_note"}
"""Data sets whose problems are others in each process, whatever the seed (they go by Python's hashes)."""
LEFT_OUT = {*RUNS_ANSWERS, *CHANGING, "composite", "arc_agi", "rearc", "game_of_life_halting"}
"""game_of_life_halting takes any text for "False". composite is made of the others; the two ARC sets are not generated
but public puzzles (suite arc_agi)."""
DEFAULTS = {"count": 5, "seed": 1, "datasets": ("all",)}


@cache
def _gym() -> Any:
    try:
        gym, factory = import_module("reasoning_gym"), import_module("reasoning_gym.factory")
    except ImportError as error:
        raise UsageError(
            f"reasoning_gym: its problems are made by a package that is not here ({error}): pip install reasoning-gym"
        ) from None
    return gym, sorted(set(factory.DATASETS) - LEFT_OUT)


@cache
def _made(dataset: str, seed: int, count: int) -> Any:
    return _gym()[0].create_dataset(dataset, seed=seed, size=count)


def load(source: str | None) -> list[Item]:
    """`count` problems of each data set, or of those that are named: "datasets=maze+gcd,count=20,seed=3"."""
    asked = settings("reasoning_gym", source, DEFAULTS)
    known = _gym()[1]
    names = known if asked["datasets"] == ("all",) else asked["datasets"]
    if unknown := [name for name in names if name not in known]:
        why = "its verifier would run the answer" if unknown[0] in RUNS_ANSWERS else f"there are {', '.join(known)}"
        raise UsageError(f"reasoning_gym: no data set {unknown[0]!r}: {why}")
    items = []
    for name in names:
        made = _made(name, asked["seed"], asked["count"])
        for i in range(asked["count"]):
            gold = {"dataset": name, "seed": asked["seed"], "count": asked["count"], "index": i}
            about = {"dataset": name, "category": made.category, "package": version("reasoning-gym")}
            message = {"role": "user", "content": f"{made[i]['question'].strip()}\n\n{ASK}"}
            items.append(Item(f"{name}/{asked['seed']}/{i}", (message,), gold, about))
    return items


def score(item: Item, answer: Answer) -> Score:
    """Right if the data set's verifier gives the full reward. Its partial rewards are the part "reward"."""
    found = re.findall(r"<answer>(.*?)</answer>", answer.content, re.S) or _boxed(answer.content)
    if not found:
        return Score(0.0, "unparsed", note="no <answer>")
    given, gold = found[-1].strip(), item.gold
    made = _made(gold["dataset"], gold["seed"], gold["count"])
    try:
        reward = float(made.score_answer(given, made[gold["index"]]))
    except Exception as error:  # a verifier that an answer can break: not the model's merit, and said in the record
        return Score(0.0, "wrong", given, note=f"the verifier failed: {type(error).__name__}: {error}"[:200])
    right = reward >= 1
    return Score(float(right), "right" if right else "wrong", given, {"reward": reward})


def _boxed(text: str) -> list[str]:
    return re.findall(r"\\boxed\{([^{}]*)\}", text)


SUITE = Suite(
    name="reasoning_gym",
    title="Reasoning Gym",
    load=load,
    score=score,
    licence="Apache-2.0",
    source="https://github.com/open-thought/reasoning-gym",
    groups=("category", "dataset"),
    notes="Settings in place of a file: count=5,seed=1,datasets=all. Left out: " + ", ".join(sorted(LEFT_OUT)) + ".",
)
