"""How an answer gets from the engine's process to the client, whole or streamed, in whatever dialect.

Here lives what all dialects share: whose prefix cache and priority a call has, reasoning memory, warnings, metrics,
cancelling for a client that has gone, keep-alives, and what happens to a reader that does not read.

What `server` must have: settings.write_timeout (seconds), memory (`serve.memory.ReasoningMemory`), streams (dict of
running streams, id -> (stream, caller's id)) and metrics with
    observe_items(model, items, elapsed, gap)   news of a stream. elapsed: s since the call came in; gap: s since the
                                                stream's last news, None for the first (elapsed is then the TTFT)
    observe_answer(model, elapsed)              once a stream: its first text or tool-call delta
    observe_end(model, reason, usage, thinking, timing)   a sample has ended. timing: s, by the names of `Clock.timing`
    observe_cut(model, why)                     a call ended early: "disconnected", "slow_reader" or "error"
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3.chat import Event, Finish, ReasoningDelta, Result, TextDelta, ThinkingReport, ToolCallDelta, fold
from qwen3.serve.body import dumps
from qwen3.serve.calls import Call, Item, ModelInfo, Sample
from qwen3.serve.errors import ApiError

T = TypeVar("T")
_log = logging.getLogger("qwen3.serve")
MAX_NOTES = 64
KEEP_ALIVE = 15.0
TURN = 4  # tokens that a turn has around its text, at least
COUNTED = 4  # contexts that a conversation may fill which is only counted
FIRST_NEWS = 2.0
"""Seconds that the response's head waits for the first news: what fails before then fails as a plain HTTP error, which
clients know how to retry."""


@dataclass
class Clock:
    """When what happened to a call, in seconds of `time.perf_counter`; None: not yet."""

    started: float = field(default_factory=time.perf_counter)
    opened: float | None = None
    first: float | None = None
    answer: float | None = None
    last: float | None = None

    def timing(self) -> dict[str, float | None]:
        """Seconds since the start: opened, first_token, first_answer, total (up to the last news)."""
        marks = {"opened": self.opened, "first_token": self.first, "first_answer": self.answer, "total": self.last}
        return {name: None if mark is None else mark - self.started for name, mark in marks.items()}


class Writer(Protocol):
    """Items to a dialect's bytes, for one stream. Each method gives bytes to send, b"" for none.

    clock is set before `begin`; `feed` gets items of any samples, neighbours of one kind already made one, every
    sample's last one a Finish, whose warnings are complete; `end` comes after the last Finish, or else `error` (which
    ends the response too).
    """

    media_type: str
    clock: Clock

    def begin(self, stream: Any) -> bytes: ...
    def feed(self, items: list[Item]) -> bytes: ...
    def end(self) -> bytes: ...
    def error(self, error: ApiError) -> bytes: ...
    def keep_alive(self) -> bytes: ...


class _Gone(Exception):
    """The client has closed the connection."""


async def collect(server: Any, request: Request, backend: Any, call: Call, notes: Sequence[str] = ()) -> list[Sample]:
    """All samples of a call, `notes` before their own warnings. Raises ApiError; a call whose client has gone is
    cancelled and ends with status 499, which nobody reads."""
    call, notes = await _prepared(server, request, call, notes)

    async def work() -> list[Sample]:
        stream = await backend.open(call)
        try:
            found: list[Sample] = await stream.collect()
        except BaseException:
            stream.cancel()
            raise
        return found

    try:
        samples = await _while_here(request.receive, work())
    except _Gone:
        server.metrics.observe_cut(backend.name, "disconnected")
        raise ApiError(499, "the client has closed the connection", code="client_closed") from None
    except ApiError:
        server.metrics.observe_cut(backend.name, "error")
        raise
    for sample in samples:
        result = sample.result
        server.metrics.observe_end(backend.name, result.finish_reason, result.usage, result.thinking, sample.timing)
        server.memory.keep(caller_id(request), call, result.message)
    return [replace(sample, result=_told(sample.result, notes)) for sample in samples]


def _told(result: Result, notes: Sequence[str]) -> Result:
    empty = not (result.content or result.tool_calls)
    return replace(
        result, warnings=_union(notes, result.warnings, _at_end(result.finish_reason, result.thinking, empty))
    )


def _at_end(reason: str | None, thinking: ThinkingReport | None, empty: bool) -> list[str]:
    """What no dialect has words for. empty: nothing but reasoning came."""
    if reason == "loop":
        return ["the answer repeated itself without end and was ended"]
    if reason == "cancelled":
        return ["the answer was cancelled before it was complete"]
    if reason == "length" and empty and thinking and thinking.used:
        return [
            f"the answer is empty: thinking took all tokens ({thinking.used:,}); allow more tokens, or less thinking"
        ]
    return []


async def model_info(backend: Any, kind: str = "chat", turns: int = 0) -> ModelInfo:
    """What the model is; it is loaded for that where it is not. Raises ApiError 400 if it is of another kind, or if so
    many turns cannot fit: before work on each of them holds the event loop."""
    if backend.info is None:
        await backend.load()
    info: ModelInfo = backend.info
    if info.kind != kind:
        raise ApiError(
            400, f"{backend.name} is a model of kind {info.kind}, this takes one of kind {kind}",
            "model", "wrong_model_kind",
        )  # fmt: skip
    if turns * TURN > info.context:
        raise ApiError(
            400, f"so many messages are more than {turns * TURN:,} tokens even if all are empty, and the context of "
            f"{backend.name} is {info.context:,}: send fewer", code="context_length_exceeded",
        )  # fmt: skip
    return info


def plain_response(value: dict[str, Any]) -> Response:
    """A whole answer as JSON. The header `x-warnings` has the number of its `warnings`, if there are any."""
    headers = {"x-warnings": str(len(value["warnings"]))} if value.get("warnings") else None
    return Response(dumps(value), media_type="application/json", headers=headers)


async def stream_response(
    server: Any, request: Request, backend: Any, call: Call, writer: Writer, notes: Sequence[str] = ()
) -> Response:
    """The response that streams a call's answer through `writer`. Raises ApiError while nothing has been sent."""
    writer.clock = clock = Clock()
    call, notes = await _prepared(server, request, call, notes)

    opened: list[Any] = []

    async def first() -> list[Item] | None:
        opened.append(await backend.open(call))
        clock.opened = time.perf_counter()
        return await _news(opened[0], FIRST_NEWS)

    try:
        items = await _while_here(request.receive, first())
    except BaseException as error:
        for stream in opened:
            stream.cancel()
        if not isinstance(error, _Gone):
            raise
        server.metrics.observe_cut(backend.name, "disconnected")
        raise ApiError(499, "the client has closed the connection", code="client_closed") from None
    return _Streamed(server, caller_id(request), backend.name, call, writer, tuple(notes), opened[0], items)


