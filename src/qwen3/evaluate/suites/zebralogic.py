"""ZebraLogic: 1,000 logic grid puzzles of 2x2 to 6x6 (Lin et al. 2025, arXiv 2502.01100)."""

from __future__ import annotations

import json
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.suites.source import field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

HOW = (
    "Its solutions are in a gated set: accept the terms at https://huggingface.co/datasets/allenai/ZebraLogicBench-private"
    " and set HF_TOKEN."
)
_PROMPT = """
# Example Puzzle 

There are 3 houses, numbered 1 to 3 from left to right, as seen from across the street. Each house is occupied by a \
different person. Each house has a unique attribute for each of the following characteristics:
 - Each person has a unique name: `Peter`, `Eric`, `Arnold`.
 - Each person has a unique favorite drink: `tea`, `water`, `milk`

## Clues for the Example Puzzle

1. Peter is in the second house.
2. Arnold is directly left of the one who only drinks water.
3. The one who only drinks water is directly left of the person who likes milk.

## Answer to the Example Puzzle

{
    "reasoning": "Given Clue 1, we know Peter is in House 2. According to Clue 2, Arnold is directly left of the one \
who only drinks water. The person in House 3 cannot be on the left of anyone, so Arnold must be in House 1. Thus, \
Peter drinks water, and Eric lives in House 3. Then, according to Clue 3, Eric drinks milk. Therefore, Arnold drinks \
tea.",
    "solution": {
        "House 1": {
            "Name": "Arnold",
            "Drink": "tea"
        },
        "House 2": {
            "Name": "Peter",
            "Drink": "water"
        },
        "House 3": {
            "Name": "Eric",
            "Drink": "milk"
        }
    }
}

# Puzzle to Solve 

{puzzle}


# Instruction

Now please solve the above puzzle. Present your reasoning and solution in the following json format:

{json_template}

"""
"""The benchmark's own prompt (WildEval/ZeroEval, template ZEBRA_GRID)."""


def load(local: str | None) -> list[Item]:
    """Gold: {"House 1": {attribute: value}}."""
    items = []
    for row in rows("zebralogic", local=local, hub=("allenai/ZebraLogicBench-private", "grid_mode", "test"), how=HOW):
        id, table = str(field(row, "id")), field(row, "solution")
        table = json.loads(table) if isinstance(table, str) else table
        header, lines = table["header"], table["rows"]
        gold = {f"House {i}": dict(zip(header[1:], line[1:], strict=True)) for i, line in enumerate(lines, 1)}
        if any(set(value.strip()) <= {"_"} for house in gold.values() for value in house.values()):
            raise UsageError(f"zebralogic: {row['_file']}: the solution of {id} is blanked out. {HOW}")
        blank = {house: dict.fromkeys(header[1:], "___") for house in gold}
        shape = json.dumps({"reasoning": "___", "solution": blank}, indent=4, ensure_ascii=False)
        prompt = _PROMPT.replace("{puzzle}", field(row, "puzzle")).replace("{json_template}", shape)
        size = str(row.get("size") or f"{len(lines)}*{len(header) - 1}")
        about = {"size": size, "difficulty": "easy" if _easy(size) else "hard"}
        items.append(Item(id, ({"role": "user", "content": prompt},), gold, about))
    return items


def _easy(size: str) -> bool:
    """As the benchmark divides them: two houses, three with up to three attributes."""
    houses, _, attributes = size.partition("*")
    return houses == "2" or (houses == "3" and attributes in ("2", "3"))


def last_object(text: str, key: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has `key`; an object within one that has it does not count."""
    decoder, at, found = json.JSONDecoder(strict=False), text.find("{"), None
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            end = at + 1
        else:
            if isinstance(value, dict) and key in value:
                found = value
        at = text.find("{", end)
    return found


def score(item: Item, answer: Answer) -> Score:
    """Right if every cell is (upper and lower case alike); the part "cells" is the share of right ones."""
    given = last_object(answer.content, "solution")
    table = given["solution"] if given else None
    if not isinstance(table, dict):
        return Score(0.0, "unparsed", note="no JSON object with a solution")
    cells = []
    for key, row in item.gold.items():
        house = table.get(key)
        house = house if isinstance(house, dict) else {}
        cells += [str(house.get(name) or "").strip().lower() == value.strip().lower() for name, value in row.items()]
    right = all(cells)
    return Score(float(right), "right" if right else "wrong", json.dumps(table), {"cells": sum(cells) / len(cells)})


SUITE = Suite(
    name="zebralogic",
    title="ZebraLogic",
    load=load,
    score=score,
    licence="Apache-2.0 (puzzles); the solutions are gated",
    source="https://huggingface.co/datasets/allenai/ZebraLogicBench",
    headline="share of puzzles with every cell right",
    references=published("30.3 63.2 81.0 84.8 88.5 88.8 89.5 80.3", "4.2 12.8 35.2 26.7 33.0 29.2 33.2 37.7"),
    groups=("difficulty", "size"),
)
