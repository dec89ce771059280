"""Multi-IF: IFEval's instructions over three turns, in eleven languages (He et al., arXiv 2410.15553).

Each turn adds an instruction to those before, and its answer is scored against all that hold by then. A conversation's
value is the mean over its turns of four accuracies, as in the official program: prompts and instructions, each strict
and loose. (There the instructions of all conversations are pooled before they are averaged; here each conversation's
are, so that conversations can be compared in pairs.)
"""

from __future__ import annotations

import json
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score import ifeval
from qwen3.evaluate.suites.source import Row, field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

TURNS = 3
KINDS = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")


def load(source: str | None) -> list[Item]:
    """Conversations in the order of the data set; gold: each turn's instructions. One with a turn that is missing ends
    before it, as in the official program."""
    found = rows(
        "multi_if",
        local=source,
        hub=("facebook/Multi-IF", None, "train"),
        how="Get facebook/Multi-IF from the hub (multiIF_20241018.csv).",
    )
    return [_item(row) for row in found]


def _item(row: Row) -> Item:
    key = str(field(row, "key"))
    prompts: list[str] = []
    asked = []
    for turn in range(1, TURNS + 1):
        prompt = field(row, f"turn_{turn}_prompt")
        if prompt in (None, "", "None"):
            break
        where = f"multi_if, item {key}, turn {turn}"
        prompts.append(_json(where, prompt)["content"])
        ids = _json(where, field(row, f"turn_{turn}_instruction_id_list"))
        asked.append(ifeval.instructions(where, ids, _json(where, field(row, f"turn_{turn}_kwargs"))))
    if not prompts:
        raise UsageError(f"multi_if, item {key}: no turn_1_prompt")
    first = {"role": "user", "content": prompts[0]}
    return Item(key, (first,), asked, {"language": field(row, "language")}, later=tuple(prompts[1:]))


def _json(where: str, value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from None


def score(item: Item, answer: Answer) -> Score:
    """The mean over turns. parts: `turn 1` … and, of the whole conversation, the four accuracies. Right where every
    instruction of every turn is followed strictly. A turn that has no answer follows nothing."""
    turns = answer.turns or (answer.content,)
    if len(turns) > len(item.gold):
        raise UsageError(f"multi_if, item {item.id}: {len(turns)} answers to {len(item.gold)} turns")
    turns = (*turns, *[""] * (len(item.gold) - len(turns)))
    scores = [ifeval.score(said, asked, multilingual=True) for said, asked in zip(turns, item.gold, strict=True)]
    parts = {f"turn {i}": sum(one.parts[kind] for kind in KINDS) / len(KINDS) for i, one in enumerate(scores, 1)}
    value = sum(parts.values()) / len(parts)
    parts |= {kind: sum(one.parts[kind] for one in scores) / len(scores) for kind in KINDS}
    broken = "; ".join(f"turn {i}: {one.note}" for i, one in enumerate(scores, 1) if one.note)
    return Score(value, "wrong" if broken else "right", None, parts, broken)


SUITE = Suite(
    name="multi_if",
    title="Multi-IF",
    load=load,
    score=score,
    licence="CC-BY-NC-2.0",
    source="https://huggingface.co/datasets/facebook/Multi-IF",
    headline="mean of strict and loose, prompt- and instruction-level accuracy over three turns",
    references=published("36.1 51.2 66.3 71.2 74.8 73.0 72.2 71.9", "33.3 44.7 61.3 69.2 72.9 70.7 70.8 70.2"),
    groups=("language",),
    notes="The report has eight of the eleven languages and does not name them. Thai is counted by pythainlp.",
    needs=("langdetect", "pythainlp", "python-crfsuite"),
)
