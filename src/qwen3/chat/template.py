"""The official chat templates of Qwen3, in Python: messages to the exact prompt text.

Sources: the `chat_template` of Qwen3 (hybrid) and of the 2507 releases. For every input that the Jinja originals
accept, the text is theirs byte for byte, oddities included (content that is not a string renders as nothing: use
`normalize` first). Where they raise, UsageError names the message and the field.

The text is made of pieces that know where they came from, so that `encode` can tell the template's own control
strings from strings that somebody typed.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

from qwen3.chat.messages import plain, plain_messages
from qwen3.errors import UsageError

TEMPLATES = ("qwen3", "instruct-2507", "thinking-2507")
"""qwen3: hybrid. instruct-2507: no thinking. thinking-2507: hybrid's history rules, always opens a think block."""

EMPTY_THINK = "<think>\n\n</think>\n\n"

_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)


class CustomTemplate(Protocol):
    """A template that is none of the official ones (see `sandbox_template`)."""

    def render(
        self, messages: Any, *, tools: Any, add_generation_prompt: bool, enable_thinking: bool | None
    ) -> str: ...

    def pieces(
        self,
        messages: Any,
        *,
        tools: Any,
        add_generation_prompt: bool,
        enable_thinking: bool | None,
        control: tuple[str, ...],
    ) -> list[Piece]: ...


class Piece(NamedTuple):
    """A stretch of prompt text. `source` is None for the template's own text, else where it was given."""

    text: str
    source: str | None = None


def render(
    messages: Any,
    *,
    tools: Any = None,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    template: str | CustomTemplate = "qwen3",
) -> str:
    """The prompt text of the official template named `template` (one of TEMPLATES), or of a custom one.

    `enable_thinking=False` closes an empty think block in the generation prompt; only "qwen3" reads it, as in the
    originals. Raises UsageError for an unknown template and for everything the originals refuse.
    """
    if not isinstance(template, str):
        return template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking
        )
    made = pieces(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        template=template,
    )
    return "".join(piece.text for piece in made)


def pieces(
    messages: Any,
    *,
    tools: Any = None,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    template: str = "qwen3",
) -> list[Piece]:
    """What `render` joins: the template's own text and the given texts, in order."""
    if template not in TEMPLATES:
        raise UsageError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}")
    if enable_thinking is not None and not isinstance(enable_thinking, bool):
        raise UsageError(f"enable_thinking must be true, false or null, not {enable_thinking!r}")
    turns = plain_messages(messages)
    out = _head(turns[0], plain_tools(tools))
    thinks = template != "instruct-2507"
    last_query = _last_query(turns) if thinks else len(turns)
    for i, message in enumerate(turns):
        role = message.get("role")
        content = message["content"] if isinstance(message.get("content"), str) else ""
        here = f"messages[{i}]"
        if role == "user" or (role == "system" and i > 0):
            out += [Piece(f"<|im_start|>{role}\n"), Piece(content, here), Piece("<|im_end|>\n")]
        elif role == "assistant":
            out.append(Piece("<|im_start|>assistant\n"))
            if thinks:
                reasoning, content = _reasoning(message, content)
                if i > last_query and (i == len(turns) - 1 or reasoning):
                    out += [Piece("<think>\n"), Piece(reasoning.strip("\n"), here), Piece("\n</think>\n\n")]
                    out.append(Piece(content.lstrip("\n"), here))
                else:
                    out.append(Piece(content, here))
            else:
                out.append(Piece(content, here))
            out += _tool_calls(message.get("tool_calls"), bool(content), here)
            out.append(Piece("<|im_end|>\n"))
        elif role == "tool":
            if i == 0 or turns[i - 1].get("role") != "tool":
                out.append(Piece("<|im_start|>user"))
            out += [Piece("\n<tool_response>\n"), Piece(content, here), Piece("\n</tool_response>")]
            if i == len(turns) - 1 or turns[i + 1].get("role") != "tool":
                out.append(Piece("<|im_end|>\n"))
    if add_generation_prompt:
        out.append(Piece("<|im_start|>assistant\n"))
        if template == "thinking-2507":
            out.append(Piece("<think>\n"))
        elif template == "qwen3" and enable_thinking is False:
            out.append(Piece(EMPTY_THINK))
    return out


