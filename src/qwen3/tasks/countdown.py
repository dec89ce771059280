"""Countdown: reach a target with three numbers, by an exhaustive search that is written down."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from itertools import combinations

from qwen3.tasks.base import Problem, Task, paragraphs


def _results(x: int, y: int) -> Iterator[tuple[str, int]]:
    """What two numbers make, larger one first; products only where one of them has a single digit."""
    x, y = max(x, y), min(x, y)
    yield f"{x} + {y}", x + y
    yield f"{x} - {y}", x - y
    if y < 10:
        yield f"{x} * {y}", x * y


def search(numbers: tuple[int, int, int], target: int) -> tuple[list[str], str | None]:
    """The steps of the search in its fixed order, and the solution as an expression (None if there is none)."""
    steps = []
    for i, j in combinations(range(3), 2):
        third = numbers[3 - i - j]
        for first, value in _results(numbers[i], numbers[j]):
            tried = []
            for second, result in _results(value, third):
                tried.append(f"{second} = {result}")
                if result == target:
                    steps.append(f"{first} = {value}, with {third}: " + ", ".join(tried) + ". Found.")
                    left, op, _right = second.split()
                    inner = f"({first})"
                    whole = f"{inner} {op} {third}" if int(left) == value else f"{third} {op} {inner}"
                    return steps, whole
            steps.append(f"{first} = {value}, with {third}: " + ", ".join(tried) + ".")
    return steps, None


def evaluate(expression: str) -> tuple[int | None, list[int]]:
    """Value of an expression of integers with + - * and brackets, and the numbers it uses; (None, []) if malformed."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None, []
    used: list[int] = []

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            left, right = walk(node.left), walk(node.right)
            if isinstance(node.op, ast.Add):
                return left + right
            return left - right if isinstance(node.op, ast.Sub) else left * right
        raise ValueError

    try:
        return walk(tree), used
    except ValueError:
        return None, []


class Countdown(Task):
    """Three numbers, each used once, with + - * to reach the target."""

    name = "countdown"
    levels = 3
    phrasings = (
        "Use {n} to make {t}.",
        "Make {t} from {n}.",
        "Using the numbers {n}, reach {t}.",
        "Reach {t} with {n}. Use each number once.",
        "Combine {n} to get {t}.",
        "How can you make {t} out of {n}?",
        "Countdown: numbers {n}, target {t}.",
        "With {n}, use +, - and * to get {t}.",
        "Find an expression that uses {n} and equals {t}.",
        "Get {t} using each of {n} exactly once.",
        "Write {t} with the numbers {n}.",
    )
    _LARGEST = (9, 20, 50)

    def make(self, rng: random.Random, level: int) -> Problem:
        largest = self._LARGEST[level - 1]
        while True:
            numbers = (rng.randint(1, largest), rng.randint(1, largest), rng.randint(1, largest))
            i, j = rng.choice(((0, 1), (0, 2), (1, 2)))
            _, value = rng.choice(list(_results(numbers[i], numbers[j])))
            _, target = rng.choice(list(_results(value, numbers[3 - i - j])))
            if 0 < target < 1000:
                break
        steps, solution = search(numbers, target)
        assert solution is not None  # the target was made from these numbers by the same moves
        prompt = self.ask(rng, n=", ".join(map(str, numbers)), t=str(target))
        key = f"countdown {sorted(numbers)} {target}"
        reply = f"The answer is {solution} = {target}."
        return Problem(self.name, level, key, prompt, paragraphs(*steps, f"{solution} = {target}"), solution, reply)

    def check(self, problem: Problem, text: str) -> bool:
        _, numbers, target = re.split(r" (?=\[)|(?<=\]) ", problem.key)
        expression = text.split("answer is")[-1].split("=")[0].strip()
        value, used = evaluate(expression)
        return value == int(target) and sorted(used) == [int(n) for n in re.findall(r"\d+", numbers)]
