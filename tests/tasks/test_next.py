"""The families that are new: every trace is checked by a program that shares nothing with the one that wrote it."""

from __future__ import annotations

import random
import re

import pytest

from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, NEXT_FAMILIES, STEP_FAMILIES, Labelled, Problem, is_eval
from qwen3.tasks.arithmetic import by_places
from qwen3.tasks.sums import is_fact, key_of

_TOKEN = re.compile(r"\d+|[-+*/()]")


def calculated(text: str) -> int:
    """An expression with signs and brackets, by recursive descent."""
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == text.replace(" ", ""), text

    def factor() -> int:
        token = tokens.pop(0)
        if token == "-":
            return -factor()
        if token != "(":
            return int(token)
        value = total()
        assert tokens.pop(0) == ")"
        return value

    def product() -> int:
        value = factor()
        while tokens and tokens[0] in "*/":
            sign, right = tokens.pop(0), factor()
            assert sign == "*" or value % right == 0
            value = value * right if sign == "*" else value // right
        return value

    def total() -> int:
        value = product()
        while tokens and tokens[0] in "+-":
            value = value + product() if tokens.pop(0) == "+" else value - product()
        return value

    found = total()
    assert not tokens
    return found


def check_equations(problem: Problem) -> None:
    """Every line says only equal things, and the last one ends with the answer."""
    for line in problem.trace.split("\n\n"):
        for part in line.removeprefix("So it is ").rstrip(".").split(", "):
            values = {calculated(side) for side in part.split(" = ")}
            assert len(values) == 1, part
    assert problem.trace.rstrip(".").split()[-1] == problem.answer


def check_track(problem: Problem) -> None:
    """The prompt is read anew; every line of the trace states the operation, its result, and the digits kept."""
    start, *_ = (int(n) for n in re.findall(r"\d+", re.sub(r"\d+: [-+*] \d+\.|100", "", problem.prompt)))
    moves = re.findall(r"(\d+): ([-+*]) (\d+)\.", problem.prompt)
    value, lines = start, problem.trace.split("\n\n")
    assert len(lines) == len(moves)
    for (number, sign, n), line in zip(moves, lines, strict=True):
        whole = calculated(f"{value} {sign} {n}")
        kept = f", keep {whole % 100}" if whole >= 100 else ""
        assert line == f"{number}: {value} {sign} {n} = {whole}{kept}"
        assert whole >= 0
        value = whole % 100
    assert str(value) == problem.answer


def check_cups(problem: Problem) -> None:
    moves = re.findall(r"(\d+): swap ([A-F]) and ([A-F])\.", problem.prompt)
    held = re.search(r"(?<!\d: )\b\d( \d){3,5}\b", problem.prompt)
    assert held
    cups = dict(zip("ABCDEF", held[0].split(), strict=False))
    lines = problem.trace.split("\n\n")
    assert len(lines) == len(moves)
    for (number, a, b), line in zip(moves, lines, strict=True):
        cups[a], cups[b] = cups[b], cups[a]
        assert line == f"{number}: {a} {b}: {' '.join(cups.values())}"
    assert " ".join(cups.values()) == problem.answer


CHECKS = {"sums": check_equations, "track": check_track, "cups": check_cups}


def check_draws(name: str, draws: int) -> None:
    task, rng = FAMILIES[name], random.Random(f"{name}/{draws}")
    for _ in range(draws):
        problem = task.sample(rng)
        CHECKS[name](problem)
        assert task.check(problem, problem.reply)


@pytest.mark.parametrize("name", NEXT_FAMILIES)
def test_traces_are_true(name: str) -> None:
    check_draws(name, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEXT_FAMILIES)
def test_ten_thousand_traces_are_true(name: str) -> None:
    check_draws(name, 10_000)


@pytest.mark.parametrize("name", ["track", "cups"])
@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_stride_keeps_every_nth_state_and_the_last(name: str, stride: int) -> None:
    task, rng = FAMILIES[name], random.Random(name)
    assert isinstance(task, Labelled)
    for _ in range(100):
        problem = task.sample(rng)
        careful = [line.split("keep ")[-1].split(": ")[-1].split(" = ")[-1] for line in problem.trace.split("\n\n")]
        terse = [line.split(": ") for line in task.told(problem.key, stride).split("\n\n")]
        assert task.told(problem.key, 1) == problem.trace
        ends = [int(label.split("-")[-1]) for label, _ in terse]
        assert ends == [*range(stride, len(careful), stride), len(careful)]
        assert [state for _, state in terse] == [careful[end - 1] for end in ends]
        starts = [int(label.split("-")[0]) for label, _ in terse]
        assert starts == [1, *(end + 1 for end in ends[:-1])]


def test_facts_are_all_trained_and_nothing_else_is() -> None:
    facts = [(a, s, b) for s in "+-*/" for a in range(100) for b in range(10) if (b or s != "/") and is_fact(a, s, b)]
    assert len(facts) == 390
    assert not any(is_eval(key_of(*fact)) for fact in facts)
    others = [key_of(a, s, b) for a in range(10, 60) for b in range(10, 60) for s in "+-*"]
    assert 0.01 < sum(map(is_eval, others)) / len(others) < 0.03


def test_a_problem_has_one_key_in_all_families() -> None:
    rng = random.Random(2)
    for name, mark in (("chain", "chain"), ("multiply", "multiply"), ("divide", "divide")):
        found = 0
        for _ in range(300):
            key = FAMILIES[name].sample(rng, 1).key
            numbers = re.fullmatch(mark + r" (\d+) ([-+]? ?)(\d+)", key)
            if numbers is None:
                continue
            sign = numbers[2].strip() or ("*" if name == "multiply" else "/")
            a, b = int(numbers[1]), int(numbers[3])
            if not is_fact(a, sign, b):
                assert key_of(a, sign, b) == key
                found += 1
        assert found > 200


def test_words_and_digits_signs_and_zeros_are_all_asked() -> None:
    rng = random.Random(5)
    prompts = [FAMILIES["sums"].sample(rng, level).prompt for level in (1, 2, 3) for _ in range(700)]
    for pattern in (
        r"(two|three|nine|ten|twelve) times",
        r"(?i)add \d+ and \d+",
        r"plus",
        r"\b0\b",
        r"\b1\b",
        r"-\d",
        r"^\d+ ?[-+*/x] ?\d+$",
    ):
        assert any(re.search(pattern, prompt) for prompt in prompts), pattern


@pytest.mark.parametrize(
    ("a", "sign", "b", "lines"),
    [
        (47, "+", 138, ["47 + 138 = 185"]),
        (457, "+", 389, ["457 + 389 = 457 + 300 + 80 + 9", "457 + 300 = 757", "757 + 80 = 837", "837 + 9 = 846"]),
        (645, "-", 270, ["645 - 270 = 645 - 200 - 70", "645 - 200 = 445", "445 - 70 = 375"]),
        (645, "-", 300, ["645 - 300 = 345"]),
    ],
)
def test_three_digits_go_by_places(a: int, sign: str, b: int, lines: list[str]) -> None:
    assert by_places(a, sign, b) == lines


def test_suites_hold_the_families_the_packaged_model_knows() -> None:
    assert {*STEP_FAMILIES, *CONTROL_FAMILIES, *NEXT_FAMILIES} == set(FAMILIES)
    assert not {*STEP_FAMILIES, *CONTROL_FAMILIES} & set(NEXT_FAMILIES)
