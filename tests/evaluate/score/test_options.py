"""Which option an answer takes, and in which order options are shown."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import ASK, LETTERS, block, choice_item, order, permuted, score, taken
from qwen3.evaluate.types import Answer

OPTIONS = ("red", "A dog", "15 m", "5 m/s")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ('"answer": "C"', "C"),
        ('```json\n{"answer": "C"}\n```', "C"),
        ("{'answer': 'B'}", "B"),
        ('"answer": "c"', "C"),
        ('"answer": C', "C"),
        ('{"answer": ["C"]}', "C"),
        ('"answer": "C",\n"explanation": "Option A is correct only if it is warm"', "C"),
        (r"\boxed{C}", "C"),
        (r"$\boxed{\text{C}}$", "C"),
        (r"\boxed{\textbf{(C)}}", "C"),
        (r"\boxed{C. 15 m}", "C"),
        ("The final answer is: $\\boxed{C}$", "C"),
        ("Answer: (C)", "C"),
        ("**C**", "C"),
        ("**C. 15 m**", "C"),
        ("**Answer:** C", "C"),
        ("Answer:\n\nC", "C"),
        ("answer is b", "B"),
        ("<answer>C</answer>", "C"),
        ("The answer is $C$.", "C"),
        ("The answer is C, not A", "C"),
        ("The answer is not A but C", "C"),
        ("答案不是A而是C", "C"),
        ("Answer: A. Wait, no. Answer: D", "D"),
        ("The correct option is B because A is wrong.", "B"),
        ("Option A is wrong. Option C is correct.", "C"),
        ("So both A and B are wrong, and the answer must be D.", "D"),
        ("Answer B is correct; answer A is clearly wrong.", "B"),
        ("Thus, C is the answer.", "C"),
        ("I would choose C.", "C"),
        ("C", "C"),
        ("(c)", "C"),
        ("C) 15 m", "C"),
        ("Let's see.\n\nC", "C"),
        ("Ｃ", "C"),
        ("答案：Ｃ", "C"),
        ("正确答案是（C）", "C"),
        ("故选C", "C"),
        ("정답은 C입니다", "C"),
        ("答えはCです", "C"),
        ("الإجابة: ب", "B"),
        ("উত্তর: ব", "B"),
        ("Ответ: С", "C"),  # a Cyrillic letter
        ("La bonne réponse est l'option C.", "C"),
        ("Die richtige Antwort ist (D).", "D"),
        ("A dog", "B"),
        ("The answer is a dog.", "B"),
        ("Answer: A dog", "B"),
        ("The answer is 15 m", "C"),
        ("The answer is 5 m/s.", "D"),
    ],
)
def test_the_option_that_an_answer_takes(text: str, letter: str) -> None:
    assert taken(text, OPTIONS).letter == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I think it is hard to say.",
        "The answer is not A.",
        "The answer is A good one",
        "Answer: A or C",
        "A or C",
        '"answer": "A, C"',
        "A. red\nB. A dog\nC. 15 m\nD. 5 m/s",
        '{"answer": "E"}',
        "Answer: Vitamin C",
        "I choose neither A nor B.",
        "The correct answer is not listed.",
        "A is correct. C is correct.",
    ],
)
def test_no_option_or_several_is_no_answer(text: str) -> None:
    assert taken(text, OPTIONS).letter is None


def test_scores() -> None:
    item = choice_item("x", "Which?", OPTIONS, 2, {})
    assert score(item, Answer("Answer: C")).outcome == "right"
    wrong = score(item, Answer("Answer: D"))
    assert (wrong.outcome, wrong.extracted, wrong.value) == ("wrong", "D", 0.0)
    several = score(item, Answer("Answer: C or D"))
    assert (several.outcome, several.note) == ("unparsed", "several options")


@given(st.text(max_size=300), st.integers(2, 10))
def test_any_text_is_read(text: str, count: int) -> None:
    letter, form = taken(text, [f"option number {i}" for i in range(count)])
    assert form
    assert letter is None or letter in LETTERS[:count]


def test_a_prompt_shows_the_options_and_asks_as_qwen_does() -> None:
    item = choice_item("x", " Which? ", OPTIONS, 0, {"subject": "s"})
    assert item.messages[0]["content"] == f"Which?\n\nA. red\nB. A dog\nC. 15 m\nD. 5 m/s\n\n{ASK}"
    assert item.gold == {"letter": "A", "options": list(OPTIONS)}


def test_shuffles_go_by_the_item_alone_and_reach_every_order() -> None:
    assert order("a", 4) == order("a", 4)
    seen = {tuple(order(str(i), 3)) for i in range(200)}
    assert len(seen) == 6
    firsts = [choice_item(str(i), "q", OPTIONS, 0, {}, shuffle=True).gold["letter"] for i in range(400)]
    assert all(70 < firsts.count(letter) < 130 for letter in "ABCD")


def test_turned_options_stand_at_each_letter_once() -> None:
    item = choice_item("x", "Which?", OPTIONS, 1, {})
    assert permuted(item, 0) is item
    assert permuted(item, 4) is item
    turned = [permuted(item, i) for i in range(4)]
    assert sorted(t.gold["letter"] for t in turned) == list("ABCD")
    for t in turned:
        assert t.gold["options"][LETTERS.index(t.gold["letter"])] == "A dog"
        assert block(t.gold["options"]) in t.messages[0]["content"]


def test_rendered_answers_are_read_as_they_were_made() -> None:
    rng = random.Random(7)
    forms = ('"answer": "{}"', "Answer: {}", "\\boxed{{{}}}", "({})", "**{}**", "The answer is {}.", "{}")
    for i in range(1000):
        options = [f"thing {rng.randint(0, 10**6)}" for _ in range(rng.randint(2, 10))]
        letter = LETTERS[rng.randrange(len(options))]
        text = f"Some thought about it {i}.\n\n{rng.choice(forms).format(letter)}"
        assert taken(text, options).letter == letter, text


@pytest.mark.parametrize(("options", "right"), [(("one",), 0), (("a", "b"), 2), (("a", "b"), -1)])
def test_what_is_no_choice(options: tuple[str, ...], right: int) -> None:
    with pytest.raises(UsageError, match="item x"):
        choice_item("x", "q", options, right, {})
