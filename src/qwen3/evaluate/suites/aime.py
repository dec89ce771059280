"""AIME 2024 and 2025: 30 problems a year, each answer a whole number from 0 to 999, asked 64 times as in the report."""

from __future__ import annotations

from functools import partial

from qwen3.evaluate.score.math import math_item, score, whole
from qwen3.evaluate.score.math_same import need
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Reference, Sampling, Suite

SAMPLING = Sampling(samples=64, max_tokens=38912)
LICENCE = "the problems are the Mathematical Association of America's"


def load(local: str | None, *, year: int, dataset: str) -> list[Item]:
    """The usual data sets name their columns differently; solutions that are \\boxed{} answers are read as answers."""
    need()
    name, items = f"aime{year % 100}", []
    how = f"Get it with `hf download --repo-type dataset {dataset}`."
    for number, row in enumerate(rows(name, local=local, hub=(dataset, None, None), how=how)):
        if (other := row.get("year") or row.get("Year")) and str(other) != str(year):
            continue
        problem = field(row, "problem", "Problem", "question")
        answer = whole(field(row, "answer", "Answer", "solution"), f"{name}: row {number + 1}")
        items.append(math_item(f"{year}/{row.get('id', row.get('ID', number))}", problem, answer, {}))
    return items


def _suite(year: int, dataset: str, references: tuple[Reference, ...]) -> Suite:
    return Suite(
        name=f"aime{year % 100}",
        title=f"AIME'{year % 100}",
        load=partial(load, year=year, dataset=dataset),
        score=score,
        licence=LICENCE,
        source=f"https://huggingface.co/datasets/{dataset}",
        headline="mean accuracy of 64 samples",
        sampling=SAMPLING,
        references=references,
        needs=("math-verify",),
    )


SUITES = (
    _suite(
        2024,
        "HuggingFaceH4/aime_2024",
        published("10.7 48.3 73.8 76.0 79.3 81.4 80.4 85.7", "3.4 13.4 25.0 29.1 31.7 31.0 32.8 40.1"),
    ),
    _suite(
        2025,
        "math-ai/aime25",
        published("15.1 36.8 65.6 67.3 70.4 72.9 70.9 81.5", "2.6 9.8 19.1 20.9 23.3 20.2 21.6 24.7"),
    ),
)
