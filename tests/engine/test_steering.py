"""What the engine does about thinking between two tokens, with the host in step and one step late: the same."""

from __future__ import annotations

import json
import pickle
import time
from typing import Any

import pytest

from qwen3.chat import ThinkingPolicy, TokenStream, fold
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.engine.constraint import Constraint
from qwen3.engine.trial import Trial
from tests.engine.overlapped import overlapped

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
PROMPT = [5, 6, 7, 8, 9]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22, 333]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(params=["in step", pytest.param("one late", marks=pytest.mark.slow)])
def make_engine(request: Any, model: Any, tokenizer: Any) -> Any:
    def make(**options: Any) -> Engine:
        if request.param == "one late":
            return overlapped(model, tokenizer, **options)
        return Engine(model, tokenizer, max_batch=4, max_len=600, **options)

    return make


def ask(
    tokenizer: Any, policy: ThinkingPolicy | None = None, constraint: Constraint | None = None, **more: Any
) -> Request:
    params = SamplingParams(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=400,
        seed=more.pop("seed", 1),
        logit_bias=more.pop("logit_bias", None),
    ).resolved("thinking")
    matcher = None if constraint is None else constraint.matcher(tokenizer)
    stream = TokenStream(tokenizer, PROMPT, policy, matcher=matcher)
    return Request(list(PROMPT), params, stream, **more)


def finish(engine: Engine, *requests: Request) -> None:
    for _ in range(5000):
        if not engine.has_work:
            for request in requests:
                if request.error:
                    raise request.error
            assert engine.used_blocks == 0
            return
        engine.advance()
    raise AssertionError("the engine never came to an end")


@pytest.mark.parametrize("mode", ["on", "off", None])
def test_grammars_beside_free_rows(make_engine: Any, tokenizer: Any, mode: Any) -> None:
    engine = make_engine()
    constraint = Constraint.json_schema(SCHEMA)
    budget = None if mode == "off" else 9
    guided = [ask(tokenizer, ThinkingPolicy(mode, budget), constraint, seed=i) for i in range(3)]
    free = ask(tokenizer, ThinkingPolicy("on", 20), seed=9)
    for request in (*guided, free):
        engine.add(request)
    finish(engine, *guided, free)
    for request in guided:
        result = fold(request.take_events())
        assert json.loads(result.content)["a"] in (1, 22, 333)
        assert result.finish_reason == "stop"
        assert result.usage.reasoning_tokens <= 9
        assert bool(result.reasoning_content) <= (mode != "off")


def test_the_same_tokens_in_step_and_late(model: Any, tokenizer: Any) -> None:
    constraint = Constraint.regex("(ab|c){3,9}d")
    found = []
    for engine in (Engine(model, tokenizer, max_batch=4, max_len=600), overlapped(model, tokenizer)):
        requests = [ask(tokenizer, ThinkingPolicy("on", 6 + i), constraint, seed=i) for i in range(3)]
        for request in requests:
            engine.add(request)
        finish(engine, *requests)
        found.append([request.output for request in requests])
    assert found[0] == found[1]


def test_calls_are_held_to_their_form_in_step_and_late(model: Any, tokenizer: Any) -> None:
    """Free until the model calls: one step late its next token has been launched by then, and is drawn again."""
    control = tokenizer.control
    constraint = Constraint.text_then_calls([{"name": "f", "parameters": {"properties": {"a": {"enum": [1, 22]}}}}])
    eager = {control.tool_call: 6.0, control.end_think: 6.0}
    found, calls = [], 0
    for engine in (Engine(model, tokenizer, max_batch=4, max_len=600), overlapped(model, tokenizer)):
        requests = [
            ask(tokenizer, ThinkingPolicy(mode, budget), constraint, seed=i, logit_bias=eager)
            for i, (mode, budget) in enumerate([("on", 9), ("off", None), (None, 5), ("off", None)])
        ]
        for request in requests:
            engine.add(request)
        finish(engine, *requests)
        found.append([request.output for request in requests])
        for request in requests:
            result = fold(request.take_events())
            calls += len(result.tool_calls)
            assert all(json.loads(call.arguments).get("a", 1) in (1, 22) for call in result.tool_calls)
            assert result.finish_reason in ("tool_calls", "length")
            assert not any("tool call" in warning for warning in result.warnings)
    assert found[0] == found[1]
    assert calls >= 4


