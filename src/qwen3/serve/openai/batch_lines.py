"""The lines of a batch: its input checked, its results made so that they do not depend on the moment.

Seeds, ids and times in a result come from the batch and the request; cached tokens and timings are left out. So a batch
that was killed ends in the same files as one that was not.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3.serve.body import dumps, parse
from qwen3.serve.errors import ApiError

MAX_LINES, MAX_ERRORS, MAX_DEPTH = 50_000, 20, 64
_LINE_KEYS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class Line:
    """Where a request stands in the input file."""

    custom_id: str
    start: int
    size: int


def scan(path: Path, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of an input file, or what is wrong with it: {code, message, param, line}. Blocks."""
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    at = 0
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return [], [{"code": "file_lost", "message": "the input file is gone", "param": None, "line": None}]
    with file:
        for number, raw in enumerate(file, 1):
            start, at = at, at + len(raw)
            if not raw.strip():
                continue
            try:
                if len(lines) >= MAX_LINES:
                    raise _bad("too_many_requests", f"at most {MAX_LINES:,} requests are allowed in a batch")
                id = _checked(raw, endpoint)
                if id in seen:
                    raise _bad(
                        "duplicate_custom_id", f"line {seen[id]} has the custom_id {id[:80]!r} already", "custom_id"
                    )
            except ApiError as error:
                message = f"line {number}: {error.message}"
                errors.append({"code": error.code, "message": message, "param": error.param, "line": number})
                if len(errors) >= MAX_ERRORS or error.code == "too_many_requests":
                    break
                continue
            seen[id] = number
            lines.append(Line(id, start, len(raw)))
    if not lines and not errors:
        errors.append({"code": "empty_file", "message": "the input file has no requests", "param": None, "line": None})
    return lines, errors


def _bad(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def _checked(raw: bytes, endpoint: str) -> str:
    """The custom_id of a line. Raises ApiError."""
    try:
        value = parse(raw, MAX_DEPTH)
    except ApiError as error:
        raise _bad("invalid_json_line", error.message.replace("the body", "it")) from None
    if not isinstance(value, dict):
        raise _bad("invalid_json_line", "it is no JSON object")
    if unknown := [key for key in value if key not in _LINE_KEYS]:
        raise _bad("unknown_field", f"{unknown[0][:60]!r} is not a field of a request", unknown[0][:60])
    id, method, url, body = (value.get(key) for key in ("custom_id", "method", "url", "body"))
    if not isinstance(id, str) or not 0 < len(id) <= 512:
        raise _bad("invalid_custom_id", "custom_id must be a text of 1 to 512 characters", "custom_id")
    if method != "POST":
        raise _bad("invalid_method", f"method must be 'POST', not {method!r:.40}", "method")
    if url != endpoint:
        raise _bad("mismatched_url", f"url must be the batch's endpoint {endpoint!r}, not {url!r:.80}", "url")
    if not isinstance(body, dict):
        raise _bad("invalid_body", "body must be an object", "body")
    if body.get("stream"):
        raise _bad("invalid_body", "body.stream: a batch cannot stream", "body.stream")
    return id


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def seeded(body: dict[str, Any], endpoint: str, batch: str, custom_id: str) -> dict[str, Any]:
    """The request with a seed, where it has none and could have one."""
    if endpoint == "/v1/embeddings" or body.get("seed") is not None:
        return body
    return {**body, "seed": int(digest(batch, custom_id)[:13], 16)}


_IDS = ("id", "call_id", "item_id")
_TIMES = ("created", "created_at", "completed_at")
_MOMENT = ("cached_tokens", "timing", "timings")
_ECHOED = ("metadata", "tools", "text", "tool_choice")  # the client's own, as it gave them


def settled(value: Any, salt: str, created: int, names: dict[str, str] | None = None) -> Any:
    """A response with ids made from `salt`, one time for all times, and without what depends on the moment."""
    names = {} if names is None else names
    if isinstance(value, list):
        return [settled(item, salt, created, names) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key in _MOMENT:
            continue
        if key in _IDS and isinstance(item, str):
            prefix = re.match(r"[A-Za-z]*[_-]?", item)
            item = names.setdefault(item, f"{prefix[0] if prefix else ''}{digest(salt, str(len(names)))[:32]}")
        elif key in _TIMES and isinstance(item, (int, float)):
            item = created
        elif key not in _ECHOED:
            item = settled(item, salt, created, names)
        found[key] = item
    return found


def result_line(
    line: Line, salt: str, status: int = 0, body: Any = None, error: tuple[str, str] | None = None
) -> bytes:
    """A line of the output or error file, without its end. error: (code, message) of a request that was not made."""
    response = {"status_code": status, "request_id": f"req_{salt[32:56]}", "body": body}
    return dumps(
        {
            "id": f"batch_req_{salt[:32]}",
            "custom_id": line.custom_id,
            "response": None if error else response,
            "error": {"code": error[0], "message": error[1]} if error else None,
        }
    )
