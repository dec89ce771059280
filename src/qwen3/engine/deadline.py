"""When a thought must be closed so that the answer still ends in time.

What is left of a request's time has to hold the closing text and the answer. How long a token takes is measured while
the engine runs, queueing and the other requests included, since both show in the time between two tokens of a sample;
how many tokens an answer takes is learnt from the answers that ended by themselves.
"""

from __future__ import annotations

import math
from collections import deque

_FIRST_GUESS = 64  # tokens of an answer, before any has been seen
_ENOUGH = 8  # answers that are worth more than the guess
_QUANTILE = 0.9
# On the time that the rest is expected to take: behind a thought that was cut, answers are longer than those behind one
# that ended by itself. Learning from the former would feed on itself: cut sooner, they go on longer.
_MARGIN = 2.4
_MEMORY = 0.9  # weight of the past in the mean time of a step


class Pace:
    """Seconds a step and tokens an answer, as seen so far. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._answers: deque[int] = deque(maxlen=128)
        self._steps: deque[float] = deque(maxlen=64)
        self._mean = 0.0
        self._last: float | None = None

    def step(self, now: float | None) -> None:
        """A step ends at `now`, and another will follow; None: nothing runs, and the time until then is nobody's."""
        if self._last is not None and now is not None:
            self._steps.append(now - self._last)
            weight = max(1 / len(self._steps), 1 - _MEMORY)
            self._mean += weight * (now - self._last - self._mean)
        self._last = now

    def answered(self, tokens: int) -> None:
        """An answer ended by itself after so many tokens, closing text and thought not counted, and so did any thought
        before it."""
        self._answers.append(tokens)

    @property
    def seconds_per_token(self) -> float:
        """The larger of the running mean and the slowest tenth of late: a burst of prompts slows every step."""
        if not self._steps:
            return 0.0
        slow = sorted(self._steps)[math.ceil(0.9 * len(self._steps)) - 1]
        return max(self._mean, slow)

    def answer_tokens(self, limit: int) -> int:
        """Tokens that an answer may take, at most `limit`."""
        if len(self._answers) < _ENOUGH:
            guess = max(_FIRST_GUESS, max(self._answers, default=0))
        else:
            guess = sorted(self._answers)[math.ceil(_QUANTILE * len(self._answers)) - 1]
        return min(limit, guess)

    def must_close(self, left: float, forced: int, limit: int) -> bool:
        """Whether `left` seconds just hold the rest: `forced` closing tokens and an answer of at most `limit`."""
        # One token more: what is asked for now takes effect a step later.
        return left <= _MARGIN * self.seconds_per_token * (1 + forced + self.answer_tokens(limit))


__all__ = ["Pace"]
