"""Overlap of a suite with a corpus: against a slow twin on random text, and what each grade means."""

from __future__ import annotations

import random
from difflib import SequenceMatcher
from itertools import pairwise

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate import contamination
from qwen3.evaluate.contamination import by_date, by_grade, grades, overlap
from qwen3.evaluate.types import Item
from qwen3.tokenizer.grams import words

VOCABULARY = [a + b for a in ("ka", "lo", "mi", "tu", "re", "zu") for b in ("n", "r", "s", "t", "x")]


def item(id: str, text: str) -> Item:
    return Item(id, ({"role": "user", "content": text},))


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=count))


def slow(question: list[str], document: list[str], size: int) -> tuple[int, float]:
    """(longest common run, share of the question's words in common runs), by comparing every pair of places."""
    longest, covered = 0, set[int]()
    for i in range(len(question)):
        for j in range(len(document)):
            run = 0
            while i + run < len(question) and j + run < len(document) and question[i + run] == document[j + run]:
                run += 1
            if run >= size:
                longest = max(longest, run)
                covered |= set(range(i, i + run))
    return longest, len(covered) / len(question)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_as_comparing_every_pair_of_places(seed: int) -> None:
    rng = random.Random(seed)
    items = [item(str(i), text(rng, rng.randrange(14, 60))) for i in range(9)]
    documents = []
    for one in items[:6]:
        found = words(one.messages[0]["content"])
        for _ in range(2):  # a piece of the item, perhaps twice, perhaps with words that repeat, in other text
            a, b = sorted(rng.choices(range(len(found) + 1), k=2))
            piece = " ".join(found[a:b])
            documents.append(f"{text(rng, 30)} {piece.upper()}, {text(rng, 3)} {piece}. {text(rng, 20)}")
    found_fast = overlap(items, [(str(i), document) for i, document in enumerate(documents)])
    hits = 0
    for one, fast in zip(items, found_fast, strict=True):
        question = words(one.messages[0]["content"])
        expected = [slow(question, words(document), 13) for document in documents]
        assert fast.longest == max(run for run, _ in expected)
        assert fast.share == pytest.approx(max(share for _, share in expected))
        assert fast.documents == sum(run > 0 for run, _ in expected)
        hits += fast.longest > 0
    assert hits


def test_the_longest_run_is_that_of_difflib() -> None:
    rng = random.Random(1)
    question = text(rng, 80)
    document = text(rng, 200) + " " + " ".join(question.split()[11:47]) + " " + text(rng, 100)
    a, b = question.split(), document.split()
    expected = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    assert expected >= 36
    assert overlap([item("a", question)], [("d", document)])[0].longest == expected


def test_a_document_in_pieces_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    items = [item(str(i), text(rng, 40)) for i in range(5)]
    document = " ".join(text(rng, 200) + " " + one.messages[0]["content"] for one in items)
    whole = overlap(items, [("d", document)])
    monkeypatch.setattr(contamination, "PIECE", 700)
    assert overlap(items, [("d", document)]) == whole
    assert [entry.grade for entry in whole] == ["dirty"] * 5
    assert [entry.documents for entry in whole] == [1] * 5


def test_grades_and_where_it_was_found() -> None:
    rng = random.Random(3)
    questions = [text(rng, 50) for _ in range(4)]
    items = [item(str(i), question) for i, question in enumerate(questions)] + [item("short", "what is two and two")]
    half = " ".join(questions[1].split()[:25])
    corpus = [("a.txt", f"Quiz: {questions[0].title()}!"), ("b.txt", f"{half}\n{text(rng, 9)}"), ("c.txt", half)]
    found = overlap(items, corpus)
    assert [entry.grade for entry in found] == ["dirty", "touched", "clean", "clean", "unchecked"]
    assert found[0].where == "a.txt"
    assert found[0].share == 1
    assert found[0].longest == 50
    assert found[1].where == "b.txt"
    assert found[1].documents == 2
    assert found[1].longest == 25
    assert grades(found) == {"clean": 2, "touched": 1, "dirty": 1, "unchecked": 1}


def test_the_wording_of_a_suite_is_no_part_of_its_items() -> None:
    rng = random.Random(4)
    ask = "Please reason step by step, and put your final answer within \\boxed{}, in simplest form and without units."
    items = [item(str(i), f"{text(rng, 30)}\n{ask}") for i in range(20)]
    found = overlap(items, [("prompts.txt", ask)])
    assert grades(found)["clean"] == 20
    assert all(entry.own == 30 for entry in found)
    few = overlap(items[:10], [("prompts.txt", ask)])  # among so few nothing tells wording from questions
    assert grades(few)["touched"] == 10


def test_letters_count_as_words_where_there_are_no_spaces() -> None:
    question = "甲乙两人同时从相距三十公里的两地相向而行甲每小时走五公里乙每小时走四公里问几小时后相遇"
    found = overlap([item("zh", question)], [("d", "题目：" + question + "。"), ("e", question[:20])])[0]
    assert found.grade == "dirty"
    assert found.documents == 1
    assert found.longest == len(question)


def sample(id: str, value: float, date: str | None = None) -> dict[str, object]:
    return {"item": id, "about": {"date": date} if date else {}, "score": {"value": value}}


def test_accuracy_by_grade_leaves_contaminated_items_out() -> None:
    rng = random.Random(5)
    items = [item(str(i), text(rng, 30)) for i in range(20)]
    found = overlap(items, [(str(i), items[i].messages[0]["content"]) for i in range(8)])
    samples = [sample(str(i), float(i < 8 or k == 0)) for i in range(20) for k in range(4)]
    parts = {part.name: part for part in by_grade(found, samples)}
    assert (parts["dirty"].items, parts["dirty"].percent) == (8, 100)
    assert (parts["clean"].items, parts["clean"].percent) == (12, 25)
    assert parts["clean"].interval == (25, 25)
    assert parts["touched"].percent is None


def test_windows_of_dates() -> None:
    dates = ["2024-05-01", "2024-10-01T09:00:00", "2024-12-24", "2025-02-01"]
    right = dict(zip(dates, (4, 3, 2, 1), strict=True))
    samples = [sample(f"{date}/{i}", float(i % 4 < right[date]), date) for date in dates for i in range(40)]
    parts = by_date(samples, ["2025-01-01", "2024-10-01"])
    assert [(part.items, part.percent) for part in parts] == [(40, 100), (80, 62.5), (40, 25)]
    assert all(a.interval[0] > b.interval[1] for a, b in pairwise(parts) if a.interval and b.interval)
    with pytest.raises(UsageError, match=r"about\.date"):
        by_date([*samples, sample("x", 1)], ["2025-01-01"])
