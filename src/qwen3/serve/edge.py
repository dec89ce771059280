"""The outermost layer of the server: every request gets its id, its checks, its limits, its log line, and one shape of
error whatever happens further in."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3.serve import body as bodies
from qwen3.serve.errors import ApiError, dialect_of, shape
from qwen3.serve.keys import Caller
from qwen3.serve.logs import LOG, event
from qwen3.serve.security import Headers

if TYPE_CHECKING:
    from qwen3.serve.app import Server

LARGE = 32 << 10  # bytes of a piece that may be one of many
RETRY = frozenset({408, 429, 503, 529})
# Answered however much is under way, and while the server ends: operations, and what concerns answers that run.
ALWAYS = frozenset({"/health", "/ready", "/metrics", "/version", "/status.json", "/v1/chat/completions/control"})
ALWAYS_UNDER = "/v1/requests/"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIXED = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Edge:
    """ASGI middleware. In `scope["state"]`: id (of the request), caller, started (time.perf_counter)."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self._server, scope, send).run(self._app, receive)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, server: Server, scope: Scope, send: Send) -> None:
        self.server, self.send = server, send
        self.scope: dict[str, Any] = {**scope, "state": {**scope.get("state", {})}}
        self.path: str = scope["path"]
        self.dialect = dialect_of(self.path)
        self.always = self.path in ALWAYS or self.path.startswith(ALWAYS_UNDER)
        self.head = scope["method"] == "HEAD"
        if self.head:
            self.scope["method"] = "GET"
        self.status = 0
        self.extra: list[tuple[bytes, bytes]] = []
        self.release = lambda: None
        self.caller: Caller | None = None
        self.code: str | None = None

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        started = time.perf_counter()
        server, state = self.server, self.scope["state"]
        server.metrics.in_flight += 1
        state["started"] = started
        state["id"] = self.id = f"req_{secrets.token_hex(12)}"
        try:
            if server.tracing is None:
                await self._pass(app, receive)
            else:
                with server.tracing.request(self.scope["method"], self.path, self.scope["headers"]) as span:
                    await self._pass(app, receive)
                    span.set_attribute("http.response.status_code", self.status)
        except ApiError as error:
            await self._fail(error)
        except ConnectionError:
            self.code = "client_left"
        except TimeoutError:
            self.code = "slow_reader"
            self.scope.get("extensions", {}).get("qwen3.abort", bool)()
        except asyncio.CancelledError:  # the server ends and waits no longer
            await self._fail(ApiError(503, "the server ended before the answer did", code="shutdown", retry_after=5.0))
        except Exception as error:
            LOG.error("internal error", exc_info=error, extra={"fields": {"id": self.id, "path": self.path}})
            await self._fail(ApiError.of(error))
        finally:
            server.metrics.in_flight -= 1
            seconds = time.perf_counter() - started
            server.metrics.answered(self.dialect, self.status, seconds)
            event(
                "request",
                logging.DEBUG if self.path in ALWAYS and self.status in (200, 503) else logging.INFO,
                id=self.id,
                method=self.scope["method"][:16],
                path=self.path[:200],
                status=self.status or None,
                code=self.code or state.get("code"),
                ms=round(seconds * 1000, 1),
                key=self.caller.id if self.caller and self.caller.id else None,
                client=(self.scope.get("client") or ("",))[0] or None,
            )

    async def _pass(self, app: ASGIApp, receive: Receive) -> None:
        server, settings, state = self.server, self.server.settings, self.scope["state"]
        headers = Headers(self.scope["headers"])
        given = headers.get("x-request-id")
        if given is not None and _ID.fullmatch(given):
            state["id"] = self.id = given
        self.extra = server.gate.cors(headers.get("origin"))
        method = self.scope["method"]
        self.caller = state["caller"] = server.gate.check(method, self.path, self.scope["http_version"], headers)
        if server.draining and not self.always:
            raise ApiError(503, "the server is about to end", code="draining", retry_after=5.0)
        if method == "OPTIONS" and self.extra and headers.get("access-control-request-method"):
            self.extra += [
                (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
                (b"access-control-allow-headers", (headers.get("access-control-request-headers") or "").encode()),
                (b"access-control-max-age", b"600"),
            ]
            await self._send({"type": "http.response.start", "status": 204, "headers": []})
            await self._send({"type": "http.response.body", "body": b""})
            return
        if method in ("GET", "OPTIONS"):
            await app(self.scope, receive, self._send)
            return
        if not self.always:
            await server.limits.turn(self.caller)
        with (
            nullcontext() if self.always else server.limits.slot(self.caller),
            server.limits.memory() as (take, self.release),
        ):
            kind = self._check_kind(headers)
            limit = settings.max_file if kind == "multipart" else settings.max_body
            length = headers.get("content-length")
            if length is not None and length.isdigit() and int(length) > 4 * limit:
                raise bodies.too_large(limit)
            if kind == "multipart":
                await app(self.scope, bodies.counted(receive, limit, settings.body_timeout), self._send)
            else:
                body = await bodies.read(receive, limit, settings.body_timeout, take)
                if body and kind is None:
                    raise ApiError(
                        415,
                        "the body must be JSON and say so: content-type: application/json"
                        f"{'; now it is ' + repr(given[:80]) if (given := headers.get('content-type')) else ''}",
                        code="unsupported_media_type",
                    )
                await app(self.scope, bodies.replay(body, receive), self._send)

    def _check_kind(self, headers: Headers) -> str | None:
        """What the body says it is: "json", "multipart", or None. Ollama's own examples send JSON as a form."""
        coding = headers.get("content-encoding")
        if coding is not None and coding.lower() != "identity":
            raise ApiError(415, f"content-encoding {coding[:40]!r} is not taken: send the body as it is")
        kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
            return "json"
        if kind == "multipart/form-data":
            return "multipart"
        if self.dialect != "ollama":
            return None
        kept = [(name, value) for name, value in self.scope["headers"] if name != b"content-type"]
        self.scope["headers"] = [*kept, (b"content-type", b"application/json")]
        return "json"

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.release()
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            headers += [pair for pair in (*_FIXED, *self.extra) if pair[0] not in names]
            if b"x-request-id" not in names:
                headers.append((b"x-request-id", self.id.encode()))
            if self.dialect == "anthropic":  # where its clients look for it
                headers.append((b"request-id", self.id.encode()))
            message = {**message, "headers": headers}
        elif self.head:
            if message.get("more_body"):
                return
            message = {**message, "body": b""}
        if len(message.get("body", b"")) < LARGE:
            await self.send(message)
            return
        async with asyncio.timeout(self.server.settings.write_timeout):  # of files; streams have one of their own
            await self.send(message)

    async def _fail(self, error: ApiError) -> None:
        self.code = error.code or error.type
        if self.status:  # the answer has begun: ending it unfinished closes the connection, which the client notices
            return
        status, headers, body = rendered(error, self.dialect)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def rendered(error: ApiError, dialect: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """(status, headers, body) of an error in a dialect. `x-should-retry` is OpenAI's way to tell its clients."""
    status = 529 if dialect == "anthropic" and error.status == 503 else error.status
    body = bodies.dumps(shape(error, dialect))
    again = status in RETRY and (error.retry_after is not None or status == 408)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-should-retry", b"true" if again else b"false"),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (408, 413, 431):
        headers.append((b"connection", b"close"))
    return status, headers, body
