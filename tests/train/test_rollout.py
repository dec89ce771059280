"""Samples of the engine without streams: exact ids, raw log-probabilities, forced tokens apart, the same for a seed."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.chat import ThinkingPolicy, TokenStream, encode
from qwen3.chat.stream import EARLY_STOP
from qwen3.engine.engine import Engine
from qwen3.engine.machine import Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.recording import HEAR
from qwen3.engine.request import Request
from qwen3.engine.sampler import TokenLogprob
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.rollout import Prompt, Rollout, _finished, _requests, rollouts
from tests.engine import overlapped as late
from tests.engine.overlapped import overlapped
from tests.fixtures import random_model, tiny_config

TOK = Tokenizer.from_pretrained().prefix(608)


def prompt(text: str, thinking: bool = False) -> Prompt:
    ids = encode([{"role": "user", "content": text}], tokenizer=TOK, enable_thinking=thinking).ids
    return Prompt(ids, thinking)


def engine(moe: bool = False, **options: Any) -> Engine:
    return Engine(
        random_model(tiny_config(moe=moe)), TOK, **{"max_len": 128, "blocks": 200, "invariant": True} | options
    )


def test_logprobs_are_those_of_the_network_and_of_the_whole_distribution() -> None:
    made = engine()
    groups = rollouts(made, [prompt("a"), prompt("bb")], 3, "s", max_tokens=8)
    assert [len(group) for group in groups] == [3, 3]
    for rollout in (r for group in groups for r in group):
        ids = rollout.sample.ids
        assert tuple(ids[-len(rollout) :]) == rollout.output
        with torch.no_grad():
            logits = made.model(torch.from_numpy(ids).long()[None])[0].double()
        expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.from_numpy(ids).long()[1:, None])[:, 0].numpy()
        trained = rollout.sample.trained
        assert trained.sum() == len(rollout)
        np.testing.assert_allclose(rollout.sample.streams["logprob"][trained], expected[trained[1:]], atol=1e-5)
        assert rollout.finish == ("stop" if rollout.output[-1] in TOK.eos_ids else "length")
    assert len({r.output for group in groups for r in group}) == 6


def test_the_same_for_a_seed_whatever_else_ran() -> None:
    first, second = engine(), engine(max_batch=2)
    rollouts(second, [prompt("something else")], 1, "before", max_tokens=3)
    prompts = [prompt("a"), prompt("b", thinking=True)]

    def sample(made: Engine, seed: str) -> list[Rollout]:
        return list(chain.from_iterable(rollouts(made, prompts, 2, seed, max_tokens=6)))

    a = sample(first, "s")
    for x, y in zip(a, sample(second, "s"), strict=True):
        assert x.output == y.output
        assert np.array_equal(x.sample.streams["logprob"], y.sample.streams["logprob"])
    assert [r.output for r in sample(first, "t")] != [r.output for r in a]


def test_forced_tokens_are_read_and_not_trained() -> None:
    closing = TOK.encode(EARLY_STOP)
    group = rollouts(engine(), [prompt("a", thinking=True)], 3, "s", max_tokens=90, budget=3)[0]
    for rollout in group:
        output = list(rollout.output)
        opening = TOK.encode("<think>\n")
        assert output[: len(opening)] == opening
        at = next(i for i in range(len(output)) if output[i : i + len(closing)] == closing)
        trained = rollout.sample.trained[-len(output) :]
        assert not trained[: len(opening)].any()
        assert not trained[at : at + len(closing)].any()
        assert trained[len(opening) : at].all()
        assert rollout.forced == (~trained).sum() == len(opening) + len(closing)
        assert (rollout.sample.streams["logprob"][~rollout.sample.trained] == 0).all()
        assert rollout.message(TOK).reasoning_content


def test_an_unclosed_thought_is_no_answer() -> None:
    ids = [*prompt("a", thinking=True).ids, TOK.control.think]  # as the thinking models' template leaves it
    rollout = rollouts(engine(), [Prompt(ids, True)], 1, "s", max_tokens=4)[0][0]
    assert rollout.finish == "length"
    assert rollout.message(TOK).content == ""


def test_routes_belong_to_their_tokens() -> None:
    made = engine(moe=True)
    rollout = rollouts(made, [prompt("a")], 2, "s", max_tokens=5, routes=True)[0][1]
    routes = rollout.sample.routes
    assert routes is not None
    assert routes.shape == (2, len(rollout.sample), 2)
    assert (routes[:, -1] == -1).all()
    aux: list[Any] = []
    with torch.no_grad():
        made.model(torch.from_numpy(rollout.sample.ids[:-1]).long()[None], aux=aux)
    for layer, router in enumerate(aux):
        assert np.array_equal(np.sort(routes[layer, :-1]), router.experts.sort().values.numpy())


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"prompt 0 of .* max_tokens 500 was cut"):
        rollouts(engine(), [prompt("a")], 1, "s", max_tokens=500)


@pytest.mark.parametrize("how", [{}, {"blocks": 14, "max_batch": 4}])
def test_what_a_device_keeps_is_what_the_host_hears(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, log-probabilities and what was forced, also of samples that were set aside meanwhile."""
    prompts = [prompt("a"), prompt("b", thinking=True), prompt("c", thinking=True)]
    heard, kept = engine(), overlapped(engine().model, TOK, max_len=128, invariant=True, **how)
    aside = []
    displace = kept._displace
    monkeypatch.setattr(kept, "_displace", lambda item: (aside.append(item), displace(item)))
    for budget in (4, None):
        told = [rollouts(it, prompts, 2, "s", max_tokens=40, budget=budget) for it in (heard, kept)]
        for x, y in zip(*(chain.from_iterable(groups) for groups in told), strict=True):
            assert (x.output, x.forced, x.finish) == (y.output, y.forced, y.finish)
            assert (x.sample.trained == y.sample.trained).all()
            np.testing.assert_allclose(x.sample.streams["logprob"], y.sample.streams["logprob"], atol=2e-4)
    assert bool(aside) == bool(how)


