"""Anthropic's messages: bodies to calls, samples and items to content blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.chat import Finish, ReasoningDelta
from qwen3.serve import runs
from qwen3.serve.anthropic import MessagesBody, PromptBody, to_call
from qwen3.serve.anthropic_writer import PING, Shape, Writer
from qwen3.serve.calls import Item
from qwen3.serve.errors import ApiError
from qwen3.serve.seal import Seal
from tests.serve.conftest import AppClient, bearer
from tests.serve.dialects import (
    CALL_ID,
    CALLS,
    CONTROL,
    DROPPED,
    INFO,
    control_ids,
    kinds,
    mutated,
    plain,
    refused_or_rendered,
    sample,
    scripts,
    sse,
    written,
)
from tests.serve.fakes import REPORT, SCRIPT, USAGE

SEAL = Seal(b"k" * 32)
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_" + CALL_ID[5:], "name": "weather", "input": {"city": "Paris"}}
FUNCTION = {"id": CALL_ID, "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def model(content: Any) -> list[Any]:
    return [{"role": "assistant", "content": content}]


def body(messages: Any = None, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "max_tokens": 2000, "messages": HELLO if messages is None else messages, **fields}


def call_of(messages: Any = None, **fields: Any) -> Any:
    return to_call(MessagesBody(**body(messages, **fields)), INFO, SEAL, "alice")


# Bodies


@pytest.mark.parametrize(
    ("system", "messages", "wanted"),
    [
        (None, HELLO, HELLO),
        ("Be kind.", HELLO, [{"role": "system", "content": "Be kind."}, *HELLO]),
        (
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}],
            [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "x\ny"}],
        ),
        (None, [{"role": "system", "content": "s"}, *HELLO], [{"role": "system", "content": "s"}, *HELLO]),
        (
            None,
            [
                {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USE]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": USE["id"], "content": [{"type": "text", "text": "sun"}]},
                        {"type": "tool_result", "tool_use_id": "other", "content": "no net", "is_error": True},
                        {"type": "tool_result", "tool_use_id": "empty"},
                        {"type": "text", "text": "Well?"},
                    ],
                },
            ],
            [
                {"role": "assistant", "content": "I look.", "tool_calls": [FUNCTION]},
                {"role": "tool", "tool_call_id": CALL_ID, "content": "sun"},
                {"role": "tool", "tool_call_id": "other", "content": "Error: no net"},
                {"role": "tool", "tool_call_id": "empty", "content": ""},
                {"role": "user", "content": "Well?"},
            ],
        ),
    ],
)
def test_conversation(system: Any, messages: Any, wanted: Any) -> None:
    assert call_of(messages, system=system)[0].messages == wanted


def test_thinking_comes_back() -> None:
    """Signed text, sealed text, and what is neither."""
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "signed", "signature": SEAL.sign("signed", "alice")},
        {"type": "thinking", "thinking": "", "signature": SEAL.close("omitted", "alice")},
        {"type": "redacted_thinking", "data": SEAL.close("hidden", "alice")},
        {"type": "text", "text": "Hi."},
    ]
    turns = [*HELLO, {"role": "assistant", "content": blocks}, *HELLO]
    call, notes = call_of(turns)
    assert call.messages[1]["reasoning_content"] == "signed\n\nomitted\n\nhidden"
    assert notes == []

    foreign = Seal(b"x" * 32)
    blocks[0]["signature"] = foreign.sign("signed", "alice")
    blocks[1]["signature"] = SEAL.close("omitted", "bob")
    blocks[2]["data"] = "bm9uc2Vuc2U="
    call, notes = call_of(turns)
    assert call.messages[1]["reasoning_content"] == "signed"
    assert [note.split(" ")[0] for note in notes] == [
        "messages[1].content[0].signature", "messages[1].content[1]", "messages[1].content[2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": user([{"type": "image", "source": {}}])}, "messages[0].content[0]", "text"),
        ({"messages": user(3)}, "messages[0].content", "list of blocks"),
        ({"messages": user(["x"])}, "messages[0].content[0]", "object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "not a field"),
        (
            {"messages": user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}])},
            "messages[0].content[0].content[0]",
            "image",
        ),
        ({"messages": model([USE | {"input": "{}"}])}, "messages[0].content[0].input", "object"),
        ({"messages": model([{"type": "server_tool_use"}])}, "messages[0].content[0]", "server_tool_use"),
        ({"system": [{"type": "image"}]}, "system[0]", "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type", "web_search_20250305"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema", "schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name", "text"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type", "some"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name", "name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens", "less than max_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type", "one of"),
        ({"thinking": {"type": "enabled", "display": "loud"}}, "thinking.display", "loud"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.type, thinking.budget_tokens", "leave"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format", "json_schema"),
        ({"output_config": {"effort": "silly"}}, "output_config.effort", "one of"),
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        call_of(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({}, {"mode": "off"}),  # their clients expect no thinking that they did not ask for
        ({"messages": [{"role": "user", "content": "Hello /think"}]}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 40}}, {"mode": "on", "budget": 40}),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, {"mode": "on", "budget": 0}),
        ({"thinking": {"type": "disabled"}}, {"mode": "off"}),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {"mode": "auto"}),
        ({"output_config": {"effort": "low"}}, {"mode": "on", "budget": 1024}),
        ({"thinking_budget": 7}, {"mode": "on", "budget": 7}),
    ],
)
def test_thinking(fields: dict[str, Any], policy: dict[str, Any]) -> None:
    assert call_of(**fields)[0].thinking == policy


def test_thinking_is_not_switched_off_where_it_cannot_be() -> None:
    request = MessagesBody(**body())
    assert to_call(request, replace(INFO, mode="thinking"), SEAL)[0].thinking == {}


def test_rest_of_the_body() -> None:
    tool = TOOL | {"type": "custom", "cache_control": {"type": "ephemeral"}, "defer_loading": True}
    call, notes = call_of(
        [*HELLO, {"role": "assistant", "content": "It is"}],
        tools=[tool],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        top_k=5,
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}, "verbosity": 1},
        metadata={"user_id": "x"},
        cache_control={"type": "ephemeral"},
        temprature=1,
    )
    function = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
    assert call.tools == [{"type": "function", "function": function}]
    assert call.tool_choice == {"type": "function", "function": {"name": "weather"}}
    assert not call.parallel_tool_calls
    assert call.sampling == {"max_tokens": 2000, "stop": ["END"], "temperature": 0.5, "top_k": 5}
    assert call.schema == {"type": "object"}
    assert call.continue_last
    assert [note.split(" ")[0] for note in notes] == [
        "temprature", "metadata", "cache_control", "output_config.verbosity", "tools[0].defer_loading",
    ]  # fmt: skip
    for kind, wanted in (("auto", "auto"), ("any", "required"), ("none", "none")):
        assert call_of(tools=[TOOL], tool_choice={"type": kind})[0].tool_choice == wanted


def test_control_strings_stay_text() -> None:
    """Wherever a client can write, what looks like control is text: a prompt has as many control tokens as without."""
    given: dict[str, Any] = {
        "system": [{"type": "text", "text": CONTROL}],
        "messages": [
            {"role": "user", "content": CONTROL},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": CONTROL},
                    {"type": "tool_use", "id": CONTROL, "name": "f", "input": {"x": CONTROL}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": CONTROL, "content": CONTROL}]},
            {"role": "user", "content": [{"type": "text", "text": CONTROL}]},
        ],
        "tools": [{"name": "f", "description": CONTROL, "input_schema": {"type": "object", "title": CONTROL}}],
    }
    assert control_ids(call_of(**given)[0]) == control_ids(call_of(**plain(given))[0]) > 0


EVERYTHING = body(
    [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [], "is_error": True}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "d"}, {"type": "text", "text": "y"}]},
    ],
    system=[{"type": "text", "text": "x"}],
    tools=[TOOL],
    tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    thinking={"type": "enabled", "budget_tokens": 9, "display": "omitted"},
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    stop_sequences=["x"],
    temperature=1,
)


@settings(max_examples=300, deadline=None)
@given(mutated(EVERYTHING))
def test_any_body_is_refused_or_understood(given_: dict[str, Any]) -> None:
    refused_or_rendered(lambda: to_call(MessagesBody(**given_), INFO, SEAL)[0])


# Answers


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream adds up to, by the rules their clients follow."""
    message: dict[str, Any] = {}
    written: list[str] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                written = []
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                assert event["index"] == len(message["content"]) - 1
                if delta["type"] == "input_json_delta":
                    written.append(delta["partial_json"])
                    block["input"] = json.loads("".join(written))
                elif delta["type"] == "signature_delta":
                    block["signature"] = delta["signature"]
                else:
                    key = delta["type"].removesuffix("_delta")
                    assert key == block["type"]
                    block[key] += delta[key]
            case "message_delta":
                usage = message["usage"] | event["usage"]
                rest = {key: value for key, value in event.items() if key not in ("type", "delta")}
                message |= {**event["delta"], **rest, "usage": usage}
    return message


