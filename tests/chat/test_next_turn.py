"""The next turn's prompt begins with what was predicted for it."""

from __future__ import annotations

import random

import pytest

from qwen3.chat import Message, encode
from qwen3.chat.messages import ToolCall
from qwen3.chat.next_turn import next_turn_ids
from tests.tokenizer.random_text import random_text

TOOL = {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("template", ["qwen3", "instruct-2507", "thinking-2507"])
def test_the_next_prompt_begins_with_it(seed: int, template: str) -> None:
    r = random.Random(seed)
    messages = [{"role": "system", "content": random_text(r)}] if r.random() < 0.5 else []
    for _ in range(r.randint(0, 2)):
        messages += [{"role": "user", "content": random_text(r)}, {"role": "assistant", "content": random_text(r)}]
    messages.append({"role": "user", "content": random_text(r)})
    tools = [TOOL] if r.random() < 0.5 else None
    if tools and r.random() < 0.5:
        messages.append(Message("assistant", "", random_text(r), (ToolCall("look", "{}", "call_1"),)))
        messages.append({"role": "tool", "content": random_text(r)})
    calls = (ToolCall("look", '{ "a":  1}', "call_2"),) if tools and r.random() < 0.5 else ()
    reply = Message("assistant", random_text(r) or "x", random_text(r), calls)
    predicted = next_turn_ids(messages, reply, tools=tools, template=template)
    old = encode(messages, tools=tools, template=template).ids
    follows = {"role": "tool" if calls else "user", "content": random_text(r)}
    later = encode([*messages, reply, follows], tools=tools, template=template).ids
    assert len(predicted) > 0
    assert later[: len(predicted)] == predicted
    shared = next((i for i, (a, b) in enumerate(zip(old, predicted, strict=False)) if a != b), len(old))
    assert shared >= len(old) - 6 or tools, "the old prompt, up to its think tag, is where it goes on from"
