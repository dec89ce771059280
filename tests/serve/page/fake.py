"""A server that says what a test wants: the real page routes, and `/v1/*` that stream whatever the message asks for.

The last user message chooses, by its first word, what comes back (see `SCRIPTS`). Chunks have the shapes of the real
endpoint. `python -m tests.serve.page.fake [PORT]` runs it for looking at the page by hand.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from qwen3.serve.errors import ApiError, shape
from qwen3.serve.page import router

MODEL = {
    "id": "embedded", "object": "model", "created": 0, "owned_by": "qwen3", "state": "ready", "max_model_len": 4096,
    "kind": "chat", "capabilities": ["chat", "tools", "thinking"], "parameters": 18_400_000,
    "thinking": {"mode": "hybrid", "modes": ["on", "off", "auto"]}, "dtype": "float32", "device": "cpu",
    "sampling": {"thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20}}, "root": "embedded",
}  # fmt: skip
Delta = dict[str, Any]
Script = AsyncIterator[Delta | float]  # a number: wait so many seconds


def words(n: int) -> list[str]:
    return [f"word{i} " if (i + 1) % 12 else f"word{i}.\n\n" for i in range(n)]


async def default(text: str, _: Any) -> Script:
    for piece in ("Let me ", "see: ", text[:200], "\n\nThat is easy."):
        yield {"reasoning_content": piece, "reasoning": piece}
        yield 0.01
    for piece in ("You ", "said: ", text):
        yield {"content": piece}
        yield 0.005


async def chunks(text: str, _: Any) -> Script:
    """chunks N RATE: N answer chunks, RATE a second."""
    _, n, rate = text.split()[:3]
    async for delta in paced([{"content": word} for word in words(int(n))], float(rate)):
        yield delta


async def think(text: str, fake: Fake) -> Script:
    """think N RATE: N thinking chunks, RATE a second, ended by "answer now"; then an answer."""
    _, n, rate = text.split()[:3]
    deltas = [{"reasoning_content": word, "reasoning": word} for word in words(int(n))]
    async for delta in paced(deltas, float(rate)):
        if fake.answer_now.is_set():
            break
        yield delta
    yield {"content": "Done thinking."}


async def paced(deltas: list[Delta], rate: float) -> Script:
    """Bursts every 5 ms at most, so that the rate holds at thousands a second."""
    started, sent = time.monotonic(), 0
    while sent < len(deltas):
        due = min(len(deltas), int((time.monotonic() - started) * rate) + 1)
        for delta in deltas[sent:due]:
            yield delta
        sent = due
        yield max(0.005, 1 / rate)


async def say(text: str, fake: Fake) -> Script:
    """say NAME: a text of `fake.texts`, in pieces of 7 characters."""
    whole = fake.texts[text.split()[1]]
    for at in range(0, len(whole), 7):
        yield {"content": whole[at : at + 7]}
        if at % 70 == 0:
            yield 0.002


async def ponder(text: str, fake: Fake) -> Script:
    """ponder NAME: the same as a thought, then a short answer."""
    async for delta in say(text, fake):
        yield {"reasoning_content": delta["content"]} if isinstance(delta, dict) else delta
    yield {"content": "Thought about it."}


async def tool(_: str, __: Any) -> Script:
    yield {"reasoning_content": "I need the calculator."}
    head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "calculate", "arguments": ""}}
    yield {"tool_calls": [head]}
    for piece in ('{"expression"', ': "27 * 14"}'):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        yield 0.01


async def fragments(_: str, __: Any) -> Script:
    """Reasoning and content in turns, an early `finish_reason`, and a thought that begins with a space."""
    yield {"reasoning_content": " first"}
    yield {"content": "A", "finish_reason": "stop"}
    yield {"reasoning_content": " second"}
    yield {"content": "B"}


async def broken(_: str, __: Any) -> Script:
    yield {"content": "As far as "}
    yield {"content": "it came"}
    yield 0.05
    raise ConnectionError


async def failing(_: str, __: Any) -> Script:
    yield {"content": "Half"}
    yield {"error": {"message": "the engine fell over", "type": "api_error", "param": None, "code": "engine_error"}}


SCRIPTS: dict[str, Callable[[str, Any], Script]] = {
    "chunks": chunks, "think": think, "say": say, "ponder": ponder, "tool": tool, "fragments": fragments,
    "broken": broken, "failing": failing,
}  # fmt: skip


class Fake:
    """texts: by name, for `say`. requests: bodies that came. key: what `Authorization` must hold. refuse: errors
    that the next requests get. gone: streams that clients left. ended: when the last one was complete."""

    def __init__(self) -> None:
        self.reset()
        self.app = self._app()

    def reset(self) -> None:
        self.texts: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.model = dict(MODEL)
        self.key: str | None = None
        self.refuse: list[ApiError] = []
        self.warnings: list[str] = []
        self.answer_now = asyncio.Event()
        self.gone = 0
        self.ended = 0.0

    def _app(self) -> FastAPI:
        app = FastAPI()
        server: Any = SimpleNamespace(settings=SimpleNamespace(page=True))
        app.include_router(router(server))

        @app.exception_handler(ApiError)
        async def refused(request: Request, error: ApiError) -> Response:
            headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
            return JSONResponse(shape(error, "openai"), error.status, headers)

        def check(request: Request) -> None:
            if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                raise ApiError(401, "an API key is missing or wrong", code="invalid_api_key")

        @app.get("/status.json")
        async def status(request: Request) -> Any:
            check(request)
            wave = [0.0] * 180 + [60.0 + 40 * (t % 7) for t in range(120)]
            history = {
                "tokens": wave, "prompt": [rate / 4 for rate in wave], "running": [min(rate, 3.0) for rate in wave],
                "queued": [0.0] * 300, "used_blocks": [rate / 10 for rate in wave],
            }  # fmt: skip
            model = {
                "name": "embedded", "state": "ready", "running": 3, "queued": 0, "used_blocks": 22, "blocks": 64,
                "max_batch": 8, "tokens": 48_211,
            }  # fmt: skip
            body = {"version": "0", "status": "ready", "uptime": 312.0, "draining": False}
            return {**body, "models": [model], "history": history}

        @app.get("/v1/models")
        async def models(request: Request) -> Any:
            check(request)
            return {"object": "list", "data": [self.model]}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            check(request)
            body = await request.json()
            self.requests.append(body)
            if self.refuse:
                raise self.refuse.pop(0)
            self.answer_now.clear()
            return StreamingResponse(self.stream(body), media_type="text/event-stream")

        @app.post("/v1/chat/completions/control")
        async def control(request: Request) -> Any:
            check(request)
            body = await request.json()
            self.requests.append(body)
            self.answer_now.set()
            return {"id": body["id"], "ok": True}

        return app

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        last = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        after_tool = body["messages"][-1]["role"] == "tool"
        script = default if after_tool else SCRIPTS.get((last.split() or [""])[0], default)
        if body.get("continue_final_message"):
            script = default
        head = {"id": f"chatcmpl-{len(self.requests)}", "object": "chat.completion.chunk", "created": 0}
        head["model"] = body["model"]
        started, first, thought, answered, calls = time.monotonic(), None, 0, 0, False

        def data(fields: dict[str, Any]) -> bytes:
            return f"data: {json.dumps({**head, **fields})}\n\n".encode()

        def choice(delta: Delta, reason: str | None = None) -> dict[str, Any]:
            return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        try:
            yield b": waiting\n\n" + data(choice({"role": "assistant", "content": ""}))
            waiting = b""
            async for delta in script(last, self):
                if isinstance(delta, float):
                    if waiting:
                        yield waiting
                        waiting = b""
                    await asyncio.sleep(delta)
                    continue
                if "error" in delta:
                    yield waiting + f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode()
                    return
                first = first or time.monotonic() - started
                thought += "reasoning_content" in delta
                answered += "content" in delta
                calls = calls or "tool_calls" in delta
                waiting += data(choice(delta, delta.pop("finish_reason", None)))
            mode = body.get("thinking", {}).get("mode", "on")
            budget = body.get("thinking", {}).get("budget")
            report = {"mode": mode, "budget": budget, "used": thought, "forced_tokens": 0,
                      "ended_by": "client" if self.answer_now.is_set() else "natural"}  # fmt: skip
            usage = {
                "prompt_tokens": 20, "completion_tokens": thought + answered,
                "prompt_tokens_details": {"cached_tokens": 16},
                "completion_tokens_details": {"reasoning_tokens": thought},
            }  # fmt: skip
            self.ended = time.monotonic()
            total = self.ended - started
            timings = {"first_token": first, "first_answer": total, "total": total}
            end = choice({}, "tool_calls" if calls else "stop")
            yield waiting + data({**end, "thinking": report, "warnings": self.warnings, "timings": timings})
            yield data({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
        except (GeneratorExit, asyncio.CancelledError):
            self.gone += 1
            raise


class Running:
    """The fake in a thread of its own, on a free port."""

    def __init__(self, port: int = 0) -> None:
        self.fake = Fake()
        self.server = uvicorn.Server(uvicorn.Config(self.fake.app, port=port, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(5)


if __name__ == "__main__":
    running = Running(int(sys.argv[1]) if len(sys.argv) > 1 else 8123)
    print(running.url)
    running.thread.join()
