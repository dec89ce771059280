"""What dialects share: tool calls that are shown only once they are whole, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen3.chat import Event, Finish, Result, ToolCallDelta, ToolCallDropped
from qwen3.chat.messages import ToolCall
from qwen3.serve.answer import KEEP_ALIVE
from qwen3.serve.calls import Item, Sample, TokenLogprob

Part = tuple[Event | ToolCall, tuple[TokenLogprob, ...]]


@dataclass
class Runs:
    """The call that is not whole yet. One that turns out to be none (`ToolCallDropped`) is never shown: these dialects
    cannot take one back, and a client that parses broken JSON as it comes falls over it."""

    _index: int = -1
    _id: str | None = None
    _name: str = ""
    _arguments: list[str] = field(default_factory=list)
    _said: float = field(default_factory=time.monotonic)

    def feed(self, items: Iterable[Item]) -> list[Part]:
        """(event, its tokens' log-probabilities) of the items, a ToolCall in the place of each call's deltas."""
        parts: list[Part] = []
        for item in items:
            event = item.event
            if isinstance(event, ToolCallDelta):
                if event.index != self._index:
                    parts += self._whole()
                    self._index, self._id, self._name = event.index, event.id, event.name or ""
                self._arguments.append(event.arguments_delta)
            elif isinstance(event, ToolCallDropped):
                self._clear()
            else:
                parts += self._whole()
                parts.append((event, item.logprobs))
        return parts

    def said(self, data: bytes, keep_alive: Callable[[], bytes]) -> bytes:
        """What to send of items that gave `data`. A long call is silent until it is whole, and hidden thinking until
        it ends: a sign of life then, now and then."""
        now = time.monotonic()
        if not data and now - self._said < KEEP_ALIVE:
            return b""
        self._said = now
        return data or keep_alive()

    def _whole(self) -> list[Part]:
        """The call that has just ended, if there is one."""
        found: list[Part] = [(ToolCall(self._name, "".join(self._arguments), self._id), ())] if self._name else []
        self._clear()
        return found

    def _clear(self) -> None:
        self._name = ""
        self._arguments.clear()


def report(end: Finish | Result) -> dict[str, Any]:
    """What stands beside the usage: `warnings`, and how the thinking went."""
    found: dict[str, Any] = {"warnings": list(end.warnings)} if end.warnings else {}
    return {**found, "thinking": asdict(end.thinking)} if end.thinking else found


def of_the_text(sample: Sample) -> tuple[TokenLogprob, ...]:
    """Those of the sample's log-probabilities that belong to its content: found by their bytes, after the thinking."""
    entries, content = sample.logprobs or (), sample.result.content.encode()
    data = b"".join([entry.data for entry in entries])
    begin = data.find(content, data.find(b"</think>") + 1) if content else -1
    found, place = [], 0
    for entry in entries:
        if place < begin + len(content) and place + len(entry.data) > begin >= 0:
            found.append(entry)
        place += len(entry.data)
    return tuple(found)
