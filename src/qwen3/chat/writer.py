"""The text side of a token stream: tokens whose meaning is known become the events that a caller sees.

Conventions, the same for streamed and folded results:

* Reasoning has no newlines around it, the answer none before it if a think block came first: they are the template's.
* At a tool call, one newline before it is the template's, as are all between calls and after the last one.
* Half a UTF-8 character is never shown. One left unfinished by the budget, a tag or the end is left out of the text.
* Tokens flagged special (`<|im_start|>`, …) have no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwen3.chat.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallDropped
from qwen3.chat.text_rules import NewlineTrimmer, StopMatcher
from qwen3.chat.tool_calls import ToolCallReader, new_id
from qwen3.tokenizer import Detokenizer, Tokenizer


class Writer:
    """Which text is shown as what; the stream says which token belongs where.

    state: the stream's first. fresh: only newlines came since the tag that it was read off.

    Attributes: `begun`, whether the answer has anything but newlines, or a tool call; `calls`, the tool calls so far;
    `matched`, the stop string that was found; `warnings`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str], *, state: str, fresh: bool) -> None:
        control = tokenizer.control
        self._tags = frozenset((control.think, control.end_think, control.tool_call, control.end_tool_call))
        self._special = tokenizer.special_ids
        self.begun = state == "answer" and not fresh
        self.calls = 0
        self.matched: str | None = None
        self.warnings: list[str] = []
        self._reader = ToolCallReader()
        self._index = 0  # of the next tool call
        self._after_call = False  # nothing was shown since the last tool call
        self._dropped = 0  # newlines before the open tool call that are not shown
        self._detokenizer = Detokenizer(tokenizer)
        self._pending: list[int] = []
        self._stops = StopMatcher(stop)
        self._reasoning = NewlineTrimmer(strip_start=state != "thinking" or fresh)
        self._answer = NewlineTrimmer(strip_start=state == "answer" and fresh)

    # Thinking

    def reason(self, id: int) -> list[Event]:
        """A token of the reasoning."""
        shown = self._reasoning.push(self._text(id))
        return [self._delta(ReasoningDelta, shown)] if shown else []

    def end_reasoning(self) -> None:
        """The answer comes next."""
        self._reasoning.flush(drop=None)
        self.cut()
        self._answer = NewlineTrimmer(strip_start=True)

    def cut(self) -> None:
        """What follows is another text: an unfinished character stays out."""
        self.cut_character()
        self._pending.clear()

    def cut_character(self) -> None:
        """The text goes on with words that are not the model's: an unfinished character stays out."""
        self._detokenizer.flush()

    # The answer

    def show(self, id: int, match: bool) -> list[Event]:
        """A token of the answer; `match`: a stop string may end it, which `matched` then names."""
        return self._show(self._text(id), match)

    def begin_call(self) -> list[Event]:
        """`<tool_call>`: what was held back of the answer, but one newline."""
        events = self._end_text(drop=1)
        self.begun = True
        self._reader = ToolCallReader()
        return events

    def add_to_call(self, id: int) -> list[Event]:
        """A token inside a tool call."""
        return self._deltas(self._reader.push(self._text(id)))

    def end_call(self) -> list[Event]:
        """`</tool_call>`: the rest of the call, or, if it is none, its text."""
        self.cut_character()
        try:
            events = self._deltas(self._reader.close())
        except ValueError as error:
            return self.give_up_call(f"cannot be read ({error})", closed=True)
        self._pending.clear()
        self.calls += 1
        self._index += 1
        self._after_call = True
        return events

    def give_up_call(self, why: str, closed: bool = False) -> list[Event]:
        """A tool call that is none: it becomes answer text as it was written."""
        text = "\n" * self._dropped + "<tool_call>" + self._reader.text + ("</tool_call>" if closed else "")
        self.warnings.append(f"a tool call {why}; it was left in the content")
        events: list[Event] = []
        if self._reader.started:
            events.append(ToolCallDropped(self._index, text))
            self._index += 1
        return events + self._show(text, match=False)

    def finish(self, in_call: bool) -> list[Event]:
        """The last text."""
        return (self.give_up_call("is not closed") if in_call else []) + self._end_text(drop=0)

    # Inside

    def _text(self, id: int) -> str:
        self._pending.append(id)
        if id in self._tags:
            self._detokenizer.flush()  # a tag that is text here still ends what came before
        return "" if id in self._special else self._detokenizer.push(id)

    def _delta(self, kind: type[ReasoningDelta] | type[TextDelta], text: str) -> Event:
        ids = tuple(self._pending)
        self._pending.clear()
        return kind(text, ids)

    def _deltas(self, pieces: Iterable[tuple[str | None, str]]) -> list[Event]:
        """The name comes with the first piece, and an id with it."""
        return [ToolCallDelta(self._index, new_id() if name else None, name, part) for name, part in pieces]

    def _show(self, text: str, match: bool) -> list[Event]:
        """Answer text: stop strings first, then newlines; those between thought and answer are no part of it."""
        self.begun = self.begun or bool(text.strip("\n"))
        if match:
            text, self.matched = self._stops.push(self._answer.lead(text))
        shown = self._answer.push(text)
        self._after_call = self._after_call and not shown
        return [self._delta(TextDelta, shown)] if shown else []

    def _end_text(self, drop: int) -> list[Event]:
        """The answer ends, or is interrupted by a tag: show what was held back, less `drop` newlines."""
        events = self._show(self._stops.flush(), match=False)
        held = self._answer.held
        if newlines := self._answer.flush(held if self._after_call else drop):
            events.append(self._delta(TextDelta, newlines))
        self._dropped = held - len(newlines)
        self.cut()
        return events
