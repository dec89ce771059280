"""Conversations with tools (Hermes calls): which tool, which arguments, what to say about the result.

`sample_tool_dialogue` draws messages in OpenAI form and the tools block they belong to. Names of tools and arguments
are drawn anew each time, so that they can only be copied from the block. The split is by hash of the user's words and
the results; `check_tool_call` and `check_tool_answer` verify what a model made of a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from qwen3.errors import UsageError
from qwen3.tasks.base import is_eval
from qwen3.tasks.dialogue import vary
from qwen3.tasks.dialogue_facts import cap
from qwen3.tasks.dialogue_social import intent, say
from qwen3.tasks.dialogue_stories import join, pick
from qwen3.tasks.talk_data import words
from qwen3.tasks.tools_kinds import Kind
from qwen3.tasks.tools_more import MORE, composed
from qwen3.tasks.tools_table import KINDS as FIRST

KINDS = FIRST + MORE

Message = dict[str, Any]
Tool = dict[str, Any]

_LEADS = ("Hi, ", "Hello! ", "Hey, ", "Please: ", "Okay. ", "Hi! ", "One question: ", "Next: ", "I need help. ")
_TAILS = (" Thanks!", " Thank you.", " Please.", " It is important.", " I am in a hurry.", " Use the tool.")
_NO_TOOL = (
    "I have no tool for that.",
    "I cannot do that: none of my tools fits.",
    "I am sorry, my tools cannot do that.",
    "None of the tools here can do that.",
)
_ERRORS = ("not found", "no connection", "timeout", "access denied", "unknown value", "service is down")
_CHATTER = ("hello", "thanks", "who", "name", "joke", "how_are_you", "bye", "praise", "ok", "abilities")
_NONSENSE = words("ba ko ri zu mel tan vor lip dex quo fen gar pim sol tri wex")


class _Bound:
    """A kind with the names of this conversation: the tool as declared, and the slot → argument name map."""

    def __init__(self, rng: Random, kind: Kind, style: int) -> None:
        self.kind = kind
        name = pick(rng, kind.names)
        if rng.random() < 0.12:
            name = "".join(pick(rng, _NONSENSE) for _ in range(2 + int(rng.random() * 2)))
        elif rng.random() < 0.25:
            name = pick(rng, (f"{name}_tool", f"{name}_v2", f"my_{name}", f"api_{name}", f"do_{name}", f"{name}_fn"))
        self.name = _styled(name, style)
        self.args: dict[str, str] = {}
        properties: dict[str, Any] = {}
        required = []
        described = rng.random() < 0.6
        for key, slot in kind.slots.items():
            if slot.adds and rng.random() < 0.4:
                continue
            names = slot.names
            arg = names[0] if rng.random() < 0.35 else names[int(rng.random() * len(names))]
            arg = _styled(arg, style)
            while arg in properties:
                arg += "_2"
            self.args[key] = arg
            spec: dict[str, Any] = {"type": slot.type}
            if described:
                spec["description"] = slot.about
            if slot.enum:
                spec["enum"] = list(slot.enum)
            properties[arg] = spec
            if not slot.adds:
                required.append(arg)
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if required or rng.random() < 0.5:
            parameters["required"] = required
        self.tool: Tool = {
            "type": "function",
            "function": {"name": self.name, "description": pick(rng, kind.about), "parameters": parameters},
        }


def _styled(name: str, style: int) -> str:
    """snake_case as it is (0), camelCase (1), PascalCase (2), kebab-case (3)."""
    if style == 0 or "_" not in name:
        return name if style != 2 else name[:1].upper() + name[1:]
    if style == 3:
        return name.replace("_", "-")
    first, *rest = name.split("_")
    return (first if style == 1 else first.capitalize()) + "".join(word.capitalize() for word in rest)


class _Use:
    """One use of a bound tool: values of the slots, what the user says, the call, the result, the answer."""

    def __init__(self, rng: Random, bound: _Bound) -> None:
        self.bound = bound
        kind = bound.kind
        self.values: dict[str, Any] = {}
        for key in kind.slots:
            if key not in bound.args:
                continue
            slot = kind.slots[key]
            if slot.adds and rng.random() < 0.6:
                continue
            value = slot.draw(rng)
            while isinstance(value, str) and value in self.values.values():
                value = slot.draw(rng)
            self.values[key] = value
        self.finish(rng)

    def finish(self, rng: Random) -> None:
        """Result and wording for the values drawn."""
        kind = self.bound.kind
        self.said = {key: kind.slots[key].says.get(value, value) for key, value in self.values.items()}
        self.result = kind.result(rng, self.values)
        self.error = ""
        if rng.random() < 0.04 and "result" not in self.result:
            self.error = pick(rng, _ERRORS)
            self.result = {"error": self.error}

    def ask(self, rng: Random) -> str:
        kind = self.bound.kind
        text = pick(rng, kind.asks).format(**self.said)
        for key, slot in kind.slots.items():
            if slot.adds and key in self.values:
                extra = slot.adds.format(self.said[key])
                mark = text[-1] if text[-1] in ".?" else ""
                text = text[: len(text) - len(mark)] + extra + mark
        return _start(text)

    def call(self) -> dict[str, Any]:
        arguments = {self.bound.args[key]: value for key, value in self.values.items()}
        return {"type": "function", "function": {"name": self.bound.name, "arguments": arguments}}

    def plan(self) -> str:
        """The arguments in words: `city is Paris, unit is celsius`."""
        return ", ".join(f"{self.bound.args[key]} is {_shown(value)}" for key, value in self.values.items())

    def output(self, rng: Random) -> str:
        """The result as a tool writes it: mostly JSON, at times with the arguments repeated, at times plain lines."""
        x = rng.random()
        if x < 0.2:
            return "\n".join(f"{key}: {_shown(value)}" for key, value in self.result.items())
        fields = dict(self.result)
        if x < 0.4 and not self.error:
            fields = {
                self.bound.args[key]: value for key, value in self.values.items() if isinstance(value, str)
            } | fields
        return json.dumps(fields, ensure_ascii=False)

    def answer(self, rng: Random) -> str:
        if self.error:
            return pick(rng, ("That did not work: {e}.", "I am sorry, the tool says: {e}.", "It failed: {e}.")).format(
                e=self.error
            )
        shown = {key: _shown(value) for key, value in self.result.items()}
        return _start(pick(rng, self.bound.kind.answers).format(**{**shown, **self.said}))


def _start(text: str) -> str:
    """A capital at the start, unless it starts with a name that must stay as it is, such as `data.csv`."""
    return cap(text) if text.split(" ")[0].rstrip(".:,?").isalpha() else text


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return join([str(item) for item in value])
    return str(value)


def _user(rng: Random, text: str) -> Message:
    """The user's request, at times with a greeting or a word more, or without the last mark."""
    x = rng.random()
    if x < 0.1:
        text = pick(rng, _LEADS) + text
    elif x < 0.16:
        text += pick(rng, _TAILS)
    elif x < 0.26:
        text = text[:-1] if text[-1] in ".?" else text
    elif x < 0.36:
        text = text[:1].lower() + text[1:] if text[:2] != "I " else text
    return {"role": "user", "content": text}