def test_what_ended_unheard_has_ended_after_an_interrupt() -> None:
    """Ends are heard every few steps: one that the host has not heard of is not computed again."""
    made = overlapped(engine().model, TOK, max_len=128, invariant=True)
    params = SamplingParams(max_tokens=3, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=1, logprobs=0)
    requests = [Request(list(prompt("a").ids), params, index=i) for i in range(3)]
    for request in requests:
        made.add(request)
    seen = 0
    while made.has_work:
        made.advance()
        item = next(iter(made._live.values()), None)
        if item is not None and item.bound and made.picker.sampler.snapshots([item.row.slot])[0].machine.done:
            made._torn, seen = True, seen + 1
    assert seen
    for request in requests:
        assert request.finish_reason in ("stop", "length")
        assert len(request.logprobs) == len(request.output) <= 3


@pytest.mark.parametrize("crowded", [False, True])
def test_ends_are_heard_without_waiting(crowded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host looks at was there steps ago; where others wait for the slot it is the newest there is."""
    made = overlapped(engine().model, TOK, max_len=128, invariant=True, max_batch=2 if crowded else 8)
    ages: list[int] = []
    fetched: list[int] = []
    fetch = made.picker.fetch

    def spy(items: Any, picked: Any) -> Any:
        if made._flight is not None:
            fetched.append(made.steps - picked.made)
        return fetch(items, picked)

    monkeypatch.setattr(made.picker, "fetch", spy)

    class Picked(late._Picked):
        def __init__(self, out: torch.Tensor, count: int) -> None:
            super().__init__(out, count)
            self.made = made.steps

        def ended(self) -> list[tuple[int, int]]:
            if made._flight is not None:  # else nobody can say it again
                ages.append(made.steps - self.made)
            return super().ended()

    monkeypatch.setattr(late, "_Picked", Picked)
    stops = tuple(range(0, 500, 8))  # ends that nobody knows of before
    params = SamplingParams(max_tokens=60, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=1, stop_token_ids=stops)
    found, expected = ([Request(list(prompt("a").ids), params, index=i) for i in range(8)] for _ in range(2))
    for one, requests in ((made, found), (engine(), expected)):
        for request in requests:
            one.add(request)
        while one.has_work:
            one.advance()
    assert [request.output for request in found] == [request.output for request in expected]
    assert ages
    assert fetched  # what they said waits for the same step, not for the newest
    assert min(ages) == min(fetched) == (1 if crowded else HEAR // 2 + 1)


def test_rules_are_shared_by_prompts_that_end_alike() -> None:
    """They are those of a stream over the whole prompt, whatever came before its last turn."""
    rng, made, machines = random.Random(), engine(max_len=512, blocks=40), dict[Any, Machine]()
    tags = ["<think>", "</think>", "<|im_end|>", "<|im_start|>", "\n", "\n\n", "a", ".", "<tool_call>"]
    for _ in range(200):
        ids = TOK.encode("".join(rng.choices(tags, k=rng.randint(1, 9))))
        thinking, budget = rng.random() < 0.5, 7
        policy = ThinkingPolicy(mode="on", budget=budget, loop_guard=False) if thinking else None
        rules = TokenStream(TOK, ids, policy, include_tools=False, forbid_think=False)
        requests = _requests(made, Prompt(ids, thinking), 2, 20, budget, 1, False, "t", machines)
        assert requests[0].machine == requests[1].machine == Machine.of(rules, requests[0].params, 20)
    assert len(machines) < 200


def test_arrays_are_those_made_one_by_one() -> None:
    rng = np.random.default_rng()
    params = SamplingParams(max_tokens=9, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=1, logprobs=0)
    for kept in (True, False):  # by the device; as the host heard them
        requests = []
        for _ in range(5):
            ids = rng.integers(0, 600, rng.integers(1, 6)).tolist()
            for _ in range(3):
                one = Request(ids, params)
                one.tokens, one.finish_reason = rng.integers(0, 600, rng.integers(1, 9)).tolist(), "stop"
                values, forced = -rng.random(len(one.tokens), np.float32), rng.random(len(one.tokens)) < 0.3
                one.kept = np.where(forced, -values, values) if kept else None
                told = zip(one.tokens, values.tolist(), forced.tolist(), strict=True)
                one._entries = [] if kept else [TokenLogprob(t, v, [], f) for t, v, f in told]
                requests.append(one)
        for request, found in zip(requests, _finished(requests, [True] * 15), strict=True):
            read, entries = len(request.ids), request.logprobs
            forced = [False] * read + [entry.forced for entry in entries]
            assert found.sample.ids.tolist() == request.ids + request.tokens
            assert found.sample.trained.tolist() == [i >= read and not f for i, f in enumerate(forced)]
            expected = [0.0] * read + [0.0 if entry.forced else entry.logprob for entry in entries]
            assert found.sample.streams["logprob"].tolist() == expected
            assert found.sample.streams["logprob"].dtype == np.float32
            assert (found.output, found.forced) == (tuple(request.tokens), sum(forced))
    assert _finished([], []) == rollouts(engine(), [], 2, "s", max_tokens=4) == []
