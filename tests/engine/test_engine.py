"""Continuous batching on a small random network: parity, seeds, sharing, limits, cancelling, failing."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen3.chat import Finish, ReasoningDelta, TextDelta, ThinkingPolicy
from qwen3.engine import Engine, SamplingParams, pickers
from qwen3.errors import OutOfMemoryError, QueueFullError, UsageError
from tests.engine.scheduler_world import check
from tests.fixtures import random_model, tiny_config

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(608) for _ in range(length)]


def oracle(model: Any) -> Any:
    """The same weights in transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from qwen3.checkpoint import official_views

    config = model.config.to_dict()
    moe = model.config.is_moe
    other = (Qwen3MoeForCausalLM if moe else Qwen3ForCausalLM)((Qwen3MoeConfig if moe else Qwen3Config)(**config))
    views = official_views(model.config, dict(model.named_parameters()))
    state = {name: tensor.detach().clone() for name, tensor in views.items()}
    if moe:  # transformers stacks the experts in memory
        for i in range(model.config.num_hidden_layers):
            for name in ("gate_up_proj", "down_proj"):
                key = f"mlp.experts.{name}"
                state[f"model.layers.{i}.{key}"] = dict(model.named_parameters())[f"layers.{i}.{key}"].detach().clone()
    other.load_state_dict(state, strict=False)
    return other.float().eval()


@pytest.mark.parametrize("moe", [False, True])
def test_greedy_equals_transformers_for_256_steps(moe: bool, run: Any, tokenizer: Any) -> None:
    model = random_model(tiny_config(moe=moe), seed=3)
    other = oracle(model)
    prompts = [prompt(1, 9), prompt(2, 30), prompt(3, 1)]
    params = SamplingParams(temperature=0, max_tokens=256, ignore_eos=True)
    engine = Engine(model, tokenizer, prefill_chunk=16)
    requests = [run.make(ids, params) for ids in prompts]
    for request in requests:
        engine.add(request)
    run.finish(engine, *requests)
    for ids, request in zip(prompts, requests, strict=True):
        expected = other.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=256,
            min_new_tokens=256,
            suppress_tokens=list(range(tokenizer.vocab_size, model.config.vocab_size)),
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        assert request.output == expected
        assert request.finish_reason == "length"


def test_padding_rows_are_never_sampled(run: Any, model: Any) -> None:
    weights = model.embed_tokens.weight
    kept = weights.detach()[-6:].clone()
    with torch.no_grad():
        weights[-6:] = weights[40] * 5  # would win often
    try:
        params = SamplingParams(temperature=1.5, top_p=1, top_k=0, max_tokens=200, seed=1, ignore_eos=True)
        assert max(run.one(model, prompt(4, 12), params).output) < 634
    finally:
        with torch.no_grad():
            weights[-6:] = kept


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_same_tokens_alone_and_in_a_crowd(temperature: float, run: Any, model: Any, tokenizer: Any) -> None:
    rng = random.Random(7)
    cases = []
    for i in range(24):
        params = SamplingParams(
            temperature=temperature,
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 20, 50]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            seed=i,
            max_tokens=rng.randrange(1, 60),
            ignore_eos=True,
        )
        cases.append((prompt(i, rng.randrange(1, 70)), params))
    alone = [run.one(model, ids, params).output for ids, params in cases]
    engine = Engine(model, tokenizer, max_batch=7, prefill_chunk=32)
    requests = [run.make(ids, params) for ids, params in cases]
    for request in requests[:10]:
        engine.add(request)
    for _ in range(5):
        engine.step()
    for request in requests[10:]:
        engine.add(request)
    run.finish(engine, *requests)
    assert [request.output for request in requests] == alone
    assert engine.running == engine.queued == 0


