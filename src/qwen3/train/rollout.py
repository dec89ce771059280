"""Samples from the package's own engine over the very parameters that are trained.

Sampling is from the whole distribution at temperature 1, so the log-probabilities the engine reports are those of the
policy that sampled. Tokens that a rule put in (the budget's closing text, an opening tag) are read but not trained.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch

from qwen3.chat import Message, ThinkingPolicy, TokenStream, parse
from qwen3.chat.stream import turn_start
from qwen3.engine.engine import Engine
from qwen3.engine.machine import Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request, logprob_arrays
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.samples import TokenSample


@dataclass(frozen=True)
class Prompt:
    """ids: as rendered. thinking: whether the model is to think."""

    ids: Sequence[int]
    thinking: bool = False


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled answer. sample: prompt and answer with the stream "logprob" (the sampler's), trained where a token
    was sampled; with routes where they were asked for. output: the answer's ids, forced ones included. forced: how
    many. finish: "stop" or "length"."""

    sample: TokenSample
    output: tuple[int, ...]
    forced: int
    finish: str
    thinking: bool

    def __len__(self) -> int:
        return len(self.output)

    def message(self, tokenizer: Tokenizer) -> Message:
        """The answer in parts; a thought that never ended has no answer behind it."""
        found = parse(self.output, tokenizer)
        if self.thinking and tokenizer.control.end_think not in self.output:
            return replace(found, content="", reasoning_content=found.reasoning_content + found.content)
        return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector: thousands of samples, none of them garbage, would be looked at again and
    again, for a quarter of the time. Around a whole function, so that what it made is gone when garbage is looked for
    again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def rollouts(
    engine: Engine,
    prompts: Sequence[Prompt],
    samples: int,
    seed: str,
    *,
    max_tokens: int,
    budget: int | None = None,
    routes: bool = False,
    tenant: str = "rollout",
) -> list[list[Rollout]]:
    """`samples` answers to each prompt, in order; the same for a seed and weights on one machine.

    max_tokens: of an answer, thought included. budget: of thinking; then it is closed by the published text. routes:
    keep the experts that each token took. tenant: prompts that others left in the cache are not used: they would change
    the sizes of steps, and so the last bits. Raises UsageError where a prompt and its answer do not fit the engine's
    context, and what a request failed with.
    """
    groups: list[list[Request]] = []
    machines: dict[Hashable, Machine] = {}
    for number, prompt in enumerate(prompts):
        noise = random.Random(f"{seed}/{number}").getrandbits(53)
        groups.append(_requests(engine, prompt, samples, max_tokens, budget, noise, routes, tenant, machines))
        if groups[-1][0].warnings:
            raise UsageError(f"prompt {number} of {len(prompt.ids):,} tokens: {groups[-1][0].warnings[0]}")
    for group in groups:
        engine.add_samples(group)
    while engine.has_work:
        engine.advance()
    found = iter(_finished(list(chain(*groups)), [prompt.thinking for prompt in prompts for _ in range(samples)]))
    return [list(islice(found, samples)) for _ in prompts]


def _requests(
    engine: Engine,
    prompt: Prompt,
    samples: int,
    max_tokens: int,
    budget: int | None,
    seed: int,
    routes: bool,
    tenant: str,
    machines: dict[Hashable, Machine],
) -> list[Request]:
    """machines: those made so far, for prompts that end alike."""
    assert engine.tokenizer is not None
    ids = list(prompt.ids)
    params = SamplingParams(
        max_tokens=max_tokens, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=seed, logprobs=0
    )
    requests = [Request(ids, params, index=i, tenant=tenant, keep_routes=routes) for i in range(samples)]
    engine.check(requests[0])
    turn = ids[turn_start(ids, engine.tokenizer) :]
    key = (prompt.thinking, requests[0].max_tokens, *turn)
    if key not in machines:
        thinking = ThinkingPolicy(mode="on", budget=budget, loop_guard=False) if prompt.thinking else None
        # Nothing may be banned: what is sampled from must be what the log-probabilities are of.
        rules = TokenStream(engine.tokenizer, turn, thinking, include_tools=False, forbid_think=False)
        machines[key] = Machine.of(rules, params, requests[0].max_tokens)  # each gets a copy when it is queued
    for request in requests:
        request.machine = machines[key]
    return requests


def _finished(requests: Sequence[Request], thinking: Sequence[bool]) -> list[Rollout]:
    """All at once: of thousands of short answers every call to NumPy counts. Their arrays are views of common ones."""
    for request in requests:
        if request.error is not None:
            raise request.error
        assert request.finish_reason is not None
    if not requests:
        return []
    values, forced = logprob_arrays(requests)
    sizes = np.array([(len(request.ids), len(request.tokens)) for request in requests])
    answer = np.repeat(np.tile([False, True], len(requests)), sizes.ravel())  # of a prompt, an answer, a prompt …
    ids, trained, logprob = np.empty(len(answer), np.int32), answer.copy(), np.zeros(len(answer), np.float32)
    lists = {id(request.ids): request.ids for request in requests}  # siblings have one
    prompts = {key: np.array(prompt, np.int32) for key, prompt in lists.items()}
    ids[~answer] = np.concatenate([prompts[id(request.ids)] for request in requests])
    ids[answer] = np.fromiter(chain.from_iterable(request.tokens for request in requests), np.int32)
    trained[answer] = ~forced
    logprob[trained] = values[~forced]
    put_in = np.concatenate([[0], np.cumsum(answer & ~trained)])
    found, start = [], 0
    for request, thinks, end in zip(requests, thinking, sizes.sum(1).cumsum().tolist(), strict=True):
        span, start = slice(start, end), end
        routes = _routes(request) if request.keep_routes else None
        sample = TokenSample(ids[span], trained[span], {"logprob": logprob[span]}, routes)
        count = int(put_in[end] - put_in[span.start])
        found.append(Rollout(sample, tuple(request.tokens), count, str(request.finish_reason), thinks))
    return found


def _routes(request: Request) -> np.ndarray:
    """int16 [layers, n, k]; the last token was never an input, so it has none."""
    known = len(request.ids) + len(request.tokens) - 1
    found = torch.cat(request.routes, dim=1)[:, -known:]  # a sample that was set aside was computed again as a whole
    return torch.nn.functional.pad(found, (0, 0, 0, 1), value=-1).numpy()
