"""Messages: what a conversation is made of, made plain and checked.

`Message` is what comes out of the model. What goes in may be dicts (OpenAI's shape), `Message` objects, or other
dataclasses and pydantic models of that shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3.errors import UsageError
from qwen3.tokenizer import check_unicode

ROLES = ("system", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send back a turn's reasoning; the first that is not null counts."""

# Fields other libraries put on their messages; none of them is part of the prompt.
_METADATA = frozenset({"name", "tool_call_id", "id", "refusal", "annotations", "audio", "function_call", "warnings"})


@dataclass(frozen=True)
class ToolCall:
    """One function call of an assistant turn. `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str
    id: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape: {"id"?, "type": "function", "function": {"name", "arguments"}}."""
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True)
class Message:
    """One turn. Empty reasoning and content are empty strings; `warnings` say what could not be parsed."""

    role: str = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape, without what is empty (content is always there); good as history for `render`."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message


def plain(value: Any, where: str) -> Any:
    """`value` rebuilt from dict, list, tuple, str, int, float, bool and None alone.

    Mappings, dataclasses, pydantic models and subclasses of the plain types are converted. Anything else, and nesting
    that never ends, is a UsageError that begins with `where`.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply, or contains itself") from None


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            # The base class's own method: a subclass (an enum, say) may print differently.
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, Message | ToolCall):
        return _plain(value.to_dict(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name), f"{where}.{field.name}") for field in fields}
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return _plain(dump(), where)
    raise UsageError(
        f"{where} is a {type(value).__name__}, which has no JSON form; use str, number, bool, list or dict"
    )


def plain_messages(messages: Any) -> list[dict[Any, Any]]:
    """The messages as plain dicts, null fields left out and the reasoning under `reasoning_content`.

    Raises UsageError if there is no message, or naming the one that is no dict.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise UsageError("messages is empty: give at least one message")
    result = []
    for i, message in enumerate(messages):
        value = plain(message, f"messages[{i}]")
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise UsageError(f"messages[{i}] must be an object with role and content, not {kind}")
        value = {key: item for key, item in value.items() if item is not None}
        reasoning = next((value[key] for key in REASONING_FIELDS if key in value), None)
        result.append(value if reasoning is None else {**value, "reasoning_content": reasoning})
    return result


def normalize(messages: Any) -> list[dict[str, Any]]:
    """Messages as the templates need them, strictly checked: nothing a user wrote is lost in rendering.

    Text parts (`[{"type": "text", "text": …}]`) become one string, joined by newlines; a null content becomes "".
    Raises UsageError naming the place (`messages[3].content[0]`) for an unknown role or field, a wrong type, a part
    that is not text (Qwen3 reads text only), or text that is not valid Unicode.
    """
    return [_normalize(message, f"messages[{i}]") for i, message in enumerate(plain_messages(messages))]


def _normalize(message: dict[Any, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise UsageError(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}")
    known = {"role", "content"} | _METADATA
    if role == "assistant":
        known |= {"tool_calls", *REASONING_FIELDS}
    unknown = [key for key in message if key not in known and message[key] not in ("", [], {})]
    if unknown:
        raise UsageError(
            f"{where}.{unknown[0]} is not a field of {'an' if role == 'assistant' else 'a'} {role} message"
        )
    result: dict[str, Any] = {"role": role, "content": _text(message.get("content", ""), f"{where}.content")}
    for name in ("name", "tool_call_id"):
        if name in message:
            result[name] = _string(message[name], f"{where}.{name}")
    if "reasoning_content" in message and role == "assistant":
        result["reasoning_content"] = _string(message["reasoning_content"], f"{where}.reasoning_content")
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        if not isinstance(calls, (list, tuple)):
            raise UsageError(f"{where}.tool_calls must be a list, not {type(calls).__name__}")
        result["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if "content" not in message and "tool_calls" not in result and "reasoning_content" not in result:
        raise UsageError(f"{where}.content is missing: give a string")
    return result


def _text(content: Any, where: str) -> str:
    if not isinstance(content, (list, tuple)):
        return _string(content, where)
    texts = []
    for i, part in enumerate(content):
        here = f"{where}[{i}]"
        if isinstance(part, dict):
            kind = part.get("type", "text" if "text" in part else None)
            if kind not in ("text", "input_text", "output_text"):
                raise UsageError(f"{here} is a part of type {kind!r}: Qwen3 reads text only")
            part, here = part.get("text"), f"{here}.text"
        texts.append(_string(part, here))
    return "\n".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise UsageError(f"{where} must be an object with name and arguments, not {type(call).__name__}")
    function, here = (call["function"], f"{where}.function") if call.get("function") else (call, where)
    if not isinstance(function, dict):
        raise UsageError(f"{here} must be an object with name and arguments, not {type(function).__name__}")
    name = _string(function.get("name"), f"{here}.name")
    arguments = function.get("arguments")
    if not name:
        raise UsageError(f"{here}.name is empty")
    if not isinstance(arguments, dict):
        arguments = _string(arguments, f"{here}.arguments", "an object or its JSON text")
    result: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call["id"], **result} if call.get("id") is not None else result


def _string(value: Any, where: str, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} must be {wanted}, not {'null' if value is None else type(value).__name__}")
    check_unicode(value, where)
    return value
