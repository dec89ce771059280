"""A scripted endpoint: /v1/chat/completions of OpenAI's shape, whose answers a test writes.

    with serving(oracle({"What is 2 + 2?": "4"})) as server:
        ...ask server.url...; server.bodies are what came in

A script takes the request's body and gives a Reply. The ready ones wrap each other: truncating(oracle(…)).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What one request gets. reasoning_field: where the thinking goes; usage: None: none is told; hang: seconds before
    anything is sent; cut: the connection ends in the middle of the body; status other than 200: an error object."""

    content: str = ""
    reasoning: str = ""
    finish: str = "stop"
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    usage: Mapping[str, Any] | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 20})
    reasoning_field: str = "reasoning_content"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0.0
    cut: bool = False


Script = Callable[[Body], Reply]


def question(body: Body) -> str:
    """The last user message of a request."""
    return [str(turn["content"]) for turn in body["messages"] if turn["role"] == "user"][-1]


def oracle(answers: Mapping[str, str] | Callable[[str], str], thought: str = "Let me see.") -> Script:
    """Knows the answer to each question; counts its tokens as words, thoughts apart where it was to think."""

    def script(body: Body) -> Reply:
        content = answers(question(body)) if callable(answers) else answers[question(body)]
        thinks = (body.get("chat_template_kwargs") or {}).get("enable_thinking", True)
        thoughts = len(thought.split()) if thinks else 0
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": thoughts + len(content.split()),
            "completion_tokens_details": {"reasoning_tokens": thoughts},
        }
        return Reply(content, thought if thinks else "", usage=usage)

    return script


def truncating(inner: Script, keep: int = 3) -> Script:
    """Ends every answer after `keep` characters, and says so."""
    return lambda body: replace(reply := inner(body), content=reply.content[:keep], finish="length")


def leaking(inner: Script) -> Script:
    """A server without a parser for reasoning: the thoughts stand in the content, tags included."""

    def script(body: Body) -> Reply:
        reply = inner(body)
        return replace(reply, content=f"<think>\n{reply.reasoning}\n</think>\n\n{reply.content}", reasoning="")

    return script


def faulty(inner: Script, *faults: Reply) -> Script:
    """Gives each fault once, in order, whoever asks; then what `inner` says."""
    left, lock = list(faults), threading.Lock()

    def script(body: Body) -> Reply:
        with lock:
            fault = left.pop(0) if left else None
        return fault or inner(body)

    return script


FAULTS = (
    Reply(status=429, headers={"Retry-After": "0"}),
    Reply(status=500),
    Reply(status=503),
    Reply("never read", cut=True),
    Reply(status=502),
)


@dataclass
class Server:
    """url: what clients take, up to /v1. bodies: the requests so far. keys: their Authorization headers."""

    url: str
    bodies: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    """Most requests at once so far."""


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """The endpoint on a free port of this machine, in threads, until the block ends."""
    lock, ended = threading.Lock(), threading.Event()
    live = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})

        def do_POST(self) -> None:
            nonlocal live
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": f"no such path {self.path}"}})
                return
            with lock:
                server.bodies.append(body)
                server.keys.append(self.headers.get("Authorization"))
                live += 1
                server.most = max(server.most, live)
            try:
                reply = script(body)
                ended.wait(reply.hang)
                self._reply(body, reply)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    live -= 1

        def _reply(self, body: Body, reply: Reply) -> None:
            if reply.status != 200:
                self._send(reply.status, {"error": {"message": f"scripted {reply.status}"}}, reply.headers)
                return
            message: Body = {"role": "assistant", "content": reply.content}
            if reply.reasoning:
                message[reply.reasoning_field] = reply.reasoning
            if reply.tool_calls:
                message["tool_calls"] = list(reply.tool_calls)
            data: Body = {
                "id": "chatcmpl-scripted",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model"),
                "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
            }
            if reply.usage is not None:
                data["usage"] = dict(reply.usage)
            self._send(200, data, reply.headers, reply.cut)

        def _send(self, status: int, data: Body, headers: Mapping[str, str] = {}, cut: bool = False) -> None:
            raw = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2] if cut else raw)
            self.close_connection = self.close_connection or cut

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        http.shutdown()
        http.server_close()
