"""Samples of the engine without streams: exact ids, raw log-probabilities, forced tokens apart, the same for a seed."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.chat import encode
from qwen3.chat.stream import EARLY_STOP
from qwen3.engine.engine import Engine
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.rollout import Prompt, Rollout, rollouts
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
