"""Messages to prompt ids, with no way for a message to inject control tokens.

Only the template's own control strings become control ids. Every text run between two of them, whoever wrote it, is
encoded as one piece by the plain tokenizer, which has no added tokens. Since the official pipeline also cuts the
prompt at control tokens before it does anything else, the ids are the official ones whenever no message holds a
control string; when one does, a warning names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3.chat.messages import check_unicode
from qwen3.chat.template import Piece, pieces
from qwen3.tokenizer import Tokenizer


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
    template: str = "qwen3",
) -> Encoded:
    """Prompt ids of the messages. Arguments as in `render`; `tokenizer` None means the packaged one.

    Raises UsageError as `render` does, and for text that is not valid Unicode.
    """
    made = pieces(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        template=template,
    )
    return encode_pieces(made, tokenizer or default_tokenizer())


def encode_pieces(made: Iterable[Piece], tokenizer: Tokenizer) -> Encoded:
    """Ids of prompt pieces: control strings count only in pieces without a source."""
    control = {text: id for id, text in tokenizer.added_tokens.items()}
    pattern = control_pattern(tuple(control))
    ids: list[int] = []
    run: list[str] = []
    found: dict[str, str] = {}

    def flush() -> None:
        if run:
            ids.extend(tokenizer.encode_plain("".join(run)))
            run.clear()

    for text, source in made:
        if source is not None:
            check_unicode(text, source)
            if match := pattern.search(text):
                found.setdefault(source, match[0])
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
    warnings = [
        f"{source} contains the control string {text!r}, which was encoded as ordinary text"
        for source, text in found.items()
    ]
    return Encoded(ids, tuple(warnings))


@cache
def control_pattern(strings: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern with one group that matches any of the strings, the longest first."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else "((?!))")
