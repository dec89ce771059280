"""The engine as a process of its own, so that a server's Python and the engine's never wait for the same lock.

Requests go in and news come out over one pipe: one message a step, for all requests together. Both ends are this
package's own and nobody else can write to the pipe, so messages are pickled; the tokenizer, which both ends have, goes
by name. Times are comparable: `time.perf_counter` counts for the whole machine.
"""

from __future__ import annotations

import copyreg
import io
import itertools
import multiprocessing
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from qwen3.chat import Finish
from qwen3.engine.engine import Engine
from qwen3.engine.request import Request
from qwen3.errors import Qwen3Error
from qwen3.tokenizer import Tokenizer

_HEARTBEAT = 0.1  # seconds; a working engine says how it is at least so often
_STATS = ("running", "queued", "used_blocks", "blocks", "steps", "max_batch", "max_len")
_AT_END = ("finish_reason", "error", "clock", "cached_tokens", "max_tokens", "warnings", "prompt_logprobs", "routes")
_engine: Engine | None = None  # of this process, if it is a child


class EngineProcess:
    """An engine in a child process. Threads may share it. What it says goes into the requests as it comes, by a thread
    of ours, which Ctrl-C does not reach: no message is cut in two.

    make: makes the engine, in the child: something picklable (a module's function, a `functools.partial` of one) that
    gives an Engine or an LLM. Returns when that is ready; raises what it raised. stats: the engine's own running,
    queued, used_blocks, blocks, steps, max_batch and max_len as of the last message.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs), name="qwen3-engine", daemon=True)
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._news = threading.Condition()  # holds the lock of what follows
        self._open: dict[int, Request] = {}
        self._changed: dict[int, Request] = {}
        self._keys = itertools.count()
        self._ended: Exception | None = None
        self.stats: dict[str, int] = {}
        self._process.start()
        theirs.close()
        try:
            for work in (self._read, self._write):
                threading.Thread(target=work, daemon=True).start()
            with self._news:
                self._news.wait_for(lambda: self.stats or self._ended)
                if self._ended is not None:
                    raise self._ended
        except BaseException:
            self._process.kill()
            raise

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue samples of one prompt; waits for nothing. What `Engine.add_samples` raises becomes their error.

        Raises Qwen3Error if the process has ended."""
        with self._news:
            if self._ended is not None:
                raise self._ended
            for request in requests:
                request.id = next(self._keys)
            self._send("add", list(requests))
            self._open |= {request.id: request for request in requests}

    def cancel(self, request: Request) -> None:
        """Stop a request; Finish("cancelled") is its last event. Ended ones: no error."""
        self._send("cancel", request.id)

    def poll(self, timeout: float | None = 0.0) -> list[Request]:
        """The requests that have had news (events, tokens, their end) since the last call, as soon as there are any, or
        none after `timeout` seconds (None: any time).

        If the process dies, every open request ends with Finish("error") and an error that says so."""
        with self._news:
            self._news.wait_for(lambda: self._changed or self._ended, timeout)
            found, self._changed = self._changed, {}
        return list(found.values())

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs and end the process, by force after `timeout` seconds. Twice is no error."""
        self._send("close")
        self._process.join(timeout)
        self._process.kill()
        with self._news:
            self._news.wait_for(lambda: self._ended)

    def _send(self, what: str, value: Any = None) -> None:
        data = io.BytesIO()
        pickler = pickle.Pickler(data, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = copyreg.dispatch_table | {Tokenizer: lambda tokenizer: (_own_tokenizer, ())}
        pickler.dump((what, value))
        self._outbox.put(data.getvalue())

    def _write(self) -> None:
        with suppress(OSError):  # it has ended: `_read` finds out why
            while True:
                self._pipe.send_bytes(self._outbox.get())

    def _read(self) -> None:
        while self._ended is None:
            try:
                news, stats, problem = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                news, stats, problem = [], self.stats, self._obituary()
            with self._news:
                for key, events, output, logprobs, end in news:
                    request = self._open.get(key)
                    if request is None:  # Ctrl-C in the middle of `submit`
                        continue
                    self._changed[key] = request
                    request.output.extend(output)
                    request.logprobs.extend(logprobs)
                    request.events.extend(events)
                    if end:
                        vars(request).update(end)
                        del self._open[key]
                if problem is not None:
                    for request in self._open.values():
                        _fail(request, problem)
                    self._changed |= self._open
                    self._open = {}
                self.stats, self._ended = stats, problem
                self._news.notify_all()

    def _obituary(self) -> Qwen3Error:
        self._process.join(5)
        code = self._process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Qwen3Error(f"the engine's process has ended ({how}); what it was doing is lost: start another")


def _fail(request: Request, error: Exception) -> None:
    closing = [] if request.stream is None else request.stream.close("cancelled")
    request.events += [replace(e, reason="error") if isinstance(e, Finish) else e for e in closing]
    request.error, request.finish_reason = error, "error"


def _own_tokenizer() -> Tokenizer | None:
    return None if _engine is None else _engine.tokenizer


def _serve(make: Callable[[], Any], pipe: Connection) -> None:
    """The child, from here on."""
    global _engine
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us, or ends
    with suppress(OSError):  # nobody listens any more
        try:
            made = make()
        except Exception as error:
            pipe.send_bytes(pickle.dumps(([], {}, _plain(error))))
        else:
            _engine = getattr(made, "engine", made)
            _work(_engine, pipe)


def _plain(error: Exception | None) -> Exception | None:
    """An error that can be sent."""
    return error if error is None or isinstance(error, Qwen3Error) else Qwen3Error(f"{type(error).__name__}: {error}")


def _work(engine: Engine, pipe: Connection) -> None:
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    requests: dict[int, tuple[Request, list[int]]] = {}  # by the parent's key; how many tokens and logprobs were sent

    def listen() -> None:  # empties the pipe at once: two ends that send into full pipes would wait for each other
        with suppress(EOFError, OSError):
            while True:
                inbox.put(pipe.recv_bytes())
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    said, heard, more = 0.0, True, True
    while True:
        if engine.has_work:
            engine.advance()
        news = [found for key, entry in requests.items() if any((found := _news(key, *entry))[1:])]
        requests = {key: entry for key, entry in requests.items() if not entry[0].done}
        if news or heard or time.monotonic() - said > _HEARTBEAT:
            said, stats = time.monotonic(), {name: getattr(engine, name) for name in _STATS}
            pipe.send_bytes(pickle.dumps((news, stats, None), pickle.HIGHEST_PROTOCOL))
        if not more:
            return
        heard = False
        while more and not ((heard or engine.has_work) and inbox.empty()):
            data, heard = inbox.get(), True
            more = data is not None and _obey(engine, requests, *pickle.loads(data))


def _news(key: int, request: Request, sent: list[int]) -> tuple[Any, ...]:
    """What was not said yet: events, tokens, log-probabilities, and at the end all the rest."""
    events, output, logprobs = request.take_events(), request.output[sent[0] :], request.logprobs[sent[1] :]
    sent[:] = len(request.output), len(request.logprobs)
    end = {name: getattr(request, name) for name in _AT_END} | {"error": _plain(request.error)} if request.done else {}
    return key, events, output, logprobs, end


def _obey(engine: Engine, requests: dict[int, tuple[Request, list[int]]], what: str, value: Any) -> bool:
    """One message of the parent; whether to go on."""
    if what == "close":
        engine.cancel_all()
    elif what == "cancel":
        if value in requests:
            engine.cancel(requests[value][0].id)
    else:
        requests |= {request.id: (request, [0, 0]) for request in value}
        try:
            engine.add_samples(value)
        except Exception as error:
            for request in value:
                _fail(request, error)
    return what != "close"