def _called(rng: Random, uses: list[_Use]) -> list[Message]:
    """The assistant's calls, the tools' results and the answer."""
    goal = join([use.bound.kind.goal.format(**use.said) for use in uses])
    name = uses[0].bound.name
    plan = "; ".join(filter(None, (use.plan() for use in uses)))
    x = rng.random()
    if not plan:
        thought = f"The user wants {goal}.\n\nI call {name}. It takes no arguments."
    elif x < 0.5:
        thought = f"The user wants {goal}.\n\nI call {name}: {plan}."
    elif x < 0.8:
        thought = f"The tool {name} fits.\n\nArguments: {plan}."
    else:
        thought = f"I use {name}: {plan}."
    messages: list[Message] = [
        {"role": "assistant", "reasoning_content": thought, "content": "", "tool_calls": [use.call() for use in uses]}
    ]
    messages += [{"role": "tool", "content": use.output(rng)} for use in uses]
    answer = " ".join(use.answer(rng) for use in uses)
    thought = pick(
        rng,
        (
            "The tool has answered. I tell the user.",
            "I have the result.\n\nI say it in a sentence.",
            "Now I can answer.",
        ),
    )
    if any(use.error for use in uses):
        thought = "The tool reports an error.\n\nI tell the user honestly."
    messages.append({"role": "assistant", "reasoning_content": thought, "content": answer})
    return messages


