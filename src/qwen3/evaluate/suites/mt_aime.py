"""MT-AIME2024: AIME 2024 in 55 languages, translated by a model (Son et al. 2025, MCLM, arXiv 2502.17407)."""

from __future__ import annotations

from qwen3.errors import UsageError
from qwen3.evaluate.score.math import math_item, score, whole
from qwen3.evaluate.score.math_same import need
from qwen3.evaluate.suites.aime import LICENCE
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Sampling, Suite

HOW = "Get it with `hf download --repo-type dataset amphora/MCLM mt-aime2024.parquet`."
_NO_LANGUAGE = {"answer", "id", "index", "_file"}


def load(local: str | None) -> list[Item]:
    """A row is a problem, a column a language. An item is one of each."""
    need()
    items = []
    for number, row in enumerate(rows("mt_aime", local=local, hub=("amphora/MCLM", "mt-aime2024", None), how=HOW)):
        answer = whole(field(row, "answer"), f"mt_aime: row {number + 1}")
        languages = sorted(name for name in row if name not in _NO_LANGUAGE and not name.startswith("__"))
        if not languages or not all(isinstance(row[name], str) and row[name].strip() for name in languages):
            raise UsageError(f"mt_aime: {row['_file']}: row {number + 1} is not one text per language and an answer")
        for language in languages:
            about = {"language": language, "problem": number}
            items.append(math_item(f"{language}/{number}", row[language], answer, about))
    return items


SUITE = Suite(
    name="mt_aime",
    title="MT-AIME2024",
    load=load,
    score=score,
    licence=f"MIT (the translations); {LICENCE}",
    source="https://huggingface.co/datasets/amphora/MCLM",
    headline="mean accuracy of 55 languages",
    sampling=Sampling(max_tokens=38912),
    references=published("7.8 36.1 60.7 65.4 73.3 75.0 73.9 80.8", "1.5 4.9 13.9 16.6 23.2 24.1 24.6 32.4"),
    groups=("language",),
    needs=("math-verify",),
    notes="Asked in the problem's language, with the request for a box in English. One problem's 55 translations are "
    "not 55 independent items: an interval over items is too narrow. The report does not say how many samples it took.",
)
