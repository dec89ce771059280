"""Qwen-Agent: its model class and its Assistant's tool loop, with the server's tool calls and with its own prompt."""

from __future__ import annotations

import gc
import json
import os
from typing import Any

import checks as q

os.environ["QWEN_AGENT_MAX_LLM_CALL_PER_RUN"] = "4"
from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model
from qwen_agent.llm.base import ModelServiceError
from qwen_agent.tools.base import BaseTool, register_tool

c = q.Checks()
called: list[dict[str, Any]] = []


@register_tool("get_weather")
class GetWeather(BaseTool):
    description = q.WEATHER_FUNCTION["description"]
    parameters = q.WEATHER_PARAMETERS

    def call(self, params: str | dict[str, Any], **kwargs: Any) -> str:
        called.append(self._verify_json_format_args(params))
        return q.WEATHER_RESULT


def config(raw: bool = True, key: str = c.key, name: str = q.MODEL, **generate: Any) -> dict[str, Any]:
    fields = {"temperature": 0, "seed": 1, "max_retries": 0, "use_raw_api": raw} | generate
    return {"model": name, "model_type": "oai", "model_server": c.v1, "api_key": key, "generate_cfg": fields}


def body(**fields: Any) -> dict[str, Any]:
    return {"extra_body": fields}


def ask(text: str | list[Any], **fields: Any) -> list[dict[str, Any]]:
    """The messages of the answer, the last state of the stream."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    *_, last = get_chat_model(config(**fields)).chat(messages, stream=True)
    return last


def said(messages: list[dict[str, Any]]) -> str:
    return "".join(message["content"] for message in messages if isinstance(message["content"], str))


def thought(messages: list[dict[str, Any]]) -> str:
    return "".join(message.get("reasoning_content") or "" for message in messages)


@c.check
def plain() -> None:
    (done,) = get_chat_model(config(raw=False)).chat([{"role": "user", "content": q.PRODUCT}], stream=False)
    assert q.PRODUCT_ANSWER in done["content"]
    assert q.PRODUCT_STEP in done["reasoning_content"]


@c.check
def stream() -> None:
    for raw in (True, False):
        states = list(get_chat_model(config(raw)).chat([{"role": "user", "content": q.PRODUCT}], stream=True))
        assert len(states) > 5
        assert q.PRODUCT_ANSWER in said(states[-1])
        assert q.PRODUCT_STEP in thought(states[-1])


def agent(raw: bool) -> list[dict[str, Any]]:
    """What the Assistant makes of a question that takes a tool, which it calls by itself."""
    called.clear()
    *_, messages = Assistant(llm=config(raw), function_list=["get_weather"]).run(
        [{"role": "user", "content": q.WEATHER}]
    )
    assert called[:1] == [{"city": q.CITY}], messages
    kinds = [
        (message["role"], "function_call" in message) for message in messages if not message.get("reasoning_content")
    ]
    assert kinds[:2] == [("assistant", True), ("function", False)], messages
    assert messages[[m["role"] for m in messages].index("function")]["content"] == q.WEATHER_RESULT
    return messages


@c.check
def tools() -> None:
    messages = agent(raw=True)
    assert len(called) == 1
    assert q.WEATHER_ANSWER in said(messages[-1:]), messages


@c.check
def tools_stream() -> str:
    """Without the raw API it writes the tools into the prompt itself and reads the calls out of the streamed text. What
    it writes is plain text to the server, which the demonstration model was not trained to read back as a result."""
    return said(agent(raw=False)[-1:])


@c.check
def schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": q.ANSWER_SCHEMA, "strict": True}}
    assert isinstance(json.loads(said(ask(q.PRODUCT, response_format=form)))["answer"], int)


@c.check
def thinking_on() -> None:
    assert q.PRODUCT_STEP in thought(ask(q.PRODUCT, **body(enable_thinking=True)))


@c.check
def thinking_off() -> None:
    done = ask("Hello", **body(enable_thinking=False))
    assert not thought(done)
    assert "Hello" in said(done)


@c.check
def thinking_budget() -> str:
    """It shows no usage; the thinking must be as short as the budget makes it."""
    free, bounded = thought(ask(q.PRODUCT)), thought(ask(q.PRODUCT, **body(thinking_budget=q.BUDGET)))
    own = bounded.split("Considering the limited time")[0]
    assert 0 < len(own) < len(free) / 2, bounded
    return repr(own)


@c.check
def history() -> None:
    messages: list[Any] = [{"role": "user", "content": q.INTRODUCTION}]
    messages += ask(messages)
    assert thought(messages)
    messages.append({"role": "user", "content": q.QUESTION})
    assert q.NAME in said(ask(messages))


@c.check
def bad_field() -> None:
    error = q.raised(ModelServiceError, lambda: ask("Hello", raw=False, top_p=2))
    assert "top_p" in str(error)


@c.check
def unknown_model() -> None:
    error = q.raised(ModelServiceError, lambda: ask("Hello", name="none-such"))
    assert "404" in str(error)
    assert q.MODEL in str(error)


@c.check
def wrong_key() -> None:
    assert "401" in str(q.raised(ModelServiceError, lambda: ask("Hello", key=c.wrong_key)))


@c.check
def retry() -> str:
    with c.busy():
        assert "429" in str(q.raised(ModelServiceError, lambda: ask("Hello")))
    return "the error is clear; it retries by the openai client inside, tested there"


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        states = get_chat_model(config(max_tokens=4000, **body(ignore_eos=True, enable_thinking=False))).chat(
            [{"role": "user", "content": q.LONG}], stream=True
        )
        next(states)
        states.close()
    gc.collect()  # a cycle in there holds the response: it is closed when the collector comes by
    return c.freed()


c.run()