def caller_id(request: Request) -> str:
    """Who asks; "" for all where no keys are set."""
    caller = getattr(request.state, "caller", None)
    return "" if caller is None else str(caller.id)


async def _prepared(server: Any, request: Request, call: Call, notes: Sequence[str]) -> tuple[Call, Sequence[str]]:
    """The call as its caller may have it: in the caller's own prefix cache, never ahead of the caller's priority, and
    with the reasoning that the client dropped."""
    if len(notes) > MAX_NOTES:
        notes = [*notes[:MAX_NOTES], f"{len(notes) - MAX_NOTES} more warnings are left out"]
    if caller := getattr(request.state, "caller", None):
        call = replace(call, tenant=caller.tenant, priority=caller.priority + max(0, call.priority))
    if call.messages is not None:
        messages, count = await server.memory.restore(caller_id(request), call.messages)
        if count:
            turns = "turn" if count == 1 else "turns"
            note = f"messages: the reasoning of {count} tool-calling {turns}, which the request left out, was put back"
            call, notes = replace(call, messages=messages), (*notes, note)
    return call, notes


async def _while_here(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to. It is cancelled when the client goes first, which raises _Gone."""
    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(_departure(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise _Gone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _news(stream: Any, seconds: float) -> list[Item] | None:
    """The next items of a stream, None after so many seconds without any, [] after the last."""
    try:
        async with asyncio.timeout(seconds):
            items: list[Item] = await anext(stream)
            return items
    except TimeoutError:
        return None
    except StopAsyncIteration:
        return []


class _Streamed(Response):
    """Writes a stream to its client, as fast as that one reads: what comes meanwhile waits in the stream and is then
    sent at once."""

    def __init__(
        self,
        server: Any,
        caller: str,
        model: str,
        call: Call,
        writer: Writer,
        notes: tuple[str, ...],
        stream: Any,
        items: list[Item] | None,
    ) -> None:
        self.status_code, self.background = 200, None  # and no body: its length is not known
        self.init_headers({"content-type": writer.media_type, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self.server, self.caller, self.model, self.call, self.writer = server, caller, model, call, writer
        self.notes, self.stream, self.items = notes, stream, items
        self.left = call.sampling.get("n") or 1
        self.answered: set[int] = set()  # samples that have more than reasoning
        # What reasoning memory needs; nothing else has a use for it.
        self.events: dict[int, list[Event]] | None = {} if call.tools else None
        self.sent = time.perf_counter()
        self.sending: float | None = None  # since when a write waits for the reader
        self.alive: asyncio.Task[None] | None = None
        self.slow = self.over = False  # over: all has been sent, and the end of the exchange is no disconnection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.server.streams[self.stream.id] = (self.stream, self.caller)
        self.send = send
        try:
            await _while_here(receive, self._run())
        except (_Gone, OSError):
            if not self.over:
                self.server.metrics.observe_cut(self.model, "slow_reader" if self.slow else "disconnected")
            if self.slow and (abort := scope.get("extensions", {}).get("qwen3.abort")):
                abort()  # closing would wait for the reader to take what the transport still holds
        finally:
            self.server.streams.pop(self.stream.id, None)
            if self.left:
                self.stream.cancel()

    async def _run(self) -> None:
        """All of the stream. Raises TimeoutError for a reader that takes nothing."""
        await self.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.create_task(self._watch(task))
        try:
            data, more = self.writer.begin(self.stream), True
            if self.items is not None:
                made, more = self._next(self.items)
                data += made
            while True:
                if self.alive is not None:
                    await self.alive
                if data:
                    await self._send(data, more)
                if not more:
                    self.over = True
                    return
                try:
                    items = await anext(self.stream)
                except StopAsyncIteration:
                    items = []
                except Exception as error:
                    data, more = self._failed(error), False
                    continue
                data, more = self._next(items)
        except asyncio.CancelledError:
            if self.slow:
                raise TimeoutError from None
            raise
        finally:
            for other in filter(None, (watch, self.alive)):
                other.cancel()
            await asyncio.gather(watch, *filter(None, (self.alive,)), return_exceptions=True)

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        """One timer for all that can take too long: a timeout around each news would cost more than the news."""
        limit = self.server.settings.write_timeout
        while True:
            await asyncio.sleep(min(KEEP_ALIVE, limit) / 4)
            now = time.perf_counter()
            if self.sending is None:
                if now - self.sent > KEEP_ALIVE:
                    self.alive = asyncio.create_task(self._send(self.writer.keep_alive(), True))
            elif now - self.sending > limit:
                self.slow = True
                task.cancel()
                return

    async def _send(self, data: bytes, more: bool) -> None:
        self.sending = time.perf_counter()
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
        self.sent, self.sending = time.perf_counter(), None

    def _next(self, items: list[Item]) -> tuple[bytes, bool]:
        """(what news come to, whether the stream goes on)."""
        try:
            if not items:
                raise ApiError(500, "the answer ended before it was complete")
            data = self._feed(items)
            return (data, True) if self.left else (data + self.writer.end(), False)
        except Exception as error:
            return self._failed(error), False

    def _failed(self, error: Exception) -> bytes:
        self.server.metrics.observe_cut(self.model, "error")
        if not isinstance(error, ApiError):
            _log.exception("a stream failed", exc_info=error)
        return self.writer.error(ApiError.of(error))

    def _feed(self, items: list[Item]) -> bytes:
        clock, metrics = self.writer.clock, self.server.metrics
        now = time.perf_counter()
        elapsed = now - clock.started
        metrics.observe_items(self.model, items, elapsed, None if clock.last is None else now - clock.last)
        clock.last = now
        if clock.first is None:
            clock.first = now
        for item in items:
            if type(item.event) is TextDelta or type(item.event) is ToolCallDelta:
                self.answered.add(item.index)
            if self.events is not None:
                self.events.setdefault(item.index, []).append(item.event)
        if clock.answer is None and self.answered:
            clock.answer = now
            metrics.observe_answer(self.model, elapsed)
        if len(items) > 1:
            items = merged(items)
        return self.writer.feed([self._ended(i) if type(i.event) is Finish else i for i in items])

    def _ended(self, item: Item) -> Item:
        finish = item.event
        assert isinstance(finish, Finish)
        self.left -= 1
        self.server.metrics.observe_end(
            self.model, finish.reason, finish.usage, finish.thinking, self.writer.clock.timing()
        )
        if self.events is not None:
            message = fold(self.events.pop(item.index)).message
            self.server.memory.keep(self.caller, self.call, message)
        more = _at_end(finish.reason, finish.thinking, item.index not in self.answered)
        return replace(item, event=replace(finish, warnings=_union(self.notes, finish.warnings, more)))


def merged(items: list[Item]) -> list[Item]:
    """The same news in fewer items: of each sample, neighbouring texts are one, and so are reasonings and a tool call's
    arguments, but for those with log-probabilities. Samples do not wait for each other: those of one stand together."""
    found: list[Item] = []
    for (index, kind, _), group in groupby(sorted(items, key=lambda item: item.index), _kind):
        same = list(group)
        if len(same) == 1 or kind not in (TextDelta, ReasoningDelta, ToolCallDelta):
            found += same
            continue
        events: list[Any] = [item.event for item in same]
        event: Event
        if kind is ToolCallDelta:
            event = ToolCallDelta(events[0].index, None, None, "".join(e.arguments_delta for e in events))
        else:
            made = TextDelta if kind is TextDelta else ReasoningDelta
            event = made("".join(e.text for e in events), tuple(id for e in events for id in e.ids))
        found.append(Item(index, event))
    return found


def _kind(item: Item) -> tuple[int, type, Any]:
    """Equal for neighbours that can be one."""
    event = item.event
    own = id(item) if item.logprobs or item.before else None
    if type(event) is ToolCallDelta:  # a call's first delta, with its name, stays apart
        return item.index, ToolCallDelta, (event.index, event.name, own)
    return item.index, type(event), own


def _union(*lists: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for texts in lists for text in texts))