def test_chunks_of_any_size_give_the_same_tokens(run: Any, model: Any) -> None:
    params = SamplingParams(temperature=0.7, seed=5, max_tokens=30, ignore_eos=True)
    ids = prompt(11, 100)
    outputs = [run.one(model, ids, params, prefill_chunk=chunk).output for chunk in (1, 7, 99, 100, 2048)]
    assert all(output == outputs[0] for output in outputs)


def test_several_prompts_in_one_step(run: Any, model: Any, tokenizer: Any) -> None:
    """Prompts of different lengths share a forward."""
    cases = [prompt(i, length) for i, length in enumerate([3, 20, 11, 1, 64])]
    alone = [run.one(model, ids, GREEDY).output for ids in cases]
    engine = Engine(model, tokenizer, prefill_chunk=80)
    requests = [run.make(ids, GREEDY) for ids in cases]
    for request in requests:
        engine.add(request)
    run.finish(engine, *requests)
    assert [request.output for request in requests] == alone


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def counted(model: Any) -> list[int]:
    """From now on: how many tokens each forward of an engine over `model` is fed."""
    fed: list[int] = []
    make = model.stepper

    def stepper(**how: Any) -> Any:
        found = make(**how)
        hidden = found.hidden
        found.hidden = lambda ids, *rest, **more: fed.append(len(ids)) or hidden(ids, *rest, **more)
        return found

    model.stepper = stepper
    return fed


@pytest.mark.parametrize("max_batch", [8, 2])
def test_samples_share_the_prompt(max_batch: int, run: Any, tokenizer: Any) -> None:
    model = random_model(tiny_config(), seed=1)
    ids = prompt(5, 50)
    params = SamplingParams(temperature=1, seed=9, max_tokens=12, ignore_eos=True)
    alone = [run.one(model, ids, replace(params, seed=9)).output]
    fed = counted(model)
    engine = Engine(model, tokenizer, max_batch=max_batch)
    requests = [run.make(ids, params, index=i) for i in range(4)]
    engine.add_samples(requests)
    run.finish(engine, *requests)
    outputs = [request.output for request in requests]
    assert len({tuple(output) for output in outputs}) == 4
    assert outputs[:1] == alone
    assert sum(fed) == 50 + 3 * 2 + 4 * 11, "of the prompt only the last, incomplete block is computed again"
    assert [request.cached_tokens for request in requests] == [0, 48, 48, 48]


def test_samples_are_queued_together_or_not_at_all(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, max_queue=3)
    with pytest.raises(UsageError, match="same prompt"):
        engine.add_samples([run.make([1], GREEDY), run.make([2], GREEDY)])
    with pytest.raises(UsageError, match="not loaded"):  # a sibling is looked at where it asks for something else
        engine.add_samples([run.make([1], GREEDY), replace(run.make([1], GREEDY), adapter="none")])
    with pytest.raises(QueueFullError, match="max_queue=3"):
        engine.add_samples([run.make([1, 2], GREEDY, index=i) for i in range(4)])
    assert not engine.has_work
    assert engine.queued == 0


def test_cancel_frees_the_row_and_leaves_the_others_alone(run: Any, model: Any, tokenizer: Any) -> None:
    cases = [prompt(i, 10 + i) for i in range(6)]
    alone = [run.one(model, ids, GREEDY).output for ids in cases]
    engine = Engine(model, tokenizer, max_batch=4)
    requests = [run.make(ids, GREEDY) for ids in cases]
    for request in requests:
        engine.add(request)
    for _ in range(4):
        engine.step()
    engine.cancel(requests[1].id)  # running, in the middle of the rows
    engine.cancel(requests[5].id)  # queued
    assert engine.running == 3
    assert engine.queued == 1
    engine.cancel(requests[1].id)
    engine.cancel(999)
    events = run.finish(engine, *requests)
    for i in (0, 2, 3, 4):
        assert requests[i].output == alone[i]
    assert requests[1].output == alone[1][: len(requests[1].output)]
    assert [requests[i].finish_reason for i in (1, 5)] == ["cancelled", "cancelled"]
    assert events[1][-1].reason == "cancelled"
    assert requests[5].output == []


