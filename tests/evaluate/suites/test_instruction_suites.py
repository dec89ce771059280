"""IFEval, Multi-IF, BFCL and Arena-Hard as suites: rows as published become items, answers become scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites import arena_hard, bfcl, ifeval, multi_if
from qwen3.evaluate.types import Answer, score_answer


def lines(path: Path, found: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


IFEVAL = {
    "key": 1001,
    "prompt": "Write a haiku without commas, in at least 5 words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None}, {"num_words": 5, "relation": "at least", "num_bullets": None}],
}


def test_ifeval(tmp_path: Path) -> None:
    one = {"key": 5, "prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    item, other = ifeval.SUITE.load(lines(tmp_path / "input_data.jsonl", [IFEVAL, one]))
    assert (item.id, item.about, other.about["kind"]) == ("1001", {"instructions": 2, "kind": "several"}, "punctuation")
    assert item.messages == ({"role": "user", "content": IFEVAL["prompt"]},)
    found = score_answer(ifeval.SUITE, item, Answer("one two, three", thinking="long, thoughts"))
    assert (found.value, found.parts["instruction_strict"]) == (0.0, 0.0)
    assert score_answer(ifeval.SUITE, item, Answer("an old silent pond again")).outcome == "right"
    assert score_answer(ifeval.SUITE, item, Answer("an old", finish_reason="length")).outcome == "truncated"


def test_a_row_that_is_not_ifeval_is_named(tmp_path: Path) -> None:
    bad = {**IFEVAL, "instruction_id_list": ["a:b", "punctuation:no_comma"]}
    with pytest.raises(UsageError, match="ifeval, item 1001: unknown instruction 'a:b'"):
        ifeval.SUITE.load(lines(tmp_path / "a.jsonl", [bad]))
    with pytest.raises(UsageError, match="no column 'kwargs'"):
        ifeval.SUITE.load(lines(tmp_path / "b.jsonl", [{k: v for k, v in IFEVAL.items() if k != "kwargs"}]))


def multi(turns: int = 3) -> dict[str, str]:
    ids = ["punctuation:no_comma", "startend:quotation", "detectable_format:title"]
    row = {"key": "12:1:de", "language": "German"}
    for i in range(1, 4):
        there = i <= turns
        row[f"turn_{i}_prompt"] = json.dumps({"role": "user", "content": f"turn {i}"}) if there else "None"
        row[f"turn_{i}_instruction_id_list"] = json.dumps(ids[:i]) if there else ""
        row[f"turn_{i}_kwargs"] = json.dumps(["{}"] * i) if there else ""
    return row


def test_multi_if(tmp_path: Path) -> None:
    path = tmp_path / "multiIF_20241018.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(multi()))
        table.writeheader()
        table.writerows([multi(), multi(2)])
    item, short = multi_if.SUITE.load(str(path))
    assert (item.id, item.about, item.later) == ("12:1:de", {"language": "German"}, ("turn 2", "turn 3"))
    assert (short.later, len(short.gold)) == (("turn 2",), 2)
    turns = ("eins zwei", "„drei“, vier", '"<<Titel>> fünf"')
    found = multi_if.score(item, Answer(turns[-1], turns=turns))
    assert found.parts["turn 1"] == 1.0
    assert found.parts["turn 2"] == 0.0
    assert found.parts["turn 3"] == 1.0
    assert found.value == pytest.approx(2 / 3)
    assert (found.outcome, found.note) == ("wrong", "turn 2: punctuation:no_comma, startend:quotation")
    assert multi_if.score(item, Answer("x", turns=("eins", '"zwei"', '"<<drei>>"'))).outcome == "right"


def test_multi_if_turns(tmp_path: Path) -> None:
    item, short = multi_if.SUITE.load(lines(tmp_path / "m.jsonl", [multi(), multi(1)]))
    cut = multi_if.score(item, Answer("eins", turns=("eins",)))  # the conversation broke off
    assert (cut.parts["turn 1"], cut.parts["turn 3"]) == (1.0, 0.0)
    assert cut.value == pytest.approx(1 / 3)
    assert multi_if.score(short, Answer("eins")).value == 1.0  # an answer without its list of turns
    with pytest.raises(UsageError, match="2 answers to 1 turns"):
        multi_if.score(short, Answer("b", turns=("a", "b")))
    with pytest.raises(UsageError, match="turn 2: not JSON"):
        multi_if.SUITE.load(lines(tmp_path / "n.jsonl", [{**multi(), "turn_2_kwargs": "{"}]))
    with pytest.raises(UsageError, match="no turn_1_prompt"):
        multi_if.SUITE.load(lines(tmp_path / "o.jsonl", [multi(0)]))


def function(name: str = "math.area", kind: str = "integer") -> dict[str, Any]:
    properties = {
        "base": {"type": kind, "description": "Its base."},
        "sides": {"type": "array", "items": {"type": "float"}, "description": ""},
        "more": {"type": "dict", "properties": {"at": {"type": "tuple", "items": {"type": "any"}}}},
    }
    parameters = {"type": "dict", "properties": properties, "required": ["base"]}
    return {"name": name, "description": "An area.", "parameters": parameters}


def question(id: str, *functions: dict[str, Any]) -> dict[str, Any]:
    return {"id": id, "question": [[{"role": "user", "content": "?"}]], "function": [*functions]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for category in ("simple_python", "irrelevance", "live_relevance", "simple_java"):
        id = f"{category}_0"
        lines(
            tmp_path / f"BFCL_v4_{category}.json", [question(id, function(kind="long" if "java" in id else "integer"))]
        )
    for category in ("simple_python", "simple_java"):
        truth = {"id": f"{category}_0", "ground_truth": [{"math.area": {"base": [10]}}]}
        lines(tmp_path / "possible_answer" / f"BFCL_v4_{category}.json", [truth])
    lines(tmp_path / "BFCL_v4_multi_turn_base.json", [{"id": "multi_turn_base_0", "question": [[], []]}])
    lines(tmp_path / "unused_datasets" / "question" / "BFCL_v4_multiple.json", [question("multiple_0", function())])
    return tmp_path


def called(arguments: str, name: str = "math_area") -> Answer:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return Answer("", tool_calls=(call,), finish_reason="tool_calls")


def test_bfcl(data: Path) -> None:
    items = {item.about["category"]: item for item in bfcl.SUITE.load(str(data))}
    assert set(items) == {"simple_python", "irrelevance", "live_relevance", "simple_java"}
    assert items["live_relevance"].about["set"] == "live"
    for category, answer, outcome in (
        ("simple_python", called('{"base": 10}'), "right"),
        ("simple_python", called('{"base": 11}'), "wrong"),
        ("simple_python", called("{"), "unparsed"),
        ("simple_python", Answer("I would call math_area(10)."), "wrong"),
        ("simple_java", called('{"base": "10L"}'), "right"),
        ("simple_java", called('{"base": 10}'), "wrong"),
        ("irrelevance", Answer("No tool helps here."), "right"),
        ("irrelevance", called('{"base": 10}'), "wrong"),
        ("irrelevance", called("{"), "right"),
        ("live_relevance", called('{"base": 99}'), "right"),
        ("live_relevance", Answer("Hm."), "wrong"),
    ):
        found = score_answer(bfcl.SUITE, items[category], answer)
        assert (category, found.outcome) == (category, outcome), found
    assert score_answer(bfcl.SUITE, items["simple_python"], called('{"base": 10}')).extracted == "math_area(base=10)"


def test_bfcl_tools_are_json_schema(data: Path) -> None:
    items = {item.about["category"]: item for item in bfcl.SUITE.load(str(data))}
    made = items["simple_python"].tools[0]["function"]
    assert made["name"] == "math_area"
    assert made["description"] == "An area. Note that the provided function is in Python 3 syntax."
    assert made["parameters"]["type"] == "object"
    properties = made["parameters"]["properties"]
    assert properties["sides"] == {"type": "array", "items": {"type": "number"}, "description": ""}
    assert properties["more"]["properties"]["at"] == {"type": "array", "items": {"type": "string"}}
    java = items["simple_java"].tools[0]["function"]["parameters"]["properties"]
    assert {one["type"] for one in java.values()} == {"string"}
    assert java["base"]["description"] == "Its base. This is a Java value of type long, as source text in a string."


def test_bfcl_data_that_is_not_whole(data: Path) -> None:
    (data / "possible_answer" / "BFCL_v4_simple_java.json").unlink()
    with pytest.raises(UsageError, match="simple_java_0 has no answer"):
        bfcl.SUITE.load(str(data))
    with pytest.raises(UsageError, match="no file of a single-turn category"):
        bfcl.SUITE.load(lines(data / "other" / "x.json", [{"id": "1"}]))


def test_bfcl_of_the_package() -> None:
    pytest.importorskip("bfcl_eval")  # pip install --no-deps bfcl-eval
    items = bfcl.SUITE.load(None)
    assert len(items) == 3641
    assert len({item.id for item in items}) == len(items)


def arena(tmp_path: Path, model: str = "gpt-4-0314") -> str:
    lines(tmp_path / "question.jsonl", [{"uid": "q1", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "Why?"}])
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": {"answer": "Because."}}]
    lines(
        tmp_path / "model_answer" / f"{model}.jsonl", [{"uid": "q1", "ans_id": "a", "model": model, "messages": said}]
    )
    return str(tmp_path)


def test_arena_hard(tmp_path: Path) -> None:
    suite = arena_hard.SUITES[0]
    (item,) = suite.load(arena(tmp_path))
    assert item.gold == {"baseline": "gpt-4-0314", "answer": "Because."}
    assert item.about == {"category": "arena-hard-v0.1", "cluster": "c"}
    with pytest.raises(UsageError, match="needs a judge"):
        score_answer(suite, item, Answer("x"))
    asked = []

    def ask(messages: Any) -> str:
        asked.append(messages[-1]["content"])
        return "[[B>>A]]" if "Assistant B's Answer|>\nOf course" in messages[-1]["content"] else "[[A>B]]"

    found = score_answer(arena_hard.with_judge(suite, ask), item, Answer("Of course."))
    assert (found.value, found.outcome, found.extracted) == (1.0, "right", "2 1")
    assert len(asked) == 2
    assert all("Because." in one and "Why?" in one for one in asked)


def test_arena_hard_of_older_files(tmp_path: Path) -> None:
    lines(tmp_path / "question.jsonl", [{"question_id": "q1", "prompt": "Why?"}])
    old = {"question_id": "q1", "model_id": "gpt-4-0314", "choices": [{"turns": [{"content": "Because."}]}]}
    lines(tmp_path / "answers.jsonl", [old])
    assert arena_hard.SUITES[0].load(str(tmp_path))[0].gold["answer"] == "Because."


def test_arena_hard_without_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_EVAL_DATA", raising=False)
    with pytest.raises(UsageError, match="no answer of the baseline gpt-4-0314 to question q1"):
        arena_hard.SUITES[0].load(arena(tmp_path, "other"))
    with pytest.raises(UsageError, match=r"no question\.jsonl"):
        arena_hard.SUITES[1].load(lines(tmp_path / "other" / "a.jsonl", [{"x": 1}]))
    with pytest.raises(UsageError, match=r"arena_hard.*arena-hard-auto"):
        arena_hard.SUITES[0].load(None)
