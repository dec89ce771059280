"""C-Eval: Chinese exams in 52 subjects (Huang et al. 2023, arXiv 2305.08322). The validation split: 1,346 questions."""

from __future__ import annotations

from pathlib import PurePosixPath

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import choice_item, score
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Item, Suite

HOW = (
    "Get it with `hf download --repo-type dataset ceval/ceval-exam`, and unpack ceval-exam.zip there (its folder val "
    "holds a CSV file for each subject)."
)


def load(local: str | None) -> list[Item]:
    """One item a row; the subject is in the file's name (val/law_val.csv) or its folder's (law/val/0000.parquet)."""
    where = ("ceval/ceval-exam", None, "val", "refs/convert/parquet")
    items = []
    for row in rows("ceval", local=local, hub=where, how=HOW):
        path = PurePosixPath(row["_file"])
        stem = path.name.split(".")[0]
        subject = stem.removesuffix("_val") if stem.endswith("_val") or len(path.parts) == 1 else path.parts[0]
        answer = str(field(row, "answer") or "").strip()
        if answer not in list("ABCD"):
            raise UsageError(
                f"ceval: {row['_file']}: the answer is {answer!r}, not A to D; the test split's answers are not public"
            )
        options = [field(row, letter) for letter in "ABCD"]
        id, about = f"{subject}/{field(row, 'id')}", {"subject": subject}
        items.append(choice_item(id, field(row, "question"), options, "ABCD".index(answer), about))
    return items


SUITE = Suite(
    name="ceval",
    title="C-Eval (validation split)",
    load=load,
    score=score,
    licence="CC BY-NC-SA 4.0",
    source="https://huggingface.co/datasets/ceval/ceval-exam",
    references=published("50.4 68.1 77.5 83.4 86.2 87.3 86.6 89.6", "42.6 61.0 72.2 77.9 81.0 83.3 82.9 86.1"),
    groups=("subject",),
    notes="The test split's answers are not public, and the report does not name its split.",
)
