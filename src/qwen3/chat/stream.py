"""The state machine of one generation, driven by token ids: start, thinking, answer, tool_call, done.

It owns the split of reasoning and answer, the thinking budget and its forced closing text, stop strings and tool
calls. Once per token the engine asks `forced()`; if it names a token that one is fed, otherwise one is sampled (never
one of `banned()`); then it calls `push(id)` and feeds `output_ids[-1]` to the model. (These differ only when the model
ends its turn inside thinking: the end is replaced by the first token of the closing text.)

Conventions, the same for streamed and folded results:

* Reasoning has no newlines around it, the answer none before it if a think block came first: they are the template's.
* At a tool call, one newline before it is the template's, as are all between calls and after the last one.
* Half a UTF-8 character is never shown. One left unfinished by the budget, a tag or the end is left out of the text.
* Tokens flagged special (`<|im_start|>`, …) have no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwen3.chat.events import Event, Finish, ReasoningDelta, TextDelta, ThinkingReport, ToolCallDelta, Usage
from qwen3.chat.policy import ThinkingPolicy
from qwen3.chat.template import EMPTY_THINK
from qwen3.chat.text_rules import NewlineTrimmer, StopMatcher
from qwen3.chat.tool_calls import parse_tool_call
from qwen3.errors import UsageError
from qwen3.tokenizer import Detokenizer, Tokenizer

CLOSE_THINK = "\n</think>\n\n"
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    + CLOSE_THINK
)
"""What is forced at the thinking budget: 24 official tokens. Source: Qwen3's documentation on thinking budgets."""

REASONS = ("stop", "length", "cancelled")


@dataclass(frozen=True)
class Decisions:
    """What decides the next token and the end of a stream, stop strings apart: its state now, and its rules as ids."""

    state: str
    done: str | None
    used: int  # tokens sampled inside thinking
    count: int  # tokens after the prompt
    queue: tuple[int, ...]  # forced next
    budget: int | None
    early_stop: tuple[int, ...]
    close_think: tuple[int, ...]
    think: int
    end_think: int
    tool_call: int
    end_tool_call: int
    include_tools: bool
    eos: frozenset[int]
    stop_ids: frozenset[int]
    min_tokens: int


