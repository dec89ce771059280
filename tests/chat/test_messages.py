"""`normalize`: nothing that a user wrote gets lost in the template, and what is wrong is named."""

from __future__ import annotations

import pytest

from qwen3.chat import Message, ToolCall, normalize, render
from qwen3.errors import UsageError

USER = {"role": "user", "content": "Q"}


def test_text_parts_become_one_text():
    parts = [{"type": "text", "text": "one"}, {"text": "two"}, "three", {"type": "input_text", "text": "four"}]
    assert normalize([{"role": "user", "content": parts}]) == [{"role": "user", "content": "one\ntwo\nthree\nfour"}]
    assert normalize([{"role": "user", "content": []}])[0]["content"] == ""


def test_good_messages_stay_as_they_are():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q", "name": "Ann"},
        {"role": "assistant", "content": "", "reasoning_content": "R", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ]
    assert normalize(messages) == messages
    assert render(normalize(messages)) == render(messages)


def test_what_clients_send_back():
    theirs = {
        "role": "assistant",
        "content": None,
        "reasoning": "R",
        "refusal": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": [{"name": "f", "arguments": "{}"}],
    }
    made = normalize([USER, theirs])[1]
    function = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert made == {"role": "assistant", "content": "", "reasoning_content": "R", "tool_calls": [function]}
    ours = Message("assistant", "A", "R", (ToolCall("f", "{}", "c"),), ("a warning",))
    assert normalize([USER, ours])[1] == ours.to_dict()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "developer", "content": "x"}, r"messages\[1\]\.role must be one of .*, not 'developer'"),
        ({"content": "x"}, r"messages\[1\]\.role must be one of .*, not None"),
        ({"role": ["user"], "content": "x"}, r"messages\[1\]\.role must be one of"),
        ({"role": "user"}, r"messages\[1\]\.content is missing"),
        ({"role": "tool", "content": None}, r"messages\[1\]\.content is missing"),
        ({"role": "user", "content": 5}, r"messages\[1\]\.content must be a string, not int"),
        ({"role": "tool", "content": {"a": 1}}, r"messages\[1\]\.content must be a string, not dict"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         r"messages\[1\]\.content\[0\] is a part of type 'image_url': Qwen3 reads text only"),
        ({"role": "user", "content": ["a", {"type": "text"}]}, r"content\[1\]\.text must be a string, not null"),
        ({"role": "user", "content": [{"a": 1}]}, r"content\[0\] is a part of type None"),
        ({"role": "user", "content": [3]}, r"messages\[1\]\.content\[0\] must be a string, not int"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, r"messages\[1\]\.tool_calls is not a field of a user"),
        ({"role": "user", "content": "x", "contnet": "y"}, r"messages\[1\]\.contnet is not a field"),
        ({"role": "assistant", "content": "x", "reasoning_content": 3}, r"reasoning_content must be a string, not int"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, r"messages\[1\]\.tool_calls must be a list, not dict"),
        ({"role": "assistant", "tool_calls": ["f"]}, r"messages\[1\]\.tool_calls\[0\] must be an object"),
        ({"role": "assistant", "tool_calls": [{"function": 3}]}, r"tool_calls\[0\]\.function must be an object"),
        ({"role": "assistant", "tool_calls": [{"arguments": {}}]}, r"tool_calls\[0\]\.name must be a string, not null"),
        ({"role": "assistant", "tool_calls": [{"name": "", "arguments": {}}]}, r"tool_calls\[0\]\.name is empty"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
         r"tool_calls\[0\]\.function\.arguments must be an object or its JSON text, not null"),
        ({"role": "user", "content": "a\udc00"}, r"messages\[1\]\.content holds the lone surrogate U\+DC00"),
        ("text", r"messages\[1\] must be an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(message, error):
    with pytest.raises(UsageError, match=error):
        normalize([USER, message])


def test_no_messages():
    with pytest.raises(UsageError, match="messages is empty"):
        normalize([])
