"""BFCL, single turn: which function to call with which arguments, or none (Berkeley Function-Calling Leaderboard)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score import calls
from qwen3.evaluate.suites.source import REPORT, Row, field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

_CATEGORY = re.compile(
    r"BFCL_v\d+_((?:live_)?(?:simple(?:_python|_java|_javascript)?|(?:parallel_)?multiple|parallel|irrelevance|relevance)"
    r"|java|javascript)\.json"
)
_TYPES = (
    dict.fromkeys(("float", "double"), "number")
    | dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), "integer")
    | dict.fromkeys(("dict", "HashMap", "Hashtable"), "object")
    | dict.fromkeys(("list", "tuple", "Array", "ArrayList", "Queue", "Stack"), "array")
    | dict.fromkeys(("any", "Any", "String", "char"), "string")
    | {"Boolean": "boolean", "bool": "boolean"}
)
_NAMES = {calls.PYTHON: "Python 3", calls.JAVA: "Java 8 SDK", calls.JAVASCRIPT: "JavaScript"}


def load(source: str | None) -> list[Item]:
    """Items of the single-turn categories; those of several turns, with state, are left out. Raises UsageError for a
    question whose answer is not among the files."""
    found = rows(
        "bfcl",
        local=source,
        package=("bfcl_eval", "data/**/BFCL_v*.json"),
        hub=("gorilla-llm/Berkeley-Function-Calling-Leaderboard", None, None),
        how="pip install --no-deps bfcl-eval, or take the folder bfcl_eval/data of github.com/ShishirPatil/gorilla.",
    )
    answers, items = {}, []
    for row in found:
        if "possible_answer" in PurePosixPath(row["_file"]).parts and "unused_datasets" not in row["_file"]:
            answers[row["id"]] = field(row, "ground_truth")
    for row in found:
        path = PurePosixPath(row["_file"])
        if (m := _CATEGORY.fullmatch(path.name)) and not {"possible_answer", "unused_datasets"} & set(path.parts):
            items.append(_item(row, m[1], answers))
    if not items:
        raise UsageError("bfcl: no file of a single-turn category (BFCL_v4_simple_python.json, …) among the data")
    return items


def _item(row: Row, category: str, answers: Mapping[str, Any]) -> Item:
    key, functions = field(row, "id"), field(row, "function")
    language = next((one for one in (calls.JAVASCRIPT, calls.JAVA) if category.endswith(one)), calls.PYTHON)
    expected = None if category.endswith("relevance") else answers.get(key)
    if expected is None and not category.endswith("relevance"):
        raise UsageError(f"bfcl: {key} has no answer; the folder possible_answer belongs to the data")
    gold = {"functions": functions, "expected": expected, "language": language, "category": category}
    about = {"category": category, "set": "live" if category.startswith("live_") else "non-live"}
    tools = tuple(tool(function, language) for function in functions)
    return Item(key, tuple(field(row, "question")[0]), gold, about, tools)


def tool(function: Mapping[str, Any], language: str) -> dict[str, Any]:
    """A documented function in OpenAI's form, with JSON schema's types and the benchmark's remark on the language. Java
    and JavaScript arguments are asked for as source text."""
    about = function["parameters"]
    properties = {
        key: _schema(one) if language == calls.PYTHON else _as_text(one, language)
        for key, one in about["properties"].items()
    }
    text = f"{function['description']} Note that the provided function is in {_NAMES[language]} syntax."
    schema = {**about, "type": "object", "properties": properties}
    return {
        "type": "function",
        "function": {"name": calls.safe_name(function["name"]), "description": text, "parameters": schema},
    }


def _schema(about: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(about)
    if "type" in found:
        found["type"] = _TYPES.get(found["type"], found["type"])
    if isinstance(found.get("properties"), dict):
        found["properties"] = {key: _schema(one) for key, one in found["properties"].items()}
    if isinstance(found.get("items"), dict):
        found["items"] = _schema(found["items"])
    return found


def _as_text(about: Mapping[str, Any], language: str) -> dict[str, Any]:
    name = "Java" if language == calls.JAVA else "JavaScript"
    text = f"{about.get('description', '')} This is a {name} value of type {about['type']}, as source text in a string."
    if inner := about.get("items", {}).get("type"):
        text += f" Its items are of type {inner}."
    return {"type": "string", "description": text.strip()}


def score(item: Item, answer: Answer) -> Score:
    """Right where the calls are those expected; of irrelevant functions, where none is called; of relevant ones, where
    any is. A call whose arguments are not JSON is none, as in the official program, and unparsed where one is asked."""
    gold = item.gold
    try:
        made = calls.calls_of(answer.tool_calls)
    except ValueError as error:
        idle = gold["category"].endswith("irrelevance")
        return Score(float(idle), "right" if idle else "unparsed", note=str(error))
    if gold["category"].endswith("irrelevance"):
        why = "called a function that does not help" if made else ""
    elif gold["category"].endswith("relevance"):
        why = "" if made else "called no function"
    else:
        why = calls.mismatch(gold["functions"], made, gold["expected"], gold["language"])
    read = "; ".join(f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})" for call in made)
    return Score(float(not why), "wrong" if why else "right", read or None, note=why)


SUITE = Suite(
    name="bfcl",
    title="BFCL, single turn",
    load=load,
    score=score,
    licence="Apache-2.0",
    source="https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard",
    headline="accuracy of all single-turn calls",
    references=published(
        "46.4 56.6 65.9 68.1 70.4 70.3 69.1 70.8",
        "44.1 52.2 57.6 60.2 61.5 63.0 58.6 68.0",
        f"{REPORT}; BFCL v3 as a whole, a third of which is calls over several turns that this suite does not have",
    ),
    groups=("set", "category"),
    notes="Needs an engine or endpoint that returns tool calls. The leaderboard averages its categories before sets.",
)
