"""OpenAI's responses: bodies to calls, samples and items to output items."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.chat import Finish, Result, TextDelta
from qwen3.serve.calls import Item, Sample, TokenLogprob
from qwen3.serve.errors import ApiError
from qwen3.serve.openai.responses import ResponsesBody, echo, to_call
from qwen3.serve.openai.responses_writer import Shape, Writer
from qwen3.serve.runs import of_the_text
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
TOOL = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True}
FUNCTION = {"name": "weather", "arguments": '{"city": "Paris"}'}


def call_of(input: Any = "Hello", **fields: Any) -> Any:
    return to_call(ResponsesBody(input=input, **fields), INFO, SEAL, "alice")


def shape(**fields: Any) -> Shape:
    return Shape(echo(ResponsesBody(input="Hello"), "fake"), SEAL, "alice", **fields)


# Bodies


def reasoning(text: str, where: str = "content") -> dict[str, Any]:
    kind = "reasoning_text" if where == "content" else "summary_text"
    return {"type": "reasoning", "id": "rs_1", "summary": [], where: [{"type": kind, "text": text}]}


def called(id: str) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": id, "status": "completed", **FUNCTION}


def tool_call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ("Hello", [{"role": "user", "content": "Hello"}]),
        (
            [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            ],
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a\nb"}],
        ),
        (  # one turn of the model's: thought, said, called twice; then the next one
            [
                {"role": "user", "content": "Weather?"},
                reasoning("Which?"),
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                called("a"),
                called("b"),
                {"type": "function_call_output", "call_id": "a", "output": "sun"},
                {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "rain"}]},
                reasoning("Both.", "summary"),
                {"role": "assistant", "content": "Sun and rain."},
                {"role": "user", "content": "Thanks."},
            ],
            [
                {"role": "user", "content": "Weather?"},
                {
                    "role": "assistant",
                    "reasoning_content": "Which?",
                    "content": "I look.",
                    "tool_calls": [tool_call("a"), tool_call("b")],
                },
                {"role": "tool", "tool_call_id": "a", "content": "sun"},
                {"role": "tool", "tool_call_id": "b", "content": "rain"},
                {"role": "assistant", "reasoning_content": "Both.", "content": "Sun and rain."},
                {"role": "user", "content": "Thanks."},
            ],
        ),
        (  # thought that nothing followed, and two answers in a row
            [
                reasoning("a"),
                reasoning("b"),
                {"role": "assistant", "content": "x"},
                {"role": "assistant", "content": "y"},
                reasoning("c"),
            ],
            [
                {"role": "assistant", "reasoning_content": "a\n\nb", "content": "x"},
                {"role": "assistant", "content": "y"},
                {"role": "assistant", "reasoning_content": "c", "content": ""},
            ],
        ),
    ],
)
def test_conversation(items: Any, wanted: Any) -> None:
    assert call_of(items)[0].messages == wanted
    assert call_of(items, instructions="Short.")[0].messages == [{"role": "system", "content": "Short."}, *wanted]


def test_sealed_reasoning() -> None:
    def item(sealed: str) -> list[dict[str, Any]]:
        thought = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
        return [thought, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]

    call, notes = call_of(item(SEAL.close("hidden", "alice")))
    assert (call.messages[0]["reasoning_content"], notes) == ("hidden", [])
    for foreign in (SEAL.close("hidden", "bob"), Seal().close("hidden", "alice"), "nonsense", "é"):
        call, notes = call_of(item(foreign))
        assert "reasoning_content" not in call.messages[0]
        assert notes == ["input[0].encrypted_content was not sealed by this server; it was left out"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": 3}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"reasoning": {"effort": "silly"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort, reasoning.effort"),
    ],
)
def test_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        call_of(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_rest_of_the_body() -> None:
    schema = {"type": "object"}
    call, notes = call_of(
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        max_output_tokens=90,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        seed=4,
        reasoning={"effort": "minimal", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}, "verbosity": "low"},
        include=["reasoning.encrypted_content", "file_search_call.results"],
        truncation="auto",
        store=True,
        max_tool_calls=3,
        metadata={"a": "b"},
        user="u",
    )
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    assert call.tools == [{"type": "function", "function": function}]
    assert call.tool_choice == {"type": "function", "function": {"name": "weather"}}
    assert not call.parallel_tool_calls
    assert call.sampling == {"max_tokens": 90, "temperature": 0.5, "top_p": 0.9, "logprobs": 2, "seed": 4}
    assert call.thinking == {"mode": "on", "budget": 68}
    assert call.schema == schema
    assert [note.split(" ")[0] for note in notes] == [
        "max_tool_calls", "user", "store", "reasoning.effort", "text.verbosity", "truncation", "reasoning.summary:",
        "include:",
    ]  # fmt: skip
    assert call_of(store=False, truncation="disabled", background=False)[1] == []
    assert call_of(text={"format": {"type": "json_object"}})[0].schema == {"type": "object"}
    assert call_of(include=["message.output_text.logprobs"])[0].sampling == {"logprobs": 0}
    assert call_of(reasoning={"effort": "none"})[0].thinking == {"budget": 0}


def test_control_strings_stay_text() -> None:
    fields: dict[str, Any] = {
        "instructions": CONTROL,
        "input": [
            {"role": "developer", "content": CONTROL},
            {"role": "user", "content": [{"type": "input_text", "text": CONTROL}]},
            {**reasoning(CONTROL)},
            {"role": "assistant", "content": CONTROL},
            {**called("a"), "arguments": CONTROL},
            {"type": "function_call_output", "call_id": "a", "output": CONTROL},
            {"role": "user", "content": CONTROL},
        ],
        "tools": [{**TOOL, "description": CONTROL}],
    }
    assert control_ids(call_of(**fields)[0]) == control_ids(call_of(**plain(fields))[0]) > 0


EVERYTHING = {
    "model": "fake",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        reasoning("t"),
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        called("a"),
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
    ],
    "instructions": "x",
    "tools": [TOOL],
    "tool_choice": {"type": "function", "name": "weather"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "schema": {}}, "verbosity": "low"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "stream_options": {"include_obfuscation": False},
}


@settings(max_examples=300, deadline=None)
@given(mutated(EVERYTHING))
def test_any_body_is_refused_or_understood(given_: dict[str, Any]) -> None:
    refused_or_rendered(lambda: to_call(ResponsesBody(**given_), INFO, SEAL)[0])


# Answers


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stream adds up to; each item and part is the one that its deltas gave."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    open_item: dict[str, Any] = {}
    text, done = "", []
    for event in events[2:-1]:
        name = event["type"].removeprefix("response.")
        if name == "output_item.added":
            assert event["output_index"] == len(done)
            open_item, text = event["item"], ""
            continue
        assert event.get("item_id", open_item["id"]) == open_item["id"]
        assert event["output_index"] == len(done)
        if name.endswith(".delta"):
            text += event["delta"]
        elif name.endswith("text.done"):
            assert event["text"] == text
        elif name == "function_call_arguments.done":
            assert event["arguments"] == text
        elif name.endswith("part.done"):
            assert event["part"]["text"] == text
        elif name == "output_item.done":
            assert event["item"]["id"] == open_item["id"]
            done.append(event["item"])
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{response['status']}"
    assert response["output"] == done
    return response


@pytest.mark.parametrize("summary", [False, True])
@settings(max_examples=60, deadline=None)
@given(events=scripts(), batch=st.integers(1, 5))
def test_a_stream_adds_up_to_the_response(summary: bool, events: Any, batch: int) -> None:
    form = shape(summary=summary)
    streamed = folded(sse(written(Writer(form), events, batch)))
    whole = form.whole(sample(events))
    for response in (streamed, whole):
        del response["id"], response["created_at"]
        response.pop("completed_at", None)
        output = response.pop("output")
        response["texts"] = "".join(i["content"][0]["text"] for i in output if i["type"] == "message")
        response["rest"] = [i | {"id": "", "status": ""} for i in output if i["type"] != "message"]
        assert not output or output[-1]["status"] == response["status"] or output[-1]["type"] == "function_call"
    assert streamed == whole


def test_response() -> None:
    found = shape().whole(sample(CALLS))
    first, second, third, fourth = found["output"]
    assert (first["type"], first["content"]) == (
        "reasoning",
        [{"type": "reasoning_text", "text": "Which city? Paris."}],
    )
    assert (second["type"], second["content"][0]["text"]) == ("message", "I look.")
    assert {**third, "id": ""} == {
        "id": "",
        "type": "function_call",
        "call_id": CALL_ID,
        "status": "completed",
        **FUNCTION,
    }
    assert fourth["name"] == "time"
    assert found["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0}, "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 11,
    }  # fmt: skip
    assert (found["status"], found["incomplete_details"], found["warnings"]) == ("completed", None, ["a warning"])
    assert found["thinking"]["used"] == 2
    cut = shape().whole(sample((*SCRIPT[:2], Finish("length", USAGE, REPORT))))
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    assert "completed_at" not in cut


def test_stream_order() -> None:
    events = kinds(sse(written(Writer(shape()), CALLS)))
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert [name.removeprefix("response.") for name in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        *call, *call,
        "completed",
    ]  # fmt: skip
    summary = kinds(sse(written(Writer(shape(summary=True)), SCRIPT)))[2:8]
    assert [name.removeprefix("response.") for name in summary] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    ]  # fmt: skip


def test_reasoning_sealed_for_the_client() -> None:
    found = shape(sealed=True, summary=True).whole(sample(SCRIPT))["output"][0]
    assert SEAL.open(found["encrypted_content"], "alice") == "Let me see."
    assert SEAL.open(found["encrypted_content"], "bob") is None
    assert found["summary"] == [{"type": "summary_text", "text": "Let me see."}]
    assert call_of([found | {"summary": []}])[0].messages[0]["reasoning_content"] == "Let me see."


def test_a_call_that_was_none_is_not_shown() -> None:
    output = folded(sse(written(Writer(shape()), DROPPED)))["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in output] == [("message", "<tool_call>…")]


def entries(*texts: bytes) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(i, text, -i / 2, 1, ((i, text, -i / 2),)) for i, text in enumerate(texts))


def test_logprobs_are_those_of_the_text() -> None:
    made = entries(b"<think>", b"Hello", b"</think>", b"\n\n", b"Hel", b"lo", b"<|im_end|>")
    given_ = Sample(0, Result("Hello", "Hello", ()), logprobs=made)
    assert [entry.data for entry in of_the_text(given_)] == [b"Hel", b"lo"]
    assert of_the_text(Sample(0, Result("other", "", ()), logprobs=made)) == ()
    assert of_the_text(Sample(0, Result("", "", ()), logprobs=made)) == ()
    writer = Writer(shape(logprobs=True))
    events = sse(writer.feed([Item(0, TextDelta("Hel"), made[4:5]), Item(0, TextDelta("lo"), made[5:6])]))
    assert [event["logprobs"][0]["token"] for event in events[2:]] == ["Hel", "lo"]


# Over HTTP


def test_plain_and_stream(app_client: AppClient) -> None:
    found = app_client.post("/v1/responses", {"input": "Hello", "extra": 1})
    assert found.status_code == 200
    assert found.headers["x-warnings"] == "1"
    whole = found.json()
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert (whole["model"], whole["object"], whole["store"]) == ("fake", "response", False)
    streamed = folded(sse(app_client.post("/v1/responses", {"input": "Hello", "extra": 1, "stream": True}).content))
    assert streamed["id"] == "resp_" + app_client.backend.streams[-1].id[4:]
    for key in ("usage", "warnings", "thinking", "model", "status", "text", "tools"):
        assert streamed[key] == whole[key]


def test_a_failing_stream_says_so(app_client: AppClient) -> None:
    app_client.backend.script = (*SCRIPT[:3], ApiError(503, "the engine has died", code="engine_lost"))
    events = sse(app_client.post("/v1/responses", {"input": "Hello", "stream": True}).content)
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    assert events[-2]["response"]["error"]["message"] == "the engine has died"
    assert events[-1]["error"]["code"] == "engine_lost"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_bad_requests(app_client: AppClient) -> None:
    for request, status, param in (
        ({"input": "x", "model": "none"}, 404, "model"),
        ({}, 400, "input"),
        ({"input": 3}, 400, "input"),
        ({"input": ["x"]}, 400, "input"),
        ({"input": "x", "tool_choice": 3}, 400, "tool_choice"),
        ({"input": "x", "truncation": "some"}, 400, "truncation"),
        ({"input": "x", "metadata": {"a": "b" * 513}}, 400, "metadata.a"),
        ({"input": "x", "max_output_tokens": 0}, 400, "max_output_tokens"),
    ):
        found = app_client.post("/v1/responses", request)
        assert (found.status_code, found.json()["error"]["param"]) == (status, param), found.text
    for method in ("GET", "DELETE"):
        found = app_client.request(method, "/v1/responses/resp_1")
        assert found.status_code == 404
        assert "stores no responses" in found.json()["error"]["message"]


def test_one_key_cannot_open_what_another_was_given(keyed_client: AppClient) -> None:
    request = {"input": "Hello", "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}}
    item = keyed_client.post("/v1/responses", request, headers=bearer("alice")).json()["output"][0]
    item["summary"] = []
    for name, reasoning_content in (("alice", "Let me see."), ("bob", None)):
        found = keyed_client.post("/v1/responses", {"input": [item]}, headers=bearer(name)).json()
        assert keyed_client.backend.calls[-1].messages[0].get("reasoning_content") == reasoning_content
        assert ("warnings" in found) == (name == "bob")
