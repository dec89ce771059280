"""IFEval: 541 prompts with instructions that a program can check (Zhou et al., arXiv 2311.07911)."""

from __future__ import annotations

from qwen3.evaluate.score import ifeval
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite


def load(source: str | None) -> list[Item]:
    """Items in the order of the data set. Raises UsageError for an instruction that is not one of the 25."""
    found = rows(
        "ifeval",
        local=source,
        hub=("google/IFEval", None, "train"),
        how="Get google/IFEval from the hub, or input_data.jsonl of google-research's instruction_following_eval.",
    )
    items = []
    for row in found:
        key = str(field(row, "key"))
        asked = ifeval.instructions(f"ifeval, item {key}", field(row, "instruction_id_list"), field(row, "kwargs"))
        about = {"instructions": len(asked), "kind": asked[0]["id"].partition(":")[0] if len(asked) == 1 else "several"}
        items.append(Item(key, ({"role": "user", "content": field(row, "prompt")},), asked, about))
    return items


def score(item: Item, answer: Answer) -> Score:
    """Right where all instructions are followed, read strictly; the other numbers are parts."""
    return ifeval.score(answer.content, item.gold)


SUITE = Suite(
    name="ifeval",
    title="IFEval",
    load=load,
    score=score,
    licence="Apache-2.0",
    source="https://huggingface.co/datasets/google/IFEval",
    headline="strict prompt-level accuracy",
    references=published("59.2 72.5 81.9 85.0 85.4 85.0 86.5 83.4", "54.5 68.2 81.2 83.0 84.8 83.2 83.7 83.2"),
    groups=("kind", "instructions"),
    notes="Thoughts are no part of the response. Parts: strict and loose, of prompts and of instructions. Items 1122 "
    "and 1129 count # and !, for which the official program draws a letter at random.",
    needs=("langdetect",),
)
