"""One model as the server sees it: calls go to the engine's process, items come back.

The process is started when the model is first asked for, and again, after a pause that grows, when it dies. Nothing
here imports torch. All of it runs in one event loop, and nothing of it blocks: what is written lies in the transport's
buffer (bounded by how many calls may be open, and by the length of each), what is read goes to the streams undecoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from qwen3.chat import fold
from qwen3.engine.params import MAX_N, SamplingParams
from qwen3.errors import OutOfMemoryError, Qwen3Error
from qwen3.serve import wire
from qwen3.serve.calls import Call, Item, ModelInfo, Sample
from qwen3.serve.errors import ApiError

STATS = ("running", "queued", "used_blocks", "blocks", "steps", "max_batch", "max_len", "tokens")
MAX_TOKEN_BYTES = 32
"""A text of more bytes for each token of the context is refused before anybody counts its tokens."""

_COMPACT = 256  # pieces of news that wait in a stream before they are joined
_PAUSES = 0.5, 30.0  # seconds before the first and later restarts; doubled each time
_STEADY = 60.0  # seconds after which a process is held to be in order
_RETRY_LOAD = 10.0  # seconds before a model that could not be loaded is tried again
_PATIENCE = {"cuda": 120.0, "cpu": 900.0}  # seconds that a step may take: a long prompt's, of the largest model
_LAST_WORDS = 5.0  # seconds that a process whose line is closed has left
_FIELDS = {field.name for kind in (Call, SamplingParams) for field in fields(kind)}
_PARAM = re.compile(r"([a-z_]+)(?:\.\w+|\[\d+\])*")
_BOTH = re.compile(r"([a-z_]+) and ([a-z_]+) (?:are given|contradict)")
_log = logging.getLogger("qwen3.serve")


class _Feed:
    """What has come for one call. Held by the backend while the call runs; the `Stream` around it may be dropped."""

    __slots__ = ("error", "left", "n", "news", "waiter", "whole")

    def __init__(self, n: int) -> None:
        self.n = self.left = n  # samples; those that have not ended
        self.news: list[list[Any]] = []
        self.error: ApiError | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.whole = False  # wake the reader at the end only

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> list[list[Any]]:
        """All that has come since the last time; [] at the end. Raises ApiError."""
        while not self.news or (self.whole and self.left and self.error is None):
            if self.error is not None:
                raise self.error
            if not self.left:
                return []
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        news, self.news = self.news, []
        return news


class Stream:
    """The answers to one call, as they come: an asynchronous iterator over lists of items. Dropping it cancels.

    id: of the request, 128 random bits. opened: prompt_tokens, warnings, seed, and prompt_ids of a raw prompt. ends: of
    the samples that have ended, by index: ids, timing (see `qwen3.llm.Timing`), logprobs, prompt_logprobs.
    """

    def __init__(self, backend: Backend, key: int, feed: _Feed, opened: dict[str, Any]) -> None:
        self.id = f"req-{secrets.token_hex(16)}"
        self.opened = opened
        self.ends: dict[int, dict[str, Any]] = {}
        self._backend, self._key, self._feed = backend, key, feed

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Item]:
        """All that has come since the last time, one or more: deltas of a sample that waited are one delta. Raises
        ApiError if the engine fails, StopAsyncIteration after the last Finish."""
        news = await self._feed.wait()
        if not news:
            raise StopAsyncIteration
        if len(news) > 1:
            news = wire.merged(news)
        for piece in news:
            if piece[2] == wire.FINISH:
                self.ends[piece[1]] = piece[4]
        return [wire.item_of(piece) for piece in news]

    async def collect(self) -> list[Sample]:
        """The whole answers, of what was not iterated over yet. Raises ApiError."""
        feed = self._feed
        feed.whole = True
        found: list[list[list[Any]]] = [[] for _ in range(feed.n)]
        try:
            while news := await feed.wait():
                for piece in news:
                    found[piece[1]].append(piece)
        finally:
            feed.whole = False
        return [self._sample(index, news) for index, news in enumerate(found)]

    def _sample(self, index: int, news: list[list[Any]]) -> Sample:
        end = news[-1][4]
        logprobs = prompt_logprobs = None
        if "logprobs" in end:
            entries = [entry for piece in news if piece[2] <= wire.REASONING for part in piece[5:] for entry in part]
            logprobs = tuple(map(wire.logprob_of, entries + end["logprobs"]))
        if "prompt_logprobs" in end:
            prompt_logprobs = tuple(entry and wire.logprob_of(entry) for entry in end["prompt_logprobs"])
        return Sample(
            index=index,
            result=fold(map(wire.event_of, news)),
            ids=tuple(end["ids"]),
            prompt_ids=tuple(self.opened["prompt_ids"]),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            timing=end["timing"],
            seed=self.opened["seed"],
        )

    @property
    def buffered(self) -> int:
        """Pieces of news that wait to be read."""
        return len(self._feed.news)

    @property
    def done(self) -> bool:
        """Whether all samples have ended; what they said may wait to be read still."""
        return not self._feed.left or self._feed.error is not None

    def cancel(self) -> None:
        """Stop what runs: with the engine's next step Finish("cancelled") comes. Afterwards: no effect."""
        if not self.done:
            self._backend._tell("cancel", self._key)

    def answer_now(self) -> None:
        """Close the thinking, so that the answer follows. Afterwards: no effect."""
        if not self.done:
            self._backend._tell("answer_now", self._key)

    def __del__(self) -> None:
        if not self.done:
            self._backend._drop(self._key)


