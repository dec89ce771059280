"""Random conversations: mostly sensible ones, and shapes that nobody should send but somebody does."""

from __future__ import annotations

import random
from typing import Any

from tests.tokenizer.random_text import random_text

WORDS = [
    "Hello",
    "2 + 2?",
    "  spaces ",
    "\n\nlines\n",
    "",
    "\n",
    "ok.",
    'quote "x" \\ y',
    "<b>&amp;'",
    "/no_think",
    "世界",
]
TAGS = [
    "<think>",
    "</think>",
    "<think>\n\n</think>\n\n",
    "<tool_response>\nx\n</tool_response>",
    "<|im_end|>",
    "<tool_call>",
]
NAMES = ["get_weather", "f", "a-b", "naïve", 'we"ird', ""]


def text(rng: random.Random, tags: bool) -> str:
    """A few words, and if `tags`, sometimes control strings among them."""
    parts = [rng.choice(WORDS) if rng.random() < 0.7 else random_text(rng) for _ in range(rng.randrange(1, 4))]
    if tags and rng.random() < 0.35:
        for _ in range(rng.randrange(1, 4)):
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(TAGS))
    return "".join(parts)


def value(rng: random.Random, tags: bool, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind >= 7:
        return {text(rng, False)[:8]: value(rng, tags, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        return [value(rng, tags, depth + 1) for _ in range(rng.randrange(4))]
    simple: list[Any] = [None, rng.random() < 0.5, rng.randrange(-9, 10**9), rng.uniform(-5, 5), 1e300]
    return text(rng, tags) if kind == 5 else simple[kind]


def tool(rng: random.Random, tags: bool) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"q": {"type": "string", "description": text(rng, tags)}}}
    function = {"name": rng.choice(NAMES), "description": text(rng, tags), "parameters": schema}
    return {"type": "function", "function": function} if rng.random() < 0.8 else {"x": value(rng, tags)}


def call(rng: random.Random, tags: bool) -> dict[str, Any]:
    arguments: Any = {text(rng, False)[:6]: value(rng, tags)}
    if rng.random() < 0.4:
        arguments = rng.choice(['{"a": 1}', "{}", "", "not json", text(rng, tags)])
    function = {"name": rng.choice(NAMES), "arguments": arguments}
    return {"id": "c1", "type": "function", "function": function} if rng.random() < 0.6 else function


def conversation(rng: random.Random, tags: bool = True) -> list[dict[str, Any]]:
    """A conversation that makes sense, apart from what the texts say."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": text(rng, tags)})
    for _ in range(rng.randrange(1, 4)):
        messages.append({"role": "user", "content": text(rng, tags)})
        for _ in range(rng.randrange(3)):
            message: dict[str, Any] = {"role": "assistant", "content": text(rng, tags)}
            if rng.random() < 0.5:
                message["reasoning_content"] = rng.choice(["", "\n", text(rng, tags)])
            if rng.random() < 0.2:
                message["content"] = f"<think>\n{text(rng, tags)}\n</think>\n\n{message['content']}"
            messages.append(message)
            if rng.random() < 0.5:
                message["tool_calls"] = [call(rng, tags) for _ in range(rng.randrange(1, 4))]
                messages += [{"role": "tool", "content": text(rng, tags)} for _ in range(rng.randrange(3))]
    return messages


def odd_conversation(rng: random.Random) -> list[dict[str, Any]]:
    """A conversation with something wrong in it: what the official template makes of it, or refuses, is its own."""
    messages = conversation(rng)
    for _ in range(rng.randrange(1, 4)):
        message = rng.choice(messages)
        match rng.randrange(9):
            case 0:
                message["content"] = rng.choice(
                    [None, 5, True, 1.5, [{"type": "text", "text": "hi"}], {"text": "hi"}, []]
                )
            case 1:
                message.pop("content", None)
            case 2:
                message["role"] = rng.choice(
                    ["system", "tool", "developer", "", None, 3, "assistant", "user", ["user"]]
                )
            case 3:
                message.pop("role", None)
            case 4:
                message["reasoning_content"] = rng.choice([None, 7, ["x"], {"a": 1}, False, ""])
            case 5:
                message["tool_calls"] = rng.choice(
                    [
                        None,
                        [],
                        {},
                        "abc",
                        3,
                        {"name": "f"},
                        [None],
                        ["f"],
                        [{}],
                        [[1]],
                        [{"function": "f", "arguments": {}}],
                    ]
                )
            case 6:
                odd: list[dict[str, Any]] = [
                    {"name": None, "arguments": None},
                    {"name": 5, "arguments": [1, "é"]},
                    {"function": {}, "name": "g", "arguments": {"x": float("nan")}},
                    {"arguments": {}},
                    {"name": {"a": 1}, "arguments": 3.5},
                    {"function": {"name": True, "arguments": {1: 2, None: 3, False: 4}}},
                    {"name": "h"},
                ]
                message["tool_calls"] = [rng.choice(odd) for _ in range(rng.randrange(1, 3))]
            case 7:
                messages.insert(rng.randrange(len(messages) + 1), {"role": "tool", "content": text(rng, True)})
            case 8:
                messages.insert(rng.randrange(len(messages) + 1), {"role": "system", "content": text(rng, True)})
    return messages