def whole(shape: Shape, events: Any) -> dict[str, Any]:
    return shape.message(sample(events), "1")


def test_message() -> None:
    found = whole(Shape("fake", SEAL, "alice"), CALLS)
    signature = SEAL.sign("Which city? Paris.", "alice")
    assert found["content"] == [
        {"type": "thinking", "thinking": "Which city? Paris.", "signature": signature},
        {"type": "text", "text": "I look."},
        USE,
        {"type": "tool_use", "id": "toolu_" + CALL_ID[5:-1] + "0", "name": "time", "input": {}},
    ]
    assert (found["stop_reason"], found["stop_sequence"]) == ("tool_use", None)
    assert found["usage"] == {
        "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1, "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 2},
    }  # fmt: skip
    assert found["warnings"] == ["a warning"]
    assert found["thinking"]["used"] == 2


def test_stream_order() -> None:
    events = sse(written(Writer(Shape("fake", SEAL)), CALLS))
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds(events) == ["message_start", "ping", *block * 4, "message_delta", "message_stop"]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta"] * 2 + ["signature_delta", "text_delta", "input_json_delta", "input_json_delta"]


@pytest.mark.parametrize("omit", [False, True])
@settings(max_examples=60, deadline=None)
@given(events=scripts(), batch=st.integers(1, 5))
def test_a_stream_adds_up_to_the_message(omit: bool, events: Any, batch: int) -> None:
    shape = Shape("fake", SEAL, "alice", omit)
    streamed, message = folded(sse(written(Writer(shape), events, batch))), whole(shape, events)
    for answer in (streamed, message):
        for block in answer["content"]:
            if block["type"] == "thinking" and omit:
                block["signature"] = SEAL.open(block["signature"], "alice")
    # Text that followed a call is a block of its own in a stream.
    texts = ["".join(b["text"] for b in m["content"] if b["type"] == "text") for m in (streamed, message)]
    rest = [[b for b in m["content"] if b["type"] != "text"] for m in (streamed, message)]
    assert texts[0] == texts[1]
    assert rest[0] == rest[1]
    same = ("model", "role", "type", "stop_reason", "stop_sequence", "usage", "thinking")
    assert {key: streamed[key] for key in same} == {key: message[key] for key in same}


