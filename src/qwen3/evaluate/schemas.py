"""Twenty JSON schemas of the shapes in the public JSON Schema test suite; every answer under them is short.

Strings, arrays, numbers and nesting are bounded, so that an answer always ends: none of these needs more than a few
hundred characters besides white space.
"""

from __future__ import annotations

from typing import Any

_NAME = {"type": "string", "minLength": 1, "maxLength": 12}
_POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -99, "maximum": 99}, "y": {"$ref": "#/$defs/y"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer range": {"type": "integer", "minimum": -10, "exclusiveMaximum": 1000},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 600, "multipleOf": 15},
    "string length": {"type": "string", "minLength": 3, "maxLength": 10},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}(/[a-z]+){0,2}$", "maxLength": 20},
    "date": {"type": "string", "format": "date"},
    "email": {"type": "string", "format": "email", "maxLength": 24},
    "uuid": {"type": "string", "format": "uuid"},
    "enum": {"enum": ["red", "green", 7, 2.5, None, True, ["a", 1], {"k": "v"}]},
    "null union": {"type": ["string", "null"], "maxLength": 8},
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 5},
    "tuple": {
        "type": "array",
        "prefixItems": [_NAME, {"type": "integer", "minimum": 0, "maximum": 120}, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "object": {
        "type": "object",
        "properties": {"name": _NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "tag": _NAME},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "user": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer", "minimum": 1, "maximum": 9999},
                    "roles": {"type": "array", "items": {"enum": ["admin", "guest"]}, "maxItems": 2},
                },
                "required": ["id", "roles"],
                "additionalProperties": False,
            },
            "active": {"type": "boolean"},
        },
        "required": ["user", "active"],
        "additionalProperties": False,
    },
    "any of": {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 99},
            {"type": "object", "properties": {"error": _NAME}, "required": ["error"], "additionalProperties": False},
        ]
    },
    "one of": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, field: {"type": "integer", "minimum": 1, "maximum": 50}},
                "required": ["kind", field],
                "additionalProperties": False,
            }
            for kind, field in (("circle", "radius"), ("square", "side"))
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 99}, "b": {"type": "boolean"}}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "reference": {
        "$defs": {"point": _POINT, "y": {"type": "integer", "minimum": 0, "maximum": 9}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursion": {
        "$defs": {
            f"level{i}": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 9},
                    "children": {"type": "array", "items": {"$ref": f"#/$defs/level{i + 1}"}, "maxItems": 2},
                },
                "required": ["value"] if i == 2 else ["value", "children"],
                "additionalProperties": False,
            }
            for i in range(3)
        }
        | {"level3": {"type": "integer", "minimum": 0, "maximum": 9}},
        "$ref": "#/$defs/level0",
    },
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,4}$": {"type": "integer", "minimum": 0, "maximum": 9}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
}
