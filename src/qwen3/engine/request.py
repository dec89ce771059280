"""One sample to generate, from the caller's hands to its last token."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from qwen3.chat import Event, TokenStream
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import TokenLogprob


@dataclass
class Clock:
    """Seconds on `time.perf_counter`; 0.0 = has not happened."""

    added: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # the prompt's first forward
    first_token: float = 0.0
    first_answer: float = 0.0  # first text or tool call, after the thinking
    finished: float = 0.0


@dataclass(eq=False)
class Request:
    """Filled in by the caller.

    ids: the prompt. params: resolved (no None among the published defaults). stream: the token state machine, fresh,
    built on the same ids (stop strings, end ids and min_tokens are its business). index: which of the `n` samples of a
    request this is; it enters the noise key, and sample 0 is what n=1 would give. warnings: what was already noticed;
    the engine appends, and the Finish event carries them before the stream's own.
    """

    ids: list[int]
    params: SamplingParams
    stream: TokenStream
    index: int = 0
    warnings: list[str] = field(default_factory=list)
    abandoned: bool = False  # set it from anywhere: the next step cancels

    # Filled in by the engine.
    id: int = -1
    max_tokens: int = 0  # params.max_tokens cut to what the context leaves
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: str | None = None
    error: Exception | None = None
    clock: Clock = field(default_factory=Clock)
    events: deque[Event] = field(default_factory=deque)  # not yet taken

    @property
    def output(self) -> list[int]:
        """Every generated id, forced ones included. The stream's own list: not to be changed."""
        return self.stream.output_ids

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def take_events(self) -> list[Event]:
        """The events since the last call; an interrupt in the middle loses none but those in hand."""
        events: list[Event] = []
        while self.events:
            events.append(self.events.popleft())
        return events
