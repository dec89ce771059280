"""The way of an answer to its client: disconnects, slow readers, keep-alives, errors, merged news, warnings."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.requests import Request
from starlette.responses import Response

from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ThinkingReport, ToolCallDelta, Usage, fold
from qwen3.serve import answer
from qwen3.serve.answer import Clock, collect, merged, model_info, plain_response, stream_response
from qwen3.serve.calls import Call, Item, ModelInfo, TokenLogprob
from qwen3.serve.errors import ApiError
from qwen3.serve.keys import Caller
from qwen3.serve.memory import ReasoningMemory
from tests.serve.fakes import REPORT, SCRIPT, USAGE, FakeBackend, FakeStream

CALL = Call(messages=[{"role": "user", "content": "hi"}])


class Metrics:
    def __init__(self) -> None:
        self.items, self.answers, self.ends, self.cuts = 0, 0, 0, list[str]()

    def observe_items(self, model: str, items: list[Item], elapsed: float, gap: float | None) -> None:
        self.items += len(items)

    def observe_answer(self, model: str, elapsed: float) -> None:
        self.answers += 1

    def observe_end(self, model: str, reason: Any, usage: Any, thinking: Any, timing: Any) -> None:
        self.ends += 1

    def observe_cut(self, model: str, why: str) -> None:
        self.cuts.append(why)


class Plain:
    """A dialect of one line for everything."""

    media_type = "text/plain"
    clock: Clock

    def begin(self, stream: Any) -> bytes:
        return b"begin\n"

    def feed(self, items: list[Item]) -> bytes:
        return "".join(f"{i.index} {type(i.event).__name__} {self._text(i.event)}\n" for i in items).encode()

    def end(self) -> bytes:
        return b"end\n"

    def error(self, error: ApiError) -> bytes:
        return f"error {error.status} {error.message}\n".encode()

    def keep_alive(self) -> bytes:
        return b"alive\n"

    @staticmethod
    def _text(event: Event) -> str:
        return "|".join(event.warnings) if isinstance(event, Finish) else str(getattr(event, "text", ""))


class Client:
    """One HTTP exchange from the ASGI side. sent: the messages that came; `room` clear: the socket is full."""

    def __init__(self, caller: Caller | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone, self.room = asyncio.Event(), asyncio.Event()
        self.room.set()
        self.aborted = 0
        state = {"caller": caller} if caller else {}
        self.scope = {
            "type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "state": state,
            "extensions": {"qwen3.abort": self._abort},
        }  # fmt: skip
        self.request = Request(self.scope, self._receive)

    def _abort(self) -> None:
        self.aborted += 1

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.room.wait()
        self.sent.append(message)

    async def take(self, response: Response) -> str:
        await response(self.scope, self._receive, self._send)
        return self.body

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class Server(SimpleNamespace):
    def __init__(self, **settings: Any) -> None:
        super().__init__(
            settings=SimpleNamespace(**{"write_timeout": 5.0} | settings),
            metrics=Metrics(),
            memory=ReasoningMemory(),
            streams={},
        )


class Endless(FakeStream):
    """News every millisecond, until it is cancelled."""

    async def __anext__(self) -> list[Item]:
        await asyncio.sleep(0.001)
        if self.cancelled:
            raise StopAsyncIteration
        return [Item(0, TextDelta("x", (1,)))]

    async def collect(self) -> Any:
        while not self.cancelled:
            await asyncio.sleep(0.001)


def backend(script: Any = SCRIPT, kind: type[FakeStream] | None = None) -> FakeBackend:
    made = FakeBackend(script=script)
    if kind is not None:

        async def open(call: Call) -> FakeStream:
            made.streams.append(kind(call, ()))
            return made.streams[-1]

        made.open = open  # type: ignore[method-assign]
    return made


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


# Streams


def test_a_stream_from_begin_to_end() -> None:
    async def work() -> None:
        server, client, model = Server(), Client(), backend()
        response = await stream_response(server, client.request, model, CALL, Plain(), ["a note"])
        text = await client.take(response)
        assert text.splitlines() == [
            "begin", "0 ReasoningDelta Let me ", "0 ReasoningDelta see.", "0 TextDelta Hello", "0 TextDelta  world",
            "0 Finish a note", "end",
        ]  # fmt: skip
        assert client.complete
        assert dict(client.sent[0]["headers"])[b"cache-control"] == b"no-cache"
        assert b"content-length" not in dict(client.sent[0]["headers"])
        assert b"end" in client.sent[-1]["body"]  # together with the Finish, not in a write of its own
        assert b"Finish" in client.sent[-1]["body"]
        assert (server.metrics.items, server.metrics.answers, server.metrics.ends) == (5, 1, 1)
        assert not server.streams
        assert not server.metrics.cuts
        assert not model.streams[0].cancelled

    run(work)


def test_running_streams_are_registered_with_their_caller() -> None:
    async def work() -> None:
        server, client, model = Server(), Client(Caller("alice")), backend(kind=Endless)
        response = await stream_response(server, client.request, model, CALL, Plain())
        task = asyncio.create_task(client.take(response))
        await asyncio.sleep(0.02)
        assert server.streams == {model.streams[0].id: (model.streams[0], "alice")}
        client.gone.set()
        await task
        assert not server.streams

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_cancels(streaming: bool) -> None:
    async def work() -> None:
        server, client, model = Server(), Client(), backend(kind=Endless)
        if streaming:
            response = await stream_response(server, client.request, model, CALL, Plain())
            task = asyncio.create_task(client.take(response))
        else:
            task = asyncio.create_task(collect(server, client.request, model, CALL))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        assert not model.streams[0].cancelled
        begun = time.perf_counter()
        client.gone.set()
        if streaming:
            await task
        else:
            with pytest.raises(ApiError) as caught:
                await task
            assert caught.value.status == 499
        assert time.perf_counter() - begun < 2.0  # it would never end
        assert model.streams[0].cancelled
        assert server.metrics.cuts == ["disconnected"]

    run(work)


def test_a_client_that_goes_while_the_model_loads_or_the_first_token_is_made() -> None:
    async def work() -> None:
        model = backend()
        model.delay = 10.0
        server, client = Server(), Client()
        task = asyncio.create_task(stream_response(server, client.request, model, CALL, Plain()))
        await asyncio.sleep(0.01)
        client.gone.set()
        with pytest.raises(ApiError, match="closed"):
            await task
        assert model.streams[0].cancelled

        cancelled = asyncio.Event()

        async def open(call: Call) -> Any:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        model.open = open  # type: ignore[method-assign]
        client = Client()
        task = asyncio.create_task(stream_response(server, client.request, model, CALL, Plain()))
        await asyncio.sleep(0.01)
        client.gone.set()
        with pytest.raises(ApiError):
            await task
        assert cancelled.is_set()

    run(work)


def test_the_servers_own_end_cancels_too() -> None:
    async def work() -> None:
        server, client, model = Server(), Client(), backend(kind=Endless)
        response = await stream_response(server, client.request, model, CALL, Plain())
        task = asyncio.create_task(client.take(response))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.streams[0].cancelled
        assert not server.streams

    run(work)


def test_errors_before_the_first_byte_are_http_errors() -> None:
    async def work() -> None:
        for script in ((ApiError(503, "gone", retry_after=2.0),), ()):
            server, client = Server(), Client()
            model = backend(script)
            if script:
                with pytest.raises(ApiError, match="gone"):
                    await stream_response(server, client.request, model, CALL, Plain())
            else:
                text = await client.take(await stream_response(server, client.request, model, CALL, Plain()))
                assert "error 500 the answer ended before it was complete" in text
            assert model.streams[0].cancelled
        model = backend()
        model.error = ApiError(400, "bad", "top_p")
        with pytest.raises(ApiError, match="bad"):
            await stream_response(server, client.request, model, CALL, Plain())
        with pytest.raises(ApiError, match="bad"):
            await collect(server, client.request, model, CALL)

    run(work)


@pytest.mark.parametrize("error", [ApiError(503, "the engine has ended"), RuntimeError("secret")])
def test_an_error_in_the_middle_ends_the_stream_in_its_own_words(error: Exception) -> None:
    async def work() -> None:
        server, client = Server(), Client()
        model = backend((*SCRIPT[:3], error))
        text = await client.take(await stream_response(server, client.request, model, CALL, Plain()))
        last = text.splitlines()[-1]
        assert last == ("error 503 the engine has ended" if isinstance(error, ApiError) else last)
        assert last.startswith("error 5")
        assert "secret" not in text
        assert client.complete
        assert server.metrics.cuts == ["error"]

    run(work)


def test_keep_alive_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(FakeStream):  # unlike the fake's, its waiting can be interrupted without losing its place
        async def __anext__(self) -> list[Item]:
            if not hasattr(self, "due"):
                self.due = time.perf_counter() + self.delay
            await asyncio.sleep(max(0.0, self.due - time.perf_counter()))
            del self.due
            self.delay, delay = 0.0, self.delay
            found = await super().__anext__()
            self.delay = delay
            return found

    async def patient() -> None:
        model = backend()

        async def open(call: Call) -> FakeStream:
            return Waits(call, SCRIPT, 0.05)

        model.open = open  # type: ignore[method-assign]
        client = Client()
        text = await client.take(await stream_response(Server(), client.request, model, CALL, Plain()))
        assert text.startswith("begin\nalive\n")
        assert text.count("alive") >= 4
        assert text.endswith("end\n")

    monkeypatch.setattr(answer, "KEEP_ALIVE", 0.02)
    monkeypatch.setattr(answer, "FIRST_NEWS", 0.01)
    run(patient)


def test_news_that_a_dialect_hides_keep_the_connection_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Plain):
        def feed(self, items: list[Item]) -> bytes:
            return b""

    async def work() -> None:
        monkeypatch.setattr(answer, "KEEP_ALIVE", 0.02)
        client, model = Client(), backend(kind=Endless)
        task = asyncio.create_task(
            client.take(await stream_response(Server(), client.request, model, CALL, Silent()))  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.15)
        client.gone.set()
        await task
        assert 2 <= client.body.count("alive") <= 8

    run(work)


class Buffered(FakeStream):
    """Gives at once all that the engine made meanwhile, as the real one does."""

    def __init__(self, call: Call, script: Any) -> None:
        super().__init__(call, script)
        self.news: list[Item] = []
        self.come = asyncio.Event()
        self.count = 0
        self.task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        while self.count < 300 and not self.cancelled:
            self.news.append(Item(0, TextDelta(f"{self.count},", (self.count,))))
            self.count += 1
            self.come.set()
            await asyncio.sleep(0.001)
        self.news.append(Item(0, Finish("stop", USAGE, REPORT)))
        self.come.set()

    async def __anext__(self) -> list[Item]:
        await self.come.wait()
        self.come.clear()
        found, self.news = self.news, []
        return found


def test_a_slow_reader_gets_more_at_once() -> None:
    async def work() -> None:
        client, model = Client(), backend(kind=Buffered)
        task = asyncio.create_task(
            client.take(await stream_response(Server(), client.request, model, CALL, Plain()))  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.02)
        client.room.clear()
        await asyncio.sleep(0.15)
        before = len(client.sent)
        client.room.set()
        text = await task
        texts = [line.split(" ", 2)[2] for line in text.splitlines() if "TextDelta" in line]
        assert "".join(texts) == "".join(f"{i}," for i in range(300))
        assert max(text.count(",") for text in texts) > 30  # one chunk for all that had come
        assert len(client.sent) > before

    run(work)


def test_a_reader_that_takes_nothing_is_dropped() -> None:
    async def work() -> None:
        server, client, model = Server(write_timeout=0.1), Client(), backend(kind=Endless)
        task = asyncio.create_task(
            client.take(await stream_response(server, client.request, model, CALL, Plain()))  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.02)
        client.room.clear()
        begun = time.perf_counter()
        await task
        assert 0.05 < time.perf_counter() - begun < 1.0
        assert model.streams[0].cancelled
        assert server.metrics.cuts == ["slow_reader"]
        assert client.aborted == 1
        assert not client.complete

    run(work)


# What all dialects share


def test_whose_cache_and_priority() -> None:
    async def work() -> None:
        model = backend()
        for caller, call, tenant, salt, priority in (
            (Caller("alice", "team", 3), CALL, "team", "", 3),
            (Caller("alice", "team", 3), Call(prompt="x", tenant="bob", salt="s", priority=-9), "team", "s", 3),
            (Caller("alice", "", 0), Call(prompt="x", salt="s", priority=4), "", "s", 4),
            (None, Call(prompt="x", salt="s"), "", "s", 0),
        ):
            await collect(Server(), Client(caller).request, model, call)
            called = model.calls[-1]
            assert (called.tenant, called.salt, called.priority) == (tenant, salt, priority)

    run(work)


def tool_script(id: str) -> tuple[Event, ...]:
    return (
        ReasoningDelta("I look it up.", (1,)),
        ToolCallDelta(0, id, "weather", '{"city": '),
        ToolCallDelta(0, None, None, '"Oslo"}'),
        Finish("tool_calls", USAGE, REPORT),
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_reasoning_is_kept_and_put_back_for_its_caller(streaming: bool) -> None:
    async def work() -> None:
        server, model = Server(), backend(tool_script("call_1"))
        tools = [{"type": "function", "function": {"name": "weather"}}]
        call = Call(messages=[{"role": "user", "content": "Oslo?"}], tools=tools)

        async def asked(call: Call, caller: Caller) -> str:
            client = Client(caller)
            if streaming:
                return await client.take(await stream_response(server, client.request, model, call, Plain()))
            (sample,) = await collect(server, client.request, model, call)
            return "|".join(sample.result.warnings)

        await asked(call, Caller("alice"))
        function = {"name": "weather", "arguments": '{"city":"Oslo"}'}
        messages = [
            *(call.messages or []),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        text = await asked(Call(messages=messages, tools=tools), Caller("alice"))
        assert model.calls[-1].messages is not None
        assert model.calls[-1].messages[1]["reasoning_content"] == "I look it up."
        assert "the reasoning of 1 tool-calling turn" in text
        text = await asked(Call(messages=messages, tools=tools), Caller("bob"))
        assert model.calls[-1].messages == messages
        assert "reasoning" not in text

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((ReasoningDelta("hm", (1,)), Finish("length", USAGE, REPORT)), "thinking took all tokens (2)"),
        ((TextDelta("a", (1,)), Finish("length", USAGE, REPORT)), ""),
        ((TextDelta("a", (1,)), Finish("loop", USAGE, REPORT)), "repeated itself"),
        ((Finish("cancelled", USAGE, REPORT),), "was cancelled"),
    ],
)
def test_what_no_dialect_has_words_for(streaming: bool, events: Any, expected: str) -> None:
    async def work() -> None:
        client, model = Client(), backend(events)
        if streaming:
            text = await client.take(await stream_response(Server(), client.request, model, CALL, Plain(), ["note"]))
        else:
            (sample,) = await collect(Server(), client.request, model, CALL, ["note"])
            text = "|".join(sample.result.warnings)
        assert "note" in text
        assert expected in text
        assert bool(expected) == ("|" in text)

    run(work)


def test_notes_are_bounded() -> None:
    async def work() -> None:
        (sample,) = await collect(Server(), Client().request, backend(), CALL, [f"note {i}" for i in range(1000)])
        assert len(sample.result.warnings) == 65
        assert sample.result.warnings[-1] == "936 more warnings are left out"

    run(work)


def test_models_of_another_kind_are_refused() -> None:
    async def work() -> None:
        model = backend()
        assert await model_info(model) is model.info
        model.info = ModelInfo("e", 100, 100, "instruct", kind="embedding")
        with pytest.raises(ApiError, match="embedding"):
            await model_info(model)

    run(work)


def test_plain_answers_say_how_many_warnings_they_have() -> None:
    assert plain_response({"warnings": ["ä", "b"]}).headers["x-warnings"] == "2"
    assert "x-warnings" not in plain_response({"warnings": []}).headers
    assert json.loads(plain_response({"a": "ä"}).body) == {"a": "ä"}


# Merging


def random_items(rng: random.Random, samples: int) -> list[Item]:
    items: list[Item] = []
    calls = [0] * samples
    for at in range(rng.randrange(1, 40)):
        index = rng.randrange(samples)
        logprobs = (TokenLogprob(at, b"x", -1.0),) if rng.random() < 0.3 else ()
        kind = rng.randrange(4)
        event: Event
        if kind == 0:
            event = TextDelta(f"t{at} ", (at,))
        elif kind == 1:
            event = ReasoningDelta(f"r{at} ", (at, at + 1))
        elif kind == 2:
            calls[index] += 1
            event = ToolCallDelta(calls[index], f"call_{at}", "name", "{")
        elif calls[index]:
            event = ToolCallDelta(calls[index], None, None, f"{at}")
        else:
            continue
        items.append(Item(index, event, logprobs))
    finish = Finish("stop", Usage(1, 0, 0, 1), ThinkingReport("off", None, 0, 0, None))
    return items + [Item(i, finish) for i in range(samples)]


def test_merged_news_are_the_same_news() -> None:
    rng = random.Random(5)
    for _ in range(500):
        samples = rng.randrange(1, 4)
        items = random_items(rng, samples)
        found = merged(items)
        for index in range(samples):
            mine = [item for item in items if item.index == index]
            theirs = [item for item in found if item.index == index]
            assert fold(item.event for item in mine) == fold(item.event for item in theirs)
            ids = [id for item in mine for id in getattr(item.event, "ids", ())]
            assert ids == [id for item in theirs for id in getattr(item.event, "ids", ())]
            assert [p for item in mine for p in item.logprobs] == [p for item in theirs for p in item.logprobs]
            for one, other in pairwise(theirs):
                same = type(one.event) is type(other.event) and isinstance(one.event, TextDelta | ReasoningDelta)
                assert not same or one.logprobs or other.logprobs


def test_merging_many_is_linear() -> None:
    items = [Item(0, TextDelta("word ", (1,))) for _ in range(50_000)]
    begun = time.perf_counter()
    (one,) = merged(items)
    assert len(one.event.text) == 250_000  # type: ignore[union-attr]
    assert time.perf_counter() - begun < 2.0
