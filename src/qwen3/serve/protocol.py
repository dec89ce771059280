"""HTTP connections with bounds that uvicorn has not: on the time and size of headers, and on connections."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwen3.serve.edge import rendered
from qwen3.serve.errors import ApiError
from qwen3.serve.settings import Settings

_CHUNK = 32  # bytes that the frame of one chunk of a body may take


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The class for uvicorn's `http`.

    A request's headers must come within `header_timeout` of its first byte (of the connection, for the first one) and
    in `max_header` bytes; what comes around a body's chunks, trailers among it, is bounded likewise. Of a whole answer
    something must be read every `write_timeout`. In the scope's extensions, `qwen3.abort` drops the connection without
    waiting for its reader.
    """

    class Protocol(HttpToolsProtocol):
        timer: asyncio.TimerHandle | None = None
        in_head = True
        overhead = 0  # bytes of this request that are no body, those of the last piece counted whole
        head = 0  # bytes of its address and headers

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                self.refuse(ApiError(503, "the server has all the connections it takes", retry_after=2.0))
            else:
                self.start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self.in_head:
                self.start_timer()
            self.overhead += len(data)
            super().data_received(data)
            if self.overhead > settings.max_header or self.head > settings.max_header:
                text = f"the headers are longer than {settings.max_header:,} bytes"
                self.refuse(ApiError(431, text, code="headers_too_large"))

        def on_message_begin(self) -> None:
            super().on_message_begin()
            extensions: dict[str, Any] = {"qwen3.abort": self.transport.abort}
            self.scope["extensions"] = extensions

        def on_headers_complete(self) -> None:
            self.stop_timer()
            self.in_head = False
            self.overhead = 0
            if self.head <= settings.max_header:  # else data_received refuses it
                super().on_headers_complete()

        def on_url(self, url: bytes) -> None:
            self.head += len(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self.head += len(name) + len(value) + 4
            super().on_header(name, value)

        def on_chunk_header(self) -> None:
            self.overhead -= _CHUNK

        def on_body(self, body: bytes) -> None:
            self.overhead -= len(body)
            if self.head <= settings.max_header:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self.in_head, self.overhead = True, 0
            if self.head <= settings.max_header:
                self.head = 0
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if left := self.transport.get_write_buffer_size():
                self.loop.call_later(settings.write_timeout, self.give_up, self.cycle, left)

        def give_up(self, cycle: Any, left: int) -> None:
            """Drops the connection if its reader has taken nothing of an answer since `left` bytes were left."""
            now = self.transport.get_write_buffer_size()
            if self.cycle is cycle and now:
                if now < left:
                    self.loop.call_later(settings.write_timeout, self.give_up, cycle, now)
                else:
                    self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            self.refuse(ApiError(400, "this is not HTTP/1.1", code="bad_http"))

        def start_timer(self) -> None:
            if self.timer is None:
                self.timer = self.loop.call_later(settings.header_timeout, self.late)

        def stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def late(self) -> None:
            self.timer = None
            text = f"the headers did not arrive within {settings.header_timeout:g} s"
            self.refuse(ApiError(408, text, code="header_timeout"))

        def refuse(self, error: ApiError) -> None:
            """Says why and closes; nothing more is read. Where an answer is being written, only closes."""
            self.stop_timer()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:
                status, headers, body = rendered(error, "openai")
                lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
                lines += [name + b": " + value for name, value in headers if name != b"connection"]
                self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", body]))
            self.transport.close()

    return Protocol
