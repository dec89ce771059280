"""The JSON schemas that structured output takes: checked as strictly as llguidance compiles them loosely.

Draft 2020-12, and what older drafts spell otherwise (`definitions`, `items` as a list). Left to itself the compiler
ignores keywords it does not know, references that lead into annotations, and numbers it cannot hold; here each is an
error that names its place. Annotations are left out, so that schemas that differ in them compile once.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from qwen3.chat.messages import plain
from qwen3.errors import UsageError
from qwen3.tokenizer import check_unicode

MAX_TEXT = 128 << 10
MAX_DEPTH = 64
MAX_NESTING = 1000
"""Depth times referenced schemas: the compiler follows references recursively."""
MAX_EXACT = 2**53

_ONE = ("additionalItems", "additionalProperties", "items")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "patternProperties", "properties")
_VALUES = ("const", "enum", "exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")
_OTHER = ("format", "maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties", "pattern",
          "required", "type")  # fmt: skip
_KEYWORDS = frozenset(("$ref", *_ONE, *_LISTS, *_MAPS, *_VALUES, *_OTHER))
_ANNOTATIONS = frozenset(
    ("$anchor", "$comment", "contentEncoding", "contentMediaType", "default", "deprecated", "description",
     "discriminator", "example", "examples", "readOnly", "title", "writeOnly")
)  # fmt: skip
_OF_THE_ROOT = frozenset(("$id", "$schema", "id"))

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAY = f"^(?:[0-9]{{4}}-(?:0[13-9]|1[0-2])-|[0-9]{{4}}-02-(?:[01][0-9]|2[0-8])|{_LEAP}-02-29)"
_YEAR = "^0{0,3}[1-9]"  # there is no year 0 in most calendars' software
_SECOND = "^[^:]*:[0-9]{2}:[0-5]"  # nor a second 60
_FORMATS: dict[str, tuple[str, ...]] = {
    "date": (_DAY, _YEAR), "date-time": (_DAY, _YEAR, _SECOND), "time": (_SECOND,), "duration": (), "email": (),
    "hostname": (), "ipv4": (), "ipv6": (), "uri": (), "uuid": (),
}  # fmt: skip
"""Format -> patterns that rule out what the compiler's own lets through, as February 29 of every year."""


def checked_schema(schema: Any, where: str) -> dict[str, Any]:
    """The schema as plain data, without annotations, in the order given; `true` is {}.

    schema: dict, bool, JSON text, or an object of that shape. Raises UsageError beginning with `where` and the place.
    """
    if isinstance(schema, str):
        schema = _parse(schema, where)
    schema = plain(schema, where)
    if schema is False:
        raise UsageError(f"{where} is false: nothing is valid under it")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} has no JSON form: {error}") from None
    if len(text) > MAX_TEXT:
        raise UsageError(f"{where} has {len(text)} characters as JSON; at most {MAX_TEXT} are allowed")
    check_unicode(text, where)
    return _Checker(where).run({} if schema is True else json.loads(text))


def _parse(text: str, where: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(items)) < len(items):
            keys = [key for key, _ in items]
            raise UsageError(f"{where}: the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
        return found

    if len(text) > MAX_TEXT:
        raise UsageError(f"{where} has {len(text)} characters; at most {MAX_TEXT} are allowed")
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from None


class _Checker:
    def __init__(self, where: str):
        self._root = where
        self._depth = 0
        self._places: set[str] = set()  # JSON pointers of all schemas
        self._references: dict[str, str] = {}  # pointer -> where it is used

    def run(self, schema: Any) -> dict[str, Any]:
        result = self._schema(schema, "", 0)
        for pointer, where in self._references.items():
            if pointer not in self._places:
                raise UsageError(f"{where}.$ref leads to no schema in this document: {'#' + pointer!r}")
        if (nesting := self._depth * (1 + len(self._references))) > MAX_NESTING:
            raise UsageError(f"{self._root} is too complex: depth times references is {nesting}, above {MAX_NESTING}")
        return result

    def _schema(self, node: Any, pointer: str, depth: int) -> Any:
        where = self._root + pointer.replace("/", ".")
        self._places.add(pointer)
        self._depth = max(self._depth, depth + 1)
        if depth > MAX_DEPTH:
            raise UsageError(f"{self._root} is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise UsageError(f"{where} must be a schema (an object, true or false), not {type(node).__name__}")
        result: dict[str, Any] = {}
        for key, value in node.items():
            if key in _KEYWORDS:
                result[key] = self._value(key, value, f"{where}.{key}", f"{pointer}/{_escaped(key)}", depth + 1)
            elif not _ignorable(key, value, root=depth == 0):
                raise UsageError(f"{where}.{key} is not supported in structured output")
        return self._whole(result, where)

    def _value(self, key: str, value: Any, where: str, pointer: str, depth: int) -> Any:
        if key in _MAPS:
            if not isinstance(value, dict):
                raise UsageError(f"{where} must be an object, not {type(value).__name__}")
            return {name: self._schema(item, f"{pointer}/{_escaped(name)}", depth) for name, item in value.items()}
        if key in _LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise UsageError(f"{where} must be a list of schemas, not {type(value).__name__}")
            return [self._schema(item, f"{pointer}/{i}", depth) for i, item in enumerate(value)]
        if key in _ONE:
            return self._schema(value, pointer, depth)
        if key in _VALUES:
            _check_numbers(value, where)
        elif key == "format" and value not in _FORMATS:
            raise UsageError(f"{where} {value!r} is not supported; known: {', '.join(_FORMATS)}")
        elif key == "$ref":
            if not isinstance(value, str) or (value != "#" and not value.startswith("#/")):
                raise UsageError(f"{where} must lead into this document (#/…), not {value!r}")
            self._references.setdefault(unquote(value[1:]), where.removesuffix(".$ref"))
        return value

    def _whole(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        """What keywords mean to each other."""
        if "prefixItems" in node and ("additionalItems" in node or isinstance(node.get("items"), list)):
            raise UsageError(f"{where} mixes prefixItems with the older form of items")
        least, required = node.get("minProperties", 0), node.get("required", [])
        is_open = node.get("additionalProperties") is not False or "patternProperties" in node
        if isinstance(least, int) and isinstance(required, list) and is_open and least > len(required) + 1:
            # Names that are not listed may repeat, and then count once.
            raise UsageError(f"{where}.minProperties is not supported where names are free: list them in required")
        if patterns := _FORMATS.get(node.get("format", ""), ()):
            node["allOf"] = [*node.get("allOf", []), *({"pattern": pattern} for pattern in patterns)]
        return node


def _ignorable(key: str, value: Any, root: bool) -> bool:
    if key in _ANNOTATIONS or (root and key in _OF_THE_ROOT) or (key == "uniqueItems" and value is False):
        return True
    return key.startswith("x-") and key != "x-guidance"


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _check_numbers(value: Any, where: str) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(item, where)
    elif isinstance(value, (int, float)) and abs(value) > MAX_EXACT:
        raise UsageError(f"{where} holds {value}, which is beyond ±2^53 and cannot be kept exactly")
