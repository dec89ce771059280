"""OpenAI's chat completions: bodies to calls, samples to JSON, items to server-sent events, and a real model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallDropped, Usage
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Call, Item, ModelInfo, TokenLogprob
from qwen3.serve.errors import ApiError
from qwen3.serve.openai.chat import ChatBody, reasoning_fields
from qwen3.serve.openai.chat_writer import ChatWriter
from qwen3.serve.settings import Settings
from tests.serve.conftest import AppClient, Running, bearer
from tests.serve.fakes import REPORT, USAGE, FakeStream

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
INFO = ModelInfo("m", 4096, 151_936, "hybrid")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
BOTH = ("reasoning_content", "reasoning")


def call_of(**fields: Any) -> tuple[Call, list[str]]:
    return ChatBody.model_validate({"messages": HI} | fields).to_call(INFO)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call_of(**fields)
    assert caught.value.status == 400
    return caught.value


# Bodies


def test_a_call_has_all_that_was_asked() -> None:
    call, notes = call_of(
        model="m", temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, logit_bias={"3": 4}, seed=9, stop="END", stop_token_ids=[7], ignore_eos=True,
        max_completion_tokens=50, min_tokens=2, n=3, logprobs=True, top_logprobs=2, tools=TOOLS, tool_choice="auto",
        parallel_tool_calls=False, cache_salt="s", priority=5, user="u", metadata={"a": "b"}, service_tier="auto",
        thinking_budget=64, prompt_logprobs=None,
    )  # fmt: skip
    assert notes == []
    assert call == Call(
        messages=HI, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False, salt="s", priority=5,
        thinking={"mode": "on", "budget": 64},
        sampling={
            "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 1.0,
            "frequency_penalty": -1.0, "repetition_penalty": 1.1, "logit_bias": {3: 4.0}, "seed": 9, "stop": ["END"],
            "stop_token_ids": [7], "ignore_eos": True, "max_tokens": 50, "min_tokens": 2, "n": 3, "logprobs": 2,
        },
    )  # fmt: skip


def test_null_is_as_good_as_left_out() -> None:
    nothing = {name: None for name in ChatBody.model_fields if name != "messages"}
    assert call_of(**nothing) == (Call(messages=HI), [])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens, max_completion_tokens"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"top_logprobs": 3}, "top_logprobs, logprobs"),
        ({"stream_options": {}}, "stream_options, stream"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs, stream"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "modalities"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message, messages"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message, add_generation_prompt",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [*TOOLS, {"type": "function", "function": {}}]}, "tools[1]"),
        ({"enable_thinking": False, "thinking_budget": 5}, "enable_thinking, thinking_budget"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format, guided_regex"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"guided_choice": []}, "guided_choice"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"best_off": 2}, "best_off is not a field"),
        ({"store": True}, "store has no effect"),
        ({"verbosity": "low"}, "verbosity has no effect"),
        ({"preserve_thinking": True}, "preserve_thinking has no effect"),
        ({"service_tier": "flex"}, "service_tier has no effect"),
        ({"priority": -1}, "priority below 0"),
        ({"guided_json": {}, "guided_decoding_backend": "xgrammar"}, "guided_decoding_backend has no effect"),
        ({"response_format": {"type": "text", "strict": True}}, "response_format.strict has no meaning"),
        ({"structured_outputs": {"disable_fallback": True}}, "structured_outputs.disable_fallback has no meaning"),
        ({"messages": [{"role": "user", "name": "Eve", "content": "x"}]}, "messages[0].name is not shown"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood has no meaning"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls has no meaning"),
        ({"custom_params": {"x": 1}}, "custom_params.x has no meaning"),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning.summary has no effect"),
        ({"stream": True, "stream_options": {"include_usage": True, "usage": 1}}, "stream_options.usage is not"),
    ],
)
def test_what_does_nothing_is_said(fields: dict[str, Any], note: str) -> None:
    _, notes = call_of(**fields)
    assert [text for text in notes if text.startswith(note)], notes


@pytest.mark.parametrize("fields", [{"store": False}, {"user": "u", "metadata": {}}, {"service_tier": "default"}])
def test_what_need_not_be_said(fields: dict[str, Any]) -> None:
    assert call_of(**fields)[1] == []


def test_developer_is_system_and_messages_stay_what_they_are() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [], "refusal": None},
        {"role": "tool", "tool_call_id": "x", "content": "y", "name": "weather"},
    ]
    call, notes = call_of(messages=messages)
    assert call.messages == [{**messages[0], "role": "system"}, *messages[1:]]
    assert notes == []


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"schema": SCHEMA}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"schema": SCHEMA},
        ),
        ({"response_format": {"type": "regex", "regex": "a+"}}, {"regex": "a+"}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"grammar": "start: /a/"}, {"grammar": "start: /a/"}),
        ({"guided_json": SCHEMA}, {"schema": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"schema": json.dumps(SCHEMA)}),
        ({"guided_regex": "a"}, {"regex": "a"}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"guided_choice": ["a.b", "c d-e"]}, {"regex": r"a\.b|c d\-e"}),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, {"schema": SCHEMA}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"regex": "yes|no"}),
        ({"structured_outputs": {"json_object": True}}, {"schema": {"type": "object"}}),
    ],
)
def test_forms_of_answers(fields: dict[str, Any], found: dict[str, Any]) -> None:
    call, notes = call_of(**fields)
    assert {name: getattr(call, name) for name in ("schema", "regex", "grammar") if getattr(call, name)} == found
    assert notes == []


def test_continuing_a_message() -> None:
    call, _ = call_of(
        messages=[*HI, {"role": "assistant", "content": "The"}],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert call.continue_last


# Streams


def chunks(items: Sequence[list[Item]], fields: tuple[str, ...] = BOTH, **body: Any) -> list[Any]:
    """The JSON of each event of a stream, "[DONE]" among them."""
    made = ChatBody.model_validate({"messages": HI, "stream": True} | body)
    writer = ChatWriter(made, "m", fields)
    writer.clock = Clock()
    data = writer.begin(FakeStream(Call(), ()))
    data += b"".join(map(writer.feed, items)) + writer.end()
    events = data.decode("ascii").split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [text if (text := event[6:]) == "[DONE]" else json.loads(text) for event in events]


def stream_of(*events: Event) -> list[list[Item]]:
    return [[Item(0, event)] for event in events]


def deltas(found: list[Any]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in found if chunk != "[DONE]" and chunk["choices"]]


END = Finish("stop", USAGE, REPORT, ("careful",))


def test_the_order_of_a_stream() -> None:
    text = 'Grüße "x"\n</script>\u2028😀'
    found = chunks(stream_of(ReasoningDelta("Hm", (1,)), TextDelta(text, (2,)), END))
    assert deltas(found) == [
        {"role": "assistant", "content": ""}, {"reasoning_content": "Hm", "reasoning": "Hm"}, {"content": text}, {},
    ]  # fmt: skip
    assert found[-1] == "[DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in found[:-1]] == [None, None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in found[:-1]}) == 1
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", found[0]["id"])
    assert "usage" not in found[-2]
    last = found[-2]
    assert last["warnings"] == ["careful"]
    assert last["thinking"]["used"] == REPORT.used
    assert last["seed"] == 7
    assert "total" in last["timings"]


def test_usage_comes_in_a_chunk_of_its_own() -> None:
    found = chunks(stream_of(TextDelta("a", (1,)), END), stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in found[:-2]] == [None, None, None]
    assert found[-2]["choices"] == []
    assert found[-2]["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    assert found[-2]["warnings"] == ["careful"]
    assert "warnings" not in found[-3]


def test_usage_with_every_chunk() -> None:
    options = {"continuous_usage_stats": True, "include_usage": True}
    found = chunks(stream_of(ReasoningDelta("a", (1, 2)), TextDelta("b", (3,)), END), stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in found[:-1]] == [0, 2, 3, 6, 6]
    assert {chunk["usage"]["prompt_tokens"] for chunk in found[:-1]} == {5}


@pytest.mark.parametrize(
    ("setting", "shown", "names"),
    [
        ("both", True, BOTH),
        ("content", True, BOTH[:1]),
        ("reasoning", True, BOTH[1:]),
        ("none", True, ()),
        ("both", False, ()),
    ],
)
def test_names_of_the_reasoning(setting: str, shown: bool, names: tuple[str, ...]) -> None:
    fields = reasoning_fields(setting, shown)
    assert fields == names
    found = chunks(stream_of(ReasoningDelta("Hm", (1,)), TextDelta("a", (2,)), END), fields)
    assert deltas(found)[1] == (dict.fromkeys(names, "Hm") if names else {"content": "a"})


def test_clients_that_want_no_reasoning() -> None:
    for fields in (
        {"include_reasoning": False}, {"reasoning": {"exclude": True}}, {"thinking": {"display": "omitted"}},
    ):  # fmt: skip
        assert not ChatBody.model_validate({"messages": HI} | fields).shows_reasoning
    assert ChatBody(messages=HI).shows_reasoning


def test_tool_calls_come_in_parts() -> None:
    first = ToolCallDelta(0, "call_a", "weather", '{"city": ')
    parts = [first, ToolCallDelta(0, None, None, '"Ürk"}'), ToolCallDelta(1, "call_b", "time", "{}")]
    found = deltas(chunks(stream_of(*parts, Finish("tool_calls", USAGE, REPORT)), tools=TOOLS))
    calls = [delta["tool_calls"][0] for delta in found if "tool_calls" in delta]
    assert calls[0] == {
        "index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""},
    }  # fmt: skip
    assert calls[1] == {"index": 0, "function": {"arguments": '{"city": '}}
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 0) == '{"city": "Ürk"}'
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 1]
    assert all("content" not in delta for delta in found[1:])


def test_a_call_that_is_none_is_marked_and_its_text_follows() -> None:
    found = chunks(
        stream_of(
            ToolCallDelta(0, "call_a", "weather", "{"),
            ToolCallDropped(0, "<tool_call>{"),
            TextDelta("<tool_call>{", (1,)),
            END,
        )
    )
    assert deltas(found)[3:5] == [
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}, "dropped": True}]}, {"content": "<tool_call>{"},
    ]  # fmt: skip
    assert found[-2]["choices"][0]["finish_reason"] == "stop"


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("reason", "body", "expected", "stop"),
    [
        ("stop", {}, "stop", None),
        ("length", {}, "length", None),
        ("tool_calls", {"tools": TOOLS}, "tool_calls", None),
        ("tool_calls", {"tools": TOOLS, "tool_choice": "required"}, "tool_calls", None),
        ("tool_calls", {"tools": TOOLS, "tool_choice": NAMED}, "stop", None),
        ("length", {"tools": TOOLS, "tool_choice": NAMED}, "length", None),
        ("loop", {}, "stop", "loop"),
        ("cancelled", {}, "stop", "cancelled"),
    ],
)
def test_finish_reasons(
    app_client: AppClient, reason: str, body: dict[str, Any], expected: str, stop: str | None
) -> None:
    end = Finish(reason, USAGE, REPORT)
    (choice,) = chunks(stream_of(TextDelta("a", (1,)), end), **body)[-2]["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (expected, stop)
    app_client.backend.script = (TextDelta("a", (1,)), end)
    (choice,) = app_client.post(PATH, {"messages": HI} | body).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (expected, stop)


def test_what_stopped_it() -> None:
    end = Finish("stop", USAGE, REPORT, matched="END")
    assert chunks(stream_of(end))[-2]["choices"][0]["stop_reason"] == "END"


def test_logprobs_in_a_stream() -> None:
    entry = TokenLogprob(5, "é".encode(), -0.5, 1, ((5, "é".encode(), -0.5), (6, b"\xf0\x9f", float("-inf"))))
    end = TokenLogprob(9, b"<|im_end|>", -0.1, 1)
    items = [[Item(0, TextDelta("é", (5,)), (entry,), (end,))], [Item(0, END, before=(end,))]]
    found = chunks(items, logprobs=True, top_logprobs=2)
    _, token = found[1]["choices"][0]["logprobs"]["content"]
    assert token["token"] == "é"
    assert token["bytes"] == [195, 169]
    assert token["top_logprobs"][1] == {"token": "bytes:\\xf0\\x9f", "logprob": -9999.0, "bytes": [240, 159]}
    assert [entry["token"] for entry in found[2]["choices"][0]["logprobs"]["content"]] == ["<|im_end|>"]
    assert found[0]["choices"][0]["logprobs"] is None


def test_several_samples_in_one_stream() -> None:
    items = [
        [Item(1, TextDelta("b", (1,))), Item(0, TextDelta("a", (2,)))],
        [Item(1, Finish("length", Usage(5, 1, 0, 2), REPORT, ("w1",)))],
        [Item(0, Finish("stop", Usage(5, 1, 2, 3), REPORT, ("w1", "w0")))],
    ]
    found = chunks(items, n=2, stream_options={"include_usage": True})
    assert [chunk["choices"][0]["index"] for chunk in found[:-2]] == [0, 1, 1, 0, 1, 0]
    assert found[-2]["usage"]["completion_tokens"] == 5
    assert found[-2]["usage"]["prompt_tokens"] == 5
    assert found[-2]["warnings"] == ["w1", "w0"]
    assert "thinking" in found[4]["choices"][0]


# The endpoint


def test_a_whole_answer(app_client: AppClient) -> None:
    answer = app_client.post(PATH, {"messages": HI, "model": "fake", "foo": 1}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-warnings"] == "1"
    found = answer.json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant", "content": "Hello world", "refusal": None, "reasoning_content": "Let me see.",
            "reasoning": "Let me see.",
        },
        "logprobs": None, "finish_reason": "stop", "stop_reason": None,
    }  # fmt: skip
    assert found["warnings"] == ["foo is not a field of this request and was ignored"]
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert (found["seed"], found["thinking"]["mode"], found["timings"]["total"]) == (7, "on", 0.03)


def test_a_pure_tool_call_has_null_content(app_client: AppClient) -> None:
    app_client.backend.script = (
        ToolCallDelta(0, "call_a", "weather", "{}"), Finish("tool_calls", USAGE, REPORT),
    )  # fmt: skip
    message = app_client.post(PATH, {"messages": HI, "tools": TOOLS}).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] is None
    assert message["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ]
    app_client.backend.script = (Finish("stop", USAGE, REPORT),)
    assert app_client.post(PATH, {"messages": HI}).json()["choices"][0]["message"]["content"] == ""


def test_an_error_in_the_middle_of_a_stream(app_client: AppClient) -> None:
    app_client.backend.script = (TextDelta("a", (1,)), ApiError(503, "the engine has ended", retry_after=3.0))
    text = app_client.post(PATH, {"messages": HI, "stream": True}).text
    *_, error, done, rest = text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "the engine has ended", "type": "overloaded_error", "param": None, "code": None,
    }  # fmt: skip
    assert (done, rest) == ("data: [DONE]", "")
    app_client.backend.script = (ApiError(503, "the engine has ended", retry_after=3.0),)
    answer = app_client.post(PATH, {"messages": HI, "stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


def test_reasoning_field_of_the_server(make_client: Any) -> None:
    client = make_client(Settings(models=(("fake", "fake"),), reasoning_field="none"))
    message = client.post(PATH, {"messages": HI}).json()["choices"][0]["message"]
    assert set(message) == {"role", "content", "refusal"}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": HI, "model": "gpt-4"}, 404, "model"),
        ({"messages": HI, "temperature": "1"}, 400, "temperature"),
        ({"messages": HI, "stop": [""]}, 400, "stop"),
        ({"messages": HI, "n": 10**9}, 400, "n"),
        ({"messages": HI, "stream_options": {"include_usage": 1}, "stream": True}, 400, "stream_options.include_usage"),
    ],
)
def test_errors_are_never_422(app_client: AppClient, body: Any, status: int, param: str) -> None:
    answer = app_client.post(PATH, body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_reasoning_memory_is_of_one_key(keyed_client: AppClient) -> None:
    backend = keyed_client.backend
    backend.script = (
        ReasoningDelta("I look.", (1,)), ToolCallDelta(0, "call_a", "weather", "{}"),
        Finish("tool_calls", USAGE, REPORT),
    )  # fmt: skip
    body = {"messages": HI, "tools": TOOLS}
    message = keyed_client.post(PATH, body, headers=bearer("alice")).json()["choices"][0]["message"]
    del message["reasoning"], message["reasoning_content"]
    body["messages"] = [*HI, message, {"role": "tool", "tool_call_id": "call_a", "content": "rain"}]
    other = keyed_client.post(PATH, body, headers=bearer("bob")).json()
    assert "reasoning_content" not in backend.calls[-1].messages[1]
    assert other["warnings"] == []
    mine = keyed_client.post(PATH, body, headers=bearer("alice")).json()
    assert backend.calls[-1].messages[1]["reasoning_content"] == "I look."
    assert "the reasoning of 1 tool-calling turn" in mine["warnings"][0]


# A real model


def test_streamed_is_what_is_not_streamed(server: Running) -> None:
    question = [{"role": "user", "content": "What is 17 + 25?"}]
    body = {"messages": question, "max_tokens": 120, "seed": 5, "logprobs": True, "top_logprobs": 1, "n": 2}
    with server.client() as client:
        whole = client.post(PATH, json=body).json()
        text = client.post(PATH, json=body | {"stream": True, "stream_options": {"include_usage": True}}).text
    found = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]
    for index, choice in enumerate(whole["choices"]):
        mine = [c for chunk in found for c in chunk["choices"] if c["index"] == index]
        joined = {name: "".join(c["delta"].get(name) or "" for c in mine) for name in ("content", "reasoning_content")}
        assert joined["content"] == choice["message"]["content"]
        assert joined["reasoning_content"] == (choice["message"]["reasoning_content"] or "")
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        entries = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
    assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert found[-1]["seed"] == whole["seed"] == 5


def test_real_tools_schema_and_empty_answers(server: Running) -> None:
    question = [{"role": "user", "content": "What is 17 + 25?"}]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "add", "parameters": schema}}]
    with server.client() as client:

        def ask(**fields: Any) -> Any:
            answer = client.post(PATH, json={"messages": question, "max_tokens": 150} | fields)
            assert answer.status_code == 200, answer.text
            return answer.json()

        format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
        found = json.loads(ask(response_format=format)["choices"][0]["message"]["content"])
        assert isinstance(found["a"], int)
        named = {"type": "function", "function": {"name": "add"}}
        choice = ask(tools=tools, tool_choice=named, enable_thinking=False)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert isinstance(json.loads(call["function"]["arguments"])["a"], int)
        assert choice["finish_reason"] == "stop"
        assert ask(guided_choice=["yes", "no."])["choices"][0]["message"]["content"] in ("yes", "no.")
        empty = ask(max_tokens=4, enable_thinking=True)
        assert empty["choices"][0]["finish_reason"] == "length"
        assert any("thinking took all tokens" in text for text in empty["warnings"])
        bounded = ask(thinking_budget=3)["thinking"]
        assert (bounded["budget"], bounded["used"], bounded["ended_by"]) == (3, 3, "budget")


def test_reasoning_memory_of_a_real_server(server_with_keys: Running) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    body: dict[str, Any] = {
        "messages": HI, "tools": tools, "tool_choice": "required", "max_tokens": 200, "thinking_budget": 8,
    }  # fmt: skip
    with server_with_keys.client() as client:
        first = client.post(PATH, json=body, headers=bearer("alice")).json()["choices"][0]["message"]
        assert first["reasoning_content"]
        assert len(first["tool_calls"][0]["id"].removeprefix("call_")) == 32
        bare = {name: first[name] for name in ("role", "content", "tool_calls")}
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in first["tool_calls"]]
        body |= {"messages": [*HI, bare, *results], "max_tokens": 1}
        mine = client.post(PATH, json=body, headers=bearer("alice")).json()
        others = client.post(PATH, json=body, headers=bearer("bob")).json()
    assert any("was put back" in text for text in mine["warnings"])
    assert not any("put back" in text for text in others["warnings"])
    assert mine["usage"]["prompt_tokens"] > others["usage"]["prompt_tokens"]
