"""`mode="auto"`: the model begins to answer at once, and its own uncertainty says whether it had better think.

For the first tokens of the answer (at most WINDOW, the ones that are forced apart) the raw distribution, at temperature
1 and before any filter, is looked at; nothing of the answer is let out meanwhile. Where the model is torn between
tokens on what it is about to claim, the attempt is thrown away and thinking opened at the same place. Which score and
which threshold: docs/thinking.md, measured by tools/auto_threshold.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qwen3.chat import Event
from qwen3.engine.sampler import TokenLogprob

WINDOW = 32
THRESHOLD = 0.5
TOP = 2  # alternatives that the score needs


@dataclass
class Trial:
    """One attempt. threshold: doubt from which the model thinks, 0 (always) to 1 (hardly ever)."""

    threshold: float = THRESHOLD
    looked: int = 0  # tokens
    doubt: float = 0.0
    held: list[Event] = field(default_factory=list)  # what the attempt has said

    def observe(self, entry: TokenLogprob) -> None:
        """A token of the attempt was sampled from this distribution."""
        self.looked += 1
        best = math.exp(max(value for _, value in entry.top))
        self.doubt = max(self.doubt, 1 - best)

    def verdict(self, over: bool) -> str | None:
        """ "think", "answer", or None: not decided yet. over: the attempt has ended by itself."""
        if self.doubt >= self.threshold:
            return "think"
        return "answer" if over or self.looked >= WINDOW else None
