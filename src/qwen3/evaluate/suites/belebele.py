"""Belebele: 900 questions on passages, the same in 122 languages (Bandarkar et al. 2023, arXiv 2308.16884)."""

from __future__ import annotations

from pathlib import PurePosixPath

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import choice_item, score
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Suite

HOW = (
    "Get it with `hf download --repo-type dataset facebook/belebele` (data/eng_Latn.jsonl and so on), or "
    "Belebele.zip from https://github.com/facebookresearch/belebele."
)
TABLES = "Qwen3 Technical Report (arXiv 2505.09388), tables 36 and 37: families' values, weighted by their languages"


def load(local: str | None) -> list[Item]:
    """Passage and question, then four options. A file, or a folder with some of them, gives those languages alone."""
    items, numbers = [], dict[str, int]()
    for row in rows("belebele", local=local, hub=("facebook/belebele", None, None, "main"), how=HOW):
        language = str(row.get("dialect") or PurePosixPath(row["_file"]).name.split(".")[0])
        number = numbers[language] = numbers.get(language, -1) + 1
        answer = str(field(row, "correct_answer_num"))
        if answer not in list("1234"):
            raise UsageError(f"belebele: {row['_file']}: correct_answer_num is {answer!r}, not 1 to 4")
        question = f"{field(row, 'flores_passage').strip()}\n\n{field(row, 'question').strip()}"
        options = [field(row, f"mc_answer{i}") for i in range(1, 5)]
        about = {"language": language, "script": language.partition("_")[2] or "?"}
        items.append(choice_item(f"{language}/{number}", question, options, int(answer) - 1, about))
    return items


SUITE = Suite(
    name="belebele",
    title="Belebele",
    load=load,
    score=score,
    licence="CC BY-SA 4.0",
    source="https://huggingface.co/datasets/facebook/belebele",
    references=published("64.2 78.0 86.0 88.5", "54.4 71.1 83.9 86.6", TABLES, ("1.7B", "4B", "14B", "32B")),
    groups=("language", "script"),
    notes="The report has 80 of the 122 languages and gives averages by family; the references are their mean.",
)