def _one(rng: Random, bound: _Bound) -> list[Message]:
    use = _Use(rng, bound)
    return [_user(rng, use.ask(rng)), *_called(rng, [use])]


def _two(rng: Random, bound: _Bound) -> list[Message]:
    """Two values of the first argument: two calls at once."""
    first, second = _Use(rng, bound), _Use(rng, bound)
    key = next(iter(bound.kind.slots))
    second.values = {**first.values, key: second.values[key]}
    if first.values == second.values:
        return [_user(rng, first.ask(rng)), *_called(rng, [first])]
    second.finish(rng)
    ask = first.ask(rng)
    one, two = str(first.said[key]), str(second.said[key])
    at = ask.lower().find(one.lower())
    text = f"{ask[:at]}{ask[at : at + len(one)]} and {two}{ask[at + len(one) :]}"
    return [_user(rng, text), *_called(rng, [first, second])]


def _incomplete(rng: Random, bound: _Bound) -> list[Message]:
    """A request that lacks an argument: ask back, then call."""
    assert bound.kind.without is not None
    asks, question = bound.kind.without
    use = _Use(rng, bound)
    key = next(iter(bound.kind.slots))
    use.values = {key: use.values[key]}
    use.finish(rng)
    thought = f"The tool {bound.name} needs {bound.args[key]}.\n\nThe user did not say it, so I ask."
    value = str(use.said[key])
    reply = pick(rng, ("{v}", "{v}.", "{v}, please.", "It is {v}.", "{v} please", "I mean {v}."))
    return [
        _user(rng, pick(rng, tuple(asks.split("|")))),
        {"role": "assistant", "reasoning_content": thought, "content": question},
        {"role": "user", "content": reply.format(v=value)},
        *_called(rng, [use]),
    ]


def _refused(rng: Random, kind: Kind) -> list[Message]:
    """A request that none of the tools fits."""
    text = _Use(rng, _Bound(rng, kind, 0)).ask(rng)
    thought = "I look at the tools. None of them fits this request."
    if rng.random() < 0.5:
        thought = "None of my tools can do this.\n\nI say so."
    return [
        _user(rng, text),
        {"role": "assistant", "reasoning_content": thought, "content": pick(rng, _NO_TOOL)},
    ]


def _chat(rng: Random) -> list[Message]:
    """Small talk while tools are there."""
    turn = say(rng, intent(pick(rng, _CHATTER)))
    return [
        {"role": "user", "content": vary(rng, turn.user)},
        {"role": "assistant", "reasoning_content": f"{turn.thought} No tool is needed.", "content": turn.reply},
    ]


def _any_kind(rng: Random) -> Kind:
    return composed(rng) if rng.random() < 0.25 else KINDS[int(rng.random() * len(KINDS))]


# Tools that could also serve what another one is for, so they never stand beside a request that "nothing fits".
_WIDE = frozenset({"search"})
_NEAR = (
    {"reminder", "event", "alarm", "timer", "notes"},
    {"email", "message"},
    {"order", "parcel"},
    {"clock", "today"},
    {"price", "product price", "stock_level"},
    {"heating", "heater"},
)


def _clash(a: str, b: str) -> bool:
    return a == b or any(a in near and b in near for near in _NEAR) or a in _WIDE or b in _WIDE


