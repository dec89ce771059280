"""What callers say about thinking and about the form of answers, carried out: on a small random model, where nothing
comes out right by itself."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat import Finish, ReasoningDelta, TextDelta, ToolCallDelta, fold
from qwen3.chat.next_turn import next_turn_ids
from qwen3.chat.stream import EARLY_STOP
from qwen3.engine.constraint import Constraint
from qwen3.engine.trial import WINDOW, Trial
from qwen3.errors import ModelNotFoundError, UsageError
from tests.fixtures import random_checkpoint, random_model, tiny_config, tiny_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["S", "M"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "list"],
    "additionalProperties": False,
}


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2, 3]}}, "required": ["a"]}
    parameters["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("add"), tool("take_away")]
POLICIES = [
    ThinkingPolicy("on", 20),
    ThinkingPolicy("off"),
    ThinkingPolicy("auto", 20, threshold=0),
    ThinkingPolicy("auto", threshold=1),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    config = tiny_config()
    with LLM.of(random_model(config), tiny_tokenizer(config), prefill_ahead=True) as llm:
        yield llm


def stuck(llm: LLM, **more: Any) -> SamplingParams:
    """Of a model that would think forever."""
    ends = (llm.tokenizer.control.end_think, *llm.tokenizer.eos_ids)
    return SamplingParams(seed=1, logit_bias=dict.fromkeys(ends, -100.0), **more)


# What the answer looks like


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode} {policy.threshold}")
@pytest.mark.parametrize("seed", [1, 2])
def test_answers_follow_their_form_whatever_was_thought(llm: LLM, policy: ThinkingPolicy, seed: int) -> None:
    sampling = SamplingParams(seed=seed, temperature=1, max_tokens=400)
    for given in ({"schema": SCHEMA}, {"regex": "(ab|cd){2,5}!"}, {"grammar": 'start: "x" ("y" | "z")~3'}):
        whole = llm.chat("Describe it", policy, sampling, **given)
        assert (whole.finish_reason, whole.warnings) == ("stop", ())
        if "schema" in given:
            value = json.loads(whole.content)
            assert list(value) == ["name", "size", "list"]
            assert value["size"] in ("S", "M")
        else:
            assert re.fullmatch("(ab|cd){2,5}!|x[yz]{3}", whole.content)
        assert bool(whole.reasoning_content) == (policy.mode == "on" or policy.threshold == 0)
        assert whole.thinking.used <= 20
        with llm.chat("Describe it", policy, sampling, stream=True, **given) as stream:
            events = list(stream)
        assert fold(events).content == whole.content
        assert stream.result.ids == whole.ids
        assert stream.result.thinking == whole.thinking


def test_a_schema_may_be_text_or_a_pydantic_model_and_holds_for_batches_samples_and_raw_prompts(llm: LLM) -> None:
    off, sampling = ThinkingPolicy("off"), SamplingParams(seed=4, max_tokens=300)
    wanted = llm.chat("Hi", off, sampling, schema=SCHEMA).content
    model = SimpleNamespace(model_json_schema=lambda: SCHEMA)
    for form in (json.dumps(SCHEMA), model):
        assert llm.chat("Hi", off, sampling, schema=form).content == wanted
    assert llm.chat_batch(["Ho", "Hi"], off, sampling, schema=SCHEMA)[1].content == wanted
    for found in llm.chat("Hi", off, replace(sampling, n=3), schema=SCHEMA):
        assert json.loads(found.content)
    for prompt in ("Once", "<think>\n\n</think>\n\n"):
        assert json.loads(llm.generate(prompt, sampling, ThinkingPolicy(budget=10), schema=SCHEMA)[0].content)
    assert len(llm.generate("Once", sampling, off, regex="[abc]{7}")[0].content) == 7
    with llm.generate("Once", sampling, off, regex="[abc]{7}", stream=True) as stream:
        assert "".join(event.text for event in stream if isinstance(event, TextDelta)).strip("abc") == ""


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode} {policy.threshold}")
def test_tools_that_must_be_called_are(llm: LLM, policy: ThinkingPolicy) -> None:
    sampling = SamplingParams(seed=5, max_tokens=400)
    for choice, names in (
        ("required", {"add", "take_away"}),
        ("take_away", {"take_away"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
    ):
        one = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        result = llm.chat("Count", policy, sampling, **one)
        assert result.finish_reason == "tool_calls"
        assert result.content == ""
        assert len(result.tool_calls) == 1
        assert result.tool_calls[0].name in names
        assert json.loads(result.tool_calls[0].arguments)["a"] in (1, 2, 3)
        with llm.chat("Count", policy, sampling, stream=True, **one) as stream:
            deltas = [event for event in stream if isinstance(event, ToolCallDelta)]
        assert "".join(delta.arguments_delta for delta in deltas) == result.tool_calls[0].arguments
    several = llm.chat("Count", policy, replace(sampling, max_tokens=300), tools=TOOLS, tool_choice="required")
    assert several.tool_calls


def test_a_call_in_a_thought_is_none_and_one_call_may_be_all(llm: LLM) -> None:
    control = llm.tokenizer.control
    eager = SamplingParams(seed=5, max_tokens=400, logit_bias={control.tool_call: 30.0})
    on = ThinkingPolicy("on", 15)
    result = llm.chat("Count", on, eager, tools=TOOLS, parallel_tool_calls=False)
    assert len(result.tool_calls) == 1
    assert result.finish_reason == "tool_calls"
    assert control.tool_call not in result.ids[: result.ids.index(control.end_think)]
    either = llm.chat("Count", on, eager, tools=TOOLS, schema=SCHEMA)
    assert either.tool_calls
    shy = replace(eager, logit_bias={control.tool_call: -100.0})
    assert json.loads(llm.chat("Count", on, shy, tools=TOOLS, schema=SCHEMA).content)
    assert json.loads(llm.chat("Count", on, eager, tools=TOOLS, schema=SCHEMA, tool_choice="none").content)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schema": SCHEMA, "regex": "a"}, "^schema and regex are given"),
        ({"grammar": "start: /a/", "regex": "a"}, "^regex and grammar are given"),
        ({"schema": {"typ": "object"}}, "^schema.typ is not supported"),
        ({"schema": "{"}, "^schema is not JSON"),
        ({"schema": False}, "^schema is false"),
        ({"regex": "("}, "^regex: "),
        ({"regex": 5}, "^regex must be a string, not int"),
        ({"grammar": "start: nothing"}, "^grammar: "),
        ({"tool_choice": "required"}, "^tool_choice 'required' needs tools"),
        ({"tool_choice": "add"}, "^tool_choice 'add' needs tools"),
        (
            {"tools": TOOLS, "tool_choice": "ad"},
            "^tool_choice names 'ad', which is not among the tools: add, take",
        ),
        ({"tools": TOOLS, "tool_choice": {"name": "add"}}, "^tool_choice must be 'auto', 'none', 'required'"),
        ({"tools": TOOLS, "tool_choice": 5}, "^tool_choice must be 'auto', 'none', 'required'"),
        (
            {"tools": TOOLS, "tool_choice": "required", "schema": SCHEMA},
            "^schema and tool_choice 'required' con",
        ),
        ({"tools": TOOLS, "tool_choice": "add", "regex": "a"}, "^regex and tool_choice 'add' contradict"),
        ({"tools": TOOLS, "regex": "a"}, "^regex does not go with tools the model may call"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "^parallel_tool_calls='no' must be True or False"),
        ({"thinking": ThinkingPolicy(answer_reserve=50)}, "answer_reserve is 50 but max_tokens is 30"),
        (
            {"thinking": ThinkingPolicy(max_active_params=5)},
            r"max_active_params is 5 but this model is dense, all its",
        ),
    ],
)
def test_contradictions_are_named_before_anything_runs(llm: LLM, given: dict[str, Any], message: str) -> None:
    given = {"sampling": SamplingParams(max_tokens=30), **given}
    for ask in (llm.chat, lambda text, **how: llm.chat_batch([text], **how)):
        with pytest.raises(UsageError, match=message.replace("^", "" if ask is not llm.chat else "^")) as caught:
            ask("Hi", **given)
        assert "\n" not in str(caught.value)
    assert not llm.engine.has_work


def test_calls_of_the_models_choice_are_held_to_their_form(llm: LLM) -> None:
    eager = SamplingParams(seed=5, max_tokens=400, logit_bias={llm.tokenizer.control.tool_call: 30.0})
    for policy in POLICIES:
        result = llm.chat("Count", policy, eager, tools=TOOLS)
        assert result.tool_calls
        for call in result.tool_calls:
            assert call.name in ("add", "take_away")
            assert json.loads(call.arguments)["a"] in (1, 2, 3)


def test_what_cannot_be_enforced_of_tools_is_said_and_the_model_may_call_them(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SamplingParams(seed=5, max_tokens=5)
    odd = {"name": "f", "parameters": {"properties": {"a": {"nullable": True}}}}
    (warning,) = llm.chat("Count", sampling=short, tools=[odd]).warnings
    assert warning.startswith(
        "tools[0].parameters.properties.a.nullable is not supported in structured output; the arg"
    )
    (warning,) = llm.chat("Count", sampling=short, tools=[odd, odd], parallel_tool_calls=False).warnings
    assert warning == "tools[1].name 'f' is given twice; calls may have any form"
    monkeypatch.setattr(Constraint, "matcher", Mock(side_effect=UsageError("tools: too large")))
    (warning,) = llm.chat("Count", sampling=short, tools=TOOLS).warnings
    assert warning == "tools: too large; calls may have any form"
    with pytest.raises(UsageError, match=r"^tools: too large"):
        llm.chat("Count", sampling=short, tools=TOOLS, tool_choice="required")


def test_tool_choices_that_bind_nothing() -> None:
    assert Form.of() == Form.of(tool_choice="auto") == Form.of(tools=[], tool_choice="none") == Form()
    assert Form.of(tools=TOOLS) == Form(TOOLS, Constraint.text_then_calls(TOOLS))
    assert Form.of(tools=TOOLS, tool_choice="none") == Form()


# How long it thinks


def test_limits_end_the_thinking_and_an_answer_follows(llm: LLM) -> None:
    sampling = SamplingParams(seed=1, max_tokens=150, logit_bias=stuck(llm).logit_bias)
    forced = len(llm.tokenizer.encode(EARLY_STOP))
    newline = llm.tokenizer.encode("\n")[0]
    paragraphs = replace(sampling, temperature=3, top_p=1, top_k=0, logit_bias=sampling.logit_bias | {newline: 12.0})
    for policy, ended_by, used in (
        (ThinkingPolicy("on", 40), "budget", 40),
        (ThinkingPolicy("on", answer_reserve=100), "budget", 50),
        (ThinkingPolicy("on", 60, answer_reserve=100), "budget", 50),
        (ThinkingPolicy("on", 30, answer_reserve=100), "budget", 30),
    ):
        result = llm.chat("Hi", policy, sampling)
        assert (result.thinking.ended_by, result.thinking.used) == (ended_by, used)
        assert result.thinking.budget == used
        assert result.thinking.forced_tokens == forced + 2  # with "<think>\n"
        assert result.content
        assert result.warnings == ()
    result = llm.chat("Hi", ThinkingPolicy("on", max_steps=2), paragraphs)
    assert (result.thinking.ended_by, result.thinking.steps) == ("steps", 2)
    landed = llm.chat("Hi", ThinkingPolicy("on", 100, soft_landing=90), paragraphs)
    assert landed.thinking.ended_by == "budget"
    assert 10 <= landed.thinking.used < 100


def test_too_little_room_for_an_answer_is_said(llm: LLM) -> None:
    forced = len(llm.tokenizer.encode(EARLY_STOP))

    def warned(policy: ThinkingPolicy, max_tokens: int | None) -> tuple[str, ...]:
        ask = llm._asking.chat("Hi", Form(), policy, SamplingParams(max_tokens=max_tokens), llm.engine.check)
        return tuple(ask.requests[0].warnings)

    assert warned(ThinkingPolicy("on", 20), 20 + forced + 1) == ()
    (said,) = warned(ThinkingPolicy("on", 20), 20 + forced)
    assert (
        said
        == f"max_tokens={20 + forced} may leave no room for an answer after thinking.budget=20 and {forced} "
        + ("closing tokens")
    )
    assert "may leave no room" in warned(ThinkingPolicy("on", answer_reserve=forced), 200)[0]
    assert warned(ThinkingPolicy("on", answer_reserve=forced + 1), 200) == ()
    (said,) = warned(ThinkingPolicy("on", 5000), None)
    assert re.match(r"the 4,0\d\d tokens that the context leaves may leave no room", said)
    with pytest.raises(UsageError, match=r"answer_reserve is 5000 but the 4,0\d\d tokens that the context leaves"):
        warned(ThinkingPolicy(answer_reserve=5000), None)
    switched = llm._asking.chat("Hi /no_think", Form(), ThinkingPolicy(answer_reserve=9), None, llm.engine.check)
    assert switched.requests[0].warnings == ["thinking.answer_reserve=9 has no effect: /no_think in messages[0] turns "
                                             "thinking off"]  # fmt: skip
    ask = llm._asking.chat(
        "Hi", Form(), ThinkingPolicy("off", time_limit_s=1), SamplingParams(ignore_eos=True), llm.engine.check
    )
    assert "time_limit_s will cut it" in ask.requests[0].warnings[0]


def test_a_time_limit_closes_the_thinking_and_the_answer_is_in_time(llm: LLM) -> None:
    result = llm.chat("Hi", ThinkingPolicy("on", time_limit_s=0.8, loop_guard=False), stuck(llm), regex="[ab]{4}")
    assert result.thinking.ended_by == "time"
    assert result.finish_reason == "stop"
    assert len(result.content) == 4
    assert result.timing.total < 0.85


def test_answer_now_from_wherever_it_is_said(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    on, sampling = ThinkingPolicy("on"), stuck(llm, max_tokens=3000)
    with llm.chat("Hi", on, sampling, regex="ok", stream=True) as stream:
        for event in stream:
            if isinstance(event, ReasoningDelta) and len(stream.result.ids) > 20:
                stream.answer_now()
    assert stream.result.thinking.ended_by == "client"
    assert stream.result.thinking.used < 40
    assert stream.result.content == "ok"
    stream.answer_now()  # too late: no effect
    with llm.chat("Hi", on, sampling, regex="ok", stream=True) as stream:
        stream.answer_now()  # before anything was said
        assert [event.text for event in stream if isinstance(event, TextDelta)] == ["ok"]
    assert stream.result.thinking.ended_by == "client"

    engine, steps = llm.engine, []
    advance = engine.advance

    def interrupted() -> None:
        """As by a signal that comes in the middle of a step, while the lock is held."""
        steps.append(1)
        if len(steps) == 10:
            assert llm._lock.locked()
            stream.answer_now()
        advance()

    monkeypatch.setattr(engine, "advance", interrupted)
    stream = llm.chat("Hi", on, sampling, regex="ok", stream=True)
    assert isinstance([*stream][-1], Finish)
    assert stream.result.thinking.ended_by == "client"
    monkeypatch.undo()
    stream = llm.chat("Hi", on, sampling, regex="ok", stream=True)
    threading.Timer(0.05, stream.answer_now).start()
    assert [*stream][-1].thinking.ended_by == "client"


def test_fewer_experts_keep_active_parameters_within_a_limit() -> None:
    config = tiny_config(moe=True, num_experts_per_tok=4)
    least, two, three = (config.num_parameters(True, k) for k in (1, 2, 3))
    assert config.num_parameters(True) == config.num_parameters(True, 4)
    assert two - least == three - two == 2 * 3 * 64 * 32
    assert [config.experts_within(n) for n in (least - 1, least, three - 1, three, 10**9)] == [0, 1, 2, 3, 4]
    assert tiny_config().experts_within(10**9) == 0
    with LLM.of(random_model(config), tiny_tokenizer(config)) as llm:
        sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
        off = {k: ThinkingPolicy("off", max_active_params=n) for k, n in ((2, three - 1), (0, 10**9))}
        for experts, policy in off.items():
            asked = llm._asking.chat("Hi", Form(), policy, sampling, llm.engine.check)
            assert asked.requests[0].experts == experts
        fewer, all_of_them = (llm.chat("Hi", policy, sampling) for policy in off.values())
        plain = llm.chat("Hi", ThinkingPolicy("off"), sampling)
        assert [entry.logprob for entry in all_of_them.logprobs] == pytest.approx(
            [e.logprob for e in plain.logprobs], abs=1e-4
        )
        assert abs(fewer.logprobs[0].logprob - plain.logprobs[0].logprob) > 1e-3
        with pytest.raises(UsageError, match=f"max_active_params is 9 but with one expert per token {least:,} para"):
            llm.chat("Hi", ThinkingPolicy(max_active_params=9))


# Whether it thinks


def test_auto_answers_or_thinks_and_says_which(llm: LLM) -> None:
    sampling = SamplingParams(seed=3, max_tokens=120, temperature=1)
    sure = llm.chat("Hi", ThinkingPolicy("auto", threshold=1), sampling)
    assert (sure.thinking.mode, sure.thinking.source, sure.thinking.ended_by) == ("off", "auto", None)
    assert (sure.reasoning_content, sure.thinking.discarded_tokens) == ("", 0)
    assert 1 <= sure.thinking.window <= WINDOW
    unsure = llm.chat("Hi", ThinkingPolicy("auto", 30, threshold=0), sampling)
    assert (unsure.thinking.mode, unsure.thinking.source) == ("on", "auto")
    assert unsure.thinking.discarded_tokens > 0
    assert unsure.usage.completion_tokens == len(unsure.ids) + unsure.thinking.discarded_tokens
    assert unsure.thinking.used <= 30
    on = llm.chat("Hi", ThinkingPolicy("on", 30), sampling)
    assert (unsure.ids, unsure.content) == (on.ids, on.content)  # as if it had been told to think
    for whole, bounds in ((unsure, {"budget": 30, "threshold": 0}), (sure, {"threshold": 1})):
        with llm.chat("Hi", ThinkingPolicy("auto", **bounds), sampling, stream=True) as stream:
            assert fold(stream).content == whole.content
        assert stream.result.ids == whole.ids
    request = llm._asking.chat("Hi", Form(), ThinkingPolicy("auto", 9), None, llm.engine.check).requests[0]
    assert request.trial == Trial()
    assert request.thinking == ThinkingPolicy("on", 9)
    assert request.params.temperature == 0.6  # thinking's defaults, whatever it will do
    switched = llm.chat("Hi /no_think", ThinkingPolicy("auto"), sampling)
    assert "overridden by thinking.mode='auto'" in switched.warnings[0]


def test_auto_is_refused_where_there_is_no_choice(llm: LLM) -> None:
    for mode in ("thinking", "instruct"):
        single = LLM.of(llm.model, llm.tokenizer, mode=mode)  # type: ignore[arg-type]
        for ask in (single.chat, single.generate):
            with pytest.raises(UsageError, match=r"thinking\.mode 'auto' is impossible"):
                ask("Hi", thinking=ThinkingPolicy("auto"))
    with pytest.raises(UsageError, match="'auto' is impossible: the prompt has closed its think block already"):
        llm.generate("<think>\n\n</think>\n\n", thinking=ThinkingPolicy("auto"))
    raw = llm.generate("Hi", SamplingParams(seed=1, max_tokens=40), ThinkingPolicy("auto", threshold=1))
    assert raw[0].thinking.source == "auto"


def test_what_settled_the_mode_is_reported(llm: LLM) -> None:
    short = SamplingParams(seed=1, max_tokens=3)
    for text, policy, source in (
        ("Hi", None, "default"),
        ("Hi", ThinkingPolicy(budget=5), "default"),
        ("Hi /no_think", None, "switch"),
        ("Hi /no_think", ThinkingPolicy("on"), "explicit"),
        ("Hi", ThinkingPolicy(budget=0), "explicit"),
    ):
        assert llm.chat(text, policy, short).thinking.source == source
    assert llm.generate("Hi", short)[0].thinking.source == "default"
    assert llm.generate("Hi", short, ThinkingPolicy("off"))[0].thinking.source == "explicit"


# The next turn


def settle(llm: LLM) -> None:
    """Wait until idle work is done."""
    assert llm._idle is not None
    end = time.monotonic() + 10
    while llm._idle._runs or llm._idle._jobs:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_next_turn_finds_its_beginning_in_the_cache(llm: LLM) -> None:
    system = {"role": "system", "content": "Be brief. " * 20}
    for policy in (ThinkingPolicy("on", 200), ThinkingPolicy("off"), ThinkingPolicy("auto", threshold=0.5)):
        for stream in (False, True):
            messages: list[Any] = [system, {"role": "user", "content": f"Hello {policy.mode} {stream}"}]
            answer = llm.chat(messages, policy, SamplingParams(seed=7), regex="[a-z]{150}", stream=stream)
            if stream:
                for _ in answer:
                    pass
                answer = answer.result
            assert answer.finish_reason == "stop"
            settle(llm)
            messages.append(answer.message)
            expected = next_turn_ids(messages[:-1], answer.message, tokenizer=llm.tokenizer)
            again = llm.chat([*messages, {"role": "user", "content": "And?"}], policy, SamplingParams(max_tokens=2))
            assert list(again.prompt_ids[: len(expected)]) == expected
            assert again.usage.cached_tokens == len(expected) // 16 * 16


def test_nothing_is_computed_for_a_turn_that_will_not_come(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[list[int]] = []
    monkeypatch.setattr(llm._idle, "expect", lambda make, *key: expected.append(make()))
    off, done = ThinkingPolicy("off"), {"regex": "[a-z]{9}"}
    llm.chat("Hi", off, SamplingParams(seed=1, max_tokens=5))
    llm.chat("Hi", off, SamplingParams(seed=1, n=2), **done)
    llm.chat_batch(["Hi", "Ho"], off, SamplingParams(seed=1), **done)
    llm.generate("Hi", SamplingParams(seed=1), off, **done)
    with llm.chat("Hi", off, SamplingParams(seed=1), stream=True, **done) as stream:
        next(stream)
    assert expected == []
    llm.chat("Hi", off, SamplingParams(seed=1), **done)
    assert len(expected) == 1
    llm.chat("Hi", off, SamplingParams(seed=1), tools=TOOLS, tool_choice="add", parallel_tool_calls=False)
    assert len(expected) == 2, "the tool's response"
    config = tiny_config()
    with LLM.of(random_model(config), tiny_tokenizer(config)) as plain:
        assert plain._idle is None
        assert plain.chat("Hi", off, SamplingParams(seed=1), **done).content


def test_who_takes_the_engine_has_it_alone(llm: LLM) -> None:
    llm.chat("Hello " * 40, ThinkingPolicy("off"), SamplingParams(seed=1), regex="[a-z]{90}")
    assert llm._idle is not None
    assert llm._idle._runs
    engine = llm.engine
    assert not llm._idle._runs
    assert not engine.has_work
    llm.chat("Hello", ThinkingPolicy("off"), SamplingParams(seed=1), regex="[a-z]{90}")
    settle(llm)
    assert not engine.has_idle_work


# Guesses


def test_guessed_ahead_the_answer_is_the_same(tmp_path: Path) -> None:
    folder, other = tmp_path / "tiny", tmp_path / "other"
    random_checkpoint(folder, tiny_config(), tokenizer=True)
    random_checkpoint(other, tiny_config(vocab_size=700), tokenizer=True)
    draft = random_checkpoint(tmp_path / "draft", tiny_config(num_hidden_layers=1), tokenizer=True, seed=1)
    repeat = SamplingParams(seed=1, temperature=0.2, max_tokens=120, repetition_penalty=0.8)
    found = []
    for options in ({}, {"speculation": "ngram"}, {"speculation": str(draft), "draft_tokens": 3}):
        with LLM(folder, device="cpu", **options) as llm:
            asked = (ThinkingPolicy("on", 30), repeat)
            found.append([llm.chat("Hi", *asked), llm.chat("Hi", *asked, schema=SCHEMA)])
            assert (llm.engine._speculation is None) == (not options)
    for generations in found[1:]:
        for one, plain in zip(generations, found[0], strict=True):
            assert (one.ids, one.content, one.thinking) == (plain.ids, plain.content, plain.thinking)
    for wrong, said in (
        ({"speculation": str(other)}, "the draft model has another tokenizer"),
        ({"speculation": 5}, "speculation=5 must be 'ngram' or a model's name"),
        ({"draft_tokens": 4}, "draft_tokens=4 has no effect without speculation"),
    ):
        with pytest.raises(UsageError, match=said):
            LLM(folder, device="cpu", **wrong)
    with pytest.raises(ModelNotFoundError):
        LLM(folder, device="cpu", speculation="./nowhere")