def test_a_call_that_was_none_is_not_shown() -> None:
    events = sse(written(Writer(Shape("fake", SEAL)), DROPPED))
    assert [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"] == ["text"]


@pytest.mark.parametrize(
    ("reason", "matched", "wanted"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", 151_645, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
        ("loop", None, ("end_turn", None)),
        ("cancelled", None, ("end_turn", None)),
    ],
)
def test_stop_reasons(reason: str, matched: Any, wanted: Any) -> None:
    events = (*SCRIPT[:-1], Finish(reason, USAGE, REPORT, (), matched))
    for found in (whole(Shape("fake", SEAL), events), folded(sse(written(Writer(Shape("fake", SEAL)), events)))):
        assert (found["stop_reason"], found["stop_sequence"]) == wanted


def test_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden thinking and a call that is not whole yet give nothing to send; a proxy would end the connection."""
    writer = Writer(Shape("fake", SEAL, omit=True))
    assert b"content_block_start" in writer.feed([Item(0, ReasoningDelta("a"))])
    assert writer.feed([Item(0, ReasoningDelta("b"))]) == b""
    monkeypatch.setattr(runs, "KEEP_ALIVE", 0.0)
    assert writer.feed([Item(0, ReasoningDelta("c"))]) == PING


# Over HTTP


def test_plain_and_stream(app_client: AppClient) -> None:
    found = app_client.post("/v1/messages", body(thinking={"type": "enabled"}, extra=1))
    assert found.status_code == 200
    assert found.headers["x-warnings"] == "1"
    assert [block["type"] for block in found.json()["content"]] == ["thinking", "text"]
    assert found.json()["warnings"][0].startswith("extra is not a field")
    streamed = app_client.post("/v1/messages", body(thinking={"type": "enabled"}, extra=1, stream=True))
    assert streamed.headers["content-type"].startswith("text/event-stream")
    message = folded(sse(streamed.content))
    assert message["content"] == found.json()["content"]
    assert message["warnings"] == found.json()["warnings"]
    assert message["id"].startswith("msg_")


def test_request_ids_stand_where_its_clients_look(app_client: AppClient) -> None:
    for fields in (body(), {"model": "fake"}):
        answer = app_client.post("/v1/messages", fields)
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "request-id" not in app_client.get("/health").headers


def test_count_tokens(app_client: AppClient) -> None:
    found = app_client.post("/v1/messages/count_tokens", {"model": "fake", "messages": HELLO, "tools": [TOOL]})
    assert found.json() == {"input_tokens": 5}
    assert app_client.backend.asked[0][1]["call"].tools[0]["function"]["name"] == "weather"


def test_a_failing_stream_says_so(app_client: AppClient) -> None:
    app_client.backend.script = (*SCRIPT[:3], ApiError(503, "the engine has died", retry_after=1.0))
    events = sse(app_client.post("/v1/messages", body(stream=True)).content)
    assert events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "the engine has died"}}


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ApiError(503, "full", code="queue_full", retry_after=2.0), 529, "overloaded_error"),
        (ApiError(429, "yours", retry_after=2.0), 429, "rate_limit_error"),
        (ApiError(400, "no"), 400, "invalid_request_error"),
        (ApiError(500, "bug"), 500, "api_error"),
    ],
)
def test_errors_have_their_names(app_client: AppClient, error: ApiError, status: int, kind: str) -> None:
    app_client.backend.error = error
    found = app_client.post("/v1/messages", body())
    assert found.status_code == status
    assert found.json() == {"type": "error", "error": {"type": kind, "message": error.message}}
    assert ("retry-after" in found.headers) == (error.retry_after is not None)


def test_bad_requests(app_client: AppClient) -> None:
    for request, status, kind, said in (
        (body(model="none"), 404, "not_found_error", "fake"),
        ({"model": "fake", "messages": HELLO}, 400, "invalid_request_error", "max_tokens"),
        (body(max_tokens=0), 400, "invalid_request_error", "max_tokens"),
        (body([]), 400, "invalid_request_error", "messages"),
        (body(tools="x"), 400, "invalid_request_error", "tools"),
    ):
        found = app_client.post("/v1/messages", request)
        assert found.status_code == status
        assert found.json()["error"]["type"] == kind
        assert said in found.json()["error"]["message"]


def test_keys(keyed_client: AppClient) -> None:
    found = keyed_client.post("/v1/messages", body())
    assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")
    key = bearer("bob")["authorization"].removeprefix("Bearer ")
    assert keyed_client.post("/v1/messages", body(), headers={"x-api-key": key}).status_code == 200


def test_one_key_cannot_open_what_another_was_given(keyed_client: AppClient) -> None:
    request = body(thinking={"type": "enabled", "display": "omitted"})
    content = keyed_client.post("/v1/messages", request, headers=bearer("alice")).json()["content"]
    turns = [*HELLO, {"role": "assistant", "content": content}, *HELLO]
    for name, reasoning in (("alice", "Let me see."), ("bob", None)):
        found = keyed_client.post("/v1/messages", body(turns), headers=bearer(name)).json()
        assert keyed_client.backend.calls[-1].messages[1].get("reasoning_content") == reasoning
        assert ("warnings" in found) == (reasoning is None)


def test_count_body_is_part_of_the_other() -> None:
    assert set(PromptBody.model_fields) < set(MessagesBody.model_fields)
