"""The items of a Responses request, read into a conversation, and its tools into functions."""

from __future__ import annotations

from typing import Any

from qwen3.serve.errors import ApiError
from qwen3.serve.seal import Seal

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def refuse(where: str, what: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{where} {what}", where, code)


class Reader:
    """Reads one request's items: what one turn of the model's was made of becomes one message again."""

    def __init__(self, seal: Seal, tenant: str) -> None:
        self._seal, self._tenant = seal, tenant
        self._found: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # the model's turn that may go on
        self.warnings: list[str] = []

    def messages(self, instructions: str | None, items: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation. Raises ApiError naming the item that cannot be read."""
        if instructions:
            self._found.append({"role": "system", "content": instructions})
        if isinstance(items, str):
            return [*self._found, {"role": "user", "content": items}]
        for i, item in enumerate(items):
            self._item(item, f"input[{i}]")
        self._end_turn()
        return self._found

    def _item(self, item: dict[str, Any], where: str) -> None:
        match item.get("type") or "message":
            case "message":
                self._message(item, where)
            case "reasoning":
                turn = self._assistant(begins=True)
                if text := self._reasoning(item, where):  # none at all lets reasoning memory help
                    before = turn.get("reasoning_content")
                    turn["reasoning_content"] = f"{before}\n\n{text}" if before else text
            case "function_call":
                function = {name: _string(item, name, where) for name in ("name", "arguments")}
                call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
                self._assistant().setdefault("tool_calls", []).append(call)
            case "function_call_output":
                self._end_turn()
                output = _text(item.get("output"), f"{where}.output")
                id = _string(item, "call_id", where)
                self._found.append({"role": "tool", "tool_call_id": id, "content": output})
            case "item_reference":
                raise refuse(where, "refers to a stored item, and this server stores none: send the item itself")
            case other:
                raise refuse(where, f"is an item of type {other!r:.60}, which this server does not know")

    def _message(self, item: dict[str, Any], where: str) -> None:
        role = _ROLES.get(item["role"]) if isinstance(item.get("role"), str) else None
        if role is None:
            raise refuse(f"{where}.role", f"must be one of {', '.join(_ROLES)}, not {item.get('role')!r:.40}")
        content = _text(item.get("content"), f"{where}.content")
        if role == "assistant":
            self._assistant(begins=True)["content"] = content
        else:
            self._end_turn()
            self._found.append({"role": role, "content": content})

    def _assistant(self, begins: bool = False) -> dict[str, Any]:
        """The model's turn that goes on. begins: where it has more than reasoning, another one begins."""
        if begins and self._turn is not None and self._turn.keys() - {"role", "reasoning_content"}:
            self._end_turn()
        if self._turn is None:
            self._turn = {"role": "assistant"}
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.setdefault("content", "")
            self._found.append(self._turn)
            self._turn = None

    def _reasoning(self, item: dict[str, Any], where: str) -> str:
        for name in ("content", "summary"):
            if item.get(name):
                return _text(item[name], f"{where}.{name}")
        sealed = item.get("encrypted_content")
        if not sealed:
            return ""
        text = self._seal.open(sealed, self._tenant) if isinstance(sealed, str) else None
        if text is None:
            self.warnings.append(f"{where}.encrypted_content was not sealed by this server; it was left out")
        return text or ""


def functions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the shape of chat completions. Raises ApiError for tools that a server would have to run."""
    found = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if (kind := tool.get("type")) != "function":
            raise refuse(f"{where}.type", f"{kind!r:.60} is not possible here: only tools of type 'function' are")
        function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        _string(function, "name", where)
        found.append({"type": "function", "function": function})
    return found


def choice(value: Any) -> Any:
    """`tool_choice` as chat completions has it."""
    if isinstance(value, dict):
        if value.get("type") != "function" or not isinstance(value.get("name"), str):
            raise refuse("tool_choice", f"of type {value.get('type')!r:.60} is not possible here: name a function")
        return {"type": "function", "function": {"name": value["name"]}}
    if value not in (None, "auto", "none", "required"):
        raise refuse("tool_choice", f"must be auto, none, required or a function, not {value!r:.40}")
    return value


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refuse(where, "must be a text or a list of parts")
    texts = []
    for i, part in enumerate(value):
        here = f"{where}[{i}]"
        if not isinstance(part, dict):
            raise refuse(here, "must be an object with a type")
        if part.get("type") == "refusal":
            texts.append(_string(part, "refusal", here))
            continue
        if part.get("type") not in _TEXTS:
            raise refuse(here, f"is a part of type {part.get('type')!r:.60}: Qwen3 reads text only")
        texts.append(_string(part, "text", here))
    return "\n".join(texts)


def _string(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise refuse(f"{where}.{key}", "must be a text")
    return value