def test_the_first_of_the_samples_is_cancelled_while_its_prompt_is_read(run: Any, model: Any, tokenizer: Any) -> None:
    ids = prompt(8, 60)
    engine = Engine(model, tokenizer, prefill_chunk=20)
    requests = [run.make(ids, SamplingParams(seed=4, max_tokens=9, ignore_eos=True), index=i) for i in range(3)]
    engine.add_samples(requests)
    engine.step()
    engine.cancel(requests[0].id)
    run.finish(engine, *requests)
    expected = run.make(ids, SamplingParams(seed=4, max_tokens=9, ignore_eos=True), index=2)
    lone = Engine(model, tokenizer)
    lone.add(expected)
    run.finish(lone, expected)
    assert requests[2].output == expected.output
    assert len(requests[1].output) == 9


def test_abandoned_requests_go_with_the_next_step(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, max_batch=1)
    requests = [run.make(prompt(i, 5), GREEDY) for i in range(3)]
    for request in requests:
        engine.add(request)
    engine.step()
    requests[0].abandoned = requests[2].abandoned = True
    run.finish(engine, *requests)
    assert [request.finish_reason for request in requests] == ["cancelled", "length", "cancelled"]


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_events_gives_the_same_tokens(seed: int, run: Any, tokenizer: Any, model: Any) -> None:
    """Adding, stepping, cancelling and interrupting at random: what comes out is what each request gives alone."""
    rng = random.Random(seed)
    engine = Engine(model, tokenizer, max_batch=rng.choice([1, 3, 5]), prefill_chunk=rng.choice([8, 64]))
    requests: list[Any] = []
    for _ in range(60):
        action = rng.random()
        if action < 0.25:
            ids = prompt(rng.randrange(1000), rng.randrange(1, 40))
            params = SamplingParams(temperature=1, seed=rng.randrange(99), max_tokens=rng.randrange(1, 15))
            group = [run.make(ids, params, index=i) for i in range(rng.choice([1, 1, 1, 3]))]
            engine.add_samples(group)
            requests += group
        elif action < 0.32 and requests:
            rng.choice(requests).abandoned = True
        elif action < 0.4 and requests:
            engine.cancel(rng.choice(requests).id)
        elif action < 0.47:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(engine.runner.stepper, "hidden", interrupted)
                with contextlib.suppress(KeyboardInterrupt):
                    engine.step()
        else:
            engine.step()
        check(engine.scheduler)
    run.finish(engine, *requests)
    assert engine.used_blocks == 0
    for request in requests:
        lone = run.make(request.ids, request.params, index=request.index)
        other = Engine(model, tokenizer)
        other.add(lone)
        run.finish(other, lone)
        assert request.error is None
        if request.finish_reason == "cancelled":
            assert request.output == lone.output[: len(request.output)]
        else:
            assert (request.output, request.finish_reason) == (lone.output, lone.finish_reason)


def test_context_is_a_limit_with_numbers(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, max_len=50)
    with pytest.raises(UsageError, match="the prompt has 50 tokens, but the context is 50"):
        engine.add(run.make(prompt(1, 50), GREEDY))
    assert not engine.has_work
    request = run.make(prompt(1, 49), GREEDY)
    engine.add(request)
    events = run.finish(engine, request)[0]
    assert len(request.output) == 1
    assert events[-1].reason == "length"
    assert "max_tokens 40 was cut to 1" in events[-1].warnings[0]
    free = run.make(prompt(1, 20), SamplingParams(temperature=0, ignore_eos=True))
    engine.add(free)
    assert run.finish(engine, free)[0][-1].warnings == ()
    assert len(free.output) == 30, "max_tokens None is what the context leaves"


