"""Cups: what they hold after they were swapped."""

from __future__ import annotations

import random
import re

from qwen3.tasks.base import Labelled, Problem, paragraphs


class Cups(Labelled):
    """Four to six cups with numbers in them; 2 to 14 numbered swaps."""

    name = "cups"
    levels = 4
    phrasings = (
        "Cups {c} hold {h}. {m} What do they hold now?",
        "Cups {c} hold {h}. {m} What is in them now?",
        "The cups {c} have {h} in them. {m} What do they hold?",
        "There are cups {c} with {h}. {m} What do the cups hold at the end?",
        "{c} hold {h}. {m} What do they hold?",
        "Boxes {c} contain {h}. {m} What do they contain then?",
        "Cups {c}: {h}. {m} Result?",
        "Follow the cups {c}, which hold {h}. {m} Tell me what they hold.",
        "In cups {c} are {h}. {m} What is where?",
        "Put {h} into cups {c}. {m} What do the cups hold now?",
        "I have cups {c} with {h}. {m} List what they hold.",
    )
    _SWAPS = ((2, 3), (4, 6), (7, 10), (11, 14))

    def make(self, rng: random.Random, level: int) -> Problem:
        names = "ABCDEF"[: rng.choice((4, 5, 5, 6))]
        held = "".join(rng.sample("123456789", len(names)))
        swaps = ["".join(rng.sample(names, 2)) for _ in range(rng.randint(*self._SWAPS[level - 1]))]
        key = f"cups {held} {' '.join(swaps)}"
        moves = " ".join(f"{i}: swap {a} and {b}." for i, (a, b) in enumerate(map(tuple, swaps), 1))
        answer = " ".join(_states(held, swaps)[-1])
        prompt = self.ask(rng, c=" ".join(names), h=" ".join(held), m=moves)
        return Problem(self.name, level, key, prompt, self.told(key, 1), answer, f"They hold {answer}.")

    def told(self, key: str, stride: int) -> str:
        _, held, *swaps = key.split()
        states = _states(held, swaps)
        if stride == 1:
            return paragraphs(
                *(f"{i}: {a} {b}: {' '.join(states[i])}" for i, (a, b) in enumerate(map(tuple, swaps), 1))
            )
        return paragraphs(*(f"{label}: {' '.join(states[i])}" for label, i in self.strides(len(swaps), stride)))

    def check(self, problem: Problem, text: str) -> bool:
        return re.findall(r"\d", text) == problem.answer.split()


def _states(held: str, swaps: list[str]) -> list[str]:
    """What the cups hold, before the first swap and after each."""
    states = [held]
    for swap in swaps:
        (i, j), now = map("ABCDEF".index, swap), list(states[-1])
        now[i], now[j] = now[j], now[i]
        states.append("".join(now))
    return states
