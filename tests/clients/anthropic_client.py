"""anthropic-python: messages with thinking blocks, counting, and its own errors."""

from __future__ import annotations

import threading
from typing import Any

import anthropic
import checks as q

c = q.Checks()
client = anthropic.Anthropic(base_url=c.base, api_key=c.key, max_retries=0)
THINK = {"type": "enabled", "budget_tokens": 1024}
OFF = {"type": "disabled"}
TOOL = {"name": "get_weather", "description": q.WEATHER_FUNCTION["description"], "input_schema": q.WEATHER_PARAMETERS}


def body(text: str | list[Any], **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    greedy = {"temperature": 0}  # not a parameter of 2.x any more
    return {"model": q.MODEL, "max_tokens": 2000, "messages": messages, "extra_body": greedy} | fields


def ask(text: str | list[Any], **fields: Any) -> Any:
    return client.messages.create(**body(text, **fields))


def kinds(message: Any) -> list[str]:
    return [block.type for block in message.content]


@c.check
def plain() -> None:
    done = ask("Hello", thinking=OFF)
    assert kinds(done) == ["text"]
    assert "Hello" in done.content[0].text
    assert (done.role, done.stop_reason, done.type) == ("assistant", "end_turn", "message")
    assert done.usage.input_tokens > 0
    assert done.usage.output_tokens > 0
    cut = ask(q.LONG, thinking=OFF, max_tokens=5)
    assert cut.stop_reason == "max_tokens"
    ended = ask(q.LONG, thinking=OFF, stop_sequences=[" 7,"])
    assert (ended.stop_reason, ended.stop_sequence) == ("stop_sequence", " 7,")


@c.check
def stream() -> None:
    with client.messages.stream(**body(q.PRODUCT, thinking=THINK)) as events:
        seen = [event.type for event in events]
        final = events.get_final_message()
    assert kinds(final) == ["thinking", "text"]
    assert q.PRODUCT_STEP in final.content[0].thinking
    assert final.content[0].signature
    assert q.PRODUCT_ANSWER in final.content[1].text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > q.BUDGET
    assert (seen[0], seen[-1]) == ("message_start", "message_stop")
    raw = [event.type for event in ask(q.PRODUCT, thinking=THINK, stream=True)]
    assert [kind for kind in dict.fromkeys(raw) if kind != "ping"] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


def loop(first: Any, messages: list[Any]) -> None:
    assert first.stop_reason == "tool_use", first
    (call,) = (block for block in first.content if block.type == "tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": q.CITY})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": q.WEATHER_RESULT}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = ask(messages, tools=[TOOL], thinking=THINK)
    assert q.WEATHER_ANSWER in second.content[-1].text, second


@c.check
def tools() -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        messages = [{"role": "user", "content": q.WEATHER}]
        loop(ask(messages, tools=[TOOL], tool_choice=choice, thinking=OFF), messages)


@c.check
def tools_stream() -> None:
    messages = [{"role": "user", "content": q.WEATHER}]
    with client.messages.stream(**body(messages, tools=[TOOL], thinking=THINK)) as events:
        pieces = sum(event.type == "input_json" for event in events)
        final = events.get_final_message()
    assert kinds(final) == ["thinking", "tool_use"]
    assert pieces, "no event for the arguments"
    loop(final, messages)


@c.check
def schema() -> None:
    import json

    form = {"format": {"type": "json_schema", "schema": q.ANSWER_SCHEMA}}
    done = ask(q.PRODUCT, output_config=form, thinking=OFF)
    assert isinstance(json.loads(done.content[0].text)["answer"], int)


@c.check
def thinking_on() -> None:
    done = ask(q.PRODUCT, thinking=THINK)
    assert kinds(done) == ["thinking", "text"]
    assert q.PRODUCT_STEP in done.content[0].thinking
    assert q.PRODUCT_ANSWER in done.content[1].text


@c.check
def thinking_off() -> None:
    assert kinds(ask(q.PRODUCT, thinking=OFF)) == ["text"]


@c.check
def thinking_budget() -> None:
    """Their type says 1024 at least; the server takes what it is given and keeps to it."""
    done = ask(q.PRODUCT, thinking={"type": "enabled", "budget_tokens": q.BUDGET})
    free = ask(q.PRODUCT, thinking=THINK)
    assert done.content[0].type == "thinking"
    assert len(done.content[0].thinking.split("Considering")[0]) < len(free.content[0].thinking)
    assert 0 < done.usage.output_tokens_details.thinking_tokens <= q.BUDGET, done.usage


@c.check
def history() -> None:
    messages: list[Any] = [{"role": "user", "content": q.INTRODUCTION}]
    first = ask(messages, thinking=THINK)
    assert kinds(first) == ["thinking", "text"]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": q.QUESTION}]
    assert q.NAME in ask(messages, thinking=THINK).content[-1].text


@c.check
def bad_field() -> None:
    for fields, param in (
        ({"extra_body": {"top_p": 2}}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"name": 3}]}, "tools"),
    ):
        error = q.raised(anthropic.BadRequestError, lambda fields=fields: ask("Hello", **fields))
        assert error.body["type"] == "error"
        assert error.body["error"]["type"] == "invalid_request_error"
        assert param in error.body["error"]["message"], error.body


@c.check
def unknown_model() -> None:
    error = q.raised(anthropic.NotFoundError, lambda: ask("Hello", model="none-such"))
    assert error.body["error"]["type"] == "not_found_error"
    assert q.MODEL in error.body["error"]["message"]


@c.check
def wrong_key() -> None:
    other = anthropic.Anthropic(base_url=c.base, api_key=c.wrong_key, max_retries=0)
    error = q.raised(anthropic.AuthenticationError, lambda: other.messages.create(**body("Hello")))
    assert error.body["error"]["type"] == "authentication_error"
    bearer = anthropic.Anthropic(base_url=c.base, auth_token=c.key, max_retries=0)
    assert bearer.messages.create(**body("Hello", thinking=OFF)).content


@c.check
def retry() -> None:
    patient = anthropic.Anthropic(base_url=c.base, api_key=c.key, max_retries=8)
    with c.busy() as end:
        error = q.raised(anthropic.RateLimitError, lambda: ask("Hello"))
        assert error.body["error"]["type"] == "rate_limit_error"
        assert float(error.response.headers["retry-after"]) > 0
        threading.Timer(0.3, end).start()
        raw = patient.messages.with_raw_response.create(**body("Hello", thinking=OFF))
    assert raw.parse().content
    assert raw.retries_taken >= 1


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        answer = ask(q.LONG, thinking=OFF, stream=True)
        next(iter(answer))
        answer.close()
    return c.freed()


@c.check
def counting() -> None:
    given = {"model": q.MODEL, "messages": [{"role": "user", "content": q.WEATHER}], "thinking": THINK}
    without = client.messages.count_tokens(**given).input_tokens
    with_tools = client.messages.count_tokens(**given, tools=[TOOL]).input_tokens
    assert 0 < without < with_tools
    done = ask(q.WEATHER, tools=[TOOL], thinking=THINK)
    assert done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0) == with_tools


@c.check
def models() -> None:
    assert [model.id for model in client.models.list()] == [q.MODEL, q.VECTORS]
    assert client.models.retrieve(q.MODEL).id == q.MODEL


c.run()
