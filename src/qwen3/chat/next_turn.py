"""What the next turn's prompt will begin with: known as soon as an answer has ended, so it can be computed meanwhile.

The template drops earlier thoughts (and the empty think block), so the tokens that follow the old prompt in the next
one are not those that were sampled: they are the answer alone. Sampled ids may also not be the ones its text encodes
to. So the history is rendered and encoded as it will be, and nothing is taken from the output's ids. After a tool call
the thought stays, but a grammar may have cut the call into other tokens than the tokenizer would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen3.chat.encode import default_tokenizer, encode
from qwen3.chat.messages import Message
from qwen3.chat.template import CustomTemplate
from qwen3.tokenizer import Tokenizer


def next_turn_ids(
    messages: Sequence[Any],
    reply: Message,
    *,
    tokenizer: Tokenizer | None = None,
    tools: Sequence[Any] | None = None,
    template: str | CustomTemplate = "qwen3",
) -> list[int]:
    """Ids that the prompt of the next turn will begin with, if it is `messages`, `reply` and another user message, or
    the tool's response where `reply` calls one: all up to that message's own start. [] for a template that does not
    begin messages with `<|im_start|>`."""
    tok = tokenizer or default_tokenizer()
    history = [*messages, reply, {"role": "tool" if reply.tool_calls else "user", "content": "?"}]
    ids = encode(history, tokenizer=tok, tools=tools, template=template, add_generation_prompt=False).ids
    for i in range(len(ids) - 1, -1, -1):
        if ids[i] == tok.control.im_start:
            return ids[:i]
    return []
