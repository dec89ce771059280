"""How raw text becomes the text a caller sees: stop strings and the newlines that belong to the template.

Both parts hold text back while it could still turn into something that is not shown, and never longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3.errors import UsageError


class StopMatcher:
    """Finds the first of some strings in a text that comes in parts. The string itself is not shown."""

    def __init__(self, stop: str | Sequence[str] = ()):
        self.strings = (stop,) if isinstance(stop, str) else tuple(stop)
        for i, text in enumerate(self.strings):
            if not isinstance(text, str) or not text:
                raise UsageError(f"stop[{i}] must be a string that is not empty, not {text!r}")
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(what can be shown, the stop string that was found or None). After a match nothing more may be pushed."""
        if not self.strings:
            return text, None
        text = self._held + text
        found = [(at, -len(stop), stop) for stop in self.strings if (at := text.find(stop)) >= 0]
        if found:
            at, _, stop = min(found)
            self._held = ""
            return text[:at], stop
        keep = max(_overlap(text, stop) for stop in self.strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """The text ends here, or goes on as something else: what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class NewlineTrimmer:
    """Drops newlines at the beginning (if `strip_start`) and holds back those at the end until it is known what they
    are: text goes on (they are shown), or the template put them there (they are dropped)."""

    def __init__(self, strip_start: bool):
        self._strip_start = strip_start
        self.held = 0
        """How many newlines are held back."""

    def lead(self, text: str) -> str:
        """The text without what `push` would drop at the beginning, for who looks at it before."""
        if self._strip_start:
            text = text.lstrip("\n")
            self._strip_start = not text
        return text

    def push(self, text: str) -> str:
        """What can be shown now."""
        text = self.lead(text)
        body = text.rstrip("\n")
        trailing = len(text) - len(body)
        if not body:
            self.held += trailing
            return ""
        shown = "\n" * self.held + body
        self.held = trailing
        return shown

    def flush(self, drop: int | None = 0) -> str:
        """What was held back, less `drop` newlines (None: all of them)."""
        left = 0 if drop is None else max(self.held - drop, 0)
        self.held = 0
        return "\n" * left
