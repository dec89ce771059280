"""Track: numbered operations on a number of two digits."""

from __future__ import annotations

import random

from qwen3.tasks.base import Labelled, Problem, last_number, paragraphs


class Track(Labelled):
    """A number changes in 2 to 12 numbered steps, of which only the last two digits are kept."""

    name = "track"
    levels = 5
    phrasings = (
        "Start with {s}. {m} Keep the last two digits. Where do you end?",
        "Start with {s}. {m} Always keep the last two digits. What is left?",
        "Begin with {s}, keep the last two digits each time. {m} What do you get?",
        "Take {s}. {m} Keep only the last two digits. What is the result?",
        "{s}. {m} Last two digits, please.",
        "A counter of two digits shows {s}. {m} What does it show?",
        "A two-digit counter stands at {s}. {m} Where does it stand then?",
        "Track the last two digits. Start: {s}. {m} End?",
        "Modulo 100, start at {s}. {m} Where are you?",
        "Follow the steps from {s}, modulo 100. {m} What is the last number?",
        "Do this modulo 100. Start: {s}. {m} What comes out?",
    )
    _STEPS = ((2, 2), (3, 4), (5, 6), (7, 9), (10, 12))

    def make(self, rng: random.Random, level: int) -> Problem:
        start = value = rng.randint(1, 99)
        moves = []
        for _ in range(rng.randint(*self._STEPS[level - 1])):
            sign = rng.choice("+++--*") if value > 1 else "+"
            n = rng.randint(2, 9) if sign == "*" else rng.randint(1, value if sign == "-" else 99)
            moves.append((sign, n))
            value = _after(value, sign, n)
        key = f"track {start} " + " ".join(f"{sign}{n}" for sign, n in moves)
        text = " ".join(f"{i}: {sign} {n}." for i, (sign, n) in enumerate(moves, 1))
        prompt = self.ask(rng, s=str(start), m=text)
        return Problem(self.name, level, key, prompt, self.told(key, 1), str(value), f"The answer is {value}.")

    def told(self, key: str, stride: int) -> str:
        _, first, *moves = key.split()
        values, lines = [int(first)], list[str]()
        for i, move in enumerate(moves, 1):
            sign, n, before = move[0], int(move[1:]), values[-1]
            whole = before + n if sign == "+" else before - n if sign == "-" else before * n
            values.append(_after(before, sign, n))
            kept = f", keep {values[-1]}" if whole > 99 else ""
            lines.append(f"{i}: {before} {sign} {n} = {whole}{kept}")
        if stride > 1:
            lines = [f"{label}: {values[number]}" for label, number in self.strides(len(moves), stride)]
        return paragraphs(*lines)

    def check(self, problem: Problem, text: str) -> bool:
        return (last_number(text) or "").lstrip("0") == problem.answer.lstrip("0") and bool(last_number(text))


def _after(value: int, sign: str, n: int) -> int:
    return (value + n if sign == "+" else value - n if sign == "-" else value * n) % 100