def test_bad_requests_are_refused_before_they_run(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer)
    with pytest.raises(UsageError, match="the prompt is empty"):
        engine.add(run.make([], GREEDY))
    with pytest.raises(UsageError, match="id 634; this model's tokens are 0 to 633"):
        engine.check(run.make([1, 2], GREEDY).__class__([1, 634], GREEDY, run.make([1], GREEDY).stream))
    with pytest.raises(UsageError, match="n=2"):
        engine.add(run.make([1], SamplingParams(n=2)))
    with pytest.raises(UsageError, match="logit_bias names token 634"):
        engine.add(run.make([1], SamplingParams(logit_bias={634: 1.0})))
    with pytest.raises(UsageError, match="max_batch=0"):
        Engine(model, tokenizer, max_batch=0)
    with pytest.raises(UsageError, match="do not belong together"):
        Engine(random_model(tiny_config(vocab_size=600)), tokenizer)
    assert not engine.has_work


def test_a_small_pool_makes_samples_wait_or_start_over(run: Any, model: Any, tokenizer: Any) -> None:
    """Ten samples that need 9 blocks each, 20 blocks: preempted ones give the same tokens as undisturbed ones."""
    params = SamplingParams(temperature=1, seed=3, max_tokens=100, ignore_eos=True)
    cases = [prompt(i, 40) for i in range(10)]
    alone = [run.one(model, ids, params).output for ids in cases]
    engine = Engine(model, tokenizer, blocks=21)
    requests = [run.make(ids, params) for ids in cases]
    for request in requests:
        engine.add(request)
    preempted = 0
    while engine.has_work:
        engine.step()
        preempted = max(preempted, *(item.row.preemptions for item in engine._live.values()), 0)
        assert engine.used_blocks <= 20
    assert preempted > 0
    assert [request.output for request in requests] == alone
    assert engine.used_blocks == 0


def test_a_prompt_that_the_pool_can_never_hold_is_refused_with_numbers(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, blocks=11)
    with pytest.raises(UsageError, match="the prompt has 160 tokens, but the KV cache is 160"):
        engine.add(run.make(prompt(1, 160), GREEDY))
    request = run.make(prompt(1, 150), GREEDY)
    engine.add(request)
    run.finish(engine, request)
    assert len(request.output) == 10
    assert "max_tokens 40 was cut to 10" in request.warnings[0]


def test_no_room_for_any_cache_is_said_with_numbers(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("qwen3.engine.memory.available_bytes", lambda device: 10_000_000)
    with pytest.raises(OutOfMemoryError, match="10,000,000 bytes free"):
        Engine(model, tokenizer)


def test_no_memory_in_a_step_costs_the_youngest(run: Any, tokenizer: Any) -> None:
    model = random_model(tiny_config(), seed=1)
    cases = [prompt(i, 10) for i in range(3)]
    alone = [run.one(model, ids, GREEDY).output for ids in cases]
    engine = Engine(model, tokenizer)
    hidden = engine.runner.stepper.hidden

    def short_of_memory(ids: torch.Tensor, plan: Any, *rest: Any, **more: Any) -> torch.Tensor:
        if len(plan.lengths) == 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 1 bytes"
            )
        return hidden(ids, plan, *rest, **more)

    engine.runner.stepper.hidden = short_of_memory
    requests = [run.make(ids, GREEDY) for ids in cases]
    for request in requests:
        engine.add(request)
    run.finish(engine, *requests)
    assert isinstance(requests[2].error, OutOfMemoryError)
    assert [request.output for request in requests[:2]] == alone[:2]


def test_a_failing_forward_fails_its_rows_and_nothing_else(run: Any, tokenizer: Any) -> None:
    model = random_model(tiny_config(), seed=1)
    engine = Engine(model, tokenizer)
    hidden = engine.runner.stepper.hidden
    engine.runner.stepper.hidden = lambda *rest, **more: 1 / 0
    broken = run.make([1, 2, 3], GREEDY)
    engine.add(broken)
    run.finish(engine, broken)
    assert isinstance(broken.error, ZeroDivisionError)
    engine.runner.stepper.hidden = hidden
    fine = run.make([1, 2, 3], GREEDY)
    engine.add(fine)
    run.finish(engine, fine)
    assert len(fine.output) == 40


