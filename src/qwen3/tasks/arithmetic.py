"""Arithmetic written out: sums with running values, products by place value, long division."""

from __future__ import annotations

import random
from typing import ClassVar

from qwen3.tasks.base import Problem, Task, last_number, paragraphs

_TIMES = ("*", "*", "*", "x", "×", "times")


def spaced(rng: random.Random, text: str) -> str:
    """The expression as people type it: mostly with spaces, sometimes without."""
    return text.replace(" ", "") if rng.random() < 0.15 and text.isascii() and not any(map(str.isalpha, text)) else text


def by_places(a: int, sign: str, b: int) -> list[str]:
    """The steps of a + b or a - b (from 0): in one, or place by place where both have three digits or more."""
    parts = [int(digit) * 10 ** (len(str(b)) - 1 - i) for i, digit in enumerate(str(b)) if digit != "0"]
    steps = []
    if min(a, b) < 100 or len(parts) == 1:
        parts = [b]
    else:
        steps.append(f"{a} {sign} {b} = {a} {sign} " + f" {sign} ".join(map(str, parts)))
    for part in parts:
        after = a + part if sign == "+" else a - part
        steps.append(f"{a} {sign} {part} = {after}")
        a = after
    return steps


class Chain(Task):
    """Sums and differences of 2 to 10 terms, at times with a small product inside, as an expression or in words."""

    name = "chain"
    levels = 5
    phrasings = (
        "What is {x}?",
        "What is {x}?",
        "Calculate {x}.",
        "Compute {x}.",
        "Work out {x}.",
        "{x} = ?",
        "{x}",
        "How much is {x}?",
        "Find the value of {x}.",
        "Evaluate {x}.",
        "Can you compute {x}?",
        "Please calculate {x}.",
        "What does {x} equal?",
        "Tell me the result of {x}.",
    )
    _TERMS = ((2, 2), (3, 4), (5, 6), (7, 8), (9, 10))
    _STORY = (
        "Start with {first}. {moves} What do you get?",
        "Begin with {first}. {moves} What is the result?",
        "Take {first}. {moves} Where do you end?",
        "I have {first}. {moves} How much is it now?",
    )
    _MOVES: ClassVar = {
        "+": ("Add {n}.", "Then add {n}.", "Plus {n}."),
        "-": ("Subtract {n}.", "Take away {n}.", "Minus {n}."),
    }

    def make(self, rng: random.Random, level: int) -> Problem:
        count = rng.randint(*self._TERMS[level - 1])
        largest = 999 if level == 1 else 99
        story = level > 1 and rng.random() < 0.2
        terms: list[str] = []
        values: list[int] = []
        signs: list[str] = []
        total = 0
        for index in range(count):
            product = not story and level > 1 and rng.random() < 0.15
            if product:
                a, b = rng.randint(2, 9), rng.randint(2, 9)
                term, value = f"{a} * {b}", a * b
            else:
                value = rng.randint(1, largest if rng.random() < 0.8 else 9)
                term = str(value)
            sign = "+" if index == 0 or value > total or rng.random() < 0.5 else "-"
            total += value if sign == "+" else -value
            terms.append(term)
            values.append(value)
            signs.append(sign)
        expression = terms[0] + "".join(f" {s} {t}" for s, t in zip(signs[1:], terms[1:], strict=True))
        steps = []
        if "*" in expression:
            for term, value in zip(terms, values, strict=True):
                if "*" in term:
                    steps.append(f"{term} = {value}")
            flat = str(values[0]) + "".join(f" {s} {v}" for s, v in zip(signs[1:], values[1:], strict=True))
            steps.append(f"So it is {flat}.")
        running = values[0]
        for sign, value in zip(signs[1:], values[1:], strict=True):
            after = running + value if sign == "+" else running - value
            steps += by_places(running, sign, value)
            running = after
        if story:
            moves = " ".join(rng.choice(self._MOVES[s]).format(n=v) for s, v in zip(signs[1:], values[1:], strict=True))
            prompt = rng.choice(self._STORY).format(first=values[0], moves=moves)
        else:
            prompt = self.ask(rng, x=spaced(rng, expression))
        answer = str(total)
        return Problem(
            self.name, level, f"chain {expression}", prompt, paragraphs(*steps), answer, f"The answer is {answer}."
        )

    def check(self, problem: Problem, text: str) -> bool:
        return last_number(text) == problem.answer


def row_by_places(number: int, digit: int) -> str:
    """One row of a product: the parts by place value and their sum."""
    places = [int(d) * 10**k for k, d in zip(range(len(str(number)) - 1, -1, -1), str(number), strict=True) if d != "0"]
    parts = [place * digit for place in places]
    total = number * digit
    if len(parts) == 1:
        return f"{number} * {digit} = {total}"
    steps = f"{number} * {digit} = " + " + ".join(str(p) for p in parts)
    running = parts[0]
    if len(parts) == 3:
        return f"{steps} = {running + parts[1]} + {parts[2]} = {total}"
    return f"{steps} = {total}"


