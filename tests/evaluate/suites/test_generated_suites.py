"""Suites whose items are made: RULER, a needle, Reasoning Gym, the embedded model's tasks."""

from __future__ import annotations

import json
import sys

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites import own, reasoning_gym, ruler, suites
from qwen3.evaluate.types import Answer
from qwen3.tasks import is_eval


def test_ruler_holds_what_it_asks_for_at_any_length() -> None:
    suite = suites()["ruler"]
    items = suite.load("lengths=1024+6000,count=2,seed=3")
    assert len({item.id for item in items}) == len(items) == 2 * 2 * 11
    for item in items:
        prompt, length = item.messages[0]["content"], item.about["length"]
        json.dumps([item.gold, item.about])
        assert 1.2 * length < len(prompt) < 6 * length
        assert all(text in prompt for text in item.gold)
        assert suite.score(item, Answer(" ".join(item.gold).upper())).outcome == "right"
        none = suite.score(item, Answer("nothing"))
        assert (none.outcome, none.value) == ("wrong", 0.0)
        if len(item.gold) > 1:
            assert 0 < suite.score(item, Answer(item.gold[0])).value < 1
    assert items == suite.load("lengths=1024+6000,count=2,seed=3")
    assert items[0].messages != suite.load("lengths=1024,count=1,seed=4")[0].messages


def test_ruler_counts_what_is_frequent() -> None:
    (item,) = ruler.SUITES[0].load("lengths=4096,count=1,tasks=cwe")
    words = [word for word in item.messages[0]["content"].split() if word.isalpha()]
    assert all(words.count(word) == 30 for word in item.gold)
    assert len(item.gold) == 10
    (item,) = ruler.SUITES[0].load("lengths=4096,count=1,tasks=fwe")
    coded = item.messages[0]["content"].split("words. ", 1)[1].split("\n")[0].split()
    ranked = sorted(set(coded), key=lambda word: -coded.count(word))
    assert ranked[:4] == ["....", *item.gold]


def test_needles_lie_at_their_depth() -> None:
    items = suites()["needle"].load("lengths=4096,depths=0+25+50+100")
    for item in items:
        prompt = item.messages[0]["content"]
        at = prompt.index("One of the special magic") / len(prompt)
        assert at == pytest.approx(item.about["depth"] / 100, abs=0.08)
        assert prompt.count("One of the special magic") == 1


@pytest.mark.parametrize(
    ("name", "asked", "match"),
    [
        ("ruler", "tasks=qa", "no task 'qa'"),
        ("ruler", "lengths=100", "too short"),
        ("needle", "depths=101", "percentage"),
        ("ruler", "/some/file.jsonl", "is no setting"),
        ("steps", "count=x", "whole number"),
    ],
)
def test_settings_that_are_refused(name: str, asked: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        suites()[name].load(asked)


def test_own_tasks_are_of_the_eval_split_and_take_their_reply() -> None:
    for suite in own.SUITES:
        items = suite.load("count=24,seed=5")
        assert len({item.id for item in items}) == len(items) == 24
        assert items == suite.load("count=24,seed=5")
        for item in items:
            assert is_eval(item.gold["key"])
            assert json.loads(json.dumps(item.gold)) == item.gold
            assert suite.score(item, Answer(item.gold["reply"])).outcome == "right"
            assert suite.score(item, Answer("I do not know.")).outcome == "wrong"


def test_reasoning_gym_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning_gym._gym.cache_clear()
    with pytest.raises(UsageError, match=r"reasoning_gym: .*pip install reasoning-gym"):
        reasoning_gym.SUITE.load(None)


def test_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")  # package reasoning-gym, Python 3.11 and up
    reasoning_gym._gym.cache_clear()
    items = reasoning_gym.SUITE.load("count=2,datasets=gcd+maze+spell_backward,seed=4")
    assert len(items) == 6
    assert items == reasoning_gym.SUITE.load("count=2,datasets=gcd+maze+spell_backward,seed=4")
    for item in items:
        gold = item.gold
        answer = reasoning_gym._made(gold["dataset"], gold["seed"], gold["count"])[gold["index"]]["answer"]
        assert reasoning_gym.score(item, Answer(f"<answer>no</answer> <answer> {answer} </answer>")).outcome == "right"
        assert reasoning_gym.score(item, Answer("<answer>zzz</answer>")).outcome == "wrong"
        assert reasoning_gym.score(item, Answer(str(answer))).outcome == "unparsed"
    with pytest.raises(UsageError, match="'countdown': its verifier would run the answer"):
        reasoning_gym.SUITE.load("datasets=countdown")
    with pytest.raises(UsageError, match="no data set 'x'"):
        reasoning_gym.SUITE.load("datasets=x")
