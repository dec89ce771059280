"""Suites of multiple choice on small files in the layouts in which their data is published."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites import belebele, ceval, gpqa, include, mmlu_redux, mmmlu, suites
from qwen3.evaluate.types import Answer, Item, Suite, score_answer

NAMES = ("gpqa", "mmlu_redux", "ceval", "mmmlu", "mmmlu_full", "include", "include_full", "belebele")


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def sound(suite: Suite, items: list[Item]) -> None:
    """Ids are unique, items plain JSON, the gold letter is right, another one wrong, prose unparsed."""
    assert len({item.id for item in items}) == len(items) > 0
    for item in items:
        json.dumps([item.gold, item.about, item.messages])
        gold = item.gold["letter"]
        assert score_answer(suite, item, Answer(f'"answer": "{gold}"')).outcome == "right"
        other = "B" if gold == "A" else "A"
        assert score_answer(suite, item, Answer(f'"answer": "{other}"')).outcome == "wrong"
        assert score_answer(suite, item, Answer("I do not know.")).outcome == "unparsed"
        assert set(suite.groups) <= set(item.about)


def right_text(item: Item) -> str:
    """The gold option's text as the prompt shows it at the gold letter."""
    shown = re.search(rf"^{item.gold['letter']}\. (.*)$", item.messages[0]["content"], re.M)
    assert shown
    return shown[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_without_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("QWEN3_EVAL_DATA", raising=False)
    with pytest.raises(UsageError, match=r"its data is not here\. .*(huggingface\.co|hf download)") as caught:
        suites()[name].load(None)
    assert "\n" not in str(caught.value)


def test_gpqa(tmp_path: Path) -> None:
    rows = [
        {
            "Record ID": f"rec{i}",
            "Question": f"Question {i}?",
            "Correct Answer": f"right {i}",
            **{f"Incorrect Answer {k}": f"wrong {k} of {i}" for k in (1, 2, 3)},
            "High-level domain": "Physics",
            "Subdomain": "Optics",
        }
        for i in range(40)
    ]
    path = table(tmp_path / "gpqa_diamond.csv", rows)
    table(tmp_path / "gpqa_main.csv", [{**rows[0], "Question": "not of Diamond"}])
    items = gpqa.SUITE.load(str(tmp_path))
    sound(gpqa.SUITE, items)
    assert [item.id for item in items] == [row["Record ID"] for row in rows]
    assert all(right_text(item) == f"right {i}" for i, item in enumerate(items))
    assert {item.gold["letter"] for item in items} == set("ABCD")
    assert items == gpqa.SUITE.load(str(path))
    assert gpqa.SUITE.sampling.samples == 10
    with pytest.raises(UsageError, match="no column 'Correct Answer'"):
        gpqa.SUITE.load(str(table(tmp_path / "bad.csv", [{"Question": "q"}])))


def test_mmlu_redux_takes_corrected_keys_and_leaves_faulty_questions_out(tmp_path: Path) -> None:
    def row(question: str, answer: int, fault: str, key: str | None) -> dict[str, object]:
        return {
            "question": question,
            "choices": ["w", "x", "y", "z"],
            "answer": answer,
            "error_type": fault,
            "correct_answer": key,
        }

    rows = [
        row("sound", 1, "ok", None),
        row("index", 0, "wrong_groundtruth", "2"),
        row("letter", 0, "wrong_groundtruth", "D"),
        row("text", 0, "wrong_groundtruth", "x"),
        row("lost", 0, "wrong_groundtruth", "none of them"),
        row("unclear", 0, "bad_question_clarity", None),
    ]
    lines(tmp_path / "law" / "test" / "0000.jsonl", rows)
    items = mmlu_redux.SUITE.load(str(tmp_path))
    sound(mmlu_redux.SUITE, items)
    assert [(item.id, right_text(item)) for item in items] == [
        ("law/0", "x"),
        ("law/1", "y"),
        ("law/2", "z"),
        ("law/3", "x"),
    ]
    assert {item.about["subject"] for item in items} == {"law"}


def test_ceval(tmp_path: Path) -> None:
    row = {"id": 0, "question": "下列____", "A": "甲一", "B": "乙一", "C": "丙一", "D": "丁一", "answer": "C"}
    table(tmp_path / "val" / "law_val.csv", [row, {**row, "id": 1, "answer": "A"}])
    table(tmp_path / "dev" / "law_dev.csv", [{**row, "explanation": "x"}])
    items = ceval.SUITE.load(str(tmp_path))
    sound(ceval.SUITE, items)
    assert [(item.id, right_text(item)) for item in items] == [("law/0", "丙一"), ("law/1", "甲一")]
    lines(tmp_path / "hub" / "law" / "val" / "0000.jsonl", [row])
    assert ceval.SUITE.load(str(tmp_path / "hub"))[0].id == "law/0"
    with pytest.raises(UsageError, match="the answer is '', not A to D"):
        ceval.SUITE.load(str(table(tmp_path / "law_test.csv", [{**row, "answer": ""}])))


def test_mmmlu(tmp_path: Path) -> None:
    row = {"Question": "Frage?", "A": "a1", "B": "b1", "C": "c1", "D": "d1", "Answer": "B"}
    for tag in ("DE-DE", "YO-NG", "FR-FR"):
        rows = [{"": i, **row, "Subject": f"law_test.csv_{tag}.csv"} for i in range(200)]
        table(tmp_path / "test" / f"mmlu_{tag}.csv", rows)
    tenth, full = (suite.load(str(tmp_path)) for suite in mmmlu.SUITES)
    sound(mmmlu.SUITES[0], tenth)
    assert len(full) == 600
    numbers = {
        tag: {item.id.split("/")[1] for item in tenth if item.about["language"] == tag} for tag in ("DE-DE", "FR-FR")
    }
    assert numbers["DE-DE"] == numbers["FR-FR"]
    assert 8 < len(numbers["DE-DE"]) < 35
    assert {item.about["language"] for item in tenth} == {"DE-DE", "FR-FR"}
    assert {item.about["subject"] for item in full} == {"law"}


@pytest.mark.parametrize("choices", [False, True])
def test_include(tmp_path: Path, choices: bool) -> None:
    texts = ["o1", "o2", "o3", "o4"]
    options = {"choices": texts} if choices else {f"option_{x}": text for x, text in zip("abcd", texts, strict=True)}
    row = {"domain": "STEM", "regional_feature": "agnostic", "question": "Pyetje?", **options, "answer": 2}
    lines(tmp_path / "Albanian" / "test-00000-of-00001.jsonl", [{"language": "Albanian", **row}] * 150)
    lines(tmp_path / "Albanian" / "validation-00000-of-00001.jsonl", [{"language": "Albanian", **row}] * 9)
    tenth, full = (suite.load(str(tmp_path)) for suite in include.SUITES)
    sound(include.SUITES[1], full)
    assert len(full) == 150
    assert {item.id for item in tenth} < {item.id for item in full}
    assert right_text(full[0]) == "o3"


def test_belebele(tmp_path: Path) -> None:
    row = {
        "link": "https://example.org",
        "question_number": 1,
        "flores_passage": "A passage.",
        "question": "What?",
        **{f"mc_answer{i}": f"m{i}" for i in range(1, 5)},
        "correct_answer_num": "4",
        "dialect": "eng_Latn",
    }
    lines(tmp_path / "data" / "eng_Latn.jsonl", [row, {**row, "correct_answer_num": 1}])
    lines(tmp_path / "data" / "arz_Arab.jsonl", [{**row, "dialect": "arz_Arab"}])
    items = belebele.SUITE.load(str(tmp_path))
    sound(belebele.SUITE, items)
    assert [right_text(item) for item in items] == ["m4", "m4", "m1"]
    assert items[1].messages[0]["content"].startswith("A passage.\n\nWhat?\n\nA. m1")
    assert items[0].about == {"language": "arz_Arab", "script": "Arab"}
    with pytest.raises(UsageError, match="correct_answer_num is '5'"):
        belebele.SUITE.load(str(lines(tmp_path / "x.jsonl", [{**row, "correct_answer_num": 5}])))
