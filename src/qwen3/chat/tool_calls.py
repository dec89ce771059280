"""The text between `<tool_call>` and `</tool_call>` (Hermes JSON) to a ToolCall."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, NoReturn

from qwen3.chat.messages import ToolCall

# The form the template teaches. When it fits, the arguments are kept as the model wrote them, so that rendering the
# turn again gives the same tokens.
_USUAL = re.compile(r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_END = re.compile(r"\s*\}\s*\Z")


def parse_tool_call(text: str) -> ToolCall:
    """The call that `text` states: a JSON object with `name` and, unless there are none, an object `arguments`.

    Raises ValueError with a short reason.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    try:
        if match := _USUAL.match(text):
            _, end = decoder.raw_decode(text, match.end())
            if _END.match(text, end):
                return ToolCall(_name(json.loads(match["name"])), text[match.end() : end], new_id())
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
    return ToolCall(_name(call.get("name")), json.dumps(arguments, ensure_ascii=False), new_id())


def new_id() -> str:
    """A fresh id, by which a client ties the tool's result to the call."""
    return f"call_{secrets.token_hex(12)}"


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no name")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
