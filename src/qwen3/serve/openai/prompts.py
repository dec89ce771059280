"""Prompts and inputs: a text, texts, token ids, or lists of token ids, as the older OpenAI endpoints take them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from qwen3.serve.fields import INT32, MAX_IDS
from qwen3.tokenizer import check_unicode

MAX_PROMPTS = 2048


def _prompts(value: Any) -> list[str | list[int]]:
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids; not empty")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS:,} at once are allowed, these are {len(value):,}")
    for i, item in enumerate(value):
        if isinstance(item, str):
            check_unicode(item, f"entry {i}")  # whose UsageError is a ValueError
        elif not isinstance(item, list) or not all(type(id) is int and 0 <= id <= INT32 for id in item):
            raise ValueError(f"entry {i} is neither a text nor a list of token ids")
    if sum(len(item) for item in value if isinstance(item, list)) > MAX_IDS:
        raise ValueError(f"at most {MAX_IDS:,} token ids are allowed")
    return value


def _several(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": kind, "minItems": 1, "maxItems": MAX_PROMPTS}


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32}, "minItems": 1}

Prompts = Annotated[
    Any,  # a union's errors would name its branches
    AfterValidator(_prompts),
    WithJsonSchema({"anyOf": [_TEXT, _IDS, _several(_TEXT), _several(_IDS)]}),
]
"""Validated it is a list with an entry for each prompt: a text or token ids."""
