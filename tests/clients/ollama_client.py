"""ollama-python: chat, generate and the rest of /api."""

from __future__ import annotations

import json
from typing import Any

import checks as q
import ollama

c = q.Checks()
client = ollama.Client(host=c.base, headers={"authorization": f"Bearer {c.key}"})
GREEDY = {"temperature": 0, "seed": 1}


def ask(text: str | list[Any], options: dict[str, Any] | None = None, model: str = q.MODEL, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return client.chat(model=model, messages=messages, options=GREEDY | (options or {}), **fields)


@c.check
def plain() -> None:
    done = ask(q.PRODUCT)
    assert q.PRODUCT_ANSWER in done.message.content
    assert (done.done, done.done_reason, done.message.role) == (True, "stop", "assistant")
    assert done.prompt_eval_count > 0
    assert done.eval_count > 0
    assert done.total_duration >= done.eval_duration > 10_000_000  # nanoseconds
    cut = ask(q.LONG, {"num_predict": 5}, think=False)
    assert (cut.done_reason, cut.eval_count) == ("length", 5)


@c.check
def stream() -> None:
    chunks = list(ask(q.PRODUCT, stream=True))
    assert q.PRODUCT_ANSWER in "".join(chunk.message.content or "" for chunk in chunks)
    assert q.PRODUCT_STEP in "".join(chunk.message.thinking or "" for chunk in chunks)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].eval_count > q.BUDGET


def loop(message: Any, messages: list[Any]) -> None:
    (call,) = message.tool_calls
    assert (call.function.name, dict(call.function.arguments)) == ("get_weather", {"city": q.CITY})
    messages += [message, {"role": "tool", "tool_name": "get_weather", "content": q.WEATHER_RESULT}]
    second = ask(messages, tools=[q.WEATHER_TOOL])
    assert q.WEATHER_ANSWER in second.message.content, second


def get_weather(city: str) -> str:
    """Get the current weather in a city

    Args:
      city: Name of the city
    """
    return q.WEATHER_RESULT


@c.check
def tools() -> None:
    """Declared as a dict, and as a Python function that the client describes itself."""
    for tool in (q.WEATHER_TOOL, get_weather):
        messages: list[Any] = [{"role": "user", "content": q.WEATHER}]
        loop(ask(messages, tools=[tool]).message, messages)


@c.check
def tools_stream() -> None:
    messages: list[Any] = [{"role": "user", "content": q.WEATHER}]
    chunks = list(ask(messages, tools=[q.WEATHER_TOOL], stream=True, think=True))
    (called,) = (chunk.message for chunk in chunks if chunk.message.tool_calls)
    called.thinking = "".join(chunk.message.thinking or "" for chunk in chunks)
    assert called.thinking
    loop(called, messages)


@c.check
def schema() -> None:
    for think in (True, False):
        done = ask(q.PRODUCT, format=q.ANSWER_SCHEMA, think=think)
        assert isinstance(json.loads(done.message.content)["answer"], int)
    assert isinstance(json.loads(ask("Hello", {"num_predict": 300}, format="json", think=False).message.content), dict)


@c.check
def thinking_on() -> None:
    for think in (True, None):
        assert q.PRODUCT_STEP in ask(q.PRODUCT, think=think).message.thinking


@c.check
def thinking_off() -> None:
    done = ask("Hello", think=False)
    assert not done.message.thinking
    assert "Hello" in done.message.content


@c.check
def thinking_budget() -> str:
    """Names of effort only: Ollama has no number."""
    for think in ("low", "medium", "high"):
        done = ask(q.PRODUCT, think=think)
        assert q.PRODUCT_STEP in done.message.thinking
    return "by names; a number is not offered by the client"


@c.check
def history() -> None:
    messages: list[Any] = [{"role": "user", "content": q.INTRODUCTION}]
    first = ask(messages).message
    assert first.thinking
    messages += [first, {"role": "user", "content": q.QUESTION}]
    assert q.NAME in ask(messages).message.content


@c.check
def bad_field() -> None:
    for options, param in (({"top_p": 2}, "top_p"), ({"num_predict": "many"}, "num_predict")):
        error = q.raised(ollama.ResponseError, lambda options=options: ask("Hello", options))
        assert error.status_code == 400
        assert param in error.error, error.error


@c.check
def unknown_model() -> None:
    error = q.raised(ollama.ResponseError, lambda: ask("Hello", model="none-such"))
    assert error.status_code == 404
    assert q.MODEL in error.error


@c.check
def wrong_key() -> None:
    other = ollama.Client(host=c.base, headers={"authorization": f"Bearer {c.wrong_key}"})
    assert q.raised(ollama.ResponseError, other.list).status_code == 401


@c.check
def retry() -> str:
    with c.busy():
        error = q.raised(ollama.ResponseError, lambda: ask("Hello"))
        assert error.status_code == 429
        assert error.error
    return "the error is clear; retrying is not offered by the client"


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        answer = ask(q.LONG, {"num_predict": 4000}, stream=True, think=False)
        next(answer)
        answer.close()
    return c.freed()


@c.check
def generate() -> None:
    done = client.generate(model=q.MODEL, prompt=q.PRODUCT, options=GREEDY)
    assert q.PRODUCT_ANSWER in done.response
    assert q.PRODUCT_STEP in done.thinking
    pieces = list(client.generate(model=q.MODEL, prompt="Hello", options=GREEDY, stream=True, think=False))
    assert "Hello" in "".join(piece.response for piece in pieces)
    raw = client.generate(model=q.MODEL, prompt="1, 2, 3,", raw=True, options=GREEDY | {"num_predict": 6})
    assert raw.response


@c.check
def models() -> None:
    assert [model.model.split(":")[0] for model in client.list().models] == [q.MODEL, q.VECTORS]
    shown = client.show(q.MODEL)
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities)
    assert client.ps().models[0].context_length > 0


@c.check
def embed() -> None:
    one, other = client.embed(model=q.VECTORS, input=["red", "blue"]).embeddings
    assert len(one) == len(other) > 0


@c.check
def latest() -> None:
    assert ask("Hello", model=f"{q.MODEL}:latest", think=False).message.content


c.run()