class Multiply(Task):
    """Products of up to three digits by three, by the rows of the written method."""

    name = "multiply"
    levels = 4
    phrasings = (
        "What is {x}?",
        "What is {x}?",
        "Calculate {x}.",
        "Compute {x}.",
        "Work out {x}.",
        "{x} = ?",
        "{x}",
        "How much is {x}?",
        "Find the product {x}.",
        "Multiply: {x}",
        "Can you multiply {x}?",
        "Please calculate {x}.",
        "What does {x} equal?",
        "What is the product of {a} and {b}?",
        "Multiply {a} by {b}.",
    )
    _DIGITS = ((2, 1), (2, 2), (3, 2), (3, 3))

    def make(self, rng: random.Random, level: int) -> Problem:
        m, n = self._DIGITS[level - 1]
        low_m = 2 if level == 1 else 10 ** (m - 1)
        a, b = rng.randint(low_m, 10**m - 1), rng.randint(2 if n == 1 else 10 ** (n - 1), 10**n - 1)
        steps = []
        digits = [(int(d), k) for k, d in zip(range(len(str(b)) - 1, -1, -1), str(b), strict=True) if d != "0"]
        if len(digits) > 1:
            rows = [f"{a} * {d * 10**k}" for d, k in digits]
            steps.append(f"{a} * {b} = " + " + ".join(rows))
        values = []
        for d, k in digits:
            row = row_by_places(a, d)
            steps.append(row if k == 0 else f"{row}, so {a} * {d * 10**k} = {a * d * 10**k}")
            values.append(a * d * 10**k)
        running = values[0]
        for value in values[1:]:
            steps.append(f"{running} + {value} = {running + value}")
            running += value
        shown = (a, b) if rng.random() < 0.5 or n > 1 else (b, a)
        if shown != (a, b):
            steps.insert(0, f"{shown[0]} * {shown[1]} = {a} * {b}")
        sign = rng.choice(_TIMES)
        x = spaced(rng, f"{shown[0]} {sign} {shown[1]}")
        prompt = self.ask(rng, x=x, a=str(shown[0]), b=str(shown[1]))
        answer = str(a * b)
        key = f"multiply {min(a, b)} {max(a, b)}"
        return Problem(self.name, level, key, prompt, paragraphs(*steps), answer, f"The answer is {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        return last_number(text) == problem.answer


class Divide(Task):
    """Whole-number division with remainder by the digits of the dividend."""

    name = "divide"
    levels = 4
    phrasings = (
        "What is {a} / {b}?",
        "What is {a} divided by {b}?",
        "Divide {a} by {b}.",
        "Calculate {a} / {b}.",
        "Compute {a} ÷ {b}.",
        "Work out {a} / {b}.",
        "{a} / {b} = ?",
        "{a}/{b}",
        "How many times does {b} go into {a}?",
        "Find {a} / {b}.",
        "Please divide {a} by {b}.",
        "What do you get when you divide {a} by {b}?",
    )
    _DIGITS = (2, 3, 4, 5)

    def make(self, rng: random.Random, level: int) -> Problem:
        digits = self._DIGITS[level - 1]
        b = rng.randint(2, 12 if level > 1 else 9)
        a = rng.randint(10 ** (digits - 1), 10**digits - 1)
        if rng.random() < 0.4:
            a -= a % b
        steps, quotient, rest = [], "", 0
        for digit in str(a):
            current = rest * 10 + int(digit)
            q, left = divmod(current, b)
            if quotient or q:
                before = f"{rest} and {digit} make {current}" if quotient or rest else f"{current}"
                steps.append(f"{before}: {current} / {b} = {q}, {q} * {b} = {q * b}, {current} - {q * b} = {left}")
                quotient += str(q)
            rest = left
        whole, left = divmod(a, b)
        if not quotient:
            steps, quotient = [f"{a} is less than {b}."], "0"
        answer = str(whole) if left == 0 else f"{whole} remainder {left}"
        steps.append(f"The digits are {quotient}, remainder {left}.")
        prompt = self.ask(rng, a=str(a), b=str(b))
        key = f"divide {a} {b}"
        return Problem(self.name, level, key, prompt, paragraphs(*steps), answer, f"The answer is {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        parts = problem.answer.split(" remainder ")
        given = text.replace(",", "").rstrip(".").split("remainder")
        numbers = [last_number(part) for part in given[-2:]]
        if numbers[-1] == "0" and len(numbers) == 2:
            numbers = numbers[:1]
        return numbers == list(parts)
