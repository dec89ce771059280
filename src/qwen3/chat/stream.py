"""The state machine of one generation, driven by token ids: start, thinking, answer, tool_call, done.

It owns the split of reasoning and answer, the limits of thinking and the forced text that closes it, stop strings,
tool calls and, in the answer, the grammar. Once per token the engine asks `forced()`; if it names a token that one is
fed, otherwise one is sampled (never one of `banned()`, and one that `mask()` allows); then it calls `push(id)` and
feeds `output_ids[-1]` to the model. (These differ only when the model ends its turn inside thinking: the end is
replaced by the first token of the closing text.)

A turn has one think block, and it comes first: `<think>` later on is text. So is `</think>` in an answer that has
begun; before that it is dropped. What is shown of the tokens, and how, is `writer.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qwen3.chat.events import Event, Finish, ThinkingReport, Usage
from qwen3.chat.loops import LoopDetector
from qwen3.chat.pacing import IN_BREAK, SENTENCE_END, next_pace, pace_table
from qwen3.chat.policy import ThinkingPolicy
from qwen3.chat.template import EMPTY_THINK
from qwen3.chat.writer import Writer
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AFTER_THINK = "\n\n"
CLOSE_THINK = "\n</think>" + AFTER_THINK
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    + CLOSE_THINK
)
"""What is forced at the thinking budget: 24 official tokens. Source: Qwen3's documentation on thinking budgets."""

REASONS = ("stop", "length", "cancelled", "loop")
CAUSES = ("client", "time", "loop")


class Matcher(Protocol):
    """What a grammar allows next, token by token."""

    @property
    def begins_with(self) -> int | None:
        """The id that is its first, with any text before it; None: it begins where the answer does."""

    @property
    def done(self) -> bool:
        """Whether nothing but an end may follow."""

    def mask(self) -> NDArray[np.int32]:
        """Allowed ids as bits [ceil(vocab / 32)]: id i is bit i % 32 of word i // 32."""

    def push(self, id: int) -> Any:
        """The next token."""

    def rollback(self, count: int) -> Any:
        """Forget the last `count` tokens."""


@dataclass(frozen=True)
class Decisions:
    """What decides the next token and the end of a stream, stop strings and grammar apart: its state now, and its rules
    as ids. For the meaning of the fields see `engine.machine.Machine`."""

    state: str
    done: str | None
    used: int
    count: int
    queue: tuple[int, ...]
    steps: int
    line_state: int
    budget: int | None
    margin: int
    max_steps: int
    close_at: int
    early_stop: tuple[int, ...]
    close_think: tuple[int, ...]
    gap: int
    think: int
    end_think: int
    tool_call: int
    end_tool_call: int
    ban_think: bool
    include_tools: bool
    eos: frozenset[int]
    stop_ids: frozenset[int]
    min_tokens: int


