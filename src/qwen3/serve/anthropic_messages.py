"""Anthropic's messages and tools, read into OpenAI's shape."""

from __future__ import annotations

from typing import Any

from qwen3.serve.anthropic_writer import call_id
from qwen3.serve.errors import ApiError
from qwen3.serve.seal import Seal

_CACHE = "cache_control has no effect: prompts are cached automatically, by their beginnings"
_TOOL_EXTRAS = {
    "input_examples": "it is not part of the prompt",
    "defer_loading": "every tool is in the prompt",
    "eager_input_streaming": "a tool's input is sent when it is complete",
    "allowed_callers": "only the model calls tools",
}


def refuse(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where} {what}", param=where)


class Reader:
    """Reads one request. warnings: what it noticed, each once."""

    def __init__(self, seal: Seal, tenant: str) -> None:
        self._seal, self._tenant = seal, tenant
        self._warnings: dict[str, None] = {}

    @property
    def warnings(self) -> list[str]:
        return list(self._warnings)

    def warn(self, text: str) -> None:
        self._warnings[text] = None

    def messages(self, system: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation. Raises ApiError naming the block that cannot be read."""
        found: list[dict[str, Any]] = []
        if system:
            found.append({"role": "system", "content": self.text(system, "system")})
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            role, content = message.get("role"), message.get("content")
            if unknown := set(message) - {"role", "content"}:
                raise refuse(f"{where}.{min(unknown)}", "is not a field of a message")
            if role == "system":
                found.append({"role": "system", "content": self.text(content, f"{where}.content")})
            elif role not in ("user", "assistant"):
                raise refuse(f"{where}.role", f"must be user, assistant or system, not {role!r:.40}")
            elif isinstance(content, str):
                found.append({"role": role, "content": content})
            else:
                blocks = self._blocks(content, f"{where}.content")
                found += self._user(blocks) if role == "user" else [self._assistant(blocks)]
        return found

    def text(self, value: Any, where: str) -> str:
        """A string, or what text blocks hold."""
        if isinstance(value, str):
            return value
        return "\n".join(self._plain(block, here) for block, here in self._blocks(value, where))

    def tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tools as functions. Raises ApiError for those that a server would have to run, or to know."""
        found = []
        for i, tool in enumerate(tools):
            where = f"tools[{i}]"
            if (kind := tool.get("type") or "custom") != "custom":
                raise refuse(
                    f"{where}.type",
                    f"{kind!r:.60} is a tool of Anthropic's; this server has none: give the tool an input_schema of "
                    "its own, without a type, and run it yourself",
                )
            if not isinstance(tool.get("name"), str) or not tool["name"]:
                raise refuse(f"{where}.name", "must be a text that is not empty")
            if not isinstance(tool.get("input_schema"), dict):
                raise refuse(f"{where}.input_schema", "must be a JSON schema of an object")
            if tool.get("cache_control"):
                self.warn(_CACHE)
            for name, why in _TOOL_EXTRAS.items():
                if tool.get(name) and tool[name] != ["direct"]:
                    self.warn(f"{where}.{name} has no effect: {why}")
            # strict: every call follows its schema.
            known = {"type", "name", "description", "input_schema", "cache_control", "strict", *_TOOL_EXTRAS}
            if unknown := set(tool) - known:
                self.warn(f"{where}.{min(unknown)} is not a field of a tool and was ignored")
            function = {"name": tool["name"], "description": tool.get("description")}
            function = {key: value for key, value in function.items() if value is not None}
            found.append({"type": "function", "function": {**function, "parameters": tool["input_schema"]}})
        return found

    def cached(self, value: Any) -> None:
        if value:
            self.warn(_CACHE)

    # Inside

    def _blocks(self, content: Any, where: str) -> list[tuple[dict[str, Any], str]]:
        """(block, its place) of each block."""
        if not isinstance(content, list):
            raise refuse(where, "must be a text or a list of blocks")
        found = []
        for i, block in enumerate(content):
            here = f"{where}[{i}]"
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                raise refuse(here, "must be an object with a type")
            self.cached(block.get("cache_control"))
            found.append((block, here))
        return found

    def _plain(self, block: dict[str, Any], where: str) -> str:
        if block["type"] != "text":
            raise refuse(where, f"is a block of type {block['type']!r:.40}: here only text can be read")
        return _string(block, "text", where)

    def _user(self, blocks: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
        """A user's turn: tool results become messages of their own, the texts between them one each."""
        found: list[dict[str, Any]] = []
        texts: list[str] = []
        for block, where in blocks:
            if block["type"] != "tool_result":
                texts.append(self._plain(block, where))
                continue
            if texts:
                found.append({"role": "user", "content": "\n".join(texts)})
                texts = []
            result = self.text(block.get("content") or "", f"{where}.content")
            if block.get("is_error"):
                result = f"Error: {result}"
            id = call_id(_string(block, "tool_use_id", where))
            found.append({"role": "tool", "tool_call_id": id, "content": result})
        if texts or not found:
            found.append({"role": "user", "content": "\n".join(texts)})
        return found

    def _assistant(self, blocks: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block, where in blocks:
            match block["type"]:
                case "thinking":
                    thoughts.append(self._thinking(block, where))
                case "redacted_thinking":
                    thoughts.append(self._opened(block.get("data"), where))
                case "tool_use":
                    if not isinstance(block.get("input"), dict):
                        raise refuse(f"{where}.input", "must be an object")
                    function = {"name": _string(block, "name", where), "arguments": block["input"]}
                    id = call_id(_string(block, "id", where))
                    calls.append({"id": id, "type": "function", "function": function})
                case "text":
                    texts.append(_string(block, "text", where))
                case other:
                    raise refuse(where, f"is a block of type {other!r:.40}, which this server does not know")
        message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
        if thought := "\n\n".join(filter(None, thoughts)):
            message["reasoning_content"] = thought
        return {**message, "tool_calls": calls} if calls else message

    def _thinking(self, block: dict[str, Any], where: str) -> str:
        """The text; where it was not shown, the signature holds it."""
        text = _string(block, "thinking", where)
        signature = block.get("signature")
        if not text:
            return self._opened(signature, where) if signature else ""
        if not isinstance(signature, str) or not self._seal.signed(text, self._tenant, signature):
            self.warn(f"{where}.signature is not this server's for this text; the text was taken as it is")
        return text

    def _opened(self, sealed: Any, where: str) -> str:
        text = self._seal.open(sealed, self._tenant) if isinstance(sealed, str) else None
        if text is None:
            self.warn(f"{where} holds thinking that this server cannot open; it was left out")
        return text or ""


def _string(block: dict[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise refuse(f"{where}.{key}", "must be a text")
    return value
