"""INCLUDE: 22,637 questions of local exams in 44 languages (Romanou et al. 2024, arXiv 2411.19799)."""

from __future__ import annotations

from pathlib import PurePosixPath

from qwen3.evaluate.score.options import LETTERS, choice_item, score
from qwen3.evaluate.suites.source import field, in_sample, published, rows, tenth_and_all
from qwen3.evaluate.types import Item, Suite

HOW = "Get it with `hf download --repo-type dataset CohereLabs/include-base-44`."


def load(local: str | None, all: bool) -> list[Item]:
    """A tenth of the test questions, as in the report, or all of them."""
    items, numbers = [], dict[str, int]()
    for row in rows("include", local=local, hub=("CohereLabs/include-base-44", None, "test", "main"), how=HOW):
        language = str(row.get("language") or PurePosixPath(row["_file"]).parts[0])
        number = numbers[language] = numbers.get(language, -1) + 1
        id = f"{language}/{number}"
        if not all and not in_sample(f"include/{id}"):
            continue
        options = row.get("choices") or [field(row, f"option_{letter}") for letter in "abcd"]
        answer = str(field(row, "answer")).strip()
        right = int(answer) if answer.isdecimal() else LETTERS.find(answer)
        about = {"language": language, "domain": row.get("domain", "?"), "regional": row.get("regional_feature", "?")}
        items.append(choice_item(id, field(row, "question"), options, right, about))
    return items


SUITES = tenth_and_all(
    Suite(
        name="include",
        title="INCLUDE",
        load=lambda local: load(local, False),
        score=score,
        licence="Apache-2.0",
        source="https://huggingface.co/datasets/CohereLabs/include-base-44",
        references=published(
            "35.9 51.8 61.8 67.8 71.7 73.7 71.9 78.7",
            "34.4 42.6 53.8 62.5 67.8 70.9 67.8 75.6",
        ),
        groups=("language", "domain", "regional"),
        notes="A tenth of the questions, by hash; the report's own tenth is not published.",
    ),
    load,
)
