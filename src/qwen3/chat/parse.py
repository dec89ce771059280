"""The inverse of rendering an assistant turn: ids or text to reasoning, content and tool calls.

Agrees with `TokenStream` on well-formed turns. As the prompt is not known here, a `</think>` that nothing opened is
taken to close a think block opened by the prompt: all before it is reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from qwen3.chat.encode import control_pattern, default_tokenizer
from qwen3.chat.messages import Message, ToolCall
from qwen3.chat.tool_calls import parse_tool_call
from qwen3.errors import UsageError
from qwen3.tokenizer import CONTROL_TOKENS, Detokenizer, Tokenizer

_TAGS = tuple(CONTROL_TOKENS[name][0] for name in ("think", "end_think", "tool_call", "end_tool_call"))
_ENDS = tuple(CONTROL_TOKENS[name][0] for name in ("im_end", "endoftext"))


def parse(turn: str | Iterable[int], tokenizer: Tokenizer | None = None) -> Message:
    """One assistant turn, with or without the final `<|im_end|>`, as a Message.

    `turn` is text, where tags are found as strings, or ids, where only control ids are tags. A think block comes first;
    one that is not closed is all reasoning. Later think tags are text, but a `</think>` before any content is dropped.
    A tool call that cannot be read or is not closed stays in the content, and `warnings` says so. Tool calls inside a
    think block are text.
    """
    if isinstance(turn, str):
        split = control_pattern(_TAGS).split(_until_end(turn))
        return _build([(text, i % 2 == 1) for i, text in enumerate(split) if text])
    if isinstance(turn, (bytes, dict)) or not isinstance(turn, Iterable):
        raise UsageError(f"parse: give text or token ids, not {type(turn).__name__}")
    tok = tokenizer or default_tokenizer()
    control = tok.control
    tags = {control.think, control.end_think, control.tool_call, control.end_tool_call}
    ids, special = list(turn), tok.special_ids
    ids = ids[: min((ids.index(end) for end in tok.eos_ids if end in ids), default=len(ids))]
    segments: list[tuple[str, bool]] = []
    for is_tag, group in groupby(ids, tags.__contains__):
        if is_tag:
            segments += [(tok.decode([id]), True) for id in group]
        else:
            # As in a stream, an unfinished character at the end of a segment is left out.
            segments.append((Detokenizer(tok).push_all([id for id in group if id not in special]), False))
    return _build(segments)


def _until_end(text: str) -> str:
    return min((text.split(end)[0] for end in _ENDS), key=len)


class _Content:
    """The answer text, without the newlines that the template puts around think blocks and tool calls.

    strip: newlines at the beginning are the template's.
    """

    def __init__(self, strip: bool) -> None:
        self.begun = False
        self._parts: list[str] = []
        self._open = ""  # since the last tag
        self._strip = strip
        self._after_call = False

    def add(self, text: str) -> None:
        self.begun = self.begun or bool(text.strip("\n"))
        text = text.lstrip("\n") if self._strip else text
        self._strip = self._strip and not text
        self._open += text

    def end(self, drop: int = 0) -> None:
        """A tag, or the end, comes after `drop` newlines of the template."""
        body = self._open.rstrip("\n")
        newlines = len(self._open) - len(body)
        if body:
            self._after_call = False
        elif self._after_call:
            newlines = 0
        self._parts.append(body + "\n" * max(newlines - drop, 0))
        self._open = ""

    def call(self) -> None:
        self.end(drop=1)
        self.begun = self._after_call = True

    def __str__(self) -> str:
        return "".join(self._parts)


def _build(segments: list[tuple[str, bool]]) -> Message:
    """Segments are (text, whether it is a tag)."""
    calls: list[ToolCall] = []
    warnings: list[str] = []
    tags = [text for text, is_tag in segments if is_tag and "think" in text]
    opened = segments[:1] == [("<think>", True)]
    i, reasoning = int(opened), ""
    if opened or tags[:1] == ["</think>"]:
        stop = segments.index(("</think>", True), i) if "</think>" in tags else len(segments)
        reasoning = "".join(text for text, _ in segments[i:stop]).strip("\n")
        i = stop + 1
    content = _Content(strip=i > 0)
    while i < len(segments):
        text, is_tag = segments[i]
        i += 1
        if is_tag and text == "</think>" and not content.begun:
            warnings.append("the turn closes a think block that is not open; the tag was dropped")
        elif is_tag and text == "<tool_call>":
            end = _next_tag(segments, i)
            body = "".join(part for part, _ in segments[i:end])
            closed = end < len(segments) and segments[end][0] == "</tool_call>"
            i = end + closed
            try:
                if not closed:
                    raise ValueError("it is not closed")
                calls.append(parse_tool_call(body))
                content.call()
            except ValueError as error:
                warnings.append(f"a tool call cannot be read ({error}); it was left in the content")
                content.add(f"<tool_call>{body}{'</tool_call>' if closed else ''}")
        else:
            content.add(text)
    content.end()
    return Message("assistant", str(content), reasoning, tuple(calls), tuple(warnings))


def _next_tag(segments: list[tuple[str, bool]], start: int) -> int:
    """Where the next tool-call tag is, or the end. Other tags inside a call are text."""
    for i in range(start, len(segments)):
        if segments[i][1] and "tool_call" in segments[i][0]:
            return i
    return len(segments)