class TokenStream:
    """One request's tokens in, events out. Not thread-safe.

    Attributes: `state`; `done`, the finish reason or None; `output_ids`, every token after the prompt, forced ones
    included; `cached_tokens`, which the engine may set for the usage report.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        policy: ThinkingPolicy | None = None,
        *,
        stop: str | Sequence[str] = (),
        stop_token_ids: Iterable[int] = (),
        eos_ids: Iterable[int] | None = None,
        ignore_eos: bool = False,
        min_tokens: int = 0,
        include_tools: bool = True,
    ):
        """`prompt_ids` as rendered: their end decides the first state.

        stop: strings that end the answer, themselves not shown. stop_token_ids: ids that end it. eos_ids: None means
        the tokenizer's. ignore_eos: end-of-turn tokens are ordinary. min_tokens: before that many tokens nothing ends
        the generation. include_tools=False: tool-call tags are ordinary text.
        """
        self.policy = policy or ThinkingPolicy()
        self.policy.require_supported()
        self._tokenizer = tokenizer
        self._control = control = tokenizer.control
        self._tags = frozenset((control.think, control.end_think, control.tool_call, control.end_tool_call))
        self._special = tokenizer.special_ids
        self._eos = frozenset(() if ignore_eos else tokenizer.eos_ids if eos_ids is None else eos_ids)
        self._stop_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._include_tools = include_tools
        self._prompt_tokens = len(prompt_ids)
        self.cached_tokens = 0
        self.output_ids: list[int] = []
        self.done: str | None = None
        self._queue: deque[int] = deque()
        self._used = 0
        self._forced = 0
        self._force_cause: str | None = None
        self._ended_by: str | None = None
        self._warnings: list[str] = []
        self._matched: str | int | None = None
        self._calls = 0
        self._after_call = False  # nothing was shown since the last tool call
        self._tool_text: list[str] = []
        self._dropped = 0  # newlines before the open tool call that are not shown
        self._reasoned = False  # reasoning was shown
        self._new_block = False  # a think block was closed since
        self._detokenizer = Detokenizer(tokenizer)
        self._pending: list[int] = []
        self._stops = StopMatcher(stop)
        self.state, fresh = self._first_state(prompt_ids)
        self._opened = self.state == "thinking"
        self._reasoning = NewlineTrimmer(strip_start=fresh)
        self._answer = NewlineTrimmer(strip_start=fresh and self.state == "answer")
        if self.state == "start" and self.policy.budget == 0:
            self._force(EMPTY_THINK, "budget")
        elif self.state == "start" and self.policy.mode == "on":
            self._force("<think>\n")
        elif self.state == "answer" and self.policy.mode == "on":
            self._warnings.append("thinking.mode is 'on' but the prompt has closed its think block already")
        self._check_budget()

    def _first_state(self, prompt_ids: Sequence[int]) -> tuple[str, bool]:
        """(state, whether only newlines follow the tag it was read off); looks back to the turn's beginning."""
        control = self._control
        states = {control.think: "thinking", control.end_think: "answer"}
        for i in range(len(prompt_ids) - 1, -1, -1):
            if state := states.get(prompt_ids[i]):
                return state, not self._tokenizer.decode(prompt_ids[i + 1 :]).strip("\n")
            if prompt_ids[i] in (control.im_start, control.im_end, control.endoftext):
                break
        return "start", False

    # What the engine asks

    def forced(self) -> int | None:
        """The token that must come next, or None: sample one."""
        return self._queue[0] if self._queue and self.done is None else None

    @property
    def queued(self) -> tuple[int, ...]:
        """All tokens that must come next, in order."""
        return tuple(self._queue) if self.done is None else ()

    def banned(self) -> frozenset[int]:
        """Ids that must not be sampled next: those that would end the generation before `min_tokens`."""
        return self._eos | self._stop_ids if len(self.output_ids) < self._min_tokens else frozenset()

    def push(self, id: int) -> list[Event]:
        """Take the next token; returns the events it completes. After `done`, tokens are ignored.

        Raises UsageError if another token was forced.
        """
        if self.done is not None:
            return []
        forced = bool(self._queue)
        if forced and id != self._queue[0]:
            raise UsageError(f"token {id} was pushed where {self._queue[0]} is forced")
        may_end = len(self.output_ids) >= self._min_tokens
        if not forced and may_end and id in self._eos:
            if self.state != "thinking":
                self.output_ids.append(id)
                return self._finish("tool_calls" if self._calls else "stop")
            self._force(CLOSE_THINK, "eos")
            forced, id = True, self._queue[0]
        if forced:
            self._queue.popleft()
            self._forced += 1
        self.output_ids.append(id)
        if not forced and may_end and id in self._stop_ids:
            self._matched = id
            return self._finish("stop")
        events = self._step(id, forced)
        self._check_budget()
        return events

    def close(self, reason: str) -> list[Event]:
        """End the generation from outside: "length", "cancelled" or "stop". The last events; none if it has ended."""
        if reason not in REASONS:
            raise UsageError(f"close: reason must be one of {', '.join(REASONS)}, not {reason!r}")
        return [] if self.done is not None else self._finish(reason)

    def report(self) -> ThinkingReport:
        """How the thinking went so far."""
        mode = "on" if self._opened and not self.policy.off else "off"
        return ThinkingReport(mode, self.policy.budget, self._used, self._forced, self._ended_by)

    def decisions(self) -> Decisions:
        """State and rules as integers, for a machine that decides without the text."""
        control, encode = self._control, self._tokenizer.encode
        return Decisions(
            self.state,
            self.done,
            self._used,
            len(self.output_ids),
            tuple(self._queue),
            self.policy.budget,
            tuple(encode(EARLY_STOP)),
            tuple(encode(CLOSE_THINK)),
            control.think,
            control.end_think,
            control.tool_call,
            control.end_tool_call,
            self._include_tools,
            self._eos,
            self._stop_ids,
            self._min_tokens,
        )

    # Inside

    def _force(self, text: str, cause: str | None = None) -> None:
        self._force_cause = cause
        self._queue.extend(self._tokenizer.encode(text))

    def _check_budget(self) -> None:
        budget = self.policy.budget
        if self.state != "thinking" or self._queue or budget is None or self._used < budget:
            return
        self._detokenizer.flush()  # an unfinished character stays out of the text
        self._force(EARLY_STOP if budget else CLOSE_THINK, "budget")

    def _step(self, id: int, forced: bool) -> list[Event]:
        self._pending.append(id)
        control = self._control
        if self.state == "thinking":
            if id == control.end_think:
                return self._end_thinking(forced)
            self._used += not forced
            return self._reason(self._text(id))
        if self.state in ("start", "answer") and id == control.think:
            return self._begin_thinking()
        if self.state == "tool_call":
            return self._step_in_call(id)
        if id == control.end_think:
            self._cut()
            self._warnings.append("the model closed a think block that was not open; the tag was dropped")
            return []
        self.state = "answer"
        if id == control.tool_call and self._include_tools:
            return self._begin_call()
        return self._show(self._text(id))

    def _text(self, id: int) -> str:
        if id in self._tags:
            self._detokenizer.flush()  # a tag that is text here still ends what came before
        return "" if id in self._special else self._detokenizer.push(id)

    def _delta(self, kind: type[ReasoningDelta] | type[TextDelta], text: str) -> Event:
        ids = tuple(self._pending)
        self._pending.clear()
        return kind(text, ids)

    def _cut(self) -> None:
        """A tag: what follows is another text."""
        self._detokenizer.flush()
        self._pending.clear()

    def _begin_thinking(self) -> list[Event]:
        events = self._end_answer_text(drop=0)
        self._opened = True
        self._ended_by = None
        self._reasoning = NewlineTrimmer(strip_start=True)
        self.state = "thinking"
        return events

    def _reason(self, text: str) -> list[Event]:
        text = self._reasoning.push(text)
        if not text:
            return []
        if self._reasoned and self._new_block:
            text = "\n\n" + text  # a second think block is kept apart from the first
        self._reasoned, self._new_block = True, False
        return [self._delta(ReasoningDelta, text)]

    def _end_thinking(self, forced: bool) -> list[Event]:
        self._ended_by = self._force_cause if forced else "model"
        self._reasoning.flush(drop=None)
        self._cut()
        self._new_block = True
        self._answer = NewlineTrimmer(strip_start=True)
        self.state = "answer"
        return []

    def _show(self, text: str, match: bool = True) -> list[Event]:
        """Answer text: stop strings first, then newlines."""
        stop = None
        if match and len(self.output_ids) >= self._min_tokens:
            text, stop = self._stops.push(text)
        shown = self._answer.push(text)
        self._after_call = self._after_call and not shown
        events = [self._delta(TextDelta, shown)] if shown else []
        if stop is not None:
            self._matched = stop
            events += self._finish("stop")
        return events

    def _end_answer_text(self, drop: int) -> list[Event]:
        """The answer ends, or is interrupted by a tag: show what was held back, less `drop` newlines."""
        events = self._show(self._stops.flush(), match=False)
        held = self._answer.held
        if newlines := self._answer.flush(held if self._after_call else drop):
            events.append(self._delta(TextDelta, newlines))
        self._dropped = held - len(newlines)
        self._cut()
        return events

    def _begin_call(self) -> list[Event]:
        events = self._end_answer_text(drop=1)
        self.state = "tool_call"
        self._tool_text = []
        return events

    def _step_in_call(self, id: int) -> list[Event]:
        control = self._control
        if id == control.tool_call:
            events = self._give_up_call("is not closed before the next one")
            return events + self._begin_call()
        if id != control.end_tool_call:
            self._tool_text.append(self._text(id))
            return []
        text = "".join(self._tool_text)
        self._cut()
        self.state = "answer"
        try:
            call = parse_tool_call(text)
        except ValueError as error:
            return self._give_up_call(f"cannot be read ({error})", closed=True)
        self._calls += 1
        self._after_call = True
        return [ToolCallDelta(self._calls - 1, call.id, call.name, call.arguments)]

    def _give_up_call(self, why: str, closed: bool = False) -> list[Event]:
        """A tool call that is none: it becomes answer text as it was written."""
        text = "\n" * self._dropped + "<tool_call>" + "".join(self._tool_text) + ("</tool_call>" if closed else "")
        self._warnings.append(f"a tool call {why}; it was left in the content")
        self._tool_text = []
        self.state = "answer"
        return self._show(text, match=False)

    def _finish(self, reason: str) -> list[Event]:
        events: list[Event] = []
        if self.state == "tool_call":
            events += self._give_up_call("is not closed")
        elif self.state == "thinking":
            self._ended_by = reason
        events += self._end_answer_text(drop=0)
        self._queue.clear()
        self.state = "done"
        self.done = reason
        usage = Usage(self._prompt_tokens, self.cached_tokens, self._used, len(self.output_ids))
        events.append(Finish(reason, usage, self.report(), tuple(self._warnings), self._matched))
        return events
