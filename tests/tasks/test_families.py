"""The problem families: verifiers, splits, traces that are true."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES, is_eval
from qwen3.tasks.countdown import evaluate, search
from qwen3.tasks.sudoku import solutions
from qwen3.tokenizer import Tokenizer

NAMES = list(FAMILIES)


def test_families_are_nine_with_steps_and_three_without() -> None:
    assert len(STEP_FAMILIES) == 9
    assert CONTROL_FAMILIES == ("sort", "spell", "count")


@pytest.mark.parametrize("name", NAMES)
def test_reference_reply_passes_and_another_problems_reply_fails(name: str) -> None:
    task, rng = FAMILIES[name], random.Random(name)
    problems = [task.sample(rng) for _ in range(200)]
    assert all(task.check(p, p.reply) for p in problems)
    pairs = [(p, q) for p, q in itertools.pairwise(problems) if p.answer != q.answer]
    assert len(pairs) > 100
    # Another's answer may be right by chance only where answers are few.
    assert sum(task.check(p, q.reply) for p, q in pairs) <= 4
    assert not any(task.check(p, "") for p in problems)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_problems(name: str) -> None:
    a, b = random.Random(3), random.Random(3)
    assert [FAMILIES[name].sample(a) for _ in range(20)] == [FAMILIES[name].sample(b) for _ in range(20)]


@pytest.mark.parametrize("name", NAMES)
def test_split_is_by_problem_and_about_two_percent(name: str) -> None:
    task, rng = FAMILIES[name], random.Random(name)
    drawn = [task.make(rng, rng.randint(1, task.levels)) for _ in range(5000)]
    keys = {p.key for p in drawn}
    share = sum(map(is_eval, keys)) / len(keys)
    assert 0.005 < share < 0.04
    assert all(not is_eval(task.sample(rng).key) for _ in range(200))
    assert all(is_eval(task.sample(rng, split="eval").key) for _ in range(50))


@pytest.mark.parametrize("name", NAMES)
def test_every_level_and_ten_wordings(name: str) -> None:
    task, rng = FAMILIES[name], random.Random(name)
    assert len(set(task.phrasings)) >= 10
    for level in range(1, task.levels + 1):
        assert task.sample(rng, level).level == level


@pytest.mark.parametrize("name", NAMES)
def test_equations_in_traces_are_true(name: str) -> None:
    task, rng = FAMILIES[name], random.Random(name)
    checked = 0
    for _ in range(100):
        for left, right in re.findall(r"(?<![\d*+-] )\b(\d+ [*+-] \d+) = (-?\d+)\b(?! [*+-])", task.sample(rng).trace):
            value, _ = evaluate(left)
            assert value == int(right)
            checked += 1
    if name in ("chain", "multiply", "divide", "countdown"):
        assert checked > 100


def test_control_strings_never_occur() -> None:
    tokenizer, rng = Tokenizer.from_pretrained(), random.Random(1)
    for task in FAMILIES.values():
        for _ in range(30):
            p = task.sample(rng)
            text = p.prompt + p.trace + p.reply
            assert not any(mark in text for mark in tokenizer.added_tokens.values())


def test_split_name_is_checked() -> None:
    with pytest.raises(ValueError, match="split"):
        FAMILIES["sort"].sample(random.Random(0), split="test")


def test_sudoku_has_288_solutions() -> None:
    assert len(solutions()) == len(set(solutions())) == 288


def test_countdown_search_finds_what_it_says() -> None:
    rng = random.Random(5)
    for _ in range(300):
        numbers = (rng.randint(1, 30), rng.randint(1, 30), rng.randint(1, 30))
        _, found = search(numbers, rng.randint(1, 200))
        if found:
            value, used = evaluate(found)
            assert sorted(used) == sorted(numbers)
            assert value is not None


@pytest.mark.parametrize("text", ["", "1 +", "__import__('os')", "1 / 2", "2 ** 9", "True + 1", "1.5 + 2", "(" * 9999])
def test_countdown_refuses_what_is_not_arithmetic(text: str) -> None:
    assert evaluate(text) == (None, [])