def _draw(rng: Random) -> tuple[list[Message], list[Tool]]:
    style_draw = rng.random()
    style = 0 if style_draw < 0.72 else 1 if style_draw < 0.88 else 2 if style_draw < 0.93 else 3
    kind = _any_kind(rng)
    others: list[Kind] = []
    for _ in range(int(rng.random() * 4)):
        other = _any_kind(rng)
        if not any(_clash(other.group, k.group) for k in (kind, *others)):
            others.append(other)
    bound = _Bound(rng, kind, style)
    block = [bound]
    for other in others:
        beside = _Bound(rng, other, style)
        if beside.name not in {b.name for b in block}:
            block.append(beside)
    system: list[Message] = []
    if rng.random() < 0.15:
        text = pick(
            rng, ("You are a helpful assistant.", "Use the tools when they help.", "You are Wren. Use the tools.")
        )
        system = [{"role": "system", "content": text}]
    x = rng.random()
    if x < 0.08 and len(block) > 1:
        # The wanted tool is missing: everything but `bound` is declared.
        return system + _refused(rng, kind), [b.tool for b in block[1:]]
    if x < 0.15:
        turns = _chat(rng)
    elif x < 0.25 and kind.pairs:
        turns = _two(rng, bound)
    elif x < 0.33 and kind.without:
        turns = _incomplete(rng, bound)
    else:
        turns = _one(rng, bound)
    y = rng.random()
    if y < 0.12:
        turns += _one(rng, block[int(rng.random() * len(block))])
    elif y < 0.2:
        turns += _chat(rng)
    at = int(rng.random() * len(block))
    block[0], block[at] = block[at], block[0]
    return system + turns, [b.tool for b in block]


def dialogue_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """What names a conversation for the split: the user's words and the results."""
    return "\n".join(str(m["content"]) for m in messages if m["role"] in ("user", "tool"))


def sample_tool_dialogue(rng: Random, split: str = "train") -> tuple[list[Message], list[Tool]]:
    """Messages (ending with the assistant) and tools of one conversation of the split ("train" or "eval").

    Assistant messages carry `reasoning_content` and `content`, and `tool_calls` with a dict of arguments where they
    call. Raises UsageError for another split.
    """
    if split not in ("train", "eval"):
        raise UsageError(f"split must be 'train' or 'eval', not {split!r}")
    wanted = split == "eval"
    while True:
        messages, tools = _draw(rng)
        if is_eval(dialogue_key(messages)) == wanted:
            return messages, tools


def _calls(message: Any) -> list[tuple[str, Any]] | None:
    """(name, arguments) of every call of a message (dict, or object with `tool_calls`); None if one is unreadable."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else getattr(message, "tool_calls", None)
    out = []
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, Mapping) else call
        name = function["name"] if isinstance(function, Mapping) else function.name
        arguments = function["arguments"] if isinstance(function, Mapping) else function.arguments
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError:
                return None
        out.append((name, arguments))
    return out


def _same(a: Any, b: Any) -> bool:
    """Equal JSON values; 5 and 5.0 are one number, true and 1 are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def check_tool_call(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], parsed: Any) -> bool:
    """Whether `parsed` calls what the reference does: the last of `messages`, an assistant's, which may call nothing.

    Same calls in any order, names declared in `tools`, arguments equal. `parsed` is a message dict, or an object with
    `tool_calls`. Raises UsageError when the last message is not an assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("messages must end with the assistant message that is the reference")
    wanted, got = _calls(messages[-1]), _calls(parsed)
    if got is None or wanted is None or len(got) != len(wanted):
        return False
    declared = {tool.get("function", tool)["name"] for tool in tools}
    for name, arguments in got:
        match = next((w for w in wanted if w[0] == name and _same(w[1], arguments)), None)
        if match is None or name not in declared:
            return False
        wanted.remove(match)
    return True


_VALUE = re.compile(r"[A-Za-z]*[-:.\d]*\d[-:.\d]*")


def check_tool_answer(messages: Sequence[Mapping[str, Any]], text: str) -> bool:
    """Whether `text` says every number, time and code of the reference answer (the last of `messages`)."""
    wanted = {v.rstrip(".:-") for v in _VALUE.findall(str(messages[-1]["content"]))}
    return wanted <= {v.rstrip(".:-") for v in _VALUE.findall(text)}
