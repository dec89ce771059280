"""When an attempt to answer at once is thrown away: the score of `engine.trial` against its plain definition."""

from __future__ import annotations

import math
import random

import pytest

from qwen3.engine.sampler import TokenLogprob
from qwen3.engine.trial import SPAN, THRESHOLD, TOP, WINDOW, Trial


def entry(best: float) -> TokenLogprob:
    """A token whose most probable choice has this probability; another one was sampled."""
    return TokenLogprob(id=7, logprob=math.log(0.01), top=[(3, math.log(best))])


def first_think(doubts: list[float], threshold: float) -> int | None:
    """Tokens after which it thinks, by the definition; None: it answers."""
    padded = [0.0] * (SPAN - 1) + doubts[:WINDOW]
    for i in range(len(padded) - SPAN + 1):
        if sum(padded[i : i + SPAN]) / SPAN >= threshold:
            return i + 1
    return None


def run(doubts: list[float], threshold: float) -> int | None:
    trial = Trial(threshold)
    for i, doubt in enumerate(doubts):
        trial.observe(entry(1 - doubt))
        verdict = trial.verdict(over=i == len(doubts) - 1)
        assert trial.looked == i + 1
        if verdict == "think":
            return i + 1
        assert (verdict == "answer") is (i + 1 == min(WINDOW, len(doubts)))
        if verdict == "answer":
            return None
    raise AssertionError("no verdict at the end")


@pytest.mark.parametrize("seed", range(5))
def test_it_thinks_where_some_tokens_in_a_row_are_doubtful(seed: int) -> None:
    rng = random.Random(seed)
    both = set()
    for _ in range(200):
        scale = rng.choice((0.1, 0.4, 0.9))
        doubts = [rng.random() * scale * (rng.random() < 0.6) for _ in range(rng.randint(1, 60))]
        threshold = rng.choice((0.05, THRESHOLD, 0.3))
        found = run(doubts, threshold)
        assert found == first_think(doubts, threshold)
        both.add(found is None)
    assert both == {True, False}


def test_one_choice_of_words_is_no_doubt_a_guessed_number_is() -> None:
    greeting = [0.0, 0.34, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3]
    number = [0.1, 0.0, 0.0, 0.6, 0.8, 0.9]
    assert run(greeting, THRESHOLD) is None
    assert run(number, THRESHOLD) == 4


def test_the_ends_of_the_threshold() -> None:
    assert run([0.0] * 3, 0.0) == 1
    assert run([0.99] * 40, 1.0) is None
    assert Trial().threshold == THRESHOLD
    assert TOP >= 1
