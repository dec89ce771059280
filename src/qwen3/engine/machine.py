"""The token machine of one sample without its text: what the device decides by itself, step after step.

`chat.TokenStream` is the rule; `Machine` is its projection on integers (phase, thinking count, limits, forced queue,
ends), which the sampler kernel carries out in the same words. Given the same tokens, `Machine` and `TokenStream` record
the same ids and end at the same one. Missing are stop strings (text is the host's business, which ends such a request
one step late) and grammars.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen3.chat.pacing import IN_BREAK, SENTENCE_END, next_pace, pace_table
from qwen3.chat.stream import TokenStream
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError

PHASES = ("start", "thinking", "answer", "tool_call")
UNLIMITED = 2**31 - 1


@dataclass
class Machine:
    """State and rules of one sample.

    phase: one of PHASES. used: tokens sampled inside thinking; steps: paragraphs that ended there; line_state: of the
    paragraph that goes on (`chat.pacing`). queue: ids that come next, whatever the logits say. count: tokens recorded
    so far. done: why it ended, None while it runs.

    Thinking is closed at the first of these, if nothing is queued: `budget` tokens used (None: any number), or at the
    end of a sentence `margin` tokens sooner; `max_steps` paragraphs (0: any number); `close_at` tokens recorded (-1:
    never). Then early_stop is forced; at a budget of 0 close_think, and also where an end comes inside thinking (its
    first id is recorded in the place of the end). gap: so many ids at close_think's end are forced after an end_think
    that was sampled: a grammar begins behind them. pace: what tokens do to paragraphs and sentences, uint16
    [vocab_size]; None: nothing.

    think, end_think, tool_call, end_tool_call: the tags; -1 makes one an ordinary token. ban_think: think must not be
    sampled. eos: ends that thinking turns into close_think; stop_ids: ends anywhere.
    """

    phase: str = "start"
    used: int = 0
    steps: int = 0
    line_state: int = IN_BREAK
    queue: deque[int] = field(default_factory=deque)
    count: int = 0
    done: Literal["stop", "length"] | None = None
    budget: int | None = None
    margin: int = 0
    max_steps: int = 0
    close_at: int = -1
    early_stop: tuple[int, ...] = ()
    close_think: tuple[int, ...] = ()
    gap: int = 0
    think: int = -1
    end_think: int = -1
    tool_call: int = -1
    end_tool_call: int = -1
    ban_think: bool = False
    eos: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    max_tokens: int = UNLIMITED
    pace: NDArray[np.uint16] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, stream: TokenStream, params: SamplingParams, max_tokens: int | None = None) -> Machine:
        """The machine of a stream as it stands: fresh, or after some output (a sample that comes back).

        max_tokens: what the context leaves; None: `params.max_tokens`. ignore_eos and min_tokens are the stream's.
        """
        rules = dict(vars(stream.decisions()))
        limit = max_tokens if max_tokens is not None else params.max_tokens
        phase, done = rules.pop("state"), rules.pop("done")
        if not rules.pop("include_tools"):
            rules["tool_call"] = rules["end_tool_call"] = -1
        machine = cls(**rules, max_tokens=UNLIMITED if limit is None else limit, pace=pace_table(stream.tokenizer))
        machine.phase = phase if done is None else "answer"
        machine.queue = deque(machine.queue)
        if done is not None:
            machine.done = "length" if done == "length" else "stop"
        elif machine.count >= machine.max_tokens:
            machine.done = "length"
        return machine

    def forced(self) -> int | None:
        """The id that must come next, or None: sample one."""
        return self.queue[0] if self.queue and self.done is None else None

    @property
    def queued(self) -> tuple[int, ...]:
        """All ids that must come next, in order."""
        return tuple(self.queue) if self.done is None else ()

    def banned(self) -> frozenset[int]:
        """Ids that must not be sampled next: ends before `min_tokens`, tool calls inside thinking, `ban_think`."""
        found = self.eos | self.stop_ids if self.count < self.min_tokens else frozenset()
        if self.phase == "thinking":
            found |= {self.tool_call, self.end_tool_call} - {-1}
        if self.phase in ("start", "answer") and self.ban_think:
            found |= {self.think} - {-1}
        return found

    def push(self, token: int) -> int:
        """Take the next token; the id that is recorded and fed to the model. After the end: nothing happens.

        Raises UsageError if another token was forced.
        """
        if self.done is not None:
            return token
        forced = bool(self.queue)
        if forced and token != self.queue[0]:
            raise UsageError(f"token {token} was pushed where {self.queue[0]} is forced")
        free_end = not forced and self.count >= self.min_tokens
        stopped = free_end and (token in self.eos or token in self.stop_ids)
        if free_end and token in self.eos and self.phase == "thinking":
            self.queue.extend(self.close_think)
            token, forced, stopped = self.queue[0], True, False
        if forced:
            self.queue.popleft()
        self.count += 1
        if not stopped:
            self._step(token, forced)
        if stopped:
            self.done = "stop"
        elif self.count >= self.max_tokens:
            self.done = "length"
        return token

    def replay(self, recorded: Sequence[int]) -> Machine:
        """Push recorded ids of a machine that began as this one; self. Where all of close_think follows in thinking, an
        end is taken to have been sampled: recorded ids do not say."""
        close = list(self.close_think)
        for i, token in enumerate(recorded):
            free = self.phase == "thinking" and not self.queue and self.count >= self.min_tokens and self.eos
            self.push(min(self.eos) if free and close and [*recorded[i : i + len(close)]] == close else token)
        return self

    def _step(self, token: int, forced: bool) -> None:
        sentence = False
        if self.phase == "thinking":
            if token == self.end_think:
                self.phase = "answer"
                if self.gap and not forced:
                    self.queue.extend(self.close_think[-self.gap :])
            elif not forced:
                self.used += 1
                if self.pace is not None:
                    entry, before = int(self.pace[token]), self.line_state
                    self.line_state, ended = next_pace(entry, before)
                    self.steps += ended
                    sentence = bool(entry & SENTENCE_END) and before != IN_BREAK
        elif self.phase == "tool_call":
            if token == self.end_tool_call:
                self.phase = "answer"
        elif token == self.think and self.phase == "start":
            self.phase = "thinking"
        elif token != self.end_think:  # which is dropped, or text
            self.phase = "tool_call" if token == self.tool_call else "answer"
        if self.phase == "thinking" and not self.queue:
            left = UNLIMITED if self.budget is None else self.budget - self.used
            full = left <= 0 or (sentence and left <= self.margin)
            if full or 0 < self.max_steps <= self.steps or 0 <= self.close_at <= self.count:
                self.queue.extend(self.close_think if self.budget == 0 else self.early_stop)