class TokenStream:
    """One request's tokens in, events out. Not thread-safe.

    Attributes: `tokenizer`; `policy`; `state`; `done`, the finish reason or None; `output_ids`, every token after the
    prompt, forced ones included. For the engine to read: `wants_close`, why thinking should be closed ("loop"), and
    `wants_end`, why the answer should end, for `close_thinking` and `close`; it decides when, because the device may be
    a token ahead. For the engine to set, they are only reported: `cached_tokens`, `source`, `window`, `discarded`.
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
        matcher: Matcher | None = None,
        forbid_think: bool | None = None,
        source: str | None = None,
        split: bool = True,
    ):
        """`prompt_ids` as rendered: their end decides the first state.

        stop: strings that end the answer, themselves not shown. stop_token_ids: ids that end it. eos_ids: None means
        the tokenizer's. ignore_eos: end-of-turn tokens are ordinary, and nothing looks for loops. min_tokens: before
        that many tokens nothing ends the generation. include_tools=False: tool-call tags are ordinary text. matcher:
        the grammar of the answer, at its beginning. forbid_think: whether `<think>` must not be sampled; None: where
        the policy is off. source: what settled the mode, for the report. split=False: think tags are text, too; all is
        answer, wherever the prompt ends.

        Raises UsageError for a policy with answer_reserve (see `ThinkingPolicy.limited`) and for bad stop strings.
        """
        self.policy = policy = policy or ThinkingPolicy()
        if policy.answer_reserve is not None:
            raise UsageError(
                "thinking.answer_reserve needs to know max_tokens: give the stream policy.limited(max_tokens)"
            )
        self.tokenizer = tokenizer
        self._control = tokenizer.control
        self._eos = frozenset(() if ignore_eos else tokenizer.eos_ids if eos_ids is None else eos_ids)
        self._stop_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._include_tools = include_tools
        self._ban_think = policy.off if forbid_think is None else forbid_think
        self._budget = 0 if policy.off else policy.budget
        self._prompt_ids = prompt_ids
        self._options = {
            "policy": policy, "stop": stop, "stop_token_ids": self._stop_ids, "eos_ids": self._eos,
            "ignore_eos": ignore_eos, "min_tokens": min_tokens, "include_tools": include_tools, "matcher": matcher,
            "forbid_think": forbid_think, "source": source, "split": split,
        }  # fmt: skip
        self.cached_tokens = 0
        self.source = source
        self.window: int | None = None
        self.discarded = 0
        self.output_ids: list[int] = []
        self.done: str | None = None
        self.wants_close: str | None = None
        self.wants_end: str | None = None
        self._loops = LoopDetector() if policy.loop_guard and not ignore_eos else None
        self._matcher = matcher
        self._matched_tokens = 0
        self._late = matcher is not None and matcher.begins_with is not None
        self._queue: deque[int] = deque()
        self._used = 0
        self._steps = 0
        self._line = IN_BREAK
        self._forced = 0
        self._close_at = -1
        self._close_cause: str | None = None
        self._force_cause: str | None = None
        self._ended_by: str | None = None
        self._matched: int | None = None
        self.state, after = self._first_state(prompt_ids) if split else ("answer", None)
        self._opened = self.state == "thinking"
        self._writer = Writer(
            tokenizer, stop, state=self.state, fresh=after is not None and not tokenizer.decode(after).strip("\n")
        )
        if self._opened:
            for id in after or ():
                self._line, _ = next_pace(pace_table(tokenizer)[id], self._line)
        if self.state == "start" and policy.budget == 0:
            self._force(EMPTY_THINK, "budget")
        elif self.state == "start" and policy.mode == "on":
            self._force("<think>\n")
        elif self.state == "answer" and policy.mode == "on":
            self._writer.warnings.append("thinking.mode is 'on' but the prompt has closed its think block already")
        self._check()

    def _first_state(self, prompt_ids: Sequence[int]) -> tuple[str, Sequence[int] | None]:
        """(state, ids after the tag it was read off); looks back to the turn's beginning."""
        states = {self._control.think: "thinking", self._control.end_think: "answer"}
        for i in range(len(prompt_ids) - 1, turn_start(prompt_ids, self.tokenizer) - 1, -1):
            if state := states.get(prompt_ids[i]):
                return state, prompt_ids[i + 1 :]
        return "start", None

    def fresh(self, **changes: Any) -> TokenStream:
        """A stream with the same arguments, or `changes` to them, at its beginning. It takes the matcher with it,
        unless `changes` has one: this stream must not go on."""
        if self._matcher is not None and "matcher" not in changes and self._matched_tokens:
            self._matcher.rollback(self._matched_tokens)
            self._matched_tokens = 0
        return TokenStream(self.tokenizer, self._prompt_ids, **(self._options | changes))

    # What the engine asks

    def forced(self) -> int | None:
        """The token that must come next, or None: sample one."""
        return self._queue[0] if self._queue and self.done is None else None

    @property
    def queued(self) -> tuple[int, ...]:
        """All tokens that must come next, in order."""
        return tuple(self._queue) if self.done is None else ()

    def banned(self) -> frozenset[int]:
        """Ids that must not be sampled next: those that would end the generation before `min_tokens`, tool calls inside
        thinking, and a think block where there must be none."""
        found = self._eos | self._stop_ids if len(self.output_ids) < self._min_tokens else frozenset()
        if self.state == "thinking" and self._include_tools:
            found |= {self._control.tool_call, self._control.end_tool_call}
        if self.state in ("start", "answer") and self._ban_think:
            found |= {self._control.think}
        return found

    @property
    def constrained(self) -> bool:
        """Whether a grammar governs the answer, now or after the thinking."""
        waits = self._late and not self._matched_tokens
        return self._matcher is not None and not waits and self.done is None

    def mask(self) -> NDArray[np.int32] | None:
        """Ids that the grammar allows next, as bits [ceil(vocab / 32)]; None: any. Valid until the next `push`."""
        matcher = self._matcher
        if matcher is None or not self.constrained or self._queue or self.state == "thinking":
            return None
        words = matcher.mask()
        if self.state == "start" and not self._ban_think:
            words = words.copy()
            bits = words.view("uint32")
            bits[self._control.think // 32] |= bits.dtype.type(1 << self._control.think % 32)
        return words

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
                return self._stop()
            self._force(CLOSE_THINK, "eos")
            forced, id = True, self._queue[0]
        if forced:
            self._queue.popleft()
            self._forced += 1
        self.output_ids.append(id)
        if not forced and may_end and id in self._stop_ids:
            self._matched = id
            return self._finish("stop")
        before = self.state
        sentence = before == "thinking" and not forced and id != self._control.end_think and self._count(id)
        events = self._step(id, forced)
        self._check(sentence)
        if not forced and self.done is None:
            events += self._follow(id, before, may_end)
        return events

    def close(self, reason: str) -> list[Event]:
        """End the generation from outside, for one of REASONS. The last events; none if it has ended."""
        if reason not in REASONS:
            raise UsageError(f"close: reason must be one of {', '.join(REASONS)}, not {reason!r}")
        return [] if self.done is not None else self._finish(reason)

    def close_thinking(self, cause: str, at: int | None = None) -> bool:
        """Close the thinking from outside, for one of CAUSES; False if it is over, or cannot begin any more.

        at: from that place of the output on no more thinking is sampled (None, or a place that has gone by: from now
        on). The earliest call counts; more of them do no harm. Where nothing was said at all, the think block is empty.
        """
        if cause not in CAUSES:
            raise UsageError(f"close_thinking: cause must be one of {', '.join(CAUSES)}, not {cause!r}")
        self.wants_close = None
        if self.state not in ("start", "thinking") or (self.state == "start" and self._ban_think and not self._queue):
            return False
        if self._queue and self._force_cause:  # the closing text is under way
            return self._force_cause == self._close_cause
        at = max(at or 0, len(self.output_ids))
        if self._close_at < 0 or at < self._close_at:
            self._close_at, self._close_cause = at, cause
        if self.state == "start" and not self.output_ids and not self._close_at:
            self._queue.clear()
            self._force(EMPTY_THINK, self._close_cause)
        self._check()
        return True

    def report(self) -> ThinkingReport:
        """How the thinking went so far."""
        mode = "on" if self._opened and not self.policy.off else "off"
        if mode == "off" and self.policy.mode == "auto" and self.window is None:
            mode = "auto"
        return ThinkingReport(
            mode,
            self.policy.budget,
            self._used,
            self._forced,
            self._ended_by if self._opened or self.window is None else None,  # auto: an empty block was no thinking
            self.source,
            self._steps + (self._line != IN_BREAK),  # the last one need not end in a blank line
            self.discarded,
            self.window,
        )

    def decisions(self) -> Decisions:
        """State and rules as integers, for a machine that decides without the text."""
        control, encode = self._control, self.tokenizer.encode
        return Decisions(
            state=self.state,
            done=self.done,
            used=self._used,
            count=len(self.output_ids),
            queue=tuple(self._queue),
            steps=self._steps,
            line_state=self._line,
            budget=self._budget,
            margin=self.policy.soft_landing or 0,
            max_steps=self.policy.max_steps or 0,
            close_at=self._close_at,
            early_stop=tuple(encode(EARLY_STOP)),
            close_think=tuple(encode(CLOSE_THINK)),
            gap=0 if self._matcher is None or self._late else len(encode(AFTER_THINK)),
            think=control.think,
            end_think=control.end_think,
            tool_call=control.tool_call,
            end_tool_call=control.end_tool_call,
            ban_think=self._ban_think,
            include_tools=self._include_tools,
            eos=self._eos,
            stop_ids=self._stop_ids,
            min_tokens=self._min_tokens,
        )

    # Inside

    def _force(self, text: str, cause: str | None = None) -> None:
        self._writer.cut_character()
        self._force_cause = cause
        self._queue.extend(self.tokenizer.encode(text))

    def _check(self, sentence: bool = False) -> None:
        """Close the thinking where a limit is reached; `sentence`: the last token ended one."""
        if self.state != "thinking" or self._queue:
            return
        left = None if self._budget is None else self._budget - self._used
        if left is not None and (left <= 0 or (sentence and left <= (self.policy.soft_landing or 0))):
            cause = "budget"
        elif self.policy.max_steps and self._steps >= self.policy.max_steps:
            cause = "steps"
        elif 0 <= self._close_at <= len(self.output_ids) and self._close_cause:
            cause = self._close_cause
        else:
            return
        self._force(CLOSE_THINK if self._budget == 0 else EARLY_STOP, cause)

    def _step(self, id: int, forced: bool) -> list[Event]:
        control, writer = self._control, self._writer
        if self.state == "thinking":
            if id == control.end_think:
                return self._end_thinking(forced)
            return writer.reason(id)
        if self.state == "tool_call":
            if id == control.tool_call:
                return writer.give_up_call("is not closed before the next one") + writer.begin_call()
            if id != control.end_tool_call:
                return writer.add_to_call(id)
            self.state = "answer"
            return writer.end_call()
        if id == control.think and self.state == "start":
            self.state = "thinking"
            self._opened = self._force_cause is None  # else it is the empty block
            return []
        if id == control.end_think and not writer.begun:
            writer.cut()
            writer.warnings.append("the model closed a think block that was not open; the tag was dropped")
            return []
        if id == control.tool_call and self._include_tools:
            self.state = "tool_call"
            return writer.begin_call()
        self.state = "answer"
        events = writer.show(id, match=len(self.output_ids) >= self._min_tokens)
        return events if writer.matched is None else events + self._finish("stop")

    def _count(self, id: int) -> bool:
        """A token was sampled inside thinking; whether it ended a sentence."""
        entry, before = int(pace_table(self.tokenizer)[id]), self._line
        self._line, ended = next_pace(entry, before)
        self._used += 1
        self._steps += ended
        return bool(entry & SENTENCE_END) and before != IN_BREAK

    def _end_thinking(self, forced: bool) -> list[Event]:
        self._ended_by = self._force_cause if forced else "natural"
        self._writer.end_reasoning()
        self.state = "answer"
        if self._loops is not None:
            self._loops.reset()
        if self._matcher is not None and not self._late and not forced:
            self._force(AFTER_THINK)  # the grammar begins where the answer does
        return []

    def _follow(self, id: int, before: str, may_end: bool) -> list[Event]:
        """What else hears of a sampled token: the grammar, and the guard against loops."""
        matcher, thought = self._matcher, "thinking" in (before, self.state)
        if matcher is not None and not thought and (self.constrained or id == matcher.begins_with):
            matcher.push(id)
            self._matched_tokens += 1
            no_end = len(self.output_ids) < self._min_tokens or self._eos.isdisjoint(self.tokenizer.eos_ids)
            if no_end and matcher.done:
                return self._stop()
        if self._loops is not None and before == self.state and self._loops.push(id):
            if thought:
                self.wants_close = "loop" if self._close_at < 0 else None
            elif may_end:
                self.wants_end = "loop"
        return []

    def _stop(self) -> list[Event]:
        return self._finish("tool_calls" if self._writer.calls else "stop")

    def _finish(self, reason: str) -> list[Event]:
        if self.state == "thinking":
            self._ended_by = reason
        events = self._writer.finish(in_call=self.state == "tool_call")
        self._queue.clear()
        self.state = "done"
        self.done = reason
        completion = len(self.output_ids) + self.discarded
        usage = Usage(len(self._prompt_ids), self.cached_tokens, self._used, completion)
        matched = self._matched if self._writer.matched is None else self._writer.matched
        events.append(Finish(reason, usage, self.report(), tuple(self._writer.warnings), matched))
        return events


def turn_start(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Where the last turn of a prompt begins: what is before it decides nothing of a stream."""
    control = tokenizer.control
    marks = (control.im_start, control.im_end, control.endoftext)
    return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in marks), 0)
