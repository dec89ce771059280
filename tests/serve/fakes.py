"""Models without an engine: backends that give scripted events, and keep the calls they got."""

from __future__ import annotations

import asyncio
import base64
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ThinkingReport, Usage, fold
from qwen3.serve.calls import Call, Item, ModelInfo, Sample
from qwen3.serve.errors import ApiError

USAGE = Usage(prompt_tokens=5, cached_tokens=1, reasoning_tokens=2, completion_tokens=6)
REPORT = ThinkingReport("on", None, 2, 0, "natural", "default")
SCRIPT: tuple[Event, ...] = (
    ReasoningDelta("Let me ", (11,)),
    ReasoningDelta("see.", (12,)),
    TextDelta("Hello", (21,)),
    TextDelta(" world", (22, 23)),
    Finish("stop", USAGE, REPORT),
)


class FakeStream:
    """`script` for each of n samples, one batch of items per event; `delay` seconds before each."""

    def __init__(self, call: Call, script: Sequence[Event | Exception], delay: float = 0.0) -> None:
        self.id = f"req-{secrets.token_hex(16)}"
        self.opened = {"prompt_tokens": USAGE.prompt_tokens, "warnings": [], "seed": 7}
        self.call, self.delay, self.buffered = call, delay, 0
        self.cancelled = self.hurried = False
        self._script = list(script)
        self._n = call.sampling.get("n") or 1
        self._at = 0

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> list[Item]:
        if self._at >= len(self._script) or self.cancelled:
            raise StopAsyncIteration
        await asyncio.sleep(self.delay)
        event = self._script[self._at]
        self._at += 1
        if isinstance(event, Exception):
            raise event
        return [Item(index, event) for index in range(self._n)]

    async def collect(self) -> list[Sample]:
        events: list[list[Event]] = [[] for _ in range(self._n)]
        async for items in self:
            for item in items:
                events[item.index].append(item.event)
        timing = {"queued": 0.0, "prompt": 0.01, "first_token": 0.01, "first_answer": 0.02, "total": 0.03}
        ids = tuple(id for event in self._script for id in getattr(event, "ids", ()))
        return [Sample(i, fold(got), ids, (1, 2, 3), timing=timing, seed=7) for i, got in enumerate(events)]

    def cancel(self) -> None:
        self.cancelled = True

    def answer_now(self) -> None:
        self.hurried = True

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class FakeBackend:
    """calls: what was opened; streams: what came of it. script, delay: of the next streams. error: raised by open."""

    def __init__(self, name: str = "fake", script: Sequence[Event | Exception] = SCRIPT) -> None:
        self.name, self.script, self.delay = name, script, 0.0
        self.state, self.stuck = "ready", False
        self.stats: dict[str, float] = {"running": 0, "queued": 0, "used_blocks": 0, "blocks": 64, "steps": 0}
        self.info = ModelInfo(name, context=4096, vocab_size=151_936, mode="hybrid", parameters=1000, hidden_size=4)
        self.calls: list[Call] = []
        self.streams: list[FakeStream] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: ApiError | None = None

    async def open(self, call: Call) -> FakeStream:
        if self.error is not None:
            raise self.error
        self.calls.append(call)
        self.streams.append(FakeStream(call, self.script, self.delay))
        return self.streams[-1]

    async def load(self) -> ModelInfo:
        return self.info

    async def ask(self, what: str, **args: Any) -> Any:
        """One token is one byte."""
        self.asked.append((what, args))
        match what:
            case "tokenize":
                data = str(args.get("text") or args.get("messages")).encode()
                return {"ids": list(data), "pieces": [chr(byte) for byte in data]}
            case "detokenize":
                return {"text": bytes(args["ids"]).decode("utf-8", "replace")}
            case "count":
                return {"prompt_tokens": 5}
            case "embed":
                size = args.get("dimensions") or self.info.hidden_size
                count = len(args["inputs"])
                vectors = struct.pack(f"<{size * count}f", *([0.5] * size * count))
                return {"vectors": base64.b64encode(vectors).decode(), "tokens": [3] * count}
            case "rerank":
                count = len(args["documents"])
                return {"scores": [1 / (i + 1) for i in range(count)], "tokens": [4] * count}
        raise ApiError(400, f"cannot {what}")

    async def close(self, drain: float = 0.0) -> None:
        self.state = "unloaded"


class FakeModels:
    def __init__(self, *backends: FakeBackend) -> None:
        self.backends = list(backends) or [FakeBackend()]
        self.closed = False

    @property
    def backend(self) -> FakeBackend:
        return self.backends[0]

    async def get(self, name: str | None, caller: Any = None) -> FakeBackend:
        if name is None or name == "default":
            return self.backends[0]
        for backend in self.backends:
            if name.removesuffix(":latest") == backend.name:
                return backend
        there = ", ".join(backend.name for backend in self.backends)
        raise ApiError(404, f"no model {name[:100]!r}; there are: {there}", "model", "model_not_found")

    def list(self) -> list[FakeBackend]:
        return self.backends

    named = list

    async def start(self) -> None: ...

    async def close(self, drain: float = 0.0) -> None:
        self.closed = True
