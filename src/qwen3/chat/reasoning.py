"""Reasoning memory for tool loops: the thinking of a turn that called a tool, put back where a client dropped it.

Between a question and its final answer the template keeps the thinking of every turn that called a tool. Most clients
send the calls back without it: the model then sees calls it has no reasons for, and a prompt that is not its cached
one. Who keeps the reasoning, how long and for whom is for the caller: here are the key to keep it under and the rule
for where it goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from qwen3.chat.messages import normalize
from qwen3.chat.template import _last_query, split_think
from qwen3.errors import UsageError


def memory_key(messages: Any, call_id: str) -> str:
    """The key of a turn's reasoning: 64 hex digits for the call `call_id` and the conversation before its turn.

    SHA-256 over a canonical JSON of what was asked, said, called and answered before, and of the call's name, arguments
    and id. Reasoning, the ids of earlier calls, how JSON is spaced and ordered, and white space around earlier answers
    do not count. `messages` are the conversation with the turn; what follows the turn does not count either.

    Raises UsageError for messages that `normalize` refuses, or if no turn made that call; the last that did counts.
    """
    turns = normalize(messages)
    for i in range(len(turns) - 1, -1, -1):
        for call in turns[i].get("tool_calls", ()):
            if call.get("id") == call_id:
                return _key(hashlib.sha256(b"".join(map(_canonical, turns[:i]))), call)
    raise UsageError(f"messages hold no tool call with the id {call_id!r}")


def restore_reasoning(
    messages: Any, lookup: Callable[[str, dict[str, Any]], str | None]
) -> tuple[list[dict[str, Any]], int]:
    """(the messages as `normalize` makes them, with the missing reasoning; how many turns got theirs back).

    For each assistant turn after the last user message (tool responses are none) that calls tools and came without
    reasoning, `lookup(memory_key, turn)` is asked, for one call after the other, until it knows the reasoning. What a
    client sent is never replaced, an empty `reasoning_content` included. Calls without an id are not asked for.

    Raises UsageError for messages that `normalize` refuses.
    """
    turns = normalize(messages)
    bare = [i for i in range(_last_query(turns) + 1, len(turns)) if _lacks_reasoning(turns[i])]
    before, restored, done = hashlib.sha256(), 0, 0
    for i in bare:
        before.update(b"".join(map(_canonical, turns[done:i])))
        done = i
        keys = (_key(before, call) for call in turns[i]["tool_calls"] if "id" in call)
        if reasoning := next(filter(None, (lookup(key, turns[i]) for key in keys)), None):
            turns[i]["reasoning_content"] = reasoning
            restored += 1
    return turns, restored


def _lacks_reasoning(turn: dict[str, Any]) -> bool:
    return bool(turn.get("tool_calls")) and "reasoning_content" not in turn and "</think>" not in turn["content"]


def _key(before: Any, call: dict[str, Any]) -> str:
    state = before.copy()
    state.update(_line([call["id"], *_function(call)]))
    return str(state.hexdigest())


def _canonical(turn: dict[str, Any]) -> bytes:
    """One line for a turn: what a prompt shows of it, its reasoning apart."""
    content = turn["content"]
    if turn["role"] == "assistant":
        content = split_think(content)[1].strip()
    return _line([turn["role"], content, *map(_function, turn.get("tool_calls", ()))])


def _function(call: dict[str, Any]) -> list[str]:
    """[name, arguments], these as canonical JSON if they are JSON at all."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    try:
        value = json.loads(arguments if isinstance(arguments, str) else json.dumps(arguments))
        return [name, json.dumps(value, sort_keys=True, separators=(",", ":"))]
    except (TypeError, ValueError, RecursionError):
        return [name, str(arguments)]


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
