"""GSM8K: 1,319 word problems of grade school (Cobbe et al. 2021, arXiv 2110.14168), each answer a whole number."""

from __future__ import annotations

from collections.abc import Callable

from qwen3.errors import UsageError
from qwen3.evaluate.score.math import math_item, score, whole
from qwen3.evaluate.score.math_same import need
from qwen3.evaluate.suites.source import Row, field, rows
from qwen3.evaluate.types import Item, Suite

HOW = (
    "Get it with `hf download --repo-type dataset openai/gsm8k`, or take grade_school_math/data/test.jsonl out of "
    "https://github.com/openai/grade-school-math."
)


def load(local: str | None, change: Callable[[Row], Row | None] | None = None) -> list[Item]:
    """The reference is what stands after the solution's #### mark. change: makes another row of one, None: of none."""
    need()
    items = []
    for number, given in enumerate(rows("gsm8k", local=local, hub=("openai/gsm8k", "main", "test"), how=HOW)):
        if (row := change(given) if change else given) is None:
            continue
        _, mark, answer = str(field(row, "answer")).rpartition("####")
        if not mark:
            raise UsageError(f"gsm8k: {row['_file']}: the answer of row {number + 1} has no #### line")
        items.append(math_item(str(number), field(row, "question"), whole(answer, f"gsm8k: row {number + 1}"), {}))
    return items


SUITE = Suite(
    name="gsm8k",
    title="GSM8K",
    load=load,
    score=score,
    licence="MIT",
    source="https://huggingface.co/datasets/openai/gsm8k",
    needs=("math-verify",),
    notes="The report gives GSM8K for base models alone, with four examples: no number of it is of this setting.",
)
