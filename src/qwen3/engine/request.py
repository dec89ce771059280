"""One sample to generate, from the caller's hands to its last token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qwen3.chat import Event, ThinkingPolicy, TokenStream
from qwen3.engine.machine import Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import TokenLogprob
from qwen3.engine.trial import Trial


@dataclass(slots=True)
class Clock:
    """Seconds on `time.perf_counter`; 0.0 = has not happened."""

    added: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # the prompt's first forward
    first_token: float = 0.0
    first_answer: float = 0.0  # first text or tool call, after the thinking
    finished: float = 0.0


@dataclass(eq=False, slots=True)
class Request:
    """Filled in by the caller.

    ids: the prompt. params: resolved (no None among the published defaults). stream: the token state machine, fresh,
    built on the same ids (stop strings, end ids and min_tokens are its business); None: tokens only, for rollouts and
    measurements: no text, no events but Finish, `output` appears when the request has ended. index: which of the `n`
    samples of a request this is; it enters the noise key, and sample 0 is what n=1 would give. machine: the rules of a
    request without a stream (thinking budget and so on); None: it ends at end ids and `max_tokens`. warnings: what was
    already noticed; the engine appends, and the Finish event carries them before the stream's own.

    priority: lower goes first, and may push aside a higher one. tenant: who asks: tenants of equal priority get equal
    shares, and never each other's cached prompts; salt: parts a tenant's own. adapter: name of the adapter the weights
    are used with, None: none. experts: experts per token, 0: the model's own number. keep_routes: record in `routes`
    the experts each token took.

    Of requests with a stream: time_limit: seconds from now until it has ended; its thinking is closed early enough for
    an answer. trial: the stream does not think (`policy.switched_off()`), and where its first tokens show doubt, a
    fresh one with the policy `thinking` takes its place. background: tokens are of no interest, only what they leave in
    the prefix cache; whatever else there is to do goes first.
    """

    ids: list[int]
    params: SamplingParams
    stream: TokenStream | None = None
    index: int = 0
    machine: Machine | None = None
    warnings: list[str] = field(default_factory=list)
    abandoned: bool = False  # set it from anywhere: the next step cancels, or without a stream one of the next eight
    priority: int = 0
    tenant: str = ""
    salt: str = ""
    adapter: str | None = None
    experts: int = 0
    keep_routes: bool = False
    time_limit: float | None = None
    trial: Trial | None = None
    thinking: ThinkingPolicy | None = None
    background: bool = False

    # Filled in by the engine.
    id: int = -1
    max_tokens: int = 0  # params.max_tokens cut to what the context leaves
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    routes: list[Tensor] = field(default_factory=list)  # parts [layers, tokens, k] int16, in order of position
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    finish_reason: str | None = None
    error: Exception | None = None
    clock: Clock = field(default_factory=Clock)
    events: list[Event] = field(default_factory=list)  # not yet taken
    tokens: list[int] = field(default_factory=list)  # the output of a request without a stream
    kept: NDArray[np.float32] | None = None  # log-probabilities as `DeviceSampler` tells them, where it kept them
    _entries: list[TokenLogprob] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        """Every generated id, forced ones included. Not to be changed."""
        return self.tokens if self.stream is None else self.stream.output_ids

    def alike(self, other: Request) -> bool:
        """Whether it may be sampled if another one with the same prompt may."""
        alike = self.params is other.params and self.adapter == other.adapter and self.experts == other.experts
        return alike and self.stream is None and self.time_limit is None and self.trial is None

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Of the output's tokens, where `params` ask for them."""
        if self.kept is not None and (known := len(self._entries)) < len(self.kept):
            values, forced = logprob_arrays([self])
            rest = zip(self.tokens[known:], values[known:].tolist(), forced[known:].tolist(), strict=True)
            self._entries += [TokenLogprob(token, value, [], given) for token, value, given in rest]
        return self._entries

    def keep(self, logprobs: NDArray[np.float32]) -> None:
        """`Told.logprobs` of the whole output; those before the last `bind` are known already."""
        self.kept = logprobs if self.kept is None else np.concatenate([self.kept, logprobs[len(self.kept) :]])

    def forget(self, count: int) -> None:
        """The last `count` tokens of a request without a stream."""
        left = len(self.tokens) - count
        del self.tokens[left:], self._entries[left:]
        if self.kept is not None:
            self.kept = self.kept[:left]

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def take_events(self) -> list[Event]:
        """The events since the last call; an interrupt in the middle loses none but those in hand."""
        events: list[Event] = []
        while self.events:
            events.append(self.events.pop(0))
        return events


def logprob_arrays(requests: Sequence[Request]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`logprobs` of requests, one behind the other, as numbers: (log-probabilities, whether the token was forced)."""
    told = [request.kept for request in requests if request.kept is not None]
    if told and len(told) == len(requests):
        kept = np.concatenate(told)
        return -np.abs(kept), ~np.signbit(kept)
    entries = [entry for request in requests for entry in request.logprobs]
    return np.array([e.logprob for e in entries], np.float32), np.array([e.forced for e in entries], bool)
