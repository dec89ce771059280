"""The token machine against the token stream: the same ids recorded, the same end, whatever the model says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from qwen3.chat import ThinkingPolicy, TokenStream
from qwen3.chat.stream import CAUSES
from qwen3.engine.machine import Machine
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError
from tests.fixtures import tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer(tiny_config())


class Anything:
    """A grammar of all texts, that is never done."""

    done = False
    pushed = 0

    def __init__(self, begins_with: int | None) -> None:
        self.begins_with = begins_with

    def mask(self) -> np.ndarray:
        return np.full(-(-TOKENIZER.vocab_size // 32), -1, np.int32)

    def push(self, id: int) -> None:
        self.pushed += 1

    def rollback(self, count: int) -> None:
        self.pushed -= count


def random_policy(rng: random.Random) -> ThinkingPolicy:
    mode = rng.choice([None, None, "on", "off", "auto"])
    budget = rng.choice([None, 0, 1, 2, 7, 20]) if mode != "off" else rng.choice([None, 0])
    if mode == "off" or budget == 0:
        return ThinkingPolicy(mode, budget)
    landing = rng.choice([None, 1, 5, 300]) if budget else None
    return ThinkingPolicy(mode, budget, max_steps=rng.choice([None, None, 1, 2, 3]), soft_landing=landing)


def random_rules(rng: random.Random) -> tuple[Any, dict[str, Any], list[int]]:
    """A stream's arguments, and ids of which control tokens and ends are a good part."""
    c = TOKENIZER.control
    words = [rng.randrange(256) for _ in range(6)] + [*TOKENIZER.encode("\n"), *TOKENIZER.encode(".")] * 2
    controls = [c.think, c.end_think, c.tool_call, c.end_tool_call, c.im_end, c.endoftext, c.im_start]
    prompt = rng.choice(
        [
            [1, 2],
            [c.im_start, 5, 6],
            [c.im_start, 5, c.think, *TOKENIZER.encode("\n")],
            [5, c.think, *TOKENIZER.encode("Well.\n")],
            [5, c.think, c.end_think, 7],
        ]
    )
    rules = {
        "stop_token_ids": rng.sample([*words, *controls], rng.choice([0, 0, 1, 3])),
        "eos_ids": rng.choice([None, None, [c.im_end], [words[0], c.think]]),
        "ignore_eos": rng.random() < 0.2,
        "min_tokens": rng.choice([0, 0, 3, 40]),
        "include_tools": rng.random() < 0.7,
        "forbid_think": rng.choice([None, None, True]),
        "matcher": rng.choice([None, None, Anything(None), Anything(c.tool_call)]),
    }
    return (TOKENIZER, prompt, random_policy(rng)), rules, [*words * rng.choice([1, 6]), *controls]


def same(machine: Machine, stream: TokenStream, params: SamplingParams) -> bool:
    """Whether the machine is what one made of the stream now would be."""
    return machine == Machine.of(stream, params)


@pytest.mark.parametrize("seed", range(30))
def test_records_and_ends_as_the_stream_does(seed: int) -> None:
    rng = random.Random(seed)
    ended: Counter[Any] = Counter()
    for _ in range(40):
        *made, ids = random_rules(rng)
        stream = TokenStream(*made[0], **made[1])
        params = SamplingParams(max_tokens=rng.choice([None, 1, 30, 150]), temperature=0)
        machine = Machine.of(stream, params)
        close_when, ahead = rng.choice([(-1, 0), (0, rng.randrange(4)), (rng.randrange(30), rng.randrange(-3, 9))])
        closed: int | None = None
        for _ in range(160):
            count = len(stream.output_ids)
            if count == close_when and stream.close_thinking(rng.choice(CAUSES), count + ahead):
                closed = max(count, count + ahead)
                machine.close_at = closed
                if closed == count:  # in time for the next token: the host's word
                    machine = Machine.of(stream, params)
            assert same(machine, stream, params)
            assert machine.forced() == stream.forced()
            assert machine.queued == stream.queued
            assert machine.banned() == stream.banned()
            token = machine.forced()
            if token is None:
                token = rng.choice(ids)
            stream.push(token)
            assert machine.push(token) == stream.output_ids[-1]
            if machine.done or stream.done:
                break
        decided = stream.decisions()
        assert (machine.used, machine.steps, machine.line_state) == (decided.used, decided.steps, decided.line_state)
        budget = stream.policy.budget
        assert budget is None or machine.used <= budget
        if machine.done == "stop":  # else recorded ids may break off where a closing had begun
            once_more = stream.fresh()
            if closed is not None:
                assert once_more.close_thinking("client", closed)
            again = Machine.of(once_more, params).replay(stream.output_ids)
            assert (again.phase, again.queue, again.count, again.done) == (
                machine.phase, machine.queue, machine.count, machine.done,
            )  # fmt: skip
        full = len(stream.output_ids) == params.max_tokens
        assert machine.done == ("stop" if stream.done else "length" if full else None)
        assert machine.count == len(stream.output_ids)
        if machine.done:
            before = machine.count
            assert machine.forced() is None
            machine.push(ids[0])
            assert machine.count == before, "after the end nothing moves"
            assert Machine.of(stream, params).done == machine.done
        ended[machine.done] += 1
        ended[stream.report().ended_by] += 1
        ended["gap"] += machine.gap > 0 and machine.phase != "thinking"
    assert min(ended[key] for key in ("stop", "length")) > 0
    assert sum(ended[key] for key in ("budget", "steps", "client", "time", "loop", "natural", "eos")) > 3


def test_the_context_may_leave_less_than_asked_for() -> None:
    stream = TokenStream(TOKENIZER, [1, 2])
    assert Machine.of(stream, SamplingParams(max_tokens=9)).max_tokens == 9
    machine = Machine.of(stream, SamplingParams(max_tokens=9), max_tokens=2)
    assert [machine.push(5), machine.done, machine.push(6), machine.done] == [5, None, 6, "length"]


def test_another_token_than_the_forced_one_is_refused() -> None:
    machine = Machine.of(TokenStream(TOKENIZER, [1, 2], ThinkingPolicy("on")), SamplingParams())
    assert machine.forced() == TOKENIZER.control.think
    with pytest.raises(UsageError, match=f"token 5 was pushed where {TOKENIZER.control.think} is forced"):
        machine.push(5)
