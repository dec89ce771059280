"""Sums: the arithmetic that people type first, in digits or words, from 2 + 2 to three-digit numbers."""

from __future__ import annotations

import random
from typing import ClassVar

from qwen3.tasks.arithmetic import by_places, row_by_places
from qwen3.tasks.base import Problem, Task, is_eval, last_number, paragraphs
from qwen3.tasks.dialogue_facts import number_words

Expression = tuple[int, str, int]


def value_of(a: int, sign: str, b: int) -> int:
    """sign: + - * or /; quotients are whole."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a // b


def is_fact(a: int, sign: str, b: int) -> bool:
    """Whether it is one of the 390 facts of single digits, which are known by heart rather than worked out."""
    if sign == "/" and a % b:
        return False
    return b in range(10) and (a if sign in "+*" else value_of(a, sign, b)) in range(10)


def key_of(a: int, sign: str, b: int) -> str:
    """As `chain`, `multiply` and `divide` name the same problem, so that it is held out in all families or in none.
    Facts are always of the training split: 2 % of the multiplication table would be missing for good."""
    if sign == "*":
        key = f"multiply {min(a, b)} {max(a, b)}"
    else:
        key = f"divide {a} {b}" if sign == "/" else f"chain {a} {sign} {b}"
    if is_fact(a, sign, b):
        key = f"fact {a} {sign} {b}"
        while is_eval(key):
            key += "."
    return key


def worked(a: int, sign: str, b: int) -> list[str]:
    """The steps: one line where numbers are small; signs settled first; three digits place by place."""
    value = value_of(a, sign, b)
    here = f"{a} {sign} {b}"
    x, y = abs(a), abs(b)
    if sign in "*/":
        if a >= 0 and b >= 0:
            tall = sign == "*" and max(a, b) > 12 and min(a, b) > 1
            turned = f"{here} = {b} * {a}, " if tall and a < b else ""
            return [turned + (row_by_places(max(a, b), min(a, b)) if tall else f"{here} = {value}")]
        core = f"{x} {sign} {y}"
        return [f"{here} = -({core}) = {value}" if (a < 0) != (b < 0) else f"{here} = {core} = {value}"]
    if sign == "-" and b < 0:
        x, y, core, negative = a, y, "+", a < 0
        if negative:  # a - -b is b - a with the sign of the larger
            x, y, core, negative = (y, -a, "-", False) if y >= -a else (-a, y, "-", True)
    elif sign == "+" and (a < 0) != (b < 0):
        up, down = max(a, b), -min(a, b)
        x, y, core, negative = (up, down, "-", False) if up >= down else (down, up, "-", True)
    elif a < 0:
        core, negative = "+", True
    else:
        core, negative = (sign, False) if sign == "+" or a >= b else ("-", True)
        if negative:
            x, y = b, a
    steps = by_places(x, core, y)
    turned = f"-({x} {core} {y})" if negative else f"{x} {core} {y}"
    if turned == here:
        return steps
    if len(steps) == 1:
        return [f"{here} = {turned} = {value}"]
    return [f"{here} = {turned}", *steps, *([f"So it is {value}."] if negative else [])]


class Sums(Task):
    """One operation on small numbers or three terms, in digits or in words: what people try first."""

    name = "sums"
    levels = 5
    phrasings = (
        "What is {x}?",
        "What is {x}?",
        "what is {x}",
        "What's {x}?",
        "whats {x}",
        "{x}",
        "{x}",
        "{x}?",
        "{x} = ?",
        "{x} =",
        "How much is {x}?",
        "Calculate {x}.",
        "Compute {x}",
        "Work out {x}.",
        "What does {x} make?",
        "Can you tell me what {x} is?",
        "Please calculate {x}.",
        "Hi, what is {x}?",
    )
    _SIGNS: ClassVar = {
        "+": ("{a} + {b}", "{a} + {b}", "{a}+{b}", "{a} plus {b}", "{a} and {b} together", "the sum of {a} and {b}"),
        "-": ("{a} - {b}", "{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}", "{b} less than {a}"),
        "*": ("{a} * {b}", "{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} × {b}", "{a} times {b}", "{a} multiplied by {b}",
              "the product of {a} and {b}"),
        "/": ("{a} / {b}", "{a} / {b}", "{a}/{b}", "{a} ÷ {b}", "{a} divided by {b}", "{a} over {b}"),
    }  # fmt: skip
    _SPOKEN: ClassVar = {
        "+": ("{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} together"),
        "-": ("{a} minus {b}", "{a} take away {b}"),
        "*": ("{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}"),
        "/": ("{a} divided by {b}",),
    }
    _DO: ClassVar = {
        "+": ("Add {a} and {b}.", "Add {b} to {a}.", "add {a} and {b}", "Add {a} plus {b}"),
        "-": ("Subtract {b} from {a}.", "Take {b} from {a}.", "subtract {b} from {a}", "Take {b} away from {a}."),
        "*": ("Multiply {a} by {b}.", "Multiply {a} and {b}.", "multiply {a} and {b}", "multiply {a} by {b}"),
        "/": ("Divide {a} by {b}.", "divide {a} by {b}", "How many times does {b} go into {a}?"),
    }

    def make(self, rng: random.Random, level: int) -> Problem:
        if level == 5:
            return self._three(rng)
        a, sign, b = (self._small, self._two_digits, self._negative, self._three_digits)[level - 1](rng)
        value = value_of(a, sign, b)
        prompt = self._worded(rng, a, sign, b)
        trace = paragraphs(*worked(a, sign, b))
        return Problem(self.name, level, key_of(a, sign, b), prompt, trace, str(value), f"The answer is {value}.")

    def check(self, problem: Problem, text: str) -> bool:
        return last_number(text) == problem.answer

    def _small(self, rng: random.Random) -> Expression:
        """A fact, or a fact's neighbour: one number of two digits, factors 0, 1 and 10."""
        sign = rng.choice("++--**/")
        if rng.random() < 0.55:
            a, b = rng.randint(0, 9), rng.randint(sign == "/", 9)
            return (a + b if sign == "-" else a * b if sign == "/" else a), sign, b
        if sign == "/":
            b, quotient = rng.randint(1, 12), rng.randint(0, 12)
            return b * quotient, sign, b
        if sign == "*":
            a, b = rng.choice(((rng.choice((0, 1, 10)), rng.randint(0, 99)), (rng.randint(2, 12), rng.randint(2, 12))))
        else:
            a, b = rng.randint(10, 20), rng.randint(0, 10)
        return (a, sign, b) if sign == "-" or rng.random() < 0.5 else (b, sign, a)

    def _two_digits(self, rng: random.Random) -> Expression:
        sign = rng.choice("+++---**/")
        if sign == "/":
            b = rng.randint(2, 9)
            return b * rng.randint(1, 99 // b), sign, b
        if sign == "*":
            a, b = rng.randint(10, 99), rng.randint(0, 10)
        else:
            a, b = rng.randint(10, 99), rng.randint(10, 99) if rng.random() < 0.7 else rng.randint(0, 9)
        if sign == "-":
            return max(a, b), sign, min(a, b)
        return (a, sign, b) if rng.random() < 0.5 else (b, sign, a)

    def _negative(self, rng: random.Random) -> Expression:
        """A result or a number below 0."""
        sign = rng.choice("++---*")
        if sign == "*":
            a, b = rng.randint(1, 12), rng.randint(1, 12)
            minus = rng.choice(((-1, 1), (1, -1), (-1, -1)))
            return a * minus[0], sign, b * minus[1]
        top = 99 if rng.random() < 0.6 else 12
        a, b = rng.randint(0, top), rng.randint(1, top)
        if sign == "-" and rng.random() < 0.6:
            return min(a, b), sign, max(a, b) + (a == b)
        a, b = rng.choice(((-a, b), (a, -b), (-a, -b)))
        return (a, sign, b) if min(a, b) < 0 else (a, sign, -b)

    def _three_digits(self, rng: random.Random) -> Expression:
        sign = rng.choice("+-")
        a, b = rng.randint(100, 999), rng.randint(100, 999) if rng.random() < 0.75 else rng.randint(2, 99)
        if sign == "-" and rng.random() < 0.85:
            return max(a, b), sign, min(a, b)
        return (a, sign, b) if rng.random() < 0.5 else (b, sign, a)

    def _worded(self, rng: random.Random, a: int, sign: str, b: int) -> str:
        spoken = max(abs(a), abs(b)) < 100 and rng.random() < 0.2
        shown = {"a": _spoken(a), "b": _spoken(b)} if spoken else {"a": str(a), "b": _bracketed(rng, b)}
        if a >= 0 and b >= 0 and rng.random() < 0.2:
            return str(rng.choice(self._DO[sign]).format(**shown))
        x = rng.choice((self._SPOKEN if spoken else self._SIGNS)[sign]).format(**shown)
        return self._framed(rng, x)

    def _framed(self, rng: random.Random, x: str) -> str:
        if x[0].isalpha() and rng.random() < 0.3:
            x = x[0].upper() + x[1:]
            return x if rng.random() < 0.5 else f"{x}?"
        return self.ask(rng, x=x)

    def _three(self, rng: random.Random) -> Problem:
        """Three numbers, of which two may make a product, worked out from left to right."""
        numbers = [rng.randint(1, 99 if rng.random() < 0.5 else 12) for _ in range(3)]
        signs = [rng.choice("++-"), rng.choice("++-")]
        product = rng.choice((None, None, 0, 1))
        if product is not None:
            signs[product] = "*"
            numbers[product], numbers[product + 1] = rng.randint(2, 9), rng.randint(2, 9)
        total, lines = 0, list[str]()
        values, left = list(numbers), list(signs)
        if product is not None:
            p, q = values[product : product + 2]
            values[product : product + 2] = [p * q]
            lines.append(f"{p} * {q} = {p * q}")
            del left[product]
        total = values[0]
        for sign, number in zip(left, values[1:], strict=True):
            lines += worked(total, sign, number)
            total = value_of(total, sign, number)
        a, b, c = numbers
        expression = f"{a} {signs[0]} {b} {signs[1]} {c}"
        if signs == ["+", "+"] and rng.random() < 0.4:
            prompt = rng.choice(
                (f"Add {a}, {b} and {c}.", f"add {a}, {b} and {c}", f"What is the sum of {a}, {b} and {c}?")
            )
        elif rng.random() < 0.4:
            spoken = rng.random() < 0.5
            said = [_spoken(n) if spoken else str(n) for n in numbers]
            names = {"+": "plus", "-": "minus", "*": "times"}
            prompt = self._framed(rng, f"{said[0]} {names[signs[0]]} {said[1]} {names[signs[1]]} {said[2]}")
        else:
            prompt = self._framed(rng, expression.replace(" ", "") if rng.random() < 0.2 else expression)
        return Problem(
            self.name, 5, f"chain {expression}", prompt, paragraphs(*lines), str(total), f"The answer is {total}."
        )


def _spoken(number: int) -> str:
    return number_words(number) if number >= 0 else f"minus {number_words(-number)}"


def _bracketed(rng: random.Random, number: int) -> str:
    return f"({number})" if number < 0 and rng.random() < 0.5 else str(number)
