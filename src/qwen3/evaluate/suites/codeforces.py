"""Codeforces problems with the site's tests, up to 8 attempts each. Rows as open-r1/codeforces has them.

The report gives ratings (CodeElo, arXiv 2501.01257), for which programs are submitted to the site and compared with its
contestants. Nothing here submits: the headline is the share of problems solved in 8 attempts, no rating.
"""

from __future__ import annotations

from typing import Any

from qwen3.evaluate.score.code import UNPARSED, check_stdin, judged, program_in
from qwen3.evaluate.suites.livecodebench import prompt
from qwen3.evaluate.suites.source import Row, field, rows
from qwen3.evaluate.types import Answer, Item, Sampling, Score, Suite

HOW = "Get the test split of open-r1/codeforces from the hub."
ATTEMPTS = 8
SLOWER = 3.0
"""Times the problem's seconds: they are meant for compiled languages, and hold the interpreter's start here."""


def load(local: str | None) -> list[Item]:
    """Problems that read stdin, have tests, and ask for no dialogue with the judge."""
    found = rows("codeforces", local=local, hub=("open-r1/codeforces", "data", "test"), how=HOW)
    return [_item(row) for row in found if _usable(row)]


def _usable(row: Row) -> bool:
    tests = row.get("official_tests") or row.get("examples")
    return bool(tests) and not row.get("interaction_format") and (row.get("input_mode") or "stdio") == "stdio"


def _item(row: Row) -> Item:
    gold: dict[str, Any] = {
        "question": _question(row),
        "tests": [{"input": t["input"], "output": t["output"]} for t in row.get("official_tests") or row["examples"]],
        "seconds": float(row.get("time_limit") or 2),
        "megabytes": float(row.get("memory_limit") or 256),
        "checker": row.get("generated_checker") or None,
    }
    about = {"rating": _band(row.get("rating")), "year": row.get("contest_start_year") or "?"}
    return Item(str(field(row, "id")), prompt(gold["question"]), gold, about)


def _question(row: Row) -> str:
    parts = [f"{row.get('title') or row['id']}", f"Time limit: {row.get('time_limit') or 2} seconds a test."]
    parts.append(field(row, "description"))
    parts += [
        f"{name}:\n{row[key]}" for name, key in (("Input", "input_format"), ("Output", "output_format")) if row.get(key)
    ]
    parts += [f"Example input:\n{e['input']}\nExample output:\n{e['output']}" for e in row.get("examples") or ()]
    return "\n\n".join([*parts, *([f"Note:\n{row['note']}"] if row.get("note") else [])])


def _band(rating: int | None) -> str:
    if not rating:
        return "?"
    low = rating // 400 * 400
    return f"{low}-{low + 399}"


def score(item: Item, answer: Answer) -> Score:
    code = program_in(answer.content)
    if code is None:
        return UNPARSED
    gold = item.gold
    memory = max(512 << 20, int(gold["megabytes"] * (1 << 20)))
    return judged(check_stdin(code, gold["tests"], SLOWER * gold["seconds"], memory, gold["checker"]), code)


SUITE = Suite(
    name="codeforces",
    title="Codeforces",
    load=load,
    score=score,
    licence="CC BY 4.0 (the collection; the problems belong to Codeforces)",
    source="https://huggingface.co/datasets/open-r1/codeforces",
    headline=f"pass@{ATTEMPTS}",
    sampling=Sampling(samples=ATTEMPTS),
    think_messages=lambda item: prompt(item.gold["question"], only=""),
    groups=("rating", "year"),
    needs=("sandbox",),
    notes=__doc__.split("\n\n")[1].strip(),
)
