"""Controls: tasks that need no steps, where thinking should change nothing."""

from __future__ import annotations

import random
import re
from functools import cache
from importlib import resources

from qwen3.tasks.base import Problem, Task, after_last_colon_or_is


@cache
def words() -> tuple[str, ...]:
    """Common English words of 3 to 8 letters, each a single token (with a leading space) of the packaged tokenizer."""
    return tuple((resources.files("qwen3") / "data" / "words.txt").read_text().split())


class Sort(Task):
    """Sorting three to eight numbers."""

    name = "sort"
    levels = 3
    needs_steps = False
    phrasings = (
        "Sort these numbers: {n}",
        "Sort {n} from smallest to largest.",
        "Put these numbers in order: {n}.",
        "Arrange {n} in increasing order.",
        "Order the numbers {n}.",
        "Please sort {n}.",
        "Write {n} in ascending order.",
        "Can you sort {n}?",
        "List these numbers from low to high: {n}.",
        "sort: {n}",
        "What is the sorted order of {n}?",
    )
    _DOWN = ("Sort {n} from largest to smallest.", "Arrange {n} in decreasing order.", "Order {n} from high to low.")
    _COUNT = ((3, 4), (5, 6), (7, 8))

    def make(self, rng: random.Random, level: int) -> Problem:
        numbers = rng.sample(range(1, 100), rng.randint(*self._COUNT[level - 1]))
        text = ", ".join(map(str, numbers))
        down = rng.random() < 0.2
        prompt = rng.choice(self._DOWN).format(n=text) if down else self.ask(rng, n=text)
        answer = ", ".join(map(str, sorted(numbers, reverse=down)))
        trace = "I pick the largest first." if down else "I pick the smallest first."
        return Problem(self.name, level, f"sort {text} {down}", prompt, trace, answer, f"Sorted: {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        return re.findall(r"\d+", text) == problem.answer.split(", ")


class Spell(Task):
    """Spelling words letter by letter."""

    name = "spell"
    levels = 3
    needs_steps = False
    phrasings = (
        "Spell {w}.",
        "Spell: {w}",
        "Spell out {w}.",
        "How do you spell {w}?",
        "Write the letters of {w}.",
        "Please spell {w}.",
        "Give me the letters in {w}.",
        "Spell {w} letter by letter.",
        "Can you spell {w}?",
        "List the letters of {w}.",
        "What are the letters of {w}?",
    )

    def make(self, rng: random.Random, level: int) -> Problem:
        chosen = rng.sample(words(), level + 1)
        text = " and ".join([", ".join(chosen[:-1]), chosen[-1]])
        lines = [f"{word}: {'-'.join(word)}" for word in chosen]
        answer = "\n".join(lines)
        trace = "I write the letters one by one."
        return Problem(
            self.name, level, f"spell {' '.join(sorted(chosen))}", self.ask(rng, w=text), trace, answer, answer
        )

    def check(self, problem: Problem, text: str) -> bool:
        return text.strip() == problem.answer


class Count(Task):
    """Counting up, down or in steps; the longest sequences pass 1,000 tokens."""

    name = "count"
    levels = 4
    needs_steps = False
    phrasings = (
        "Count from {a} to {b}.",
        "Count from {a} to {b}.",
        "Count {a} to {b}.",
        "Please count from {a} to {b}.",
        "List the numbers from {a} to {b}.",
        "Write the numbers {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Give me all numbers from {a} to {b}.",
        "count from {a} to {b}",
        "Say the numbers from {a} to {b}.",
        "Write out {a} to {b}.",
    )
    _LENGTH = ((4, 12), (13, 40), (41, 100), (101, 320))

    def make(self, rng: random.Random, level: int) -> Problem:
        step = 1 if rng.random() < 0.7 else rng.choice((2, 3, 5, 10))
        length = rng.randint(*self._LENGTH[level - 1])
        if step > 1:
            length = min(length, 60)
        start = 1 if rng.random() < 0.4 else rng.randint(0, 99)
        numbers = list(range(start, start + step * length, step))
        if rng.random() < 0.15:
            numbers.reverse()
        by = f" in steps of {step}" if step > 1 else ""
        text = self.ask(rng, a=str(numbers[0]), b=f"{numbers[-1]}{by}")
        answer = ", ".join(map(str, numbers))
        trace = f"I start at {numbers[0]} and stop at {numbers[-1]}."
        key = f"count {numbers[0]} {numbers[-1]} {step}"
        return Problem(self.name, level, key, text, trace, answer, answer)

    def check(self, problem: Problem, text: str) -> bool:
        return after_last_colon_or_is(text) == problem.answer