class _Link(asyncio.Protocol):
    """The server's end of the socket."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._frames = backend, wire.Frames()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        for (stats, replies, news), _ in self._frames.feed(data):
            self._backend._hear(stats, replies, news)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


class Backend:
    """One model, in one process that holds the engine.

    name: what clients call it. model, options: what `LLM` is given; options are JSON. max_queue: most samples that wait
    while `max_batch` run. make_room: called before the model is loaded, and with True where there was no memory for it;
    then whether there may be more now.

    state: "unloaded", "loading", "ready", "restarting" (its process has died) or "failed" (it could not be loaded; the
    next one who asks, after a while, tries again). info: known from the first load on. stats: running, queued,
    used_blocks, blocks, steps, max_batch, max_len, tokens (generated so far), 50 ms old at most; {} before. used:
    when somebody last wanted it, on `time.monotonic`. stuck: its process makes no step, and did not end yet.
    """

    def __init__(
        self,
        name: str,
        model: str | None = None,
        options: dict[str, Any] | None = None,
        *,
        max_queue: int = 256,
        make_room: Callable[[Backend, bool], Awaitable[bool]] | None = None,
    ) -> None:
        self.name, self.model, self.options, self.max_queue = name, model, options or {}, max_queue
        self.state = "unloaded"
        self.info: ModelInfo | None = None
        self.stats: dict[str, int] = {}
        self.used = time.monotonic()
        self.restarts = 0
        self.stuck = False
        self.error: Exception | None = None  # why it could not be loaded
        self._make_room = make_room
        self._closed = False
        self._feeds: dict[int, _Feed] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._count = 0  # samples of calls that have not ended
        self._next = 0
        self._ended: deque[float] = deque(maxlen=64)  # when samples did
        self._retry_at = self._heard = 0.0  # when its engine's thread last said something
        self._seconds = 0.0  # that loading took
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the engine's process, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def loaded(self) -> bool:
        """Whether it takes memory, or soon will again."""
        return self._process is not None or self.state == "restarting"

    @property
    def busy(self) -> bool:
        return bool(self._feeds or self._replies)

    # What callers use

    async def load(self) -> ModelInfo:
        """Returns when the model has been loaded. Raises what `LLM` raised: an error of `qwen3.errors`."""
        self.used = time.monotonic()
        if self._closed:
            raise ApiError(503, f"{self.name} is shutting down", code="shutting_down", retry_after=5.0)
        if self.state == "failed" and self.error is not None and time.monotonic() < self._retry_at:
            raise self.error
        if self._keeper is None or self._keeper.done():
            self._loaded = asyncio.get_running_loop().create_future()
            self.state = "loading"
            self._keeper = asyncio.create_task(self._keep(self._loaded))
        assert self._loaded is not None
        await asyncio.shield(self._loaded)
        assert self.info is not None
        return self.info

    async def open(self, call: Call) -> Stream:
        """Send a call; returns when it has been checked and waits for its turn. Raises ApiError: 400 for what is wrong
        with it, 503 for what will be different later (see `retry_after`)."""
        await self._ready()
        n = call.sampling.get("n", 1)
        n = n if isinstance(n, int) and 1 <= n <= MAX_N else 1  # else it is refused there
        room = self.stats["max_batch"] + self.max_queue
        if self._count + n > room:
            raise ApiError(
                503,
                f"{self.name} has {self._count:,} answers under way or waiting, more than {room:,} are not taken: "
                "try again later",
                code="queue_full",
                retry_after=self._wait_for(n),
            )
        self._next += 1
        key, feed = self._next, _Feed(n)
        frame = self._packed(["open", key, wire.call_to_wire(call)], call.prompt, call.messages, call.tools)
        self._feeds[key] = feed
        self._count += n
        try:
            opened = await self._reply(key, frame)
        except BaseException:
            self._forget(key)
            raise
        return Stream(self, key, feed, opened)

    async def ask(self, what: str, **given: Any) -> Any:
        """An answer without generation: tokenize(text, plain | call) -> ids, pieces; detokenize(ids) -> text;
        count(call) -> prompt_tokens; embed(inputs, dimensions) -> vectors, tokens; rerank(query, documents,
        instruction) -> scores, tokens. Raises ApiError as `open` does."""
        await self._ready()
        if len(self._replies) >= self.max_queue:
            raise ApiError(503, f"{self.name} is busy: try again later", code="queue_full", retry_after=1.0)
        given = {name: wire.call_to_wire(v) if isinstance(v, Call) else v for name, v in given.items()}
        self._next += 1
        key = self._next
        frame = self._packed(["ask", key, what, given], *given.values(), apart=what in ("embed", "rerank"))
        try:
            return await self._reply(key, frame)
        except asyncio.CancelledError:
            self._tell("cancel", key)
            raise

    async def unload(self) -> None:
        """End the process. Who asks next starts another."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        self.state, self.stats = "unloaded", {}

    async def close(self, drain: float = 0.0) -> None:
        """Take no more calls, give those that run `drain` seconds, and end the process for good."""
        self._closed = True
        end = time.monotonic() + drain
        while self.busy and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await self.unload()

    # Talking to the process

    async def _ready(self) -> None:
        self.used = time.monotonic()
        while self.state != "ready" or self._closed:
            if self.state == "restarting" and not self._closed:
                wait = max(0.5, self._retry_at + self._seconds - time.monotonic())
                message = f"{self.name} is starting again after a fault"
                raise ApiError(503, message, code="model_restarting", retry_after=wait)
            try:
                await self.load()
            except Qwen3Error as error:
                message = f"{self.name} cannot be loaded: {error}"
                raise ApiError(503, message, "model", "model_not_loaded", _RETRY_LOAD) from None

    def _packed(self, message: list[Any], *texts: Any, apart: bool = False) -> bytes:
        """A frame. Raises ApiError for what cannot be one, and for `texts` that cannot fit into the context, whatever
        their tokens are. apart: each for itself."""
        assert self.info is not None
        room = MAX_TOKEN_BYTES * self.info.context
        try:
            frame = b""
            # Megabytes in vain are not even packed; and what is short as a frame needs no closer look.
            if sum(map(len, _large(texts))) > room or len(frame := wire.pack(message)) > room:
                sizes = [len(text.encode("utf-8", "surrogatepass")) for text in _texts(texts)]
                found = max(sizes, default=0) if apart else sum(sizes)
                if found > room:
                    raise ApiError(
                        400,
                        f"the text has {found:,} bytes, which cannot fit into this model's context of "
                        f"{self.info.context:,} tokens: shorten it",
                        code="context_length_exceeded",
                    )
            return frame or wire.pack(message)
        except RecursionError:
            raise ApiError(400, "the request is nested too deeply") from None
        except Qwen3Error as error:
            raise ApiError.of(error) from None

    async def _reply(self, key: int, frame: bytes) -> Any:
        future = self._replies[key] = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(frame)
        try:
            return await future
        finally:
            self._replies.pop(key, None)

    def _tell(self, what: str, key: int) -> None:
        if self._transport is not None and self.state == "ready":
            self._transport.write(wire.pack([what, key]))

    def _drop(self, key: int) -> None:
        """Nobody holds the stream any more. Called wherever the garbage collector runs, in whatever thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the process
            if self._keeper is not None:
                self._keeper.get_loop().call_soon_threadsafe(self._forget, key)

    def _forget(self, key: int) -> None:
        feed = self._feeds.pop(key, None)
        if feed is not None:
            self._count -= feed.left
            self._tell("cancel", key)

    def _hear(self, stats: list[int] | None, replies: list[Any], news: list[list[Any]]) -> None:
        if stats is not None:
            self.stats, self._heard = dict(zip(STATS, stats, strict=True)), time.monotonic()
        for key, value, error in replies:
            future = self._replies.get(key)
            if future is not None and not future.done():
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(api_error(wire.error_of(error)) if key else wire.error_of(error))
        feeds = self._feeds
        for piece in news:
            feed = feeds.get(piece[0])
            if feed is None:
                continue
            if piece[2] >= wire.FINISH:
                self._end(piece, feed)
            else:
                feed.news.append(piece)
                if len(feed.news) % _COMPACT == 0:
                    feed.news = wire.merged(feed.news)
            if feed.waiter is not None and not feed.whole:
                feed.wake()

    def _end(self, piece: list[Any], feed: _Feed) -> None:
        """A sample has ended, or failed, which is the end of its call."""
        self.used = time.monotonic()
        if piece[2] == wire.FINISH:
            self._ended.append(self.used)
            feed.news.append(piece)
            feed.left -= 1
            self._count -= 1
        else:
            self._tell("cancel", piece[0])
            feed.error = api_error(wire.error_of(piece[3]))
            self._count -= feed.left
            feed.left = 0
        if not feed.left:
            del self._feeds[piece[0]]
            feed.wake()

    def _wait_for(self, n: int) -> float:
        """Seconds until so many samples have probably ended, 1 to 60."""
        if len(self._ended) < 2 or (span := time.monotonic() - self._ended[0]) <= 0:
            return 1.0
        return min(60.0, max(1.0, n * span / len(self._ended)))

    # Keeping the process

    async def _keep(self, loaded: asyncio.Future[None]) -> None:
        """Start the process, and again whenever it dies, until cancelled."""
        pause = _PAUSES[0]
        try:
            while True:
                began = time.monotonic()
                try:
                    link = await self._start_with_room()
                except (Qwen3Error, OSError) as error:
                    if not loaded.done():
                        self.state, self.error, self._retry_at = "failed", error, time.monotonic() + _RETRY_LOAD
                        loaded.set_exception(error)
                        loaded.exception()  # perhaps nobody waits
                        return
                    _log.error("%s cannot be loaded again: %s", self.name, error)
                else:
                    self._seconds = time.monotonic() - began
                    self.state, self.error = "ready", None
                    if not loaded.done():
                        loaded.set_result(None)
                    began = time.monotonic()
                    silence = await self._watch(link)
                    self.state, self.stats = "restarting", {}
                    how = await self._stop()
                    how = f"no step in {silence:.0f} s" if silence else how
                    _log.error("the engine's process of %s has ended (%s); starting another", self.name, how)
                    self._fail_all(f"the engine's process has ended ({how}): the request is lost, send it again", pause)
                    if time.monotonic() - began > _STEADY:
                        pause = _PAUSES[0]
                self.restarts += 1
                self._retry_at = time.monotonic() + pause
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
        finally:
            await self._stop()
            unloaded = self._fail_all(f"{self.name} has been unloaded", 1.0)
            if not loaded.done():
                loaded.set_exception(unloaded)
                loaded.exception()  # perhaps nobody waits

    async def _watch(self, link: _Link) -> float:
        """Returns when the process is gone: 0; or when its engine is stuck: seconds since it was heard of."""
        patience = _PATIENCE.get(self.info.device.partition(":")[0] if self.info else "", max(_PATIENCE.values()))
        while not link.lost.done():
            silence = time.monotonic() - self._heard
            if not self.busy:
                self._heard = time.monotonic()
            elif silence > patience:
                self.stuck = True
                return silence
            else:
                self._tell("ping", 0)
            await asyncio.wait([link.lost], timeout=min(1.0, patience / 4))
        return 0.0

    async def _start_with_room(self) -> _Link:
        if self._make_room is not None:
            await self._make_room(self, False)
        while True:
            try:
                return await self._start()
            except OutOfMemoryError:
                await self._stop()
                if self._make_room is None or not await self._make_room(self, True):
                    raise
            except Exception:
                await self._stop()
                raise

    async def _start(self) -> _Link:
        """A process with the model loaded. Raises Qwen3Error."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qwen3.serve.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # nothing is expected there
                start_new_session=True,  # a terminal's Ctrl-C is for the server
            )
        finally:
            theirs.close()
        transport, link = await loop.create_unix_connection(lambda: _Link(self), sock=ours)
        self._transport = transport
        first = self._replies[0] = loop.create_future()
        transport.write(wire.pack({**self.options, "model": self.model, "name": self.name}))
        try:
            await asyncio.wait([first, link.lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._replies[0]
        if not first.done():
            raise Qwen3Error(f"the engine's process has ended while {self.name} was loaded ({await self._stop()})")
        try:
            self.info = ModelInfo(**first.result())
        except Qwen3Error:
            raise
        except Exception as error:
            raise Qwen3Error(f"{self.name} cannot be loaded: {error}") from None
        return link

    async def _stop(self) -> str:
        """End the process, if there is one; how it ended."""
        transport, self._transport = self._transport, None
        process, self._process = self._process, None
        if transport is not None:
            transport.abort()
        if process is None:
            return "never started"
        for _ in range(2):
            try:
                code = await asyncio.shield(asyncio.to_thread(process.wait, _LAST_WORDS))
                self.stuck = False
                return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                process.kill()
        return "it does not end"

    def _fail_all(self, message: str, retry_after: float) -> ApiError:
        """Nothing that is open will be answered; the error it ends with."""
        retry_after += self._seconds
        error = ApiError(503, message, code="engine_lost", retry_after=retry_after)
        for feed in self._feeds.values():
            feed.error, feed.left = error, 0
            feed.wake()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(error)
        self._feeds.clear()
        self._count = 0
        return error


def api_error(error: Exception) -> ApiError:
    """`ApiError.of`, with the field that the message begins with."""
    found, text = ApiError.of(error), str(error)
    if found.status == 400 and found.param is None:
        both, one = _BOTH.match(text), _PARAM.match(text)
        if both and {*both.groups()} <= _FIELDS:
            found.param = ", ".join(both.groups())
        elif one and one[1] in _FIELDS:
            found.param = one[0]
        elif re.match(r"the prompt has [\d,]+ tokens, but", text):
            found.code = "context_length_exceeded"
    return found


def _large(values: Iterable[Any]) -> Iterator[str]:
    """The texts where most of a request's length is: those given as they are, in lists, and as messages' content."""
    for value in values:
        several = isinstance(value, list) and value and not isinstance(value[0], int)
        for item in value if several else [value]:
            text = item.get("content") if isinstance(item, dict) else item
            if isinstance(text, str):
                yield text


def _texts(value: Any) -> Iterator[str]:
    """All texts in there."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
