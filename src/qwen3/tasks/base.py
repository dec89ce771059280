"""What a task is: a sampler of problems with a worked trace, and a verifier of answers."""

from __future__ import annotations

import hashlib
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

EVAL_PER_MILLE = 20


def is_eval(key: str) -> bool:
    """Whether the problem with this canonical key belongs to the evaluation split (2 % of all problems, by hash).

    The key names the problem, not its wording, so that no rewording of an evaluation problem is ever trained on.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < EVAL_PER_MILLE


def interval(right: float, of: float) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    z, p = 1.959963984540054, right / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


@dataclass(frozen=True)
class Problem:
    """One problem: what the user asks, how it is worked out, what the assistant says."""

    family: str
    level: int
    key: str  # canonical form, independent of wording; decides the split
    prompt: str
    trace: str  # the reasoning, one step a paragraph
    answer: str  # canonical answer
    reply: str  # the assistant's visible text


class Task(ABC):
    """A family of problems. `levels` counts the difficulty levels, 1 the easiest."""

    name: str
    levels: int
    needs_steps: bool = True
    phrasings: Sequence[str]

    @abstractmethod
    def make(self, rng: random.Random, level: int) -> Problem:
        """One problem of this level, from either split."""

    @abstractmethod
    def check(self, problem: Problem, text: str) -> bool:
        """Whether the visible text answers the problem."""

    def sample(self, rng: random.Random, level: int | None = None, *, split: str = "train") -> Problem:
        """One problem of the split ("train" or "eval"), of a uniformly drawn level unless one is given."""
        if split not in ("train", "eval"):
            raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
        wanted = split == "eval"
        while True:
            problem = self.make(rng, level or rng.randint(1, self.levels))
            if is_eval(problem.key) == wanted:
                return problem

    def ask(self, rng: random.Random, **fields: str) -> str:
        """A random wording; now and then without capitals or the final mark, as people type."""
        text = rng.choice(self.phrasings).format(**fields)
        style = rng.random()
        if style < 0.1:
            text = text[0].lower() + text[1:]
        if style < 0.05 and text[-1] in "?.":
            text = text[:-1]
        return text


class Labelled(Task):
    """A family of numbered steps that change a state. Its trace can skip states: the longer the stride, the shorter the
    trace and the harder each of its lines, so that accuracies of different ways to think are known and apart."""

    @abstractmethod
    def told(self, key: str, stride: int) -> str:
        """The trace of the problem with this key. stride: 1 is the problem's own, every step worked out; above that
        every stride-th state alone is written, and the last."""

    def strides(self, steps: int, stride: int) -> list[tuple[str, int]]:
        """(label, number of the step) of the states that are written: "3" or "3-4"."""
        ends = [*range(stride, steps, stride), steps]
        starts = [1, *(end + 1 for end in ends)]
        return [(str(b) if a == b else f"{a}-{b}", b) for a, b in zip(starts, ends, strict=False)]


_NUMBER = re.compile(r"-?\d+")


def last_number(text: str) -> str | None:
    """The last integer written in the text."""
    found = _NUMBER.findall(text.replace(",", ""))
    return found[-1] if found else None


def after_last_colon_or_is(text: str) -> str:
    """The part of a reply that holds a list: what follows the last colon, or the last "is" or "are"."""
    tail = re.split(r":|\bis\b|\bare\b", text)[-1]
    return tail.strip().rstrip(".").strip()


def paragraphs(*steps: str) -> str:
    return "\n\n".join(steps)
