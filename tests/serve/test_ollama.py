"""Ollama's API: bodies to calls, samples and items to lines of JSON, and the models there are."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.chat import Finish, TextDelta
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Call, Item, TokenLogprob
from qwen3.serve.errors import ApiError
from qwen3.serve.ollama import ChatBody, GenerateBody, chat_call, generate_call
from qwen3.serve.ollama_models import size_name
from qwen3.serve.ollama_writer import Shape, Writer
from qwen3.serve.settings import Settings
from tests.serve.conftest import AppClient, bearer
from tests.serve.dialects import (
    CALL_ID,
    CALLS,
    CONTROL,
    DROPPED,
    INFO,
    control_ids,
    mutated,
    plain,
    refused_or_rendered,
    sample,
    scripts,
    written,
)
from tests.serve.fakes import REPORT, SCRIPT, USAGE, FakeBackend, FakeModels

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
FUNCTION = {"name": "weather", "arguments": {"city": "Paris"}}


def chat(messages: Any = None, **fields: Any) -> Any:
    return chat_call(ChatBody(model="fake", messages=HELLO if messages is None else messages, **fields), INFO)


def generate(ids: list[int] | None = None, **fields: Any) -> Any:
    return generate_call(GenerateBody(model="fake", **fields), INFO, ids)


# Bodies


def test_conversation() -> None:
    call, notes = chat(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Weather?", "images": []},
            {"role": "assistant", "content": "", "thinking": "Which?", "tool_calls": [{"function": FUNCTION}]},
            {"role": "tool", "content": "sun", "tool_name": "weather"},
            {"role": "assistant", "content": None, "mood": 1},
        ],
        tools=[TOOL],
    )
    assert call.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "thinking": "Which?", "tool_calls": [{"function": FUNCTION}]},
        {"role": "tool", "content": "sun", "name": "weather"},
        {"role": "assistant", "content": ""},
    ]
    assert call.tools == [TOOL]
    assert call.continue_last
    assert notes == ["messages[4].mood was ignored"]


@pytest.mark.parametrize(
    ("think", "policy"),
    [
        (None, {}),  # on by default, there as here
        (True, {"mode": "on"}),
        (False, {"mode": "off"}),
        ("low", {"mode": "on", "budget": 1024}),
        ("max", {"mode": "on"}),
        (30, {"mode": "on", "budget": 30}),
    ],
)
def test_think(think: Any, policy: dict[str, Any]) -> None:
    assert chat(think=think)[0].thinking == policy


def test_options() -> None:
    call, notes = chat(
        options={
            "num_predict": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "seed": 3, "stop": "END",
            "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1, "num_ctx": 8192, "mirostat": 1,
            "num_gpu": 3, "num_thread": 0, "tempratur": 1,
        },
        keep_alive="5m",
        truncate=True,
    )  # fmt: skip
    assert call.sampling == {
        "max_tokens": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "seed": 3, "stop": ["END"],
        "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1,
    }  # fmt: skip
    assert [note.split(" ")[0] for note in notes] == [
        "truncate", "options.tempratur", "options.num_gpu", "options.mirostat", "options.num_ctx", "keep_alive",
    ]  # fmt: skip
    for unbounded in (-1, -2):
        assert chat(options={"num_predict": unbounded})[0].sampling == {}
    assert chat(options={"num_ctx": INFO.context})[1] == []


def test_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    for given_, wanted in ((None, None), ("", None), ("json", {"type": "object"}), (schema, schema)):
        assert chat(format=given_)[0].schema == wanted
    with pytest.raises(ApiError, match="format must be"):
        chat(format="yaml")


def test_generate() -> None:
    assert generate(prompt="Hi", system="Be kind.")[0].messages == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    raw, notes = generate(prompt="1 2", raw=True, context=[1, 2])
    assert (raw.prompt, raw.messages) == ("1 2", None)
    assert notes[0].startswith("context has no effect")
    assert generate([5, 6], prompt="a", suffix="b")[0].prompt == [5, 6]


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: chat([{"role": "user", "content": "x", "images": ["aGk="]}]), "messages[0].images"),
        (lambda: generate(prompt="x", images=["aGk="]), "images"),
        (lambda: generate(prompt="x", template="{{ .Prompt }}"), "template"),
        (lambda: generate(prompt="x", raw=True, system="s"), "system"),
        (lambda: chat(think="loudly"), "think"),
        (lambda: chat(think=False, thinking_budget=4), "think, thinking_budget"),
    ],
)
def test_refused(make: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        make()
    assert (caught.value.status, caught.value.param) == (400, param)


def test_control_strings_stay_text() -> None:
    call = {"name": "f", "arguments": {"x": CONTROL}}
    messages = [
        {"role": "system", "content": CONTROL},
        {"role": "user", "content": CONTROL},
        {"role": "assistant", "content": CONTROL, "thinking": CONTROL, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": CONTROL, "tool_name": CONTROL},
        {"role": "user", "content": CONTROL},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "description": CONTROL, "parameters": {"title": CONTROL}}}]
    marked = control_ids(chat(messages, tools=tools)[0])
    assert marked == control_ids(chat(plain(messages), tools=plain(tools))[0]) > 0
    assert (
        control_ids(generate(prompt=CONTROL, system=CONTROL)[0]) == control_ids(generate(prompt="x", system="x")[0]) > 0
    )


EVERYTHING = {
    "model": "fake",
    "messages": [
        {"role": "user", "content": "x", "images": []},
        {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [{"function": FUNCTION}]},
        {"role": "tool", "content": "x", "tool_name": "weather"},
    ],
    "tools": [TOOL],
    "format": {"type": "object"},
    "options": {"num_predict": 3, "stop": ["x"], "num_ctx": 9, "mirostat": 1},
    "keep_alive": "5m",
    "think": 5,
    "logprobs": True,
    "top_logprobs": 2,
}


@settings(max_examples=300, deadline=None)
@given(mutated(EVERYTHING))
def test_any_body_is_refused_or_understood(given_: dict[str, Any]) -> None:
    def make() -> Any:
        body = ChatBody(**given_)
        return Call(prompt="") if body.empty else chat_call(body, INFO)[0]

    refused_or_rendered(make)


# Answers


def lines(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def folded(parts: list[dict[str, Any]]) -> dict[str, Any]:
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    message: dict[str, Any] = {"role": "assistant", "content": "", "thinking": "", "tool_calls": []}
    for part in parts:
        for key in ("content", "thinking", "tool_calls"):
            message[key] += part["message"].get(key) or type(message[key])()
    message = {key: value for key, value in message.items() if value or key in ("role", "content")}
    return parts[-1] | {"message": message}


@settings(max_examples=60, deadline=None)
@given(events=scripts(), batch=st.integers(1, 5))
def test_a_stream_adds_up_to_the_answer(events: Any, batch: int) -> None:
    shape = Shape("fake")
    streamed, whole = folded(lines(written(Writer(shape), events, batch))), shape.whole(sample(events))
    for answer in (streamed, whole):
        for key in list(answer):
            if key.endswith("_duration") or key == "created_at":
                del answer[key]
    assert streamed == whole


def test_answer() -> None:
    found = Shape("fake", loading=0.5).whole(sample(CALLS))
    assert found["message"] == {
        "role": "assistant",
        "content": "I look.",
        "thinking": "Which city? Paris.",
        "tool_calls": [
            {"id": CALL_ID, "function": {"index": 0, **FUNCTION}},
            {"id": CALL_ID[:-1] + "0", "function": {"index": 1, "name": "time", "arguments": {}}},
        ],
    }
    wanted = {
        "model": "fake", "done": True, "done_reason": "stop", "load_duration": 500_000_000, "prompt_eval_count": 5,
        "prompt_eval_duration": 10_000_000, "eval_count": 6, "eval_duration": 30_000_000, "warnings": ["a warning"],
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    assert found["thinking_report"]["used"] == 2
    text = Shape("fake", chat=False).whole(sample(SCRIPT))
    assert (text["response"], text["thinking"]) == ("Hello world", "Let me see.")
    assert "message" not in text


def test_a_call_that_was_none_is_not_shown() -> None:
    assert folded(lines(written(Writer(Shape("fake")), DROPPED)))["message"] == {
        "role": "assistant", "content": "<tool_call>…",
    }  # fmt: skip


def test_durations_of_a_stream_add_up() -> None:
    writer = Writer(Shape("fake"))
    written(writer, ())
    writer.clock = Clock(started=0.0, opened=1.0, first=3.0)
    (last,) = lines(writer.feed([Item(0, Finish("length", USAGE, REPORT))]))
    assert last["done_reason"] == "length"
    assert last["prompt_eval_duration"] == 2_000_000_000
    assert last["eval_duration"] > 0


def test_logprobs() -> None:
    entry = TokenLogprob(5, b"Hi", -0.5, 1, ((5, b"Hi", -0.5), (6, b"\xff", -2.0)))
    writer = Writer(Shape("fake"))
    (line,) = lines(writer.feed([Item(0, TextDelta("Hi", (5,)), (entry,))]))
    hi = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    assert line["logprobs"] == [{**hi, "top_logprobs": [hi, {"token": "\ufffd", "logprob": -2.0, "bytes": [255]}]}]
    assert chat(logprobs=True, top_logprobs=2)[0].sampling == {"logprobs": 2}
    assert chat(logprobs=True)[0].sampling == {"logprobs": 0}


def test_a_line_while_nothing_comes() -> None:
    """Their clients parse every line."""
    (line,) = lines(Writer(Shape("fake")).keep_alive())
    assert (line["message"], line["done"]) == ({"role": "assistant", "content": ""}, False)


# Over HTTP


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": HELLO, **fields}


def test_chat(app_client: AppClient) -> None:
    found = app_client.post("/api/chat", body())
    assert found.headers["content-type"] == "application/x-ndjson"
    answer = folded(lines(found.content))
    assert answer["message"] == {"role": "assistant", "content": "Hello world", "thinking": "Let me see."}
    whole = app_client.post("/api/chat", body(stream=False, oops=1, model="fake:latest"))
    assert whole.json()["message"] == answer["message"]
    assert whole.json()["model"] == "fake:latest"
    assert whole.json()["warnings"][0].startswith("oops is not a field")
    # As curl sends it.
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert app_client.post("/api/chat", content=json.dumps(body()), headers=form).status_code == 200


def test_generate_fills_in(app_client: AppClient) -> None:
    async def ask(self: FakeBackend, what: str, **args: Any) -> Any:
        assert what == "tokenize"
        return {"ids": [7, 8, 9] if "fim" in args["text"] else [ord(c) for c in args["text"]]}

    app_client.backend.ask = MethodType(ask, app_client.backend)  # type: ignore[method-assign]
    found = app_client.post("/api/generate", {"model": "fake", "prompt": "a", "suffix": "b", "stream": False})
    assert found.json()["response"] == "Hello world"
    assert app_client.backend.calls[0].prompt == [7, 97, 8, 98, 9]


def test_load_and_unload(app_client: AppClient, keyed_client: AppClient) -> None:
    for path, request in (("/api/chat", {"model": "fake", "messages": []}), ("/api/generate", {"model": "fake"})):
        (line,) = lines(app_client.post(path, request).content)
        assert (line["done"], line["done_reason"]) == (True, "load")
    unloaded = []

    async def unload() -> None:
        unloaded.append(True)

    for client in (app_client, keyed_client):
        client.backend.unload, client.backend.busy = unload, False  # type: ignore[attr-defined]
    request = {"model": "fake", "keep_alive": 0, "stream": False}
    assert app_client.post("/api/generate", request).json()["done_reason"] == "unload"
    assert unloaded == [True]
    assert keyed_client.post("/api/generate", request, headers=bearer("bob")).status_code == 403
    assert keyed_client.post("/api/generate", request, headers=bearer("alice")).status_code == 200
    app_client.backend.busy = True  # type: ignore[attr-defined]
    assert app_client.post("/api/generate", request).status_code == 409
    assert unloaded == [True, True]


def test_what_is_wrong_is_wrong_where_nothing_is_to_answer(app_client: AppClient) -> None:
    for path, empty in (("/api/chat", {"model": "fake", "messages": []}), ("/api/generate", {"model": "fake"})):
        for wrong in ({"format": "yaml"}, {"think": "much"}, {"think": False, "thinking_budget": 5}):
            answer = app_client.post(path, empty | wrong)
            assert answer.status_code == 400, (path, wrong)
        (line,) = lines(app_client.post(path, {**empty, "keep_alive": "5m", "temprature": 1}).content)
        assert line["done_reason"] == "load"
        assert line["warnings"] == ["temprature is not a field of this request and was ignored"]
    for wrong in ({"images": ["x"]}, {"template": "x"}, {"raw": True, "system": "x"}):
        assert app_client.post("/api/generate", {"model": "fake"} | wrong).status_code == 400, wrong
    assert app_client.backend.calls == []


def test_models(app_client: AppClient) -> None:
    (model,) = app_client.get("/api/tags").json()["models"]
    assert (model["name"], model["model"], model["details"]["family"]) == ("fake", "fake", "qwen3")
    assert len(model["digest"]) == 64
    (loaded,) = app_client.get("/api/ps").json()["models"]
    assert (loaded["name"], loaded["context_length"]) == ("fake", 4096)
    app_client.backend.state = "unloaded"
    assert app_client.get("/api/ps").json() == {"models": []}
    shown = app_client.post("/api/show", {"name": "fake"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["qwen3.context_length"] == 4096
    assert app_client.get("/api/version").json()["version"].count(".") == 2
    assert [size_name(count) for count in (18_423_808, 8_190_735_360)] == ["18.4M", "8.2B"]


@pytest.mark.parametrize(
    ("kind", "mode", "wanted"),
    [
        ("chat", "instruct", ["completion", "tools"]),
        ("chat", "base", ["completion"]),
        ("embedding", "hybrid", ["embedding"]),
        ("reranker", "hybrid", []),
    ],
)
def test_capabilities(app_client: AppClient, kind: str, mode: str, wanted: list[str]) -> None:
    app_client.backend.info = replace(INFO, kind=kind, mode=mode, parameters=30, active_parameters=3)
    shown = app_client.post("/api/show", {"model": "fake"}).json()
    assert shown["capabilities"] == wanted
    assert shown["model_info"]["general.architecture"] == "qwen3moe"


def test_models_are_not_managed(app_client: AppClient) -> None:
    assert app_client.post("/api/pull", {"model": "fake", "stream": False}).json() == {"status": "success"}
    for method, path, request, status, said in (
        ("POST", "/api/pull", {"model": "llama3"}, 404, "qwen3 pull"),
        ("POST", "/api/pull", {}, 400, "model is missing"),
        ("POST", "/api/create", {"model": "x", "from": "fake"}, 400, "qwen3 quantize"),
        ("POST", "/api/copy", {"source": "fake", "destination": "x"}, 400, "NAME=MODEL"),
        ("POST", "/api/push", {"model": "fake"}, 400, "pushed"),
        ("DELETE", "/api/delete", {"model": "fake"}, 400, "qwen3 ls"),
        ("POST", "/api/show", {"model": "none"}, 404, "fake"),
        ("POST", "/api/chat", body(model="none"), 404, "fake"),
        ("POST", "/api/chat", body(options={"top_p": 2}), 400, "options.top_p"),
        ("POST", "/api/chat", body(options={"num_predict": 0}), 400, "num_predict"),
        ("POST", "/api/chat", body(format=3), 400, "format: must be"),
        ("POST", "/api/chat", body(think=-1), 400, "think: must be"),
        ("POST", "/api/nothing", {}, 404, "nothing"),
    ):
        found = app_client.request(method, path, json=request)
        assert (found.status_code, list(found.json())) == (status, ["error"]), found.text
        assert said in found.json()["error"]


def test_embeddings(app_client: AppClient) -> None:
    refused = app_client.post("/api/embed", {"model": "fake", "input": "x"})
    assert refused.status_code == 400
    app_client.backend.info = replace(INFO, kind="embedding")

    async def ask(self: FakeBackend, what: str, **args: Any) -> Any:
        assert what == "embed"
        size, count = args["dimensions"] or 3, len(args["inputs"])
        data = struct.pack(f"<{size * count}f", *(i / 4 for i in range(size * count)))
        return {"vectors": base64.b64encode(data).decode(), "tokens": [2] * count}

    app_client.backend.ask = MethodType(ask, app_client.backend)  # type: ignore[method-assign]
    found = app_client.post("/api/embed", {"model": "fake", "input": ["a", "b"], "dimensions": 2, "truncate": True})
    assert found.json()["embeddings"] == [[0.0, 0.25], [0.5, 0.75]]
    assert found.json()["prompt_eval_count"] == 4
    assert found.json()["warnings"] == ["truncate has no effect: an input is never cut"]
    one = app_client.post("/api/embeddings", {"model": "fake", "prompt": "a"}).json()
    assert one == {"embedding": [0.0, 0.25, 0.5]}
    assert app_client.post("/api/embed", {"model": "fake", "input": ["a", ""]}).status_code == 400


def test_a_failing_stream_says_so(app_client: AppClient) -> None:
    app_client.backend.script = (*SCRIPT[:3], ApiError(503, "the engine has died", retry_after=1.0))
    parts = lines(app_client.post("/api/chat", body()).content)
    assert parts[-1] == {"error": "the engine has died"}
    app_client.backend.error = ApiError(503, "full", retry_after=2.0)
    found = app_client.post("/api/chat", body())
    assert (found.status_code, found.json()) == (503, {"error": "full"})
    assert found.headers["retry-after"] == "2"


def test_whether_it_runs(make_client: Any) -> None:
    """Clients ask for / and want this text; browsers get the page there."""
    client = make_client(Settings(models=(("fake", "fake"),)), FakeModels())
    for found in (client.get("/"), client.request("HEAD", "/")):
        assert found.status_code == 200
    assert client.get("/").text == "Ollama is running"


def test_reasoning_comes_apart() -> None:
    """`thinking` holds the thought, never the content, and the report has another name."""
    parts = lines(written(Writer(Shape("fake", chat=False)), SCRIPT))
    assert [part.get("thinking") for part in parts] == ["Let me ", "see.", None, None, None]
    assert parts[-1]["thinking_report"]["mode"] == "on"
