"""LiveBench's rules, and its items from files in the published layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites import livebench
from qwen3.evaluate.types import Answer, Item


def value(task: str, gold: Any, text: str) -> tuple[str, float]:
    score = livebench.score(Item("x", (), gold, {"task": task}), Answer(text))
    return score.outcome, round(score.value, 3)


@pytest.mark.parametrize(
    ("task", "gold", "text", "expected"),
    [
        ("math_comp", "B", "So it is (B).\n\nBBBBB", ("right", 1)),
        ("math_comp", "B", "AAAAA, no: BBBBB", ("right", 1)),
        ("math_comp", "B", "The answer is $\\boxed{\\text{B}}$", ("right", 1)),
        ("math_comp", "B", "<solution>CCCCC</solution>", ("wrong", 0)),
        ("math_comp", "B", "no idea", ("unparsed", 0)),
        ("math_comp", "073", "Thus it is <solution>073</solution>", ("right", 1)),
        ("math_comp", "073", "\\boxed{73}", ("right", 1)),
        ("math_comp", "073", "<solution>730</solution>", ("wrong", 0)),
        ("olympiad", "3,1,2,4", "Therefore.\nAnswer: 3,1,2,4", ("right", 1)),
        ("olympiad", "3,1,2,4", "Answer: 3, 1, 4", ("wrong", 0.75)),
        ("olympiad", "3,1,2,4", "none", ("unparsed", 0)),
        ("web_of_lies_v2", "yes, no, unknown", "It is **yes, no, unknown**.", ("right", 1)),
        ("web_of_lies_v2", "yes, no, unknown", "**yes**, **no**, **unknown**", ("right", 1)),
        ("web_of_lies_v2", "yes, no, unknown", "<solution>yes, no, no</solution>", ("wrong", 0)),
        ("web_of_lies_v2", "yes, no, unknown", "cannot be said", ("unparsed", 0)),
        ("spatial", "8", "There are **eight** pieces.", ("right", 1)),
        ("spatial", "tetrahedra", "They are **two tetrahedra**.", ("right", 1)),
        ("spatial", "triangle", "**circle square pentagon triangle**", ("wrong", 0)),
        ("zebra_puzzle", "tea, 3, blue-ish", "<solution>tea, 3, blue ish</solution>", ("right", 1)),
        ("zebra_puzzle", "tea, 3", "<solution>tea, 4</solution>", ("wrong", 0.25)),
        ("zebra_puzzle", "tea, 3", "<solution>tea</solution> <solution>3</solution>", ("right", 1)),
        ("zebra_puzzle", "tea", "It is ***tea***", ("right", 1)),
        ("connections", "a,b,c,d,e,f,g,h", "<solution>d, c, b, a, e, f, g, h</solution>", ("right", 1)),
        ("connections", "a,b,c,d,e,f,g,h", "**a, b, c, d, e, f, g, x**", ("wrong", 0.5)),
        ("typos", "We show it.", "<solution>We show\nit.</solution>", ("right", 1)),
        ("typos", "We show it.", "We shwo it.", ("wrong", 0)),
        (
            "plot_unscrambling",
            "A one. B two. C three.",
            "<PLOT_SUMMARY>A one. B two. C three.</PLOT_SUMMARY>",
            ("right", 1),
        ),
        ("plot_unscrambling", "A one. B two. C three.", "<PLOT_SUMMARY>B two. A one. C three.", ("wrong", 0.333)),
        ("cta", "Unique Product Code", "The class is **unique product code**.", ("right", 1)),
        ("cta", "Country", "Town", ("wrong", 0)),
        ("tablejoin", {"a": "x", "b": "y"}, '```json\n{"a": "x", "b": "y"}\n```', ("right", 1)),
        ("tablejoin", '{"a": "x", "b": "y"}', "<solution>{'a': 'x', 'b': 'z', 'c': null}</solution>", ("wrong", 0.5)),
        ("tablejoin", {"a": "x"}, "no mapping", ("unparsed", 0)),
        ("AMPS_Hard", "12", "so $\\boxed{12}$", ("right", 1)),
    ],
)
def test_rules(task: str, gold: Any, text: str, expected: tuple[str, float]) -> None:
    assert value(task, gold, text) == expected


@pytest.mark.parametrize("task", livebench.RULES)
@pytest.mark.parametrize("text", ["", "{", "<solution></solution>", "**", "\\boxed{", ",,,,", "{1: [" * 50, "0" * 300])
def test_any_text_is_scored(task: str, text: str) -> None:
    gold = {"olympiad": "1,2", "tablejoin": {"a": "b"}, "math_comp": "5", "plot_unscrambling": "A. B. C."}.get(
        task, "yes, no, yes"
    )
    outcome, share = value(task, gold, text)
    assert outcome in ("wrong", "unparsed")
    assert 0 <= share < 1


def test_distance() -> None:
    assert livebench.distance("kitten", "sitting") == 3
    assert livebench.distance([], [1, 2]) == livebench.distance([1, 2], []) == 2


def test_items_of_the_release(tmp_path: Path) -> None:
    row = {
        "question_id": "q0",
        "category": "reasoning",
        "task": "spatial",
        "turns": ["How many?"],
        "ground_truth": "4",
        "livebench_release_date": "2024-07-26",
        "livebench_removal_date": "",
    }
    rows = [
        row,
        {**row, "question_id": "later", "livebench_release_date": "2025-04-25"},
        {**row, "question_id": "gone", "livebench_removal_date": "2024-08-31T00:00:00"},
        {**row, "question_id": "kept", "livebench_removal_date": "2025-04-25"},
        {**row, "question_id": "code", "category": "coding", "task": "LCB_generation"},
    ]
    path = tmp_path / "reasoning" / "data" / "test-00000-of-00001.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    items = livebench.SUITE.load(str(tmp_path))
    assert [item.id for item in items] == ["q0", "kept"]
    assert items[0].about == {"category": "reasoning", "task": "spatial", "date": "2024-07-26"}
    assert items[0].messages == ({"role": "user", "content": "How many?"},)
    path.write_text(json.dumps(rows[-1]))
    with pytest.raises(UsageError, match="none of the 1 rows"):
        livebench.SUITE.load(str(tmp_path))


def test_what_is_said_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("QWEN3_EVAL_DATA", raising=False)
    with pytest.raises(UsageError, match=r"livebench/math: its data is not here\. .*hf download"):
        livebench.SUITE.load(None)
