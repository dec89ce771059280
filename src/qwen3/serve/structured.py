"""All spellings of "the answer must look like this", from OpenAI's, vLLM's and llama.cpp's clients, to one of three."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import WithJsonSchema

from qwen3.serve.errors import ApiError
from qwen3.serve.fields import Body, Pattern, shown

MAX_CHOICES, MAX_CHOICE_CHARS = 1024, 1024
_FORMATS = ("text", "json_object", "json_schema", "regex", "grammar", "choice")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
_OBJECT = {"type": "object"}
_AnyJson = Annotated[Any, WithJsonSchema({"description": "a JSON schema, as an object or as text"})]


class StructuredBody(Body):
    """The fields that bind the answer's form."""

    response_format: dict[str, Any] | None = None
    regex: Pattern | None = None
    grammar: Pattern | None = None
    guided_json: _AnyJson = None
    guided_regex: Pattern | None = None
    guided_grammar: Pattern | None = None
    guided_choice: list[str] | None = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None
    structured_outputs: dict[str, Any] | None = None


def structure_of(body: StructuredBody) -> tuple[dict[str, Any], list[str]]:
    """({}, or one of `schema`, `regex` and `grammar` of Call; warnings). Raises ApiError 400 for what is wrong, naming
    it, and for two of them."""
    warnings = [
        f"{name} has no effect: there is one way to follow a form here"
        for name in ("guided_decoding_backend", "guided_whitespace_pattern")
        if getattr(body, name) is not None
    ]
    found = list(_found(body, warnings))
    if len(found) > 1:
        names = ", ".join(spelling for spelling, _, _ in found)
        raise ApiError(400, f"{names}: an answer follows one form, leave the others out", names, "contradiction")
    return {kind: value for _, kind, value in found}, warnings


def _found(body: StructuredBody, warnings: list[str]) -> Iterator[tuple[str, str, Any]]:
    """(spelling, "schema", "regex" or "grammar", value) of each that is given."""
    if format := _response_format(body.response_format, warnings):
        yield format
    for spelling, kind in (("regex", "regex"), ("grammar", "grammar")):
        if (value := getattr(body, spelling)) is not None:
            yield spelling, kind, value
    options = body.structured_outputs or {}
    values = {f"guided_{name}": getattr(body, f"guided_{name}") for name in ("json", "regex", "grammar", "choice")}
    values |= {f"structured_outputs.{name}": value for name, value in options.items()}
    for spelling, value in values.items():
        if value is None or value is False:
            continue
        name = spelling.removeprefix("guided_").removeprefix("structured_outputs.")
        if name == "json":
            yield spelling, "schema", value
        elif name == "json_object":
            yield spelling, "schema", _OBJECT
        elif name in ("regex", "grammar"):
            yield spelling, name, _text(value, spelling)
        elif name == "choice":
            yield spelling, "regex", _choice(value, spelling)
        elif name in ("structural_tag", "structural_tags"):
            raise ApiError(400, f"{spelling} is not supported: use tools, a schema or a grammar", spelling)
        else:
            warnings.append(f"{shown(spelling)} has no meaning here and was ignored")


def _response_format(format: dict[str, Any] | None, warnings: list[str]) -> tuple[str, str, Any] | None:
    if format is None:
        return None
    kind, where = format.get("type"), "response_format"
    if kind not in _FORMATS:
        raise ApiError(400, f"{where}.type must be one of {', '.join(_FORMATS)}", f"{where}.type")
    known = {"type", "json_schema" if kind == "json_schema" else "schema" if kind == "json_object" else kind}
    warnings += [f"{where}.{shown(name)} has no meaning here and was ignored" for name in format if name not in known]
    match kind:
        case "text":
            return None
        case "json_object":  # llama.cpp's clients give a schema here, too
            return where, "schema", _OBJECT if format.get("schema") is None else format["schema"]
        case "json_schema":
            inner = format.get("json_schema")
            if not isinstance(inner, dict) or inner.get("schema") is None:
                raise ApiError(
                    400,
                    f'{where}.json_schema.schema is missing: give {{"type": "json_schema", "json_schema": {{"name": …, '
                    '"schema": …}}',
                    f"{where}.json_schema.schema",
                )
            return f"{where}.json_schema", "schema", inner["schema"]
        case "regex" | "grammar":
            return where, kind, _text(format.get(kind), f"{where}.{kind}")
    return where, "regex", _choice(format.get("choice"), f"{where}.choice")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ApiError(400, f"{where} must be a text", where)
    return value


def _choice(value: Any, where: str) -> str:
    """A regular expression (Rust's syntax) for one of several texts."""
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= MAX_CHOICES
        or not all(isinstance(text, str) and 0 < len(text) <= MAX_CHOICE_CHARS for text in value)
    ):
        raise ApiError(
            400, f"{where} must be a list of 1 to {MAX_CHOICES} texts of 1 to {MAX_CHOICE_CHARS} characters", where
        )
    return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in value)
