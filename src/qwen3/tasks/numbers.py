"""Number theory by repeated division: greatest common divisors and base conversion."""

from __future__ import annotations

import random
import re

from qwen3.tasks.base import Problem, Task, last_number, paragraphs


class Gcd(Task):
    """Greatest common divisor by Euclid's algorithm."""

    name = "gcd"
    levels = 4
    phrasings = (
        "What is the greatest common divisor of {a} and {b}?",
        "Find the gcd of {a} and {b}.",
        "gcd({a}, {b})",
        "What is gcd({a}, {b})?",
        "Compute the greatest common divisor of {a} and {b}.",
        "What is the largest number that divides both {a} and {b}?",
        "Calculate gcd({a}, {b}).",
        "Find the highest common factor of {a} and {b}.",
        "What is the GCD of {a} and {b}?",
        "Give the greatest common factor of {a} and {b}.",
        "Which is the biggest common divisor of {a} and {b}?",
    )
    _LARGEST = (60, 120, 240, 400)

    def make(self, rng: random.Random, level: int) -> Problem:
        largest = self._LARGEST[level - 1]
        factor = rng.randint(2, largest // 5) if rng.random() < 0.85 else 1
        a = factor * rng.randint(2, largest // factor)
        b = factor * rng.randint(2, largest // factor)
        steps, x, y = [], max(a, b), min(a, b)
        while y:
            q, r = divmod(x, y)
            steps.append(f"{x} by {y}: {q} * {y} = {q * y}, {x} - {q * y} = {r}")
            x, y = y, r
        steps.append(f"The last number that divides is {x}.")
        prompt = self.ask(rng, a=str(a), b=str(b))
        key = f"gcd {min(a, b)} {max(a, b)}"
        return Problem(self.name, level, key, prompt, paragraphs(*steps), str(x), f"The answer is {x}.")

    def check(self, problem: Problem, text: str) -> bool:
        return last_number(text) == problem.answer


_NAMES = {2: "binary", 8: "octal", 16: "hexadecimal"}
_DIGITS = "0123456789ABCDEF"


def in_base(number: int, base: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, base)
        digits = _DIGITS[digit] + digits
    return digits


class BaseConversion(Task):
    """Decimal to another base by repeated division, and back by Horner's rule."""

    name = "base"
    levels = 3
    phrasings = (
        "Convert {x} from {f} to {t}.",
        "What is {x} ({f}) in {t}?",
        "Write the {f} number {x} in {t}.",
        "Change {x} from {f} to {t}.",
        "How do you write {f} {x} in {t}?",
        "Express the {f} number {x} in {t}.",
        "Turn the {f} number {x} into {t}.",
        "Please convert {f} {x} to {t}.",
        "{f} {x} to {t}",
        "Give the {t} form of the {f} number {x}.",
        "Translate {x} from {f} into {t}.",
    )
    _SHORT = ("Convert {x} to {t}.", "What is {x} in {t}?", "Write {x} in {t}.", "{x} in {t}", "Express {x} in {t}.")
    _LARGEST = (63, 255, 999)

    def make(self, rng: random.Random, level: int) -> Problem:
        base = rng.choice((2, 2, 2, 3, 4, 5, 6, 7, 8, 8, 9, 16, 16))
        largest = self._LARGEST[level - 1]
        number = rng.randint(largest // 8, largest)
        digits = in_base(number, base)
        name = _NAMES.get(base, f"base {base}")
        if rng.random() < 0.6:
            steps, rest, remainders = [], number, []
            while rest:
                q, r = divmod(rest, base)
                mark = f" ({_DIGITS[r]})" if r > 9 else ""
                step = f"{rest} = {q} * {base} + {r}{mark}"
                if rest > 99:  # by digits, as in written division
                    first, left = divmod(rest // 10, base)
                    second = left * 10 + rest % 10
                    tens = f"{rest // 10} = {first} * {base} + {left}"
                    step = f"{tens}, {second} = {second // base} * {base} + {r}, so {step}"
                steps.append(step)
                remainders.append(_DIGITS[r])
                rest = q
            steps.append("Remainders: " + " ".join(remainders) + ". Reversed: " + " ".join(reversed(remainders)) + ".")
            shown, source, target, answer = str(number), "decimal", name, digits
        else:
            steps, value = [], 0
            for i, digit in enumerate(digits):
                d = _DIGITS.index(digit)
                mark = f" ({digit} is {d})" if d > 9 else ""
                product = value * base
                steps.append(
                    f"{d}{mark}" if i == 0 else f"{value} * {base} = {product}, {product} + {d}{mark} = {product + d}"
                )
                value = value * base + d
            shown, source, target, answer = digits, name, "decimal", str(number)
        if source == "decimal" and rng.random() < 0.5:
            prompt = rng.choice(self._SHORT).format(x=shown, t=target)
        else:
            prompt = self.ask(rng, x=shown, f=source, t=target)
        key = f"base {source} {shown} {target}"
        return Problem(self.name, level, key, prompt, paragraphs(*steps), answer, f"The answer is {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        words = re.findall(r"[0-9A-F]*\d[0-9A-F]*|[A-F]+\b", text.split("answer is")[-1])
        return bool(words) and words[-1] == problem.answer