@pytest.mark.parametrize("where", ["bind", "push"])
def test_a_failure_anywhere_is_that_requests_own(
    where: str, run: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks while a late request comes in, `step` raises nothing and the first request goes on."""
    model = random_model(tiny_config(), seed=1)
    ids = prompt(2, 10)
    alone = run.one(model, ids, GREEDY).output
    engine = Engine(model, tokenizer, max_batch=2)
    first, short, late = requests = [run.make(ids, p) for p in (GREEDY, replace(GREEDY, max_tokens=3), GREEDY)]
    engine.add_samples(requests)
    while not short.done:
        engine.step()
    target, name = {"bind": (engine.picker, "bind"), "push": (late.stream, "push")}[where]
    broken, original = [], getattr(target, name)

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if not broken:
            broken.append(where)
            raise RuntimeError("a device gone wrong")
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, fail_once)
    run.finish(engine, *requests)
    assert broken
    assert (str(late.error), late.finish_reason) == ("a device gone wrong", "error")
    assert (first.error, first.output, short.output) == (None, alone, alone[:3])


@pytest.mark.parametrize("where", ["hidden", "push", "sample", "plan"])
def test_an_interrupt_anywhere_leaves_the_engine_usable(
    where: str, run: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(tiny_config(), seed=1)
    cases = [prompt(i, 10) for i in range(3)]
    params = SamplingParams(temperature=1, seed=3, max_tokens=20, ignore_eos=True)
    alone = [run.one(model, ids, params).output for ids in cases]
    engine = Engine(model, tokenizer)
    requests = [run.make(ids, params) for ids in cases]
    for request in requests:
        engine.add(request)
    for _ in range(5):
        engine.step()
    target, name = {
        "hidden": (engine.runner.stepper, "hidden"),
        "push": (requests[1].stream, "push"),
        "sample": (pickers, "sample"),
        "plan": (engine.scheduler, "plan"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    run.finish(engine, *requests)
    for i, request in enumerate(requests):
        if where == "push" and i == 1:
            assert "interrupted" in str(request.error)
        else:
            assert request.output == alone[i]
            assert request.error is None


def test_an_interrupt_between_prompt_and_first_token_of_samples(
    run: Any, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, params = prompt(3, 25), SamplingParams(temperature=1, seed=3, max_tokens=8, ignore_eos=True)
    outputs = []
    for failure in (None, KeyboardInterrupt(), RuntimeError("can't allocate memory")):
        engine = Engine(model, tokenizer)
        requests = [run.make(ids, params, index=i) for i in range(3)]
        engine.add_samples(requests)
        if failure is not None:

            def fail(*_: Any, failure: BaseException = failure) -> None:
                raise failure

            with monkeypatch.context() as patch:
                patch.setattr(pickers, "sample", fail)
                if isinstance(failure, KeyboardInterrupt):
                    with pytest.raises(KeyboardInterrupt):
                        engine.step()
                else:
                    engine.step()
        run.finish(engine, *requests)
        outputs.append([request.output for request in requests])
    assert outputs[1] == outputs[0]
    assert outputs[2] == [[], *outputs[0][1:]], "out of memory costs the youngest of its step"
    assert isinstance(requests[0].error, OutOfMemoryError)


def test_prompt_logprobs_and_logprobs_are_log_softmax(run: Any, model: Any) -> None:
    ids = prompt(6, 150)
    params = SamplingParams(temperature=1, seed=2, max_tokens=10, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    for chunk in (40, 2048):
        request = run.one(model, ids, params, prefill_chunk=chunk)
        whole = ids + request.output
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([whole]))[0].double(), dim=-1)
        assert request.prompt_logprobs[0] is None
        assert [entry.id for entry in request.prompt_logprobs[1:]] == ids[1:]
        entries = request.prompt_logprobs[1:] + request.logprobs
        assert len(entries) == len(whole) - 1
        for i, entry in enumerate(entries):
            assert entry.logprob == pytest.approx(expected[i, whole[i + 1]].item(), abs=1e-4)
            assert len(entry.top) == (2 if i < len(ids) - 1 else 3)
            assert entry.top[0][1] == pytest.approx(expected[i, :634].max().item(), abs=1e-4)


def test_logprobs_do_not_change_the_tokens(run: Any, model: Any) -> None:
    policy = ThinkingPolicy(mode="on", budget=6)
    plain = SamplingParams(temperature=1, seed=2, max_tokens=100, ignore_eos=True)
    told = SamplingParams(temperature=1, seed=2, max_tokens=100, ignore_eos=True, logprobs=0)
    first, second = (run.one(model, prompt(6, 20), p, policy=policy) for p in (plain, told))
    assert first.output == second.output
    assert [entry.id for entry in second.logprobs] == second.output
    report = second.stream.report()
    assert sum(entry.forced for entry in second.logprobs) == report.forced_tokens > 20


def test_events_and_clock(run: Any, model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer)
    request = run.make(prompt(1, 30), SamplingParams(seed=1, max_tokens=60), ThinkingPolicy(mode="on", budget=10))
    engine.add(request)
    events = run.finish(engine, request)[0]
    assert isinstance(events[-1], Finish)
    assert any(isinstance(e, ReasoningDelta) for e in events)
    clock = request.clock
    assert 0 < clock.added <= clock.started <= clock.first_token <= clock.finished
    answers = [e for e in events if isinstance(e, TextDelta)]
    assert bool(clock.first_answer) == bool(answers)
    assert events[-1].usage.completion_tokens == len(request.output)


def test_overhead_of_a_step(run: Any, tokenizer: Any, scripted: Any) -> None:
    """What the engine adds to a forward, batch 1, at the embedded model's vocabulary and at the official one."""
    model = scripted([5] * 10)
    engine = Engine(model, tokenizer)
    params = SamplingParams(seed=1, max_tokens=900, ignore_eos=True)
    request = run.make([1, 2, 3], params)
    engine.add(request)
    times = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    early, late = sorted(times[50:150])[50], sorted(times[-150:-50])[50]
    assert early < 0.003
    assert late < 2 * early + 0.0005, "work that grows with the length"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(run: Any, tokenizer: Any) -> None:
    from qwen3.engine.sampler import RowSampler, sample

    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 640, generator=generator) * 3
    chosen = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        settings = [SamplingParams(temperature=1, top_p=0.9, top_k=(0, 20)[i % 2], min_p=0, seed=i) for i in range(64)]
        rows = [RowSampler(params, [1, 2], 634, device) for params in settings]
        chosen.append(sample(logits.to(device), rows, [3] * 64, [()] * 64))
    assert chosen[0] == chosen[1], "the same logits and seeds give the same tokens on every device"

    model = random_model(tiny_config(), seed=1).cuda()
    cases = [prompt(i, 5 + 3 * i) for i in range(12)]
    params = SamplingParams(temperature=1, seed=3, max_tokens=40, ignore_eos=True, repetition_penalty=1.1, logprobs=2)
    alone = [run.one(model, ids, params).output for ids in cases]
    engine = Engine(model, tokenizer, max_batch=5)
    requests = [run.make(ids, params) for ids in cases]
    for request in requests:
        engine.add(request)
    run.finish(engine, *requests)
    equal = sum(request.output == output for request, output in zip(requests, alone, strict=True))
    assert equal >= 10, "batched matrix products may differ in the last bits, and so decide a near tie"
    assert all(len(request.output) == 40 for request in requests)
