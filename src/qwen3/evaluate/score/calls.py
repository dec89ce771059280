"""Whether tool calls are the ones that were asked for: the Berkeley Function-Calling Leaderboard's AST matching.

Patil et al., "The Berkeley Function Calling Leaderboard" (ICML 2025). An expected call gives, for each argument, the
list of values that are right; "" in the list means that the argument may be left out. Strings are compared without
case, blanks and ,./-_*^; a whole number is right where a float is expected. Java and JavaScript arguments come as
source text in strings, and are read by `literal`. The comparison with the official checker, and each class of what
differs, is in benchmarks/2026-11-23-scorers-calls.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen3.errors import UsageError

PYTHON, JAVA, JAVASCRIPT = "python", "java", "javascript"

_LISTS = {"array", "tuple", "Array", "ArrayList", "Queue", "Stack"}
_KINDS: dict[str, type] = (
    dict.fromkeys(("string", "any", "String", "char"), str)
    | dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), int)
    | dict.fromkeys(("float", "double"), float)
    | dict.fromkeys(("boolean", "Boolean"), bool)
    | dict.fromkeys(_LISTS, list)
    | dict.fromkeys(("dict", "HashMap", "Hashtable"), dict)
)


class Call(NamedTuple):
    """A function's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


def safe_name(name: str) -> str:
    """A function's name as the OpenAI API has it, without dots."""
    return name.replace(".", "_")


