"""What later parts hang on: KV identity, weights written in place, rollback, experts per token, routes, rollouts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from qwen3.engine import Engine, Request, SamplingParams
from qwen3.errors import UsageError
from tests.fixtures import random_model, tiny_config

PARAMS = SamplingParams(temperature=1, top_p=1, top_k=0, min_p=0, seed=5, max_tokens=20, ignore_eos=True)


def prompt(length: int = 60, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(608) for _ in range(length)]


def run(engine: Engine, **how: Any) -> Request:
    """One tokens-only request of the same prompt, to its end."""
    request = Request(prompt(), how.pop("params", PARAMS), **how)
    engine.add(request)
    while engine.has_work:
        engine.advance()
    assert request.error is None
    return request


def test_a_prompt_is_found_again_only_under_its_own_identity() -> None:
    model = random_model(tiny_config(moe=True))
    engine = Engine(model, vocab_size=634, max_batch=4)
    assert run(engine).cached_tokens == 0
    assert run(engine).cached_tokens == 48
    for how in ({"tenant": "b"}, {"salt": "b"}, {"experts": 1}, {"tenant": "b", "experts": 1}):
        fresh, again = run(engine, **how), run(engine, **how)
        assert (fresh.cached_tokens, again.cached_tokens) == (0, 48), how
        assert fresh.output == again.output
    engine.update_weights({"norm.weight": model.norm.weight * 1.5})
    assert run(engine).cached_tokens == 0, "KV of the old weights is never used again"
    assert run(engine).cached_tokens == 48
    with pytest.raises(UsageError, match="adapter 'a' is not loaded"):
        engine.add(Request(prompt(), PARAMS, adapter="a"))


def test_new_weights_take_effect_at_once_and_in_place() -> None:
    model, other = random_model(tiny_config(), seed=1), random_model(tiny_config(), seed=2)
    engine = Engine(model, vocab_size=634, max_batch=4)
    addresses = [p.data_ptr() for p in model.parameters()]
    before = run(engine).output
    running = Request(prompt(), PARAMS)
    engine.add(running)
    for _ in range(6):
        engine.advance()
    said = len(running.output)
    with pytest.raises(UsageError, match=r"norm.weight is \[3\], the model has \[64\]"):
        engine.update_weights({"norm.weight": torch.ones(3)})
    with pytest.raises(UsageError, match="no such parameter"):
        engine.update_weights({"norm.wait": torch.ones(64)})
    engine.update_weights(other.named_parameters())
    while engine.has_work:
        engine.advance()
    assert addresses == [p.data_ptr() for p in model.parameters()]
    assert running.output[:said] == before[:said]
    after = run(Engine(other, vocab_size=634)).output
    assert run(engine).output == after != before
    assert len(running.output) == 20


@pytest.mark.parametrize("count", [0, 1, 7, 19])
def test_rollback_gives_the_same_tokens_again(count: int) -> None:
    engine = Engine(random_model(tiny_config()), vocab_size=634)
    expected = run(engine).output
    request = Request(prompt(), PARAMS)
    engine.add(request)
    while len(request.output) < 19:
        engine.advance()
    engine.rollback(request.id, count)
    assert request.output == expected[: 19 - count]
    while engine.has_work:
        engine.advance()
    assert request.output == expected
    assert engine.used_blocks == 0
    with pytest.raises(UsageError, match="cannot be rolled back"):
        engine.rollback(request.id, 1)


def test_fewer_experts_are_another_model_and_no_more_than_it_has() -> None:
    model = random_model(tiny_config(moe=True))
    engine = Engine(model, vocab_size=634)
    usual, two, one = run(engine), run(engine, experts=2), run(engine, experts=1)
    assert usual.output == two.output != one.output
    assert engine.runner.custom == {}
    single = random_model(tiny_config(moe=True, num_experts_per_tok=1))
    assert run(Engine(single, vocab_size=634)).output == one.output
    with pytest.raises(UsageError, match="experts=3 must be 1 to 2"):
        engine.add(Request(prompt(), PARAMS, experts=3))
    with pytest.raises(UsageError, match="experts=1 must be 1 to 0"):
        Engine(random_model(tiny_config()), vocab_size=634).add(Request(prompt(), PARAMS, experts=1))


def test_a_request_with_its_own_number_of_experts_is_cancelled_between_steps() -> None:
    engine = Engine(random_model(tiny_config(moe=True)), vocab_size=634)
    request = Request(prompt(), PARAMS, experts=1)
    engine.add(request)
    engine.advance()
    assert len(engine.runner.custom) == 1
    engine.cancel(request.id)
    assert (request.finish_reason, engine.runner.custom, engine.used_blocks) == ("cancelled", {}, 0)
    assert run(engine).error is None


def test_routes_are_those_of_the_network() -> None:
    model = random_model(tiny_config(moe=True))
    engine = Engine(model, vocab_size=634, prefill_chunk=32)
    request = run(engine, keep_routes=True)
    found = torch.cat(request.routes, dim=1)
    ids = [*request.ids, *request.output[:-1]]
    assert found.shape == (2, len(ids), 2)
    aux: list[Any] = []
    with torch.no_grad():
        model(torch.tensor([ids]), aux=aux)
    for layer, router in enumerate(aux):
        assert torch.equal(found[layer].long().sort().values, router.experts.sort().values)


def test_a_rollout_needs_no_stream_and_its_logprobs_are_raw() -> None:
    model = random_model(tiny_config())
    engine = Engine(model, vocab_size=634)
    params = SamplingParams(
        temperature=0.5, top_p=0.5, top_k=5, min_p=0, seed=2, max_tokens=12, ignore_eos=True, logprobs=0
    )
    request = run(engine, params=params)
    with torch.no_grad():
        logits = model(torch.tensor([[*request.ids, *request.output]]))[0].double()
    expected = torch.log_softmax(logits, -1)[len(request.ids) - 1 : -1]
    for entry, row, token in zip(request.logprobs, expected, request.output, strict=True):
        assert entry.id == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)


def test_priorities_and_a_full_queue() -> None:
    engine = Engine(random_model(tiny_config()), vocab_size=634, max_batch=1)
    requests = [Request(prompt(20, i), PARAMS, priority=p) for i, p in enumerate((1, 1, 0))]
    for request in requests:
        engine.add(request)
    order = []
    while engine.has_work:
        engine.advance()
        order += [i for i, r in enumerate(requests) if r.done and i not in order]
    assert order[0] == 2, "the lower number goes first, though it came last"
    assert order[1:] == [0, 1]


def test_a_tenant_that_floods_the_cache_leaves_others_theirs() -> None:
    """By however many salts: bob's prompt is found again after alice's have filled the memory several times."""
    engine = Engine(random_model(tiny_config()), vocab_size=634, max_batch=2, max_len=256, blocks=64)
    assert run(engine, tenant="bob").cached_tokens == 0
    for seed in range(60):
        request = Request(prompt(200, seed + 2), PARAMS, tenant="alice", salt=str(seed))
        engine.add(request)
        while engine.has_work:
            engine.advance()
    assert engine.scheduler.pool.free < 16, "the memory was full"
    assert run(engine, tenant="bob").cached_tokens == 48
