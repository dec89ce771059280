"""MMMLU: MMLU's 14,042 test questions, translated by people into 14 languages (OpenAI 2024)."""

from __future__ import annotations

import re

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import choice_item, score
from qwen3.evaluate.suites.source import field, in_sample, published, rows, tenth_and_all
from qwen3.evaluate.types import Item, Suite

REVISION = "325a01dc3e173cac1578df94120499aaca2e2504"
HOW = "Get it with `hf download --repo-type dataset openai/MMMLU` (test/mmlu_DE-DE.csv and so on)."


def load(local: str | None, all: bool) -> list[Item]:
    """A tenth of the questions, the same ones in every language, without Yoruba, as the report has it; or all."""
    items, numbers = [], dict[str, int]()
    for row in rows("mmmlu", local=local, hub=("openai/MMMLU", None, "test", REVISION), how=HOW):
        tag = re.search(r"[A-Z]{2}[_-][A-Z]{2}", row["_file"])
        language = str(row.get("Language") or (tag[0] if tag else row["_file"])).replace("_", "-")
        number = numbers[language] = numbers.get(language, -1) + 1
        if not all and (language == "YO-NG" or not in_sample(f"mmmlu/{number}")):
            continue
        answer = str(field(row, "Answer")).strip()
        if answer not in list("ABCD"):
            raise UsageError(f"mmmlu: {row['_file']}: question {number}: the answer is {answer!r}, not A to D")
        options, about = [field(row, letter) for letter in "ABCD"], {"language": language}
        about["subject"] = str(row.get("Subject", "?")).split("_test")[0]
        items.append(choice_item(f"{language}/{number}", field(row, "Question"), options, "ABCD".index(answer), about))
    return items


SUITES = tenth_and_all(
    Suite(
        name="mmmlu",
        title="MMMLU",
        load=lambda local: load(local, False),
        score=score,
        licence="MIT",
        source="https://huggingface.co/datasets/openai/MMMLU",
        references=published(
            "43.1 59.1 69.8 74.4 77.9 80.6 78.4 84.3",
            "37.1 48.3 61.7 66.9 72.6 76.5 73.8 79.8",
        ),
        groups=("language", "subject"),
        notes="A tenth of the questions, by hash, without Yoruba; the report's own tenth is not published.",
    ),
    load,
)
