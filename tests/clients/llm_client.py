"""`llm`, the command line and library: an OpenAI-shaped endpoint by chat completions and by responses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import checks as q

c = q.Checks()
home = tempfile.TemporaryDirectory()
os.environ |= {"LLM_USER_PATH": home.name, "LLM_RAISE_ERRORS": "1"}
common = {"model_name": q.MODEL, "api_base": c.v1, "api_key_name": "ours", "supports_schema": True,
          "supports_tools": True, "reasoning": True}  # fmt: skip
entries = [
    {"model_id": "chat"} | common,
    {"model_id": "responses", "responses": True} | common,
    {"model_id": "unknown"} | common | {"model_name": "none-such"},
]
(Path(home.name) / "extra-openai-models.yaml").write_text(json.dumps(entries))  # JSON is YAML
(Path(home.name) / "keys.json").write_text(json.dumps({"ours": c.key}))
import llm  # noqa: E402
import openai  # noqa: E402

BOTH = ("chat", "responses")


def ask(name: str, text: str, **fields: Any) -> Any:
    return llm.get_model(name).prompt(text, temperature=0, **fields)


def thought(response: Any) -> str:
    return "".join(event.chunk for event in response.stream_events() if event.type == "reasoning")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


@c.check
def plain() -> None:
    for name in BOTH:
        done = ask(name, q.PRODUCT, stream=False)
        assert q.PRODUCT_ANSWER in done.text()
        assert done.usage().input > 0
    shown = command("-m", "chat", q.PRODUCT, "-o", "temperature", "0", "--usage")
    assert q.PRODUCT_ANSWER in shown.stdout, shown
    assert "reasoning_tokens" in shown.stderr, shown.stderr


@c.check
def stream() -> None:
    for name in BOTH:
        pieces = list(ask(name, q.PRODUCT))
        assert len(pieces) > 3
        assert q.PRODUCT_ANSWER in "".join(pieces)


def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    assert city == q.CITY
    return q.WEATHER_RESULT


def loop(streamed: bool) -> None:
    for name in BOTH:
        model = llm.get_model(name)
        chain = model.chain(q.WEATHER, tools=[get_weather], options={"temperature": 0}, stream=streamed)
        text = chain.text()
        calls = [call for response in chain.responses() for call in response.tool_calls()]
        assert [(call.name, call.arguments) for call in calls] == [("get_weather", {"city": q.CITY})], calls
        assert q.WEATHER_ANSWER in text, text


@c.check
def tools() -> None:
    loop(streamed=False)


@c.check
def tools_stream() -> None:
    loop(streamed=True)


@c.check
def schema() -> None:
    for name in BOTH:
        assert isinstance(json.loads(ask(name, q.PRODUCT, schema=q.ANSWER_SCHEMA).text())["answer"], int)


@c.check
def thinking_on() -> str:
    """Chat completions count the thinking, responses show it."""
    done = ask("chat", q.PRODUCT)
    done.text()
    assert done.usage().details["completion_tokens_details"]["reasoning_tokens"] > q.BUDGET
    assert q.PRODUCT_STEP in thought(ask("responses", q.PRODUCT))
    return "shown by responses; by chat completions showing is not offered by the client"


@c.check
def thinking_off() -> None:
    for name in BOTH:
        done = ask(name, "Hello", reasoning_effort="none")
        assert not thought(done)
        assert "Hello" in done.text()


c.not_offered("thinking_budget", "only names of effort, no number")


@c.check
def efforts() -> None:
    for name in BOTH:
        for effort in ("minimal", "xhigh", "max"):
            assert q.PRODUCT_ANSWER in ask(name, q.PRODUCT, reasoning_effort=effort).text()


@c.check
def history() -> None:
    for name in BOTH:
        conversation = llm.get_model(name).conversation()
        assert conversation.prompt(q.INTRODUCTION, temperature=0).text()
        assert q.NAME in conversation.prompt(q.QUESTION, temperature=0).text()


@c.check
def bad_field() -> None:
    for name in BOTH:
        error = q.raised(openai.BadRequestError, lambda name=name: ask(name, "Hello", top_p=0).text())
        assert error.param == "top_p"


@c.check
def unknown_model() -> None:
    q.raised(openai.NotFoundError, lambda: ask("unknown", "Hello").text())


@c.check
def wrong_key() -> None:
    q.raised(openai.AuthenticationError, lambda: ask("chat", "Hello", key=c.wrong_key).text())


@c.check
def retry() -> None:
    import threading

    with c.busy() as end:
        threading.Timer(0.3, end).start()
        assert ask("chat", "Hello", reasoning_effort="none").text()


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        pieces = iter(ask("chat", q.LONG, max_tokens=4000, reasoning_effort="none"))
        next(pieces)
        pieces.close()
    return c.freed()


@c.check
def models() -> None:
    listed = command("openai", "endpoint", c.v1, "--models", "--key", c.key)
    assert listed.stdout.split() == [q.MODEL, q.VECTORS], listed


c.run()
