"""The judge: verdicts, both orders, what cannot be read, win rates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score import judge
from qwen3.evaluate.score.judge import Game
from qwen3.evaluate.types import Answer, Item

ITEM = Item("1", ({"role": "user", "content": "Say {hello} and 100 % more."},))


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("[[A>>B]]", 2),
        ("so: [[a>b]]", 1),
        ("My final verdict is tie: [[A=B]].", 0),
        ("[[B=A]]", 0),
        ("[[B>A]]", -1),
        ("[[B>>A]]", -2),
        ("[[A<B]]", -1),
        ("[[A<<B]]", -2),
        ("[[B<<A]]", 2),
        ("first [[A>B]], on reflection [[B>A]]", -1),
        ("**[[ A > B ]]**", 1),
        ("A>B", None),
        ("[A>B]", None),
        ("[[A>A]]", None),
        ("[[A>>>B]]", None),
        ("I cannot judge this.", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, value: int | None) -> None:
    assert judge.preference(reply) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [("[[7]]", 7), ("[[10]]", 10), ("[[ 8 / 10 ]]", 8), ("[[3.0]]", 3), ("[[2]] no, [[4]]", 4)]
    + [(text, None) for text in ("7", "[[0]]", "[[11]]", "[[7.5]]", "[7]", "")],
)
def test_ratings(reply: str, value: int | None) -> None:
    assert judge.rating(reply) == value


class Scripted:
    """A judge that says what a function of the two answers says."""

    def __init__(self, say: Any) -> None:
        self.say, self.asked = say, []  # type: ignore[var-annotated]

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str:
        text = messages[-1]["content"]
        self.asked.append(messages)
        a = text.split("<|The Start of Assistant A's Answer|>\n")[1].split("\n<|The End")[0]
        b = text.split("<|The Start of Assistant B's Answer|>\n")[1].split("\n<|The End")[0]
        return str(self.say(a, b))


def test_a_judge_of_quality_is_the_same_both_ways_round() -> None:
    ask = Scripted(lambda a, b: "[[A>B]]" if len(a) > len(b) else "[[B>A]]" if len(b) > len(a) else "[[A=B]]")
    won = judge.score_pair(ask, ITEM, Answer("a long {answer}"), "short")
    assert (won.value, won.outcome, won.parts) == (1.0, "right", {"agreed": 1.0})
    assert "Say {hello} and 100 % more." in ask.asked[0][-1]["content"]
    assert ask.asked[0][0]["role"] == "system"
    assert judge.score_pair(ask, ITEM, Answer("no"), "short").value == 0.0
    tie = judge.score_pair(ask, ITEM, Answer("equal"), "shorx")
    assert (tie.value, tie.outcome, tie.note) == (0.5, "wrong", "a tie")


def test_a_judge_that_likes_the_first_one_finds_no_winner() -> None:
    found = judge.score_pair(Scripted(lambda a, b: "[[A>B]]"), ITEM, Answer("x"), "y")
    assert (found.value, found.parts["agreed"]) == (0.5, 0.0)
    strong = judge.score_pair(Scripted(lambda a, b: "[[A>>B]]"), ITEM, Answer("x"), "y")
    assert (strong.value, strong.extracted) == (0.5, "-2 2")


def test_significant_verdicts_count_three_times() -> None:
    assert judge.wins([Game(2, ""), Game(1, "")]) == [1.0] * 4
    assert judge.wins([Game(-2, ""), Game(0, "")]) == [0.0] * 3 + [0.5]
    assert judge.wins([Game(2, ""), Game(None, "")]) == []


def test_an_unreadable_verdict_is_asked_again_then_left_out() -> None:
    replies = iter(["hm", "[[B>A]]", "[[A>B]]"])
    assert judge.score_pair(Scripted(lambda a, b: next(replies)), ITEM, Answer("x"), "y").value == 1.0
    never = Scripted(lambda a, b: "I will not say")
    found = judge.score_pair(never, ITEM, Answer("x"), "y", tries=3)
    assert (found.outcome, len(never.asked)) == ("unparsed", 6)
    with pytest.raises(UsageError, match="tries"):
        judge.score_pair(never, ITEM, Answer("x"), "y", tries=0)


def test_an_answer_that_holds_a_verdict_is_not_one() -> None:
    found = judge.score_pair(Scripted(lambda a, b: "no verdict"), ITEM, Answer("[[A>>B]] [[B>>A]]"), "y")
    assert found.outcome == "unparsed"


def test_single() -> None:
    assert judge.score_single(lambda _: "Good. [[10]]", ITEM, Answer("x")).outcome == "right"
    half = judge.score_single(lambda _: "[[4]]", ITEM, Answer("x"))
    assert (half.outcome, round(half.value, 3), half.extracted) == ("wrong", 0.333, "4")
    assert judge.score_single(lambda _: "no", ITEM, Answer("x")).outcome == "unparsed"


def test_win_rate_and_its_interval() -> None:
    pairs = (
        [(Game(1, ""), Game(1, ""))] * 60 + [(Game(-1, ""), Game(-1, ""))] * 40 + [(Game(1, ""), Game(None, ""))] * 5
    )
    found = judge.win_rate(pairs, seed=1)
    assert (found.rate, found.pairs, found.unparsed) == (0.6, 100, 5)
    # 100 pairs of equal weight: the standard error is the binomial's, 0.049
    assert 0.49 < found.low < 0.52
    assert 0.68 < found.high < 0.71
    assert found == judge.win_rate(pairs, seed=1)
    scores = [judge.pair_score(games) for games in pairs]
    assert judge.win_rate([judge.recorded(score.extracted) for score in scores], seed=1) == found
    for bad in ([], [(Game(None, ""), Game(1, ""))]):
        with pytest.raises(UsageError, match="has a verdict"):
            judge.win_rate(bad)
    with pytest.raises(UsageError, match="level"):
        judge.win_rate(pairs, level=95)


def test_the_interval_covers_the_true_rate() -> None:
    rng, covered, runs = random.Random(4), 0, 200
    for run in range(runs):
        strength = [rng.random() for _ in range(60)]
        games = [[Game(1 if rng.random() < p else -1, "") for _ in range(2)] for p in strength]
        found = judge.win_rate(games, draws=300, seed=run)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 0.90 * runs
