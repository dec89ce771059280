"""`mode="auto"`: the model begins to answer at once, and its own uncertainty says whether it had better think.

For the first tokens of the answer (at most WINDOW, the ones that are forced apart) the raw distribution, at temperature
1 and before any filter, is looked at; nothing of the answer is let out meanwhile. A token's doubt is what its most
probable choice lacks to certainty. Where the mean of SPAN tokens in a row reaches the threshold, the attempt is thrown
away and thinking opened at the same place: a single choice of words stays below it, a number that is guessed does not.

Measured: benchmarks/*-thinking-auto*.json, by tools/thinking_campaign.py; docs/log.md says which scores did no better.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from qwen3.chat import Event
from qwen3.engine.sampler import TokenLogprob

WINDOW = 32
SPAN = 6
THRESHOLD = 0.06
TOP = 1  # alternatives that the score needs


@dataclass
class Trial:
    """One attempt. threshold: doubt from which the model thinks, 0 (always) to 1 (hardly ever)."""

    threshold: float = THRESHOLD
    looked: int = 0  # tokens
    doubt: float = 0.0  # the largest mean so far; tokens before the first one count as certain
    held: list[Event] = field(default_factory=list)  # what the attempt has said
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPAN), repr=False)

    def observe(self, entry: TokenLogprob) -> None:
        """A token of the attempt was sampled from this distribution, of which `top` has the most probable one."""
        self.looked += 1
        self._recent.append(1 - math.exp(max(value for _, value in entry.top)))
        self.doubt = max(self.doubt, sum(self._recent) / SPAN)

    def verdict(self, over: bool) -> str | None:
        """ "think", "answer", or None: not decided yet. over: the attempt has ended by itself."""
        if self.doubt >= self.threshold:
            return "think"
        return "answer" if over or self.looked >= WINDOW else None