def test_answer_now(make_engine: Any, tokenizer: Any) -> None:
    engine = make_engine()
    request = ask(tokenizer, ThinkingPolicy("on"))
    engine.add(request)
    for _ in range(12):
        engine.advance()
    before = len(request.output)
    assert engine.answer_now(request.id)
    finish(engine, request)
    result = fold(request.take_events())
    assert result.thinking.ended_by == "client"
    assert before - 2 <= result.usage.reasoning_tokens <= before + 2
    assert not engine.answer_now(request.id)


def test_answer_now_before_anything_was_said(make_engine: Any, tokenizer: Any) -> None:
    engine = make_engine()
    request = ask(tokenizer)
    engine.add(request)
    assert engine.answer_now(request.id)
    finish(engine, request)
    assert fold(request.take_events()).usage.reasoning_tokens == 0


def test_time_is_kept(make_engine: Any, tokenizer: Any) -> None:
    engine = make_engine()
    warm = ask(tokenizer, ThinkingPolicy("on", 5))
    engine.add(warm)
    finish(engine, warm)
    request = ask(tokenizer, ThinkingPolicy("on"), time_limit=0.2)
    request.params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=400).resolved("thinking")
    engine.add(request)
    began = time.perf_counter()
    finish(engine, request)
    assert time.perf_counter() - began < 1.0
    result = fold(request.take_events())
    assert result.thinking.ended_by in ("time", "natural", "eos", "length")


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_trials(make_engine: Any, tokenizer: Any, threshold: float) -> None:
    engine = make_engine()
    thinking = ThinkingPolicy("on", 7)
    request = ask(tokenizer, thinking.switched_off(), trial=Trial(threshold), thinking=thinking)
    request.stream.source = "auto"
    engine.add(request)
    seen = []
    while not request.done:
        engine.advance()
        seen.append(len(request.events) > 0 and request.stream.window is None)
    result = fold(request.take_events())
    assert not any(seen)
    report, usage = result.thinking, result.usage
    assert report.source == "auto"
    if threshold == 0:
        assert report.mode == "on"
        assert report.discarded_tokens > 0
        assert 0 < usage.reasoning_tokens <= 7
        assert usage.completion_tokens == len(request.output) + report.discarded_tokens
    else:
        assert report.mode == "off"
        assert report.discarded_tokens == usage.reasoning_tokens == 0
    assert engine.used_blocks == 0 or not finish(engine, request)


def test_the_next_turn_is_computed_when_idle(make_engine: Any, tokenizer: Any) -> None:
    engine = make_engine()
    ids = [3 + i % 40 for i in range(100)]
    engine.prefill_ahead(ids)
    assert engine.has_idle_work
    assert not engine.has_work
    engine.advance()
    request = ask(tokenizer, ThinkingPolicy("off"))
    engine.add(request)
    finish(engine, request)
    for _ in range(20):
        if not engine.has_idle_work:
            break
        engine.advance()
    later = Request([*ids, 50, 51], SamplingParams(max_tokens=1).resolved("instruct"))
    engine.add(later)
    finish(engine, later)
    assert later.cached_tokens == 96


def test_thoughts_do_not_stay_in_the_cache(make_engine: Any, tokenizer: Any) -> None:
    engine = make_engine()
    request = ask(tokenizer, ThinkingPolicy("on", 40))
    request.ids = request.ids * 8
    request.stream = TokenStream(tokenizer, request.ids, ThinkingPolicy("on", 40))
    engine.add(request)
    finish(engine, request)
    if request.finish_reason == "stop":
        assert engine.scheduler.pool.cached == len(request.ids) // 16


def test_a_stream_with_a_grammar_goes_to_another_process(tokenizer: Any) -> None:
    constraint = Constraint.regex("(ab|c)+d")
    stream = TokenStream(tokenizer, PROMPT, ThinkingPolicy("off"), matcher=constraint.matcher(tokenizer))
    while (forced := stream.forced()) is not None:
        stream.push(forced)
    stream.push(tokenizer.encode("c")[0])
    copy = pickle.loads(pickle.dumps(stream))  # between this package's own processes
    assert (copy.mask() == stream.mask()).all()
    copy.push(tokenizer.encode("d")[0])
    assert (copy.mask() != stream.mask()).any()
