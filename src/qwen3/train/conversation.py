"""Conversations to samples: the prompt exactly as the engine renders it, the loss on what the model has to write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3.chat import render
from qwen3.chat.stream import EARLY_STOP
from qwen3.errors import UsageError
from qwen3.train.data import Sample

Message = Mapping[str, Any]


def completion_text(message: Message, *, thinking: bool) -> str:
    """What the model writes for this assistant message, up to and with the end of the turn.

    Without thinking the prompt already holds the empty think block, so it is never trained on.
    """
    text = ""
    if thinking:
        text = f"<think>\n{message.get('reasoning_content', '').strip()}\n</think>\n\n"
    content = message.get("content") or ""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>')
    return text + "\n".join([content, *calls] if content or not calls else calls) + "<|im_end|>"


def turn_sample(
    messages: Sequence[Message], *, thinking: bool, tools: Sequence[Mapping[str, Any]] | None = None
) -> Sample:
    """A sample that trains the last message of the conversation, in either mode; UsageError if it is no assistant's."""
    *history, last = messages
    if last["role"] != "assistant":
        raise UsageError(f"the last message is a {last['role']}'s; only assistant messages are trained")
    prompt = render(list(history), tools=list(tools) if tools else None, enable_thinking=None if thinking else False)
    return Sample(prompt, completion_text(last, thinking=thinking))


def stopped_sample(messages: Sequence[Message], kept_steps: int) -> Sample:
    """A sample whose thinking is closed early by the published text, after `kept_steps` paragraphs."""
    *history, last = messages
    steps = str(last["reasoning_content"]).split("\n\n")[:kept_steps]
    prompt = render(list(history)) + "<think>\n" + "\n\n".join(steps)
    return Sample(prompt, f"{last['content']}<|im_end|>", EARLY_STOP)
