"""How long an answer is expected to take, and so when a thought must be closed."""

from __future__ import annotations

from qwen3.engine.deadline import Pace


def stepped(seconds: float) -> Pace:
    pace = Pace()
    for i in range(20):
        pace.step(i * seconds)
    return pace


def test_before_anything_was_seen_there_is_a_guess() -> None:
    assert Pace().answer_tokens(1000) == 64
    assert Pace().answer_tokens(10) == 10
    assert not Pace().must_close(0.1, 24, 1000), "nothing is known of the speed"


def test_answers_are_learnt_from() -> None:
    pace = Pace()
    for _ in range(7):
        pace.answered(100)
    assert pace.answer_tokens(1000) == 100, "few, but one of them was longer than the guess"
    pace.answered(10)
    assert pace.answer_tokens(50) == 50


def test_a_long_answer_in_twenty_is_not_waited_for() -> None:
    pace = Pace()
    for i in range(20):
        pace.answered(800 if i == 0 else 20)
    assert pace.answer_tokens(1000) == 20


def test_it_closes_when_what_is_left_just_holds_the_rest() -> None:
    pace = stepped(0.01)
    for _ in range(8):
        pace.answered(50)
    need = 2.4 * 0.01 * (1 + 24 + 50)
    assert pace.must_close(need * 0.99, 24, 1000)
    assert not pace.must_close(need * 1.01, 24, 1000)
    assert not pace.must_close(need * 0.99, 24, 10), "no more than 10 tokens may come"
