"""LiveCodeBench: contest problems with dates (Jain et al. 2024, arXiv 2403.07974), code generation, its lite version.

The report's v5 window is October 2024 to February 2025, the suite's default. Another window stands after an @ in the
source, either day inclusive: `@2024-08-01..2025-05-31`, or `data/lcb@2025-01-01..2025-04-30`.
"""

from __future__ import annotations

import base64
import json
import pickletools
import re
import zlib
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score.code import IMPORTS, UNPARSED, check_function, check_stdin, judged, program_in
from qwen3.evaluate.suites.source import Row, field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

HOW = "Get test.jsonl … test6.jsonl of livecodebench/code_generation_lite from the hub (v5 is up to test5.jsonl)."
WINDOW = (date(2024, 10, 1), date(2025, 2, 28))
SECONDS, MEMORY = 6.0, 2 << 30  # of a test; the benchmark's own runner gives 6 seconds and has no limit of memory
LARGEST = 1 << 30

# The prompt that its runner has for Qwen's coder models; the report drops ONLY in thinking mode.
TASK = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests."
)
ONLY = " You will NOT return anything except for the program."
STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)


def prompt(question: str, starter: str = "", only: str = ONLY) -> tuple[Mapping[str, Any], ...]:
    """The chat that asks for a program."""
    form, code = (STARTER, starter) if starter else (STDIN, "# YOUR CODE HERE")
    content = f"{TASK}{only}\n\nQuestion: {question}\n\n{form}\n```python\n{code}\n```\n\n"
    return ({"role": "user", "content": content},)


def load(local: str | None) -> list[Item]:
    """Problems of the window. Their private tests stay packed until they are needed."""
    path, first, last = window(local)
    found = rows("livecodebench", local=path, hub=("livecodebench/code_generation_lite", None, None), how=HOW)
    items = []
    for row in found:
        day = datetime.fromisoformat(str(field(row, "contest_date"))).date()
        if first <= day <= last:
            items.append(_item(row, day))
    if not items:
        raise UsageError(f"livecodebench: none of {len(found)} problems is from {first} to {last}")
    return items


def window(source: str | None) -> tuple[str | None, date, date]:
    """Path (None: the usual place), first and last day. Raises UsageError for a window that is none."""
    path, mark, days = (source or "").rpartition("@")
    if not mark or not re.match(r"\d{4}-", days):
        return source or None, *WINDOW
    try:
        first, last = (date.fromisoformat(day) for day in days.split(".."))
    except ValueError:
        raise UsageError(f"livecodebench: {days!r} is no window; write one as 2024-10-01..2025-02-28") from None
    if first > last:
        raise UsageError(f"livecodebench: the window {days} ends before it begins")
    return path or None, first, last


def _item(row: Row, day: date) -> Item:
    starter = row.get("starter_code") or ""
    function = json.loads(row.get("metadata") or "{}").get("func_name")
    gold = {
        "public": field(row, "public_test_cases"),
        "private": field(row, "private_test_cases"),
        "function": function,
        "question": field(row, "question_content"),
        "starter": starter,
    }
    about = {name: row.get(name) or "?" for name in ("platform", "difficulty")} | {"date": day.isoformat()}
    return Item(field(row, "question_id"), prompt(gold["question"], starter), gold, about)


def tests_of(packed: str) -> list[dict[str, str]]:
    """Test cases as JSON, or packed as the data set has private ones: JSON, a pickled text, zlib, base64. The pickle is
    not loaded: its one text is read out of its instructions. Raises UsageError for anything else."""
    try:
        if not packed.lstrip().startswith("["):
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(packed, validate=True), LARGEST)
            texts = [value for code, value, _ in pickletools.genops(data) if "UNICODE" in code.name]
            if len(texts) != 1 or unpacker.unconsumed_tail:
                raise ValueError("not one text")
            packed = str(texts[0])
        tests = json.loads(packed)
        return [{"input": str(test["input"]), "output": str(test["output"])} for test in tests]
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise UsageError(f"livecodebench: test cases that cannot be read ({error})") from None


def score(item: Item, answer: Answer) -> Score:
    """Right if the program passes all public and private tests."""
    code = program_in(answer.content)
    if code is None:
        return UNPARSED
    tests = tests_of(item.gold["public"]) + tests_of(item.gold["private"])
    program = IMPORTS + "\n" + code
    if not (name := item.gold["function"]):
        return judged(check_stdin(program, tests, SECONDS, MEMORY), code)
    cases = [[[json.loads(line) for line in test["input"].split("\n")], json.loads(test["output"])] for test in tests]
    entry = f"Solution().{name}" if "class Solution" in code else name
    return judged(check_function(program, entry, cases, SECONDS, MEMORY), code)


SUITE = Suite(
    name="livecodebench",
    title="LiveCodeBench v5 (October 2024 to February 2025)",
    load=load,
    score=score,
    licence="CC BY 4.0 (the collection; the problems belong to their sites)",
    source="https://huggingface.co/datasets/livecodebench/code_generation_lite",
    headline="pass@1",
    think_messages=lambda item: prompt(item.gold["question"], item.gold["starter"], ""),
    references=published("12.3 33.2 54.2 57.5 63.5 65.7 62.6 70.7", "3.6 11.6 21.3 22.8 29.0 31.3 29.8 35.3"),
    groups=("difficulty", "platform"),
    needs=("sandbox",),
    notes=__doc__.split("\n\n")[1].strip(),
)
