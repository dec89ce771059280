"""The engine's process: `python -m qwen3.serve.worker FD`, started by `backend.py`.

Three kinds of threads. One reads the socket and does nothing else, so that two ends with full buffers never wait for
each other; when the server is gone, so are we. A few render, encode and check calls, long texts apart from short ones.
The main thread has the engine to itself: it takes what is ready, moves the engine one step, and sends what is new in
one frame.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from qwen3 import family, vectors
from qwen3.asking import Asked, Asking, Form
from qwen3.chat import Event, ReasoningDelta, TextDelta, ThinkingPolicy, ToolCallDelta, ToolCallDropped, fold
from qwen3.checkpoint import resolve
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request
from qwen3.engine.sampler import TokenLogprob
from qwen3.errors import Qwen3Error, UsageError
from qwen3.llm import LLM, Timing
from qwen3.options import check_options
from qwen3.serve import wire
from qwen3.serve.calls import Call, ModelInfo

STATS = ("running", "queued", "used_blocks", "blocks", "steps", "max_batch", "max_len")
_LONG = 64 << 10  # bytes of a call; longer ones have threads of their own
_GRACE = 0.02  # seconds; who asks again at once is not made to wait for idle work
_STATS_EVERY = 0.05
_LOWEST = -9999.0  # for a log-probability of minus infinity, which JSON does not have


class Line:
    """Our end of the socket. Any thread may send."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()

    def send(self, stats: list[Any] | None, replies: list[Any], news: list[Any]) -> None:
        data = wire.pack([stats, replies, news])
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                os._exit(0)  # the server is gone

    def reply(self, key: int, value: Any = None, error: Exception | None = None) -> None:
        self.send(None, [[key, value, None if error is None else _told(error)]], [])

    def listen(self) -> Iterator[tuple[Any, int]]:
        frames = wire.Frames()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 18):
                yield from frames.feed(data)


class Sample:
    """A request of a call, and what of it was sent."""

    def __init__(self, key: int, request: Request, asked: Asked, ahead: bool) -> None:
        self.key, self.request, self.asked = key, request, asked
        self.events: list[Event] | None = [] if ahead else None  # kept for the next turn's prompt
        self.wants_logprobs = request.params.logprobs is not None
        self.told = 0  # log-probabilities that were sent


@dataclass
class _Job:
    """What is asked of the network beside generation: batches, and what their values come to."""

    key: int
    found: list[Any]
    batches: Iterator[tuple[list[int], Any]]
    answer: Callable[[list[Any]], dict[str, Any]]


