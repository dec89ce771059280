"""LangChain: ChatOpenAI, which drops the reasoning, and langchain-qwq's ChatQwen, which keeps it (`… openai|qwq`)."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import checks as q
import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from langchain_qwq import ChatQwen
from pydantic import BaseModel

c = q.Checks()
QWQ = sys.argv[3] == "qwq"
Model: Any = ChatQwen if QWQ else ChatOpenAI


def model(**fields: Any) -> Any:
    given = {"model": q.MODEL, "base_url": c.v1, "api_key": c.key, "temperature": 0, "max_retries": 0} | fields
    if not QWQ:  # ChatQwen has fields of its own for these
        extra = {name: given.pop(name) for name in ("enable_thinking", "thinking_budget") if name in given}
        given["extra_body"] = given.get("extra_body", {}) | extra
    return Model(**given)


def reasoning(message: AIMessage) -> str:
    return message.additional_kwargs.get("reasoning_content", "")


def reasoning_tokens(message: AIMessage) -> int:
    return message.usage_metadata["output_token_details"].get("reasoning", 0)


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    return q.WEATHER_RESULT


class Answer(BaseModel):
    """The answer."""

    answer: int


@c.check
def plain() -> None:
    done = model().invoke(q.PRODUCT)
    assert q.PRODUCT_ANSWER in done.content
    assert done.response_metadata["finish_reason"] == "stop"
    assert done.usage_metadata["total_tokens"] > q.BUDGET


@c.check
def stream() -> None:
    chunks = list(model(stream_usage=True).stream(q.PRODUCT))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 3
    assert q.PRODUCT_ANSWER in whole.content
    assert reasoning_tokens(whole) > q.BUDGET
    assert (q.PRODUCT_STEP in reasoning(whole)) == QWQ


def loop(first: AIMessage) -> None:
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": q.CITY})
    result: ToolMessage = get_weather.invoke(call)
    second = model().bind_tools([get_weather]).invoke([HumanMessage(q.WEATHER), first, result])
    assert q.WEATHER_ANSWER in second.content, second


@c.check
def tools() -> None:
    choice = {} if QWQ else {"tool_choice": "required"}
    loop(model().bind_tools([get_weather], **choice).invoke(q.WEATHER))


@c.check
def tools_stream() -> None:
    chunks = list(model().bind_tools([get_weather]).stream(q.WEATHER))
    assert sum(bool(chunk.tool_call_chunks) for chunk in chunks) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    loop(whole)


@c.check
def schema() -> None:
    method = "function_calling" if QWQ else "json_schema"
    chain = model(enable_thinking=False).with_structured_output(Answer, method=method)
    assert isinstance(chain.invoke(q.PRODUCT), Answer)


@c.check
def thinking_on() -> None:
    done = model(enable_thinking=True).invoke(q.PRODUCT)
    assert reasoning_tokens(done) > q.BUDGET
    if QWQ:
        assert q.PRODUCT_STEP in reasoning(done)


@c.check
def thinking_off() -> None:
    done = model(enable_thinking=False).invoke("Hello")
    assert "Hello" in done.content
    assert not reasoning(done)
    assert not reasoning_tokens(done)


@c.check
def thinking_budget() -> None:
    done = model(thinking_budget=q.BUDGET).invoke(q.PRODUCT)
    assert 0 < reasoning_tokens(done) <= q.BUDGET
    assert done.content
    assert bool(reasoning(done)) == QWQ


@c.check
def history() -> None:
    first = model().invoke(q.INTRODUCTION)
    second = model().invoke([HumanMessage(q.INTRODUCTION), first, HumanMessage(q.QUESTION)])
    assert q.NAME in second.content


@c.check
def bad_field() -> None:
    error = q.raised(openai.BadRequestError, lambda: model(top_p=2).invoke("Hello"))
    assert error.param == "top_p"


@c.check
def unknown_model() -> None:
    assert q.raised(openai.NotFoundError, lambda: model(model="none-such").invoke("Hello")).code == "model_not_found"


@c.check
def wrong_key() -> None:
    q.raised(openai.AuthenticationError, lambda: model(api_key=c.wrong_key).invoke("Hello"))


@c.check
def retry() -> None:
    with c.busy() as end:
        q.raised(openai.RateLimitError, lambda: model().invoke("Hello"))
        threading.Timer(0.3, end).start()
        assert model(max_retries=8).invoke("Hello").content


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        chunks = model(extra_body={"ignore_eos": True}, max_tokens=4000, enable_thinking=False).stream(q.LONG)
        next(chunks)
        chunks.close()
    return c.freed()


@c.check
def reasoning_memory() -> str:
    """ChatOpenAI returns a call without the thinking that led to it; the server puts that back into the loop."""
    bound = model().bind_tools([get_weather])
    first = bound.invoke(q.WEATHER)
    (call,) = first.tool_calls
    second = bound.invoke([HumanMessage(q.WEATHER), first, get_weather.invoke(call)])
    arguments = {"name": call["name"], "arguments": json.dumps(call["args"])}
    unknown = {
        "messages": [
            {"role": "user", "content": q.WEATHER},
            {
                "role": "assistant", "content": None,
                "tool_calls": [{"id": "call_unknown", "type": "function", "function": arguments}],
            },
            {"role": "tool", "tool_call_id": "call_unknown", "content": q.WEATHER_RESULT},
        ],
        "tools": [convert_to_openai_tool(get_weather)],
        "max_tokens": 1,
    }  # fmt: skip
    without = json.loads(c.post(unknown).read())["usage"]["prompt_tokens"]
    more = second.usage_metadata["input_tokens"] - without
    assert more >= reasoning_tokens(first) > 0, (more, first.usage_metadata)
    return f"{more} tokens"


c.run()
