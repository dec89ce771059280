"""GPQA-Diamond: 198 graduate questions in biology, chemistry and physics (Rein et al. 2023, arXiv 2311.12022)."""

from __future__ import annotations

import hashlib

from qwen3.evaluate.score.options import choice_item, score
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Sampling, Suite

REVISION = "5233cd1db58884ed0bf678c7c6be731722a23f84"
HOW = (
    "Accept the terms at https://huggingface.co/datasets/Idavidrein/gpqa and set HF_TOKEN, or take gpqa_diamond.csv "
    "out of the archive that the authors publish at https://github.com/idavidrein/gpqa."
)


def load(local: str | None) -> list[Item]:
    """The right answer stands first in the file: each item's options are shuffled by its id, the same in every run."""
    found = rows("gpqa", local=local, hub=("Idavidrein/gpqa", "gpqa_diamond", None, REVISION), how=HOW)
    items = []
    for row in found:
        question = field(row, "Question")
        options = [field(row, "Correct Answer"), *(field(row, f"Incorrect Answer {i}") for i in (1, 2, 3))]
        id = row.get("Record ID") or hashlib.sha256(question.encode()).hexdigest()[:16]
        about = {"domain": row.get("High-level domain") or "?", "subdomain": row.get("Subdomain") or "?"}
        items.append(choice_item(id, question, options, 0, about, shuffle=True))
    return items


SUITE = Suite(
    name="gpqa",
    title="GPQA-Diamond",
    load=load,
    score=score,
    licence="CC BY 4.0; its authors ask that the questions are not put on the web in plain text",
    source="https://huggingface.co/datasets/Idavidrein/gpqa",
    headline="mean accuracy of 10 samples",
    sampling=Sampling(samples=10),
    references=published("27.9 40.1 55.9 62.0 64.0 68.4 65.8 71.1", "22.9 28.6 41.7 39.3 54.8 54.6 54.8 62.9"),
    groups=("domain", "subdomain"),
)