class Worker:
    """Runs calls on an LLM, for whoever is at the other end of the line."""

    def __init__(self, llm: LLM, line: Line, *, prefill_ahead: bool = True) -> None:
        self.llm, self.line = llm, line
        self.engine = llm.engine
        self.asking = Asking(llm.tokenizer, llm.config, llm.mode, llm.template)
        self.samples: dict[int, Sample] = {}  # by the request's id
        self.calls: dict[int, list[Request]] = {}  # by the server's key
        self.pending: set[int] = set()  # calls that are being rendered
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the main thread
        self._threads = [ThreadPoolExecutor(2, "qwen3-calls"), ThreadPoolExecutor(2, "qwen3-long-calls")]
        self._replies: list[Any] = []
        self._jobs: deque[_Job] = deque()
        self._ahead = prefill_ahead and self.engine.prefix_cache
        self._idling = False
        self._said = 0.0
        self._generated = 0

    # What comes in; in the thread that reads

    def hear(self, message: Any, size: int) -> None:
        what, key, *rest = message
        if what == "ping":  # is the main thread alive?
            self.inbox.put(lambda: self.line.send(self.stats(), [], []))
        elif what == "cancel":
            self.inbox.put(lambda: self._cancel(key))
        elif what == "answer_now":
            self.inbox.put(lambda: self._answer_now(key))
        else:
            work = self._open if what == "open" else self._ask
            self.pending.add(key)
            self._threads[size > _LONG].submit(self._guarded, work, key, rest)

    # In threads of the pool

    def _guarded(self, work: Callable[..., None], key: int, rest: list[Any]) -> None:
        try:
            if key in self.pending:  # else cancelled meanwhile
                work(key, *rest)
        except Exception as error:
            self.pending.discard(key)
            self.line.reply(key, error=error)

    def _open(self, key: int, fields: dict[str, Any]) -> None:
        call = wire.call_from_wire(fields)
        asked = self._asked(call, self.engine.check)
        first = asked.requests[0]
        raw = call.prompt is not None or first.params.prompt_logprobs is not None
        opened = {
            "prompt_tokens": len(first.ids),
            "warnings": first.warnings,
            "seed": first.params.seed,
            "prompt_ids": first.ids if raw else [],
        }
        self.inbox.put(lambda: self._add(key, asked, opened))

    def _asked(self, call: Call, check: Callable[[Request], None]) -> Asked:
        form = Form.of(call.tools, call.tool_choice, call.parallel_tool_calls, call.schema, call.regex, call.grammar)
        thinking = _made(ThinkingPolicy, call.thinking, "thinking.")
        sampling = _made(SamplingParams, call.sampling, "")
        if call.prompt is not None:
            ids = self.llm.tokenizer.encode(call.prompt) if isinstance(call.prompt, str) else call.prompt
            asked = self.asking.raw(ids, form, thinking, sampling, check, split=False)
        else:
            asked = self.asking.chat(
                call.messages or [], form, thinking, sampling, check, continue_last=call.continue_last
            )
        for request in asked.requests:
            request.tenant, request.salt, request.priority = call.tenant, call.salt, call.priority
        return asked.using(call.adapter)

    def _ask(self, key: int, what: str, given: dict[str, Any]) -> None:
        answer = getattr(self, f"ask_{what}", None)
        if answer is None:
            raise UsageError(f"nothing called {what!r} can be asked")
        if what in ("embed", "rerank"):
            answer(key, **given)
        else:
            value = answer(**given)
            self.pending.discard(key)
            self.line.reply(key, value)

    def ask_tokenize(
        self, text: str | None = None, plain: bool = False, call: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Ids of a text (plain: without control tokens) or of a call's prompt, and the text of each."""
        tokenizer = self.llm.tokenizer
        if call is not None:
            ids = self._asked(wire.call_from_wire(call), _unlimited).requests[0].ids
        else:
            ids = (tokenizer.encode_plain if plain else tokenizer.encode)(text or "")
        return {"ids": ids, "pieces": [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]}

    def ask_detokenize(self, ids: list[int]) -> dict[str, Any]:
        return {"text": self.llm.tokenizer.decode(ids)}

    def ask_count(self, call: dict[str, Any]) -> dict[str, Any]:
        """Tokens of a call's prompt, whether it fits or not."""
        return {"prompt_tokens": len(self._asked(wire.call_from_wire(call), _unlimited).requests[0].ids)}

    def ask_embed(self, key: int, inputs: list[str | list[int]], dimensions: int | None = None) -> None:
        """float32 vectors of length 1, one after the other, little endian, in base64."""
        ids = vectors.embedding_ids(self.llm.tokenizer, inputs, self.llm.context)

        def answer(found: list[Any]) -> dict[str, Any]:
            data = torch.stack(found).numpy().astype("<f4").tobytes()
            return {"vectors": base64.b64encode(data).decode(), "tokens": [len(row) for row in ids]}

        self._compute(key, ids, vectors.embed(self.llm.model, ids, dimensions), answer)

    def ask_rerank(self, key: int, query: str, documents: list[str], instruction: str | None = None) -> None:
        """How relevant each document is, 0 to 1."""
        llm = self.llm
        ids = vectors.rerank_ids(llm.tokenizer, query, documents, instruction, llm.context)
        batches = vectors.rerank(llm.model, llm.tokenizer, ids)
        self._compute(key, ids, batches, lambda found: {"scores": found, "tokens": [len(row) for row in ids]})

    def _compute(
        self,
        key: int,
        ids: list[list[int]],
        batches: Iterator[tuple[list[int], Any]],
        answer: Callable[[list[Any]], dict[str, Any]],
    ) -> None:
        """Work for the main thread, a batch between two steps."""
        self.inbox.put(lambda: self._jobs.append(_Job(key, [None] * len(ids), batches, answer)))

    # In the main thread

    def run(self) -> None:
        """Forever: the process ends when the line does."""
        while True:
            self.step()

    def step(self) -> None:
        """Do what was asked, waiting for it where nothing else is to do; move everything on by one; say what is new."""
        engine = self.engine
        self._obey()
        if self._replies:  # before a step, which may take long where a prompt is
            self._tell()
        if engine.has_work:
            self._idling = False
            engine.advance()
        if self._jobs:
            self._compute_one(self._jobs[0])
        elif not engine.has_work and self._idling and self.inbox.empty():
            engine.advance()
        self._tell()

    def _obey(self) -> None:
        engine, inbox = self.engine, self.inbox
        if not (engine.has_work or self._jobs):
            self._idling = self._idling and engine.has_idle_work
            if not self._idling:
                try:
                    inbox.get(timeout=_GRACE if engine.has_idle_work else None)()
                except queue.Empty:
                    self._idling = True
        while not inbox.empty():
            inbox.get_nowait()()

    def _compute_one(self, job: _Job) -> None:
        """One batch of a job."""
        try:
            batch = next(job.batches, None) if job.key in self.pending else None
            for place, value in zip(*batch, strict=True) if batch is not None else ():
                job.found[place] = value
            if batch is not None:
                return
            value = job.answer(job.found) if job.key in self.pending else None
            self._replies.append([job.key, value, None])
        except Exception as error:
            self._replies.append([job.key, None, _told(error)])
        self.pending.discard(job.key)
        self._jobs.popleft()

    def _add(self, key: int, asked: Asked, opened: dict[str, Any]) -> None:
        if key not in self.pending:
            return  # cancelled meanwhile
        self.pending.discard(key)
        try:
            self.engine.add_samples(asked.requests)
        except Exception as error:
            self._replies.append([key, None, _told(error)])
            return
        self.calls[key] = asked.requests
        ahead = self._ahead and asked.messages is not None and len(asked.requests) == 1
        self.samples |= {request.id: Sample(key, request, asked, ahead) for request in asked.requests}
        self._replies.append([key, opened, None])

    def _cancel(self, key: int) -> None:
        self.pending.discard(key)
        for request in self.calls.get(key, ()):
            self.engine.cancel(request.id)

    def _answer_now(self, key: int) -> None:
        for request in self.calls.get(key, ()):
            self.engine.answer_now(request.id)

    def _tell(self) -> None:
        """One frame with all that is new."""
        news: list[Any] = []
        ended: list[Sample] = []
        for sample in self.samples.values():
            request = sample.request
            if request.events:
                self._collect(sample, news)
            if request.finish_reason is not None:
                ended.append(sample)
        for sample in ended:
            self._forget(sample)
        now, replies = time.monotonic(), self._replies
        fresh = bool(replies or ended) or now - self._said > _STATS_EVERY
        if fresh or news:
            self._replies = []
            self.line.send(self.stats() if fresh else None, replies, news)
            self._said = now if fresh else self._said
        if any(isinstance(sample.request.error, torch.AcceleratorError) for sample in ended):
            os._exit(1)  # the device's context is lost with all in it; a fresh process gets another

    def stats(self) -> list[int]:
        """STATS of the engine, and tokens so far."""
        running = sum(len(sample.request.output) for sample in self.samples.values())
        return [*(getattr(self.engine, name) for name in STATS), self._generated + running]

    def _collect(self, sample: Sample, news: list[Any]) -> None:
        request, key = sample.request, sample.key
        for event in request.take_events():
            if sample.events is not None:
                sample.events.append(event)
            piece: list[Any]
            if isinstance(event, (TextDelta, ReasoningDelta)):
                kind = wire.TEXT if isinstance(event, TextDelta) else wire.REASONING
                piece = [key, request.index, kind, event.text, event.ids]
                if sample.wants_logprobs:
                    piece += self._logprobs(sample, event.ids)
            elif isinstance(event, ToolCallDelta):
                piece = [key, request.index, wire.TOOL_CALL, event.index, event.id, event.name, event.arguments_delta]
            elif isinstance(event, ToolCallDropped):
                piece = [key, request.index, wire.DROPPED, event.index, event.text]
            elif request.error is not None:
                piece = [key, request.index, wire.ERROR, _told(request.error)]
            else:
                piece = [key, request.index, wire.FINISH, wire.finish_to_wire(event), self._end(sample)]
            news.append(piece)

    def _end(self, sample: Sample) -> dict[str, Any]:
        """What is known of a sample that has ended, beside its events."""
        request = sample.request
        timing = Timing.of(request)
        found = {"ids": request.output, "timing": vars(timing) if timing else {}}
        if sample.wants_logprobs:
            found["logprobs"] = [self._logprob(entry) for entry in request.logprobs[sample.told :]]
        if request.params.prompt_logprobs is not None:
            found["prompt_logprobs"] = [entry and self._logprob(entry) for entry in request.prompt_logprobs]
        return found

    def _logprobs(self, sample: Sample, ids: tuple[int, ...]) -> list[list[Any]]:
        """[those of tokens that are in no event, those of an event's `ids`] of what was not sent."""
        output, entries, count = sample.request.output, sample.request.logprobs, len(ids)
        first = sample.told
        while first + count < len(entries) and output[first : first + count] != list(ids):
            first += 1
        begin, sample.told = sample.told, min(first + count, len(entries))
        made = [self._logprob(entry) for entry in entries[begin : sample.told]]
        return [made[: first - begin], made[first - begin :]]

    def _logprob(self, entry: TokenLogprob) -> list[Any]:
        text = self._latin
        top = [[id, text(id), max(value, _LOWEST)] for id, value in entry.top]
        rank = next((place for place, (id, _) in enumerate(entry.top, 1) if id == entry.id), None)
        return [entry.id, text(entry.id), max(entry.logprob, _LOWEST), rank, top]

    def _latin(self, id: int) -> str:
        return self.llm.tokenizer.token_bytes(id).decode("latin-1")

    def _forget(self, sample: Sample) -> None:
        request = sample.request
        del self.samples[request.id]
        self._generated += len(request.output)
        left = [other for other in self.calls[sample.key] if other is not request]
        if left:
            self.calls[sample.key] = left
        else:
            del self.calls[sample.key]
        if sample.events is not None and request.finish_reason in ("stop", "tool_calls"):
            self._threads[0].submit(self._expect, sample.asked, sample.events)

    def _expect(self, asked: Asked, events: list[Event]) -> None:
        """In a thread of the pool: the next turn's prompt, for when nothing else is to do."""
        request = asked.requests[0]
        with contextlib.suppress(Qwen3Error):  # a template of its own may refuse what comes next
            ids = self.asking.next_ids(asked, fold(events).message)
            if ids:
                self.inbox.put(
                    lambda: self.engine.prefill_ahead(
                        ids, tenant=request.tenant, salt=request.salt, adapter=request.adapter, experts=request.experts
                    )
                )


def _made(kind: type, fields: dict[str, Any], prefix: str) -> Any:
    """A ThinkingPolicy or SamplingParams of what a client gave; None for nothing."""
    unknown = [name for name in fields if name not in kind.__dataclass_fields__]  # type: ignore[attr-defined]
    if unknown:
        raise UsageError(f"{prefix}{unknown[0]} is not a parameter")
    return kind(**fields) if fields else None


def _unlimited(request: Request) -> None:
    """`Engine.check` for a prompt that will not run."""
    request.max_tokens = 1 << 30


def _told(error: Exception) -> list[str]:
    """An error for the other side; what is none of ours is written down here."""
    if not isinstance(error, Qwen3Error):
        traceback.print_exception(error)
    return wire.error_to_wire(error)


def info_of(llm: LLM, name: str, kind: str) -> ModelInfo:
    config, resolved, weights = llm.config, llm.resolved, list(llm.model.parameters())
    modes = {family.sampling_key(llm.mode, thinking) for thinking in (True, False)}
    return ModelInfo(
        name=name,
        context=llm.context,
        vocab_size=llm.tokenizer.vocab_size,
        mode=llm.mode,
        kind=kind,
        parameters=config.num_parameters(),
        active_parameters=config.num_parameters(active=True),
        size_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        hidden_size=config.hidden_size,
        dtype=str(llm.dtype).removeprefix("torch."),
        device=str(llm.device),
        source=resolved.repo or resolved.name if resolved else "in memory",
        revision=(resolved.commit or resolved.revision or "") if resolved else "",
        card=_card(llm),
        sampling={mode: vars(family.SAMPLING[mode]) for mode in sorted(modes)},
    )


def _card(llm: LLM) -> str:
    """The embedded model's; those of others are pages of a hub, markup and all."""
    path = llm.resolved.path / "README.md" if llm.resolved and llm.resolved.kind == "embedded" else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def main(fd: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the server, which then lets us end
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # the engine gets the lock back soon while a call is being rendered
    line = Line(fd)
    heard = line.listen()
    options, _ = next(heard)
    workers: list[Worker] = []

    def listen() -> None:
        for message, size in heard:
            workers[0].hear(message, size)
        os._exit(0)

    threading.Thread(target=listen, daemon=True, name="qwen3-listen").start()
    name, ahead = options.pop("name"), options.pop("prefill_ahead", True)
    try:
        check_options(*(options.get(name) for name in ("model", "device", "dtype", "weights")))
        kind = vectors.model_kind(resolve(options["model"]))
        if kind == "chat":
            llm = LLM(**options, prefill_ahead=False)
            llm.engine.warm_up()
        else:  # nearly all memory is for the network
            llm = LLM(**options | {"max_batch": 1, "prefix_cache": False}, prefill_ahead=False)
        worker = Worker(llm, line, prefill_ahead=ahead)
    except Exception as error:
        line.reply(0, error=error)
        return
    for warning in llm.warnings:  # of the model, not of a request
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    workers.append(worker)
    gc.freeze()
    line.send(worker.stats(), [[0, vars(info_of(llm, name, kind)), None]], [])
    worker.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
