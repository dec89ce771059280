"""The text between `<tool_call>` and `</tool_call>` (Hermes JSON) to a ToolCall, at once or as it comes."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, NoReturn

from qwen3.chat.messages import ToolCall

# The form the template teaches. When it fits, the arguments are kept as the model wrote them, so that rendering the
# turn again gives the same tokens.
_SPACE = r"[ \t\n\r]*"  # JSON's own: no other white space
_USUAL = re.compile(
    _SPACE.join(("", r"\{", '"name"', ":", r'(?P<name>"(?:[^"\\]|\\.)*")', ",", '"arguments"', ":", r"(?=\{)"))
)
_END = re.compile(_SPACE.join(("", r"\}", r"\Z")))
_MARK = re.compile(r'\\(?s:.)?|["{}]')
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_HEAD = 1024  # characters; arguments that begin later are held


def parse_tool_call(text: str) -> ToolCall:
    """The call that `text` states: a JSON object with `name` and, unless there are none, an object `arguments`.

    Raises ValueError with a short reason.
    """
    return ToolCall(*_read(text), new_id())


def new_id() -> str:
    """A fresh id, by which a client ties the tool's result to the call."""
    return f"call_{secrets.token_hex(16)}"


class ToolCallReader:
    """`parse_tool_call` of a text that comes in parts: what is given out, joined, is its result.

    In the usual form (`{"name": …, "arguments": {…}}`) the arguments are given out as they come, byte for byte; other
    forms are held until `close`. The cost of a push depends on the part's length alone.
    """

    def __init__(self) -> None:
        self.started = False
        """Whether anything was given out."""
        self._parts: list[str] = []
        self._length = 0
        self._depth = 0  # of braces inside the arguments
        self._in_string = False
        self._escape = False  # a backslash came last
        self._held = False  # nothing more is shown: the arguments are complete, or not in the usual place

    @property
    def text(self) -> str:
        """Everything that was pushed."""
        return "".join(self._parts)

    def push(self, text: str) -> list[tuple[str | None, str]]:
        """(name, part of the arguments' JSON text) that can be shown now; the name comes once, with the first part."""
        self._parts.append(text)
        if self._held:
            return []
        if self.started:
            return [(None, shown)] if (shown := self._arguments(text)) else []
        self._length += len(text)
        if "{" not in text:
            return []
        head = self.text
        self._held = self._length > _LONGEST_HEAD
        if match := _USUAL.match(head):
            try:
                name = _name(json.loads(match["name"]))
            except ValueError:
                self._held = True
                return []
            self.started, self._held = True, False
            return [(name, self._arguments(head[match.end() :]))]
        return []

    def close(self) -> list[tuple[str | None, str]]:
        """The text is complete: what has not been given out. Raises ValueError (short reason) if it is no call."""
        name, arguments = _read(self.text)
        return [] if self.started else [(name, arguments)]

    def _arguments(self, text: str) -> str:
        """The part of `text` that belongs to the arguments: up to the brace that closes them."""
        start = 1 if self._escape and text else 0
        self._escape = self._escape and not text
        for match in _MARK.finditer(text, start):
            mark = match[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif mark[0] == "\\":
                self._escape = len(mark) == 1
            elif not self._in_string:
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    self._held = True
                    return text[: match.end()]
        return text


def _read(text: str) -> tuple[str, str]:
    """(name, JSON text of the arguments) of a call. Raises ValueError with a short reason."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    first = None
    written = ""
    try:
        if match := _USUAL.match(text):
            value, end = decoder.raw_decode(text, match.end())
            first, written = (_name(json.loads(match["name"])), value), text[match.end() : end]
            if _END.match(text, end):
                return first[0], written
        call = decoder.decode(text)
        if isinstance(call, dict) and isinstance(inner := call.get("arguments"), str):
            call["arguments"] = decoder.decode(inner)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(call, dict):
        raise ValueError("not a JSON object")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("arguments is not an object")
    name = _name(call.get("name"))
    if first:  # more keys follow
        if first != (name, arguments):
            raise ValueError("name or arguments are given twice")
        return name, written
    written = json.dumps(arguments, ensure_ascii=False)
    return name, json.dumps(arguments) if _SURROGATE.search(written) else written


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no name")
    if _SURROGATE.search(value):
        raise ValueError("the name is not valid Unicode")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
