"""Messages to prompt ids, with no way for a message to inject control tokens.

Only the template's own control strings become control ids. Every text run between two of them, whoever wrote it, is
encoded as one piece by the plain tokenizer, which has no added tokens. Since the official pipeline also cuts the
prompt at control tokens before it does anything else, the ids are the official ones whenever no message holds a
control string; when one does, a warning names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3.chat.messages import plain_messages
from qwen3.chat.template import CustomTemplate, Piece, apart, pieces, plain_tools
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer, check_unicode


@dataclass(frozen=True)
class Encoded:
    """Prompt ids, and one line for each message or tool whose text holds a control string."""

    ids: list[int]
    warnings: tuple[str, ...] = ()


@cache
def default_tokenizer() -> Tokenizer:
    """The packaged official tokenizer, loaded once."""
    return Tokenizer.from_pretrained()


def encode(
    messages: Any,
    *,
    tokenizer: Tokenizer | None = None,
    tools: Any = None,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    template: str | CustomTemplate = "qwen3",
    continue_last: bool = False,
) -> Encoded:
    """Prompt ids of the messages. Arguments as in `render`; `tokenizer` None means the packaged one. continue_last: the
    last message is the assistant's, and the prompt ends where its text does: in its thought where it has no content.

    Raises UsageError as `render` does, for text that is not valid Unicode, and for a last message that cannot be
    continued; CorruptFileError if the tokenizer lacks a control token.
    """
    tok = tokenizer or default_tokenizer()
    options: dict[str, Any] = {
        "tools": tools,
        "add_generation_prompt": add_generation_prompt and not continue_last,
        "enable_thinking": enable_thinking,
    }
    if continue_last and not isinstance(template, str):
        raise UsageError("continue_last is impossible: this model has a chat template of its own")
    if isinstance(template, str):
        tok.control.as_tuple()  # without these tokens the template's own tags would be text
        made = pieces(messages, template=template, **options)
        return encode_pieces(_left_open(made, messages) if continue_last else made, tok)
    control = tuple(tok.added_tokens.values())
    encoded = encode_pieces(template.pieces(messages, control=control, **options), tok)
    return Encoded(encoded.ids, _control_warnings(messages, tools, control_pattern(control)))


def _left_open(made: list[Piece], messages: Any) -> list[Piece]:
    """Without what the template writes behind the text of the last message."""
    last = plain_messages(messages)[-1]
    if last.get("role") != "assistant" or last.get("tool_calls") or not made:
        raise UsageError("continue_last needs an assistant message without tool calls at the end of messages")
    if not (last.get("content") or last.get("reasoning_content")):
        raise UsageError("continue_last: the last message is empty, there is nothing to continue")
    while made[-1].source is None or not made[-1].text:
        made.pop()
    return made


def _control_warnings(messages: Any, tools: Any, pattern: re.Pattern[str]) -> tuple[str, ...]:
    """Which messages and tools hold a control string anywhere, for templates whose pieces do not say."""
    parts = [(f"messages[{i}]", turn) for i, turn in enumerate(apart(plain_messages(messages)))]
    parts += [(f"tools[{i}]", tool) for i, tool in enumerate(plain_tools(tools))]
    found = ((where, pattern.findall(json.dumps(part, ensure_ascii=False))) for where, part in parts)
    return tuple(_warning(where, texts) for where, texts in found if texts)


def _warning(where: str, texts: Iterable[str]) -> str:
    names = list(dict.fromkeys(texts))
    what, verb = ("control string", "was") if len(names) == 1 else ("control strings", "were")
    return f"{where} contains the {what} {', '.join(map(repr, names))}, which {verb} encoded as ordinary text"


def encode_pieces(made: Iterable[Piece], tokenizer: Tokenizer) -> Encoded:
    """Ids of prompt pieces: control strings count only in pieces without a source."""
    control = {text: id for id, text in tokenizer.added_tokens.items()}
    pattern = control_pattern(tuple(control))
    ids: list[int] = []
    run: list[str] = []
    found: dict[str, list[str]] = {}

    def flush() -> None:
        if run:
            ids.extend(tokenizer.encode_plain("".join(run)))
            run.clear()

    for text, source in made:
        if source is not None:
            check_unicode(text, source)
            if texts := pattern.findall(text):
                found.setdefault(source, []).extend(texts)
            run.append(text)
            continue
        # The split keeps the control strings, at the odd places.
        for i, part in enumerate(pattern.split(text)):
            if i % 2:
                flush()
                ids.append(control[part])
            else:
                run.append(part)
    flush()
    return Encoded(ids, tuple(_warning(source, texts) for source, texts in found.items()))


@cache
def control_pattern(strings: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern with one group that matches any of the strings, the longest first."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else "((?!))")
