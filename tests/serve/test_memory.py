"""Reasoning memory: found by the same caller, for the same call in the same conversation, for a while; else nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("cryptography")

from qwen3.chat import Message
from qwen3.chat.messages import ToolCall
from qwen3.chat.tool_calls import new_id
from qwen3.serve.calls import Call
from qwen3.serve.memory import LONGEST, ReasoningMemory

QUESTION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
]
REASONING = "I should look it up. Ærlig talt."


def turn(*ids: str, reasoning: str = REASONING, arguments: str = '{"city": "Oslo"}') -> Message:
    return Message("assistant", "", reasoning, tuple(ToolCall("weather", arguments, id) for id in ids))


def sent_back(message: Message, before: list[dict[str, Any]] = QUESTION, result: str = "rain") -> list[dict[str, Any]]:
    bare = {k: v for k, v in message.to_dict().items() if k != "reasoning_content"}
    answers = [{"role": "tool", "tool_call_id": call.id, "content": result} for call in message.tool_calls]
    return [*before, {**bare, "content": None}, *answers]


def restored(memory: ReasoningMemory, caller: str, messages: list[dict[str, Any]]) -> list[str | None]:
    found, count = asyncio.run(memory.restore(caller, messages))
    texts = [message.get("reasoning_content") for message in found if message["role"] == "assistant"]
    if not count:
        assert found is messages
    return texts


def test_put_back_for_the_same_caller_only() -> None:
    memory, id = ReasoningMemory(), new_id()
    assert len(id.removeprefix("call_")) * 4 >= 128
    assert memory.keep("alice", Call(messages=QUESTION), turn(id)) == 1
    assert restored(memory, "alice", sent_back(turn(id))) == [REASONING]
    for other in ("bob", "", "alic", "alicee", "\ud800"):
        assert restored(memory, other, sent_back(turn(id))) == [None]


def test_any_mismatch_inserts_nothing() -> None:
    memory, id = ReasoningMemory(), new_id()
    memory.keep("alice", Call(messages=QUESTION), turn(id))
    messages = sent_back(turn(id))
    changed = json.loads(json.dumps(messages))
    changed[1]["content"][0]["text"] += "?"
    assert restored(memory, "alice", changed) == [None]
    assert restored(memory, "alice", messages[1:]) == [None]
    assert restored(memory, "alice", sent_back(turn(new_id()))) == [None]
    assert restored(memory, "alice", sent_back(turn(id, arguments='{"city": "Rome"}'))) == [None]
    renamed = json.loads(json.dumps(messages))
    renamed[2]["tool_calls"][0]["function"]["name"] = "news"
    assert restored(memory, "alice", renamed) == [None]


def test_what_does_not_count_as_a_difference() -> None:
    memory, id = ReasoningMemory(), new_id()
    memory.keep("alice", Call(messages=QUESTION), turn(id))
    spaced = sent_back(turn(id, arguments='{ "city":"Oslo" }'), result="sun")
    spaced[1] = {"role": "user", "content": "Weather in Oslo?"}
    assert restored(memory, "alice", spaced) == [REASONING]


def test_what_the_client_brings_is_kept() -> None:
    memory, id = ReasoningMemory(), new_id()
    memory.keep("", Call(messages=QUESTION), turn(id))
    for name in ("reasoning_content", "reasoning", "thinking"):
        messages = sent_back(turn(id))
        messages[2][name] = ""
        assert asyncio.run(memory.restore("", messages)) == (messages, 0)


def test_a_loop_of_several_turns() -> None:
    memory = ReasoningMemory()
    first, second = turn(new_id(), reasoning="one"), turn(new_id(), new_id(), reasoning="two")
    memory.keep("", Call(messages=QUESTION), first)
    history = sent_back(first)
    history, count = asyncio.run(memory.restore("", history))
    assert count == 1
    assert memory.keep("", Call(messages=history), second) == 2
    assert restored(memory, "", sent_back(second, sent_back(first))) == ["one", "two"]


def test_entries_end() -> None:
    now = [0.0]
    memory, id = ReasoningMemory(clock=lambda: now[0]), new_id()
    memory.keep("", Call(messages=QUESTION), turn(id))
    now[0] = 1799.0
    assert restored(memory, "", sent_back(turn(id))) == [REASONING]
    now[0] = 1800.0
    assert restored(memory, "", sent_back(turn(id))) == [None]
    assert (len(memory), memory.bytes) == (0, 0)


def test_number_and_size_are_bounded_the_oldest_goes() -> None:
    memory, ids = ReasoningMemory(max_entries=3), [new_id() for _ in range(5)]
    for id in ids:
        memory.keep("", Call(messages=QUESTION), turn(id))
    assert len(memory) == 3
    assert [restored(memory, "", sent_back(turn(id)))[0] for id in ids] == [None, None, *[REASONING] * 3]
    memory = ReasoningMemory(max_bytes=1000)
    for id in ids:
        memory.keep("", Call(messages=QUESTION), turn(id, reasoning="x" * 300))
    assert len(memory) == 3
    assert memory.bytes <= 1000
    assert memory.keep("", Call(messages=QUESTION), turn(ids[0], reasoning="x" * (LONGEST + 1))) == 0


def test_kept_encrypted_and_bound_to_its_place() -> None:
    memory, (a, b) = ReasoningMemory(), (new_id(), new_id())
    memory.keep("", Call(messages=QUESTION), turn(a))
    memory.keep("", Call(messages=QUESTION), turn(b))
    assert not any(b"look it up" in sealed for _, sealed in memory._entries.values())
    first, second = memory._entries
    memory._entries[first] = memory._entries[second]
    assert restored(memory, "", sent_back(turn(a))) == [None]


def test_nothing_to_keep_or_to_find() -> None:
    memory, id = ReasoningMemory(), new_id()
    assert memory.keep("", Call(messages=QUESTION), turn(id, reasoning="")) == 0
    assert memory.keep("", Call(messages=QUESTION), Message("assistant", "hi", REASONING)) == 0
    assert memory.keep("", Call(prompt="raw"), turn(id)) == 0
    assert memory.keep("", Call(messages=QUESTION, continue_last=True), turn(id)) == 0
    off = ReasoningMemory(enabled=False)
    assert off.keep("", Call(messages=QUESTION), turn(id)) == 0
    assert restored(off, "", sent_back(turn(id))) == [None]


def test_messages_that_are_none_go_on_to_who_refuses_them() -> None:
    memory, id = ReasoningMemory(), new_id()
    memory.keep("", Call(messages=QUESTION), turn(id))
    for odd in ({"role": "bob"}, {"role": "user"}, {"role": "assistant", "tool_calls": 5}):
        messages = [*sent_back(turn(id)), odd]
        assert asyncio.run(memory.restore("", messages)) == (messages, 0)


def test_long_conversations_are_hashed_in_a_thread() -> None:
    memory, id = ReasoningMemory(), new_id()
    before = [{"role": "user", "content": "x" * 200_000}]
    memory.keep("", Call(messages=before), turn(id))
    assert restored(memory, "", sent_back(turn(id), before)) == [REASONING]
