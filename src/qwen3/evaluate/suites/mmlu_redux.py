"""MMLU-Redux 2.0: 5,700 questions of MMLU's 57 subjects, checked by hand (Gema et al. 2024, arXiv 2406.04127)."""

from __future__ import annotations

from pathlib import PurePosixPath

from qwen3.evaluate.score.options import LETTERS, choice_item, score
from qwen3.evaluate.suites.source import Row, field, published, rows
from qwen3.evaluate.types import Item, Suite

HOW = "Get it with `hf download --repo-type dataset edinburgh-dawg/mmlu-redux-2.0 --revision refs/convert/parquet`."


def load(local: str | None) -> list[Item]:
    """What the checkers found sound ("ok"), and what only had a wrong key, with theirs. The rest has no right one."""
    where = ("edinburgh-dawg/mmlu-redux-2.0", None, "test", "refs/convert/parquet")
    items, numbers = [], dict[str, int]()
    for row in rows("mmlu_redux", local=local, hub=where, how=HOW):
        subject = str(row.get("subject") or _subject(row["_file"]))
        number = numbers[subject] = numbers.get(subject, -1) + 1
        options, fault = list(field(row, "choices")), str(row.get("error_type") or "ok")
        right = _right(row, options) if fault == "wrong_groundtruth" else int(field(row, "answer"))
        if fault in ("ok", "wrong_groundtruth") and right is not None:
            about = {"subject": subject, "fault": fault}
            items.append(choice_item(f"{subject}/{number}", field(row, "question"), options, right, about))
    return items


def _subject(path: str) -> str:
    parts = PurePosixPath(path).parts
    return parts[0] if len(parts) > 1 else parts[0].split(".")[0]


def _right(row: Row, options: list[str]) -> int | None:
    """The corrected key is an index, a letter or an option's text; None where it is none of them."""
    key = str(row.get("correct_answer") or "").strip()
    if key.isdecimal() and int(key) < len(options):
        return int(key)
    if len(key) == 1 and key.upper() in LETTERS[: len(options)]:
        return LETTERS.index(key.upper())
    return next((i for i, option in enumerate(options) if str(option).strip() == key), None)


SUITE = Suite(
    name="mmlu_redux",
    title="MMLU-Redux",
    load=load,
    score=score,
    licence="CC BY 4.0",
    source="https://huggingface.co/datasets/edinburgh-dawg/mmlu-redux-2.0",
    references=published("55.6 73.9 83.7 87.5 88.6 90.9 89.5 92.7", "44.6 64.4 77.3 79.5 82.0 85.7 84.1 89.2"),
    groups=("subject", "fault"),
    notes="Questions with a fault other than a wrong key are left out. The report does not say which it left out.",
)
