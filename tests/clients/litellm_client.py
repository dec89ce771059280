"""LiteLLM in front of an OpenAI-shaped and of an Anthropic-shaped server."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import checks as q

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network on import
import litellm

c = q.Checks()
litellm.suppress_debug_info = True
OPENAI = {"model": f"openai/{q.MODEL}", "api_base": c.v1, "api_key": c.key, "num_retries": 0, "max_retries": 0}
VLLM = OPENAI | {"model": f"hosted_vllm/{q.MODEL}"}
ANTHROPIC = OPENAI | {
    "model": f"anthropic/{q.MODEL}", "api_base": c.base, "max_tokens": 2000,
    "allowed_openai_params": ["thinking"],  # it knows by a model's name whether it thinks
}  # fmt: skip


def ask(text: str | list[Any], by: dict[str, Any] = OPENAI, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return litellm.completion(messages=messages, temperature=0, **(by | fields))


def thinking(**fields: Any) -> dict[str, Any]:
    return {"extra_body": fields}


@c.check
def plain() -> None:
    for by in (OPENAI, VLLM, ANTHROPIC):
        done = ask("Hello", by)
        assert "Hello" in done.choices[0].message.content
        assert done.usage.prompt_tokens > 0


@c.check
def stream() -> None:
    for by in (OPENAI, VLLM, ANTHROPIC | {"thinking": {"type": "enabled", "budget_tokens": 1024}}):
        chunks = list(ask(q.PRODUCT, by, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        thought = "".join(
            getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks if chunk.choices
        )
        assert q.PRODUCT_ANSWER in text, by
        assert thought.count(q.PRODUCT_STEP) == ask(q.PRODUCT, by).choices[0].message.reasoning_content.count(
            q.PRODUCT_STEP
        ), "the reasoning came twice"


def loop(first: Any, messages: list[Any], by: dict[str, Any]) -> None:
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls", first
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": q.CITY})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": q.WEATHER_RESULT}]
    second = ask(messages, by, tools=[q.WEATHER_TOOL])
    assert q.WEATHER_ANSWER in second.choices[0].message.content, second


@c.check
def tools() -> None:
    for by in (OPENAI, VLLM, ANTHROPIC):
        messages = [{"role": "user", "content": q.WEATHER}]
        loop(ask(messages, by, tools=[q.WEATHER_TOOL], tool_choice="required"), messages, by)


@c.check
def tools_stream() -> None:
    for by in (OPENAI, VLLM, ANTHROPIC):
        messages = [{"role": "user", "content": q.WEATHER}]
        chunks = list(ask(messages, by, tools=[q.WEATHER_TOOL], stream=True))
        assert sum(bool(chunk.choices and chunk.choices[0].delta.tool_calls) for chunk in chunks) > 1
        loop(litellm.stream_chunk_builder(chunks, messages=messages), messages, by)


@c.check
def schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": q.ANSWER_SCHEMA, "strict": True}}
    done = ask(q.PRODUCT, VLLM, response_format=form)
    assert isinstance(json.loads(done.choices[0].message.content)["answer"], int)


@c.check
def thinking_on() -> None:
    for by in (OPENAI, VLLM):
        done = ask(q.PRODUCT, by, **thinking(enable_thinking=True))
        assert q.PRODUCT_STEP in done.choices[0].message.reasoning_content
        assert done.usage.completion_tokens_details.reasoning_tokens > q.BUDGET


@c.check
def thinking_off() -> None:
    done = ask("Hello", **thinking(enable_thinking=False))
    assert not getattr(done.choices[0].message, "reasoning_content", None)


@c.check
def thinking_budget() -> None:
    for by in (OPENAI, VLLM):
        done = ask(q.PRODUCT, by, **thinking(thinking_budget=q.BUDGET))
        assert 0 < done.usage.completion_tokens_details.reasoning_tokens <= q.BUDGET
        assert done.choices[0].message.reasoning_content
    done = ask(q.PRODUCT, ANTHROPIC, thinking={"type": "enabled", "budget_tokens": q.BUDGET})
    assert done.choices[0].message.reasoning_content


@c.check
def history() -> None:
    for by in (OPENAI, VLLM, ANTHROPIC):
        messages: list[Any] = [{"role": "user", "content": q.INTRODUCTION}]
        messages += [ask(messages, by).choices[0].message, {"role": "user", "content": q.QUESTION}]
        assert q.NAME in ask(messages, by).choices[0].message.content


@c.check
def bad_field() -> None:
    error = q.raised(litellm.BadRequestError, lambda: ask("Hello", top_p=2))
    assert "top_p" in str(error)
    q.raised(litellm.BadRequestError, lambda: ask("Hello", ANTHROPIC, top_p=2))


@c.check
def unknown_model() -> None:
    for kind in ("openai", "anthropic"):
        by = {"openai": OPENAI, "anthropic": ANTHROPIC}[kind] | {"model": f"{kind}/none-such"}
        q.raised(litellm.NotFoundError, lambda by=by: ask("Hello", by))


@c.check
def wrong_key() -> None:
    for by in (OPENAI, ANTHROPIC):
        q.raised(litellm.AuthenticationError, lambda by=by: ask("Hello", by, api_key=c.wrong_key))


@c.check
def retry() -> None:
    with c.busy() as end:
        q.raised(litellm.RateLimitError, lambda: ask("Hello"))
        threading.Timer(0.3, end).start()
        done = ask("Hello", num_retries=6, max_retries=6)
    assert done.choices[0].message.content


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        answer = ask(q.LONG, stream=True, max_tokens=4000, **thinking(ignore_eos=True, enable_thinking=False))
        next(iter(answer))
        answer.completion_stream.close()
    return c.freed()


c.run()