def plain_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools as plain dicts. Raises UsageError naming the one that is none."""
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise UsageError(f"tools must be a list of JSON schemas, not {type(tools).__name__}")
    for i, tool in enumerate(tools):
        if callable(tool) and not isinstance(tool, type):
            raise UsageError(f"tools[{i}] is a Python function: give its JSON schema")
    result = [plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    for i, tool in enumerate(result):
        if not isinstance(tool, dict):
            raise UsageError(f"tools[{i}] must be a JSON schema (an object), not {type(tool).__name__}")
    return result


def is_tool_response(text: str) -> bool:
    """Whether a user message is a tool's result in disguise, as the template judges it."""
    return text.startswith("<tool_response>") and text.endswith("</tool_response>")


def _head(first: dict[Any, Any], tools: list[dict[str, Any]]) -> list[Piece]:
    """The system turn: the first message if it is a system message, the tools block, both, or nothing."""
    out: list[Piece] = []
    if first.get("role") == "system":
        content = first.get("content")
        if not isinstance(content, str):
            kind = "missing" if content is None else f"a {type(content).__name__}"
            raise UsageError(f"messages[0].content must be a string in a system message; it is {kind}")
        out.append(Piece(content, "messages[0]"))
        if tools:
            out.append(Piece("\n\n"))
    if tools:
        out.append(Piece(_TOOLS_HEAD))
        for i, tool in enumerate(tools):
            out += [Piece("\n"), Piece(_json(tool, f"tools[{i}]"), f"tools[{i}]")]
        out.append(Piece(_TOOLS_TAIL))
    elif out:
        out.append(Piece("<|im_end|>\n"))
    return [Piece("<|im_start|>system\n"), *out] if out else out


def _last_query(turns: list[dict[Any, Any]]) -> int:
    """Index of the last user message that is a text and no tool response; without one, of the last message."""
    for i in range(len(turns) - 1, -1, -1):
        content = turns[i].get("content")
        if turns[i].get("role") == "user" and isinstance(content, str) and not is_tool_response(content):
            return i
    return len(turns) - 1


def _reasoning(message: dict[Any, Any], content: str) -> tuple[str, str]:
    """(reasoning, content) of an assistant message: given apart, or as a think block inside the content."""
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str):
        return reasoning, content
    return split_think(content)


def split_think(content: str) -> tuple[str, str]:
    """(reasoning, rest) of a text that may hold a think block, as the template splits it."""
    if "</think>" not in content:
        return "", content
    before = content.split("</think>")[0]
    return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), content.split("</think>")[-1].lstrip("\n")


def apart(turns: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """The turns with think blocks inside assistant content moved to `reasoning_content`."""
    result = []
    for turn in turns:
        content = turn.get("content")
        if turn.get("role") == "assistant" and isinstance(content, str) and "</think>" in content:
            reasoning, content = _reasoning(turn, content)
            turn = {**turn, "content": content, "reasoning_content": reasoning}
        result.append(turn)
    return result


def _tool_calls(calls: Any, after_content: bool, here: str) -> list[Piece]:
    if not calls:
        return []
    if not isinstance(calls, (list, tuple)):
        raise UsageError(f"{here}.tool_calls must be a list, not {type(calls).__name__}")
    out: list[Piece] = []
    for i, call in enumerate(calls):
        where = f"{here}.tool_calls[{i}]"
        if isinstance(call, dict) and call.get("function"):
            call, where = call["function"], f"{where}.function"
        if not isinstance(call, dict):
            raise UsageError(f"{where} must be an object with name and arguments, not {type(call).__name__}")
        if "arguments" not in call:
            raise UsageError(f"{where}.arguments is missing: give an object or its JSON text")
        arguments = call["arguments"]
        text = arguments if isinstance(arguments, str) else _json(arguments, f"{where}.arguments")
        head = '<tool_call>\n{"name": "'
        out.append(Piece("\n" + head if after_content or i else head))
        out += [Piece(str(call.get("name", "")), here), Piece('", "arguments": '), Piece(text, here)]
        out.append(Piece("}\n</tool_call>"))
    return out


def _json(value: Any, where: str) -> str:
    """The template's `tojson`: ", " and ": " between items, nothing escaped that JSON need not escape."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} has no JSON form: {error}") from None
