"""Tells when a generation has begun to repeat itself word for word and will not stop.

Only exact repetition counts: a list whose numbers or names change is none, however alike its lines are.
"""

from __future__ import annotations

from qwen3.errors import UsageError

_EVERY = 16


class LoopDetector:
    """Whether the last tokens are one passage over and over, at least `min_repeats` times and for `min_span` tokens.

    Passages of up to `max_period` tokens are found, at most 15 tokens after this has come to hold. Memory is bounded
    (`min_repeats * max_period` tokens are kept) and a push costs the same however long the text is.
    """

    def __init__(self, min_span: int = 256, min_repeats: int = 8, max_period: int = 512):
        """Raises UsageError where `min_span` or `min_repeats` is below 2, or `max_period` below 1."""
        for name, value, least in (
            ("min_span", min_span, 2),
            ("min_repeats", min_repeats, 2),
            ("max_period", max_period, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")
        self._min_span, self._min_repeats, self._max_period = min_span, min_repeats, max_period
        self._keep = max(min_span, min_repeats * max_period)
        # In a loop of any period p, the end recurs p tokens before it, if it is no longer than this.
        self._end = min_span * (min_repeats - 1) // min_repeats
        self.reset()

    def reset(self) -> None:
        """Forget all tokens, as for a new text."""
        self._text = ""  # one character a token, so that a string search finds tokens
        self._new: list[str] = []
        self._looping = False

    def push(self, id: int) -> bool:
        """Take a token id (below 1,114,112); True from the token on at which a loop was found."""
        self._new.append(chr(id))
        if len(self._new) == _EVERY:
            self._text = (self._text + "".join(self._new))[-self._keep :]
            self._new.clear()
            self._looping = self._looping or self._repeats()
        return self._looping

    def _repeats(self) -> bool:
        text = self._text
        size = len(text)
        end = text[-self._end :]
        at = text.find(end, max(size - self._end - self._max_period, 0), size - 1)
        while at >= 0:
            period = size - self._end - at
            span = max(self._min_span, self._min_repeats * period)
            if span <= size and text[-span:-period] == text[period - span :]:
                return True
            at = text.find(end, at + 1, size - 1)
        return False
