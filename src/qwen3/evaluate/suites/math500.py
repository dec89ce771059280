"""MATH-500: 500 problems of MATH's test set (Hendrycks et al. 2021, arXiv 2103.03874), chosen by Lightman et al."""

from __future__ import annotations

from qwen3.evaluate.score.math import math_item, score
from qwen3.evaluate.score.math_same import need
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Suite

HOW = "Get it with `hf download --repo-type dataset HuggingFaceH4/MATH-500` (test.jsonl)."


def load(local: str | None) -> list[Item]:
    """References are LaTeX; an item's id is the problem's file in MATH, such as test/algebra/1072.json."""
    need()
    items = []
    for number, row in enumerate(rows("math500", local=local, hub=("HuggingFaceH4/MATH-500", None, "test"), how=HOW)):
        about = {"subject": row.get("subject") or "?", "level": row.get("level") or "?"}
        id = str(row.get("unique_id") or number)
        items.append(math_item(id, field(row, "problem"), str(field(row, "answer")), about))
    return items


SUITE = Suite(
    name="math500",
    title="MATH-500",
    load=load,
    score=score,
    licence="MIT",
    source="https://huggingface.co/datasets/HuggingFaceH4/MATH-500",
    references=published("77.6 93.4 97.0 97.4 96.8 97.2 98.0 98.0", "55.2 73.0 84.8 87.4 90.0 88.6 89.8 91.2"),
    groups=("subject", "level"),
    needs=("math-verify",),
)
