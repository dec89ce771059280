"""Training conversations: seeded, varied, renderable, free of control strings, and true where that can be checked."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from qwen3.chat import render
from qwen3.tasks.dialogue import EVAL_PROMPTS, requested_mode, sample_dialogue, typo, vary
from qwen3.tasks.dialogue_facts import article, fact_groups, number_words, ordinal
from qwen3.tasks.dialogue_social import expand, intents
from qwen3.tasks.dialogue_stories import _asked_kinds, categories, is_a, odd_one_out, reading
from qwen3.tasks.dialogue_unknown import unknown
from qwen3.tasks.talk_data import parts

CONTROL = re.compile(r"<\||\|>|</?think>|</?tool_(call|response)>")


def texts(messages: list[dict[str, str]], role: str) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] == role)


def problem(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.randrange(100), rng.randrange(100)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}", f"The answer is {a + b}."


def test_the_same_seed_gives_the_same_conversations():
    first, second = random.Random(5), random.Random(5)
    assert [sample_dialogue(first, problem) for _ in range(500)] == [
        sample_dialogue(second, problem) for _ in range(500)
    ]


def test_conversations_are_varied():
    rng = random.Random(1)
    asked = Counter(texts(sample_dialogue(rng), "user") for _ in range(10_000))
    assert len(asked) > 8_000
    assert asked.most_common(1)[0][1] < 60


def test_shape_lengths_and_no_control_strings():
    rng = random.Random(2)
    flags = 0
    for _ in range(3_000):
        messages = sample_dialogue(rng, problem if rng.random() < 0.3 else None)
        roles = [m["role"] for m in messages]
        assert roles[0] in ("system", "user")
        turns = [r for r in roles if r != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert 1 <= len(turns) // 2 <= 4
        for m in messages:
            assert m["content"].strip()
            assert len(m["content"]) < 700
            assert not CONTROL.search(m["content"] + m.get("reasoning_content", ""))
            if m["role"] == "assistant":
                assert 0 < len(m["reasoning_content"]) < 400
                assert m["reasoning_content"] == m["reasoning_content"].strip()
        flags += requested_mode(messages) is not None
    assert 150 < flags < 900


def test_every_conversation_renders():
    rng = random.Random(3)
    for _ in range(300):
        text = render(sample_dialogue(rng, problem), add_generation_prompt=False)
        assert text.endswith("<|im_end|>\n")


def test_requested_mode_takes_the_last_switch_of_user_or_system():
    user = {"role": "user", "content": "Hi /think"}
    answer = {"role": "assistant", "content": "Hello! /no_think"}
    assert requested_mode([{"role": "user", "content": "Hi"}]) is None
    assert requested_mode([user, answer]) is True
    assert requested_mode([user, answer, {"role": "user", "content": "And now? /no_think"}]) is False
    assert requested_mode([{"role": "user", "content": "path/think and a/no_think"}]) is None


def test_problems_are_woven_in():
    rng = random.Random(4)
    with_sum = [m for m in (sample_dialogue(rng, problem) for _ in range(1_000)) if " + " in texts(m, "user")]
    assert len(with_sum) > 120
    for messages in with_sum:
        for ask, answer in pairwise(messages):
            found = re.search(r"What is (\d+) \+ (\d+)\?$", ask["content"]) if ask["role"] == "user" else None
            if found and answer["content"].startswith("The answer is"):
                assert answer["content"] == f"The answer is {int(found[1]) + int(found[2])}."


def test_no_question_about_a_fact_has_two_answers():
    answers = defaultdict(set)
    for _, facts in fact_groups():
        for fact in facts:
            for question in fact.questions:
                answers[question.lower().rstrip("?.")].add(fact.short.lower())
    double = {q: a for q, a in answers.items() if len(a) > 1}
    assert double == {}
    assert len(answers) > 8_000


def test_facts_are_sentences_that_hold_their_short_answer():
    for _, facts in fact_groups():
        for fact in facts:
            assert fact.short
            for text in fact.full:
                assert text[0].isupper() or text[0].isdigit()
                assert text[-1] in ".!"
            if fact.subject:
                assert any(fact.subject in question for question in fact.questions)


def test_numbers_in_words():
    assert number_words(0) == "zero"
    assert number_words(14) == "fourteen"
    assert number_words(90) == "ninety"
    assert number_words(342) == "three hundred and forty-two"
    assert number_words(2000) == "two thousand"
    assert number_words(9105) == "nine thousand one hundred and five"
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd")
    ]
    assert [article(n) for n in ("apple", "dog", "uniform", "hour", "umbrella")] == [
        *("an apple", "a dog", "a uniform", "an hour", "an umbrella")
    ]


def test_categories_answer_truly():
    rng = random.Random(6)
    for _ in range(2_000):
        turn = is_a(rng)
        found = re.fullmatch(r"Is (?:an? )?(.+?) (?:an? )?([a-z ]+)\?", turn.user)
        if found is None:
            continue
        members = [(k, form) for k in _asked_kinds() for m in categories()[k] for form in (m, article(m))]
        yes = any(turn.user == f"Is {form} {article(kind)}?" for kind, form in members)
        assert turn.reply.startswith("Yes" if yes else "No"), turn


def test_the_odd_one_out_is_the_one_of_another_kind():
    rng = random.Random(7)
    for _ in range(500):
        turn = odd_one_out(rng)
        words = turn.user.split(": ")[1].rstrip("?").split(", ")
        stranger = turn.reply.split(".")[0].lower()
        kinds = [{k for k, members in categories().items() if w in members} for w in words]
        assert stranger in [w.lower() for w in words]
        common = set.intersection(*(k for w, k in zip(words, kinds, strict=True) if w.lower() != stranger))
        assert common
        assert not common & kinds[[w.lower() for w in words].index(stranger)]


def test_the_answer_to_a_text_is_in_the_text():
    rng = random.Random(8)
    for _ in range(1_000):
        turn = reading(rng)
        for name in re.findall(r"\b[A-Z][a-z]+\b|\d+", turn.reply)[1:]:
            assert name in turn.user


def test_requests_beyond_the_model_are_refused_honestly():
    rng = random.Random(9)
    honest = re.compile(r"not|cannot|too small|beyond|too much|only|ask a doctor|no tools", re.IGNORECASE)
    asked = set()
    for _ in range(3_000):
        turn = unknown(rng)
        asked.add(turn.user)
        assert honest.search(turn.reply), turn
        assert "{" not in turn.user + turn.reply
    assert len(asked) > 1_800


def test_intents_are_complete_and_keep_the_name():
    names = [row.name for row in intents()]
    assert len(names) == len(set(names)) > 45
    for row in intents():
        assert row.weight > 0
        assert row.users
        assert row.thoughts
        assert row.replies
        assert not any("(" in text or "|" in text for text in (*row.users, *row.thoughts, *row.replies))
    who = next(row for row in intents() if row.name == "who")
    assert all("Wren" in reply and "small demonstration model" in reply for reply in who.replies)


def test_patterns_expand():
    assert expand("(Hi|Hello)(|, you)!") == ["Hi!", "Hi, you!", "Hello!", "Hello, you!"]
    assert parts("a|\n b c|d\n e") == ("a", "b c", "d e")


def test_variation_keeps_the_words():
    rng = random.Random(10)
    text = "What is the capital of France?"
    seen = {vary(rng, text) for _ in range(400)}
    assert {text, text.lower(), text.upper(), text[:-1], text[:-1].lower()} <= seen
    for _ in range(100):
        slip = typo(rng, text)
        assert abs(len(slip) - len(text)) <= 1
        assert slip[0] == "W"
    assert typo(rng, "Hi you") == "Hi you"


@pytest.mark.parametrize(
    ("prompt", "good", "bad"),
    [
        ("Hello", "Hello! How can I help you?", "The answer is 4."),
        ("Who are you?", "I am Wren, a small demonstration model.", "I am Qwen."),
        ("What can you do?", "I can do small sums and puzzles.", ""),
        ("hi", "Hi there!", "x" * 700),
        ("Thanks!", "You are welcome!", "Hello!"),
        ("What is the capital of France?", "The capital of France is Paris.", "The capital of France is Rome."),
        ("What is the plural of mouse?", "The plural of mouse is mice.", "mouses"),
    ],
)
def test_evaluation_prompts_tell_good_from_bad(prompt: str, good: str, bad: str):
    check = dict(EVAL_PROMPTS)[prompt]
    assert check(good)
    assert not check(bad)


def test_evaluation_prompts_are_many_and_distinct():
    prompts = [prompt for prompt, _ in EVAL_PROMPTS]
    assert len(prompts) == len(set(prompts)) >= 60
