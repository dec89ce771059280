"""Bodies of requests: read whole and in time, counted, never too deep, and parsed away from the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.types import Message, Receive

from qwen3.serve.errors import ApiError

LARGE = 256 << 10  # from here on, work on a body goes to a thread
MAX_VALUES = 1 << 21  # of one body: parsing them takes a fraction of a second, and nothing else runs meanwhile
_TEXT = bytes(set(range(256)) - set(b'",[{'))


def parse(body: bytes, limit: int) -> Any:
    """The JSON value in `body` (UTF-8). Raises ApiError 400 for what is none, nests deeper than `limit`, has more than
    MAX_VALUES values, NaN, Infinity, or half a surrogate pair."""
    if len(body) > 2 * MAX_VALUES and _marks(body) > MAX_VALUES and _values(body) > MAX_VALUES:
        raise ApiError(400, f"the body holds more than {MAX_VALUES:,} values", code="too_many_values")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if "recursion limit" in str(error):  # of the parser, far above ours
            raise too_deep(limit) from None
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if body.count(b"[") + body.count(b"{") > limit:
        level = [value]
        for _ in range(limit):
            level = [
                inner
                for outer in level
                for inner in (outer.values() if type(outer) is dict else outer)
                if type(inner) in (dict, list)
            ]
            if not level:
                break
        else:
            raise too_deep(limit)
    return value


def _values(body: bytes) -> int:
    """How many values there are at least: commas and opening brackets, those in texts apart. Escapes go first, then all
    else but quotes, then texts that hold none of these."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _TEXT).replace(b'""', b"")
    return sum(_marks(piece) for piece in plain.split(b'"')[::2])


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


async def read(receive: Receive, limit: int, timeout: float, take: Callable[[int], None]) -> bytes:
    """The whole body. take: told of the size of each piece, may refuse by raising. Raises ApiError 413 above `limit`
    bytes, 408 after `timeout` seconds, and ConnectionError when the client left.

    What is too long is read on for a while and thrown away: a client that still sends would not see the answer.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client left while it sent its body")
                piece, more = message.get("body", b""), message.get("more_body", False)
                size += len(piece)
                if size <= limit:
                    take(len(piece))
                    pieces.append(piece)
                else:
                    pieces.clear()
                    if size > 4 * limit:
                        break
    except TimeoutError:
        raise late(timeout) from None
    if size > limit:
        raise too_large(limit)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def counted(receive: Receive, limit: int, timeout: float) -> Receive:
    """A `receive` for bodies that are read in pieces. Raises as `read` does; `timeout` is of each piece."""
    size, more = 0, True

    async def count() -> Message:
        nonlocal size, more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(timeout):
                message = await receive()
        except TimeoutError:
            raise late(timeout) from None
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client left while it sent its body", code="client_closed")
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if size > limit:
            raise too_large(limit)
        return message

    return count


def too_deep(limit: int) -> ApiError:
    return ApiError(400, f"the body nests deeper than {limit} levels", code="too_deep")


def late(timeout: float) -> ApiError:
    return ApiError(408, f"the body did not arrive within {timeout:g} s", code="body_timeout")


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit:,} bytes, which is the limit", code="body_too_large")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, then goes on with the client's own."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


class JsonRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            limit = self.app.state.server.settings.max_depth
            self._json = parse(body, limit) if len(body) < LARGE else await asyncio.to_thread(parse, body, limit)
        return self._json


class Route(APIRoute):
    """For `APIRouter(route_class=Route)`: JSON bodies are parsed strictly, and large ones in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive, request._send))

        return handler


def dumps(value: Any) -> bytes:
    """JSON of a plain response."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