def calls_of(tool_calls: Sequence[Mapping[str, Any]]) -> list[Call]:
    """Calls from OpenAI's form, whose arguments are JSON in a string. Raises ValueError where they are no object, which
    is the model's fault, or a call has no name."""
    found = []
    for call in tool_calls:
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str):
            raise ValueError("a call without a function's name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise ValueError(f"the arguments of {name} are not JSON") from None
        if not isinstance(arguments, Mapping):
            raise ValueError(f"the arguments of {name} are not an object")
        found.append(Call(name, arguments))
    return found


def mismatch(
    functions: Sequence[Mapping[str, Any]],
    made: Sequence[Call],
    expected: Sequence[Mapping[str, Any]],
    language: str = PYTHON,
) -> str:
    """Why the calls made are not those expected, "" where they are. Their order does not count; each expected call
    takes the first made one that fits. functions: the documented functions, as BFCL writes them ({"name", "parameters":
    {"properties", "required"}}); expected: {name: {argument: [values]}} for each call. Raises UsageError where an
    expected function is not documented, or a type is not known."""
    if len(made) != len(expected):
        return f"{len(made)} calls where {len(expected)} are expected"
    left = list(made)
    for wanted in expected:
        ((name, values),) = wanted.items()
        function = next((function for function in functions if function["name"] == name), None)
        if function is None:
            raise UsageError(f"the expected function {name!r} is not among those given")
        reasons = [_call(function, values, call, language) for call in left]
        if "" not in reasons:
            return reasons[0] if len(expected) == 1 else f"no call is {name} as expected: {'; '.join(reasons)}"
        del left[reasons.index("")]
    return ""


def _call(function: Mapping[str, Any], values: Mapping[str, list[Any]], call: Call, language: str) -> str:
    name, about = function["name"], function["parameters"]
    if safe_name(call.name) != safe_name(name):
        return f"{call.name} is not {name}"
    for key in about.get("required", ()):
        if key not in call.arguments:
            return f"{name}: {key} is missing"
    for key, value in call.arguments.items():
        if key not in about["properties"] or key not in values:
            return f"{name}: {key} is not expected"
        if not _argument(about["properties"][key], values[key], value, language):
            return f"{name}: {key} is {value!r}, not one of {values[key]!r}"
    return next(
        (f"{name}: {key} is missing" for key in values if key not in call.arguments and "" not in values[key]), ""
    )


def _kind(name: str) -> type:
    if name not in _KINDS:
        raise UsageError(f"unknown type {name!r} of an argument; there are: {', '.join(_KINDS)}")
    return _KINDS[name]


def _argument(about: Mapping[str, Any], right: list[Any], value: Any, language: str) -> bool:
    named: str = about["type"]
    kind, items = _kind(named), about.get("items", {}).get("type")
    inner = _kind(items) if items and named in ("array", "tuple", "Array", "ArrayList") else None
    if language != PYTHON:
        if not isinstance(value, str):
            return False
        value = literal(value, named, items if inner else None, language)
    elif kind is float and type(value) is int:
        value = float(value)
    # A value may also be a variable's name where its type is another one: the right values say so by theirs.
    given = next((type(one) for one in right if one != ""), None)
    if type(value) is kind:
        if inner is not None and not any(_inner(value, one, inner) for one in right):
            return False
    elif type(value) is not given:
        return False
    if type(value) is not kind or given not in (None, kind):
        return value in right
    if kind is list and inner is dict:
        return any(_dicts(value, one) for one in right)
    if isinstance(value, dict):
        return any(_dict(value, one) for one in right if isinstance(one, Mapping))
    if isinstance(value, list):
        return [_plain(one) for one in value] in [[_plain(x) for x in one] for one in right if one is not None]
    return _plain(value) in [_plain(one) for one in right] if isinstance(value, str) else value in right


def _plain(value: Any) -> Any:
    """A string as it is compared; other values are left."""
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value


def _inner(value: Any, right: Any, kind: type) -> bool:
    """Whether the items' types are as expected, or as in one right list of variables' names."""
    if not isinstance(right, list):
        return True
    given = next((type(one) for one in right if one != ""), None)
    return all(type(one) in (kind, given) for one in value)


def _dict(value: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return all(key in right and _plain(one) in [_plain(x) for x in right[key]] for key, one in value.items()) and all(
        key in value or "" in values for key, values in right.items()
    )


def _dicts(value: Any, right: Any) -> bool:
    if len(value) != len(right):
        return False
    pairs = zip(value, right, strict=True)
    return all(isinstance(one, Mapping) and isinstance(other, Mapping) and _dict(one, other) for one, other in pairs)


_WHOLE, _DECIMAL = r"-?\d+", r"-?\d+(\.\d+)?"
_JAVA_DECIMAL = _DECIMAL + r"([eE][+-]?\d+)?"


def literal(text: str, kind: str, inner: str | None, language: str) -> Any:
    """The value of a Java or JavaScript literal of this type, and `inner` of a list's items; the text itself where it
    is none (a variable, an expression). kind: as BFCL names types."""
    java = language == JAVA
    forms = {
        **dict.fromkeys(("byte", "short", "integer"), (_WHOLE, "")),
        "long": (_WHOLE + "[lL]", "lL"),
        "Bigint": (_WHOLE + "n", "n"),
        "double": (_JAVA_DECIMAL, ""),
        "float": (_JAVA_DECIMAL + "[fF]", "fF") if java else (_DECIMAL, ""),
    }
    if kind in forms:
        form, suffix = forms[kind]
        return _kind(kind)(text.rstrip(suffix)) if re.fullmatch(form, text) else text
    if kind in ("boolean", "Boolean"):
        return text == "true" if text in ("true", "false") else text
    if kind == "String" and not java:
        return text[1:-1] if _quoted(text) else text
    if _kind(kind) is list:
        return _java_list(text, kind, inner) if java else _js_list(text, inner)
    if _kind(kind) is dict:
        return _java_map(text) if java else _js_object(text)
    return text


def _quoted(text: str) -> bool:
    return text[:1] in ('"', "'") and text.endswith(text[:1])


def _bare(text: str, language: str) -> Any:
    """A literal whose type is not said."""
    text = text.strip() if language == JAVASCRIPT else text
    if text in ("true", "false"):
        return text == "true"
    if _quoted(text) and (language == JAVASCRIPT or text[0] == '"'):
        return text[1:-1]
    if language == JAVA and re.fullmatch(_WHOLE + "[lL]", text):
        return int(text[:-1])
    if language == JAVA and re.fullmatch(_JAVA_DECIMAL + "[fF]", text):
        return float(text[:-1])
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _java_list(text: str, kind: str, inner: str | None) -> Any:
    if kind == "ArrayList":
        if m := re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text):
            parts = m[1].split(",")
        elif m := re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.S):
            parts = re.findall(r"add\((.+?)\)", m[1])
        else:
            return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
        if inner in ("char", "String"):
            return [part.strip()[1:-1] for part in parts]
    elif kind == "Array":
        if not (m := re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)):
            return text
        parts = [part for part in m[1].split(",") if part.strip()]
    else:
        return text
    return [literal(part.strip(), inner, None, JAVA) if inner else _bare(part.strip(), JAVA) for part in parts]


def _java_map(text: str) -> Any:
    if m := re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.S):
        return {key: _bare(one.strip(), JAVA) for key, one in re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", m[1])}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


def _js_list(text: str, inner: str | None) -> Any:
    text = text.strip()
    rows = r"\[\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\]|\bnew\s+Array\(\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\)"
    if m := re.match(rows, text):
        lines = [line.strip().removeprefix("[") for line in re.findall(r"\[(.*?)\]", m[0])]
        return [[_bare(one, JAVASCRIPT) for one in line.split(",")] for line in lines]
    if not (m := re.match(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)", text)):
        return text
    inside = (m[1] if m[1] is not None else m[2]).strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    return [literal(part, inner, None, JAVASCRIPT) if inner else _bare(part, JAVASCRIPT) for part in parts]


def _js_object(text: str) -> Any:
    text = text.strip()
    if not (m := re.match(r"\{(.*?)\}", text)):
        return text
    found = {}
    for key, one in re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", m[1]):
        one = one.strip()
        if one.startswith("[") and one.endswith("]"):
            value = _js_list(one, None)
        elif one.startswith("{") and one.endswith("}"):
            value = _js_object(one)
        else:
            value = _bare(one.strip("'\""), JAVASCRIPT)
        found[key.strip().strip("'\"")] = value
    return found
