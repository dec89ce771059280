"""`/v1/completions`: raw prompts continued, as text and with log-probabilities; what evaluation harnesses ask.

The answer is the text as it was generated: thinking and tool calls stay in it, tags included, and nothing makes a model
think. Control strings in a prompt become control tokens, as in the official pipeline. With `suffix` they do not: prompt
and suffix are then text around Qwen's fill-in-the-middle tokens.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from qwen3.chat import Finish, TextDelta
from qwen3.chat.events import Usage
from qwen3.serve.answer import Clock, collect, model_info, plain_response, stream_response
from qwen3.serve.body import Route
from qwen3.serve.calls import Call, Item, Sample, TokenLogprob
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.fields import INT32, Body, Label, Logprobs, N, Name, Priority, SamplingBody, Text
from qwen3.serve.openai.prompts import Prompts
from qwen3.serve.structured import StructuredBody, structure_of
from qwen3.tokenizer.control import CONTROL_TOKENS

if TYPE_CHECKING:
    from qwen3.serve.app import Server
    from qwen3.serve.backend import Backend, Stream

MAX_TOKENS = 16  # OpenAI's default for this endpoint
TOGETHER = 16  # prompts of one request that run at once
WAITING = 1024  # items of them that wait for a reader
LEAST = -9999.0  # JSON has no -Infinity
FIM = "<|fim_prefix|><|fim_suffix|><|fim_middle|>"
_SPECIAL = frozenset(text.encode() for text, special in CONTROL_TOKENS.values() if special)


class StreamOptions(Body):
    include_usage: bool | None = None


class CompletionBody(SamplingBody, StructuredBody):
    prompt: Prompts
    model: Name | None = None
    suffix: Text | None = None
    echo: bool | None = None
    logprobs: Logprobs | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    best_of: N | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label | None = None
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    priority: Priority | None = None

    def check(self) -> None:
        """Raises ApiError 400 for fields that contradict each other."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(
                400, f"best_of={self.best_of} with n={self.n or 1}: only as many as are returned are made", "best_of, n"
            )
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens=0 generates nothing: set echo, or ask for a token", "max_tokens, echo")
        if self.suffix is not None and (self.echo or not all(isinstance(prompt, str) for prompt in self.prompt)):
            raise ApiError(400, "suffix goes with prompts that are texts, and without echo", "suffix")
        if self.stream and self.prompt_logprobs is not None:
            raise ApiError(400, "prompt_logprobs is not possible in a stream", "prompt_logprobs, stream")
        if self.stream and self.echo and self.logprobs is not None:
            raise ApiError(400, "echo with logprobs is not possible in a stream", "echo, logprobs, stream")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is given, but stream is not true", "stream_options, stream")

    def calls(self, prompts: Sequence[str | list[int]]) -> tuple[list[Call], list[str]]:
        """A call for each prompt, and what is to be said about the request. A prompt that is only to be echoed is
        continued by one token all the same."""
        structure, notes = structure_of(self)
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None:
            prompt_logprobs = max(self.logprobs, prompt_logprobs or 0)
        limit = MAX_TOKENS if self.max_tokens is None else max(self.max_tokens, 1)
        call = Call(
            sampling=self.sampling(max_tokens=limit, logprobs=self.logprobs, prompt_logprobs=prompt_logprobs),
            thinking={"loop_guard": False},
            salt=self.cache_salt or "",
            priority=self.priority or 0,
            **structure,
        )
        if self.stream_options is not None:
            notes += [f"stream_options.{text}" for text in self.stream_options.ignored()]
        return [replace(call, prompt=prompt) for prompt in prompts], self.ignored() + notes


def middle(prefix: Sequence[int], suffix: Sequence[int], control: Sequence[int]) -> list[int]:
    """The prompt that has the model fill in what stands between. Source: Qwen2.5-Coder technical report, §3.2.2."""
    before, after, between = control
    return [before, *prefix, after, *suffix, between]


# Log-probabilities


class Offsets:
    """Where in the choice's text each token begins, in characters. start: characters that stand before the tokens."""

    def __init__(self, start: int = 0) -> None:
        self._at, self._decoder = start, codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, data: bytes, hidden: bool) -> int:
        """Of the next token. hidden: its text is not in the choice's."""
        at = self._at
        self._at += 0 if hidden else len(self._decoder.decode(data))
        return at


def spelt(data: bytes) -> str:
    """A token as a text; one that is part of a character as `bytes:\\x..`, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def legacy_logprobs(
    entries: Iterable[TokenLogprob | bytes], offsets: Offsets, count: int, prompt: int = 0
) -> dict[str, list[Any]]:
    """OpenAI's legacy shape. entries: of a token whose probability nobody knows (a prompt's first) only its bytes.
    count: how many alternatives were asked for. prompt: so many of the entries are the prompt's."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for i, entry in enumerate(entries):
        data = entry if isinstance(entry, bytes) else entry.data
        found["tokens"].append(spelt(data))
        found["text_offset"].append(offsets.next(data, i >= prompt and data in _SPECIAL))
        if isinstance(entry, bytes):
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        found["token_logprobs"].append(max(entry.logprob, LEAST))
        top = {spelt(data): max(value, LEAST) for _, data, value in entry.top[:count]}
        found["top_logprobs"].append(top | {spelt(data): max(entry.logprob, LEAST)})
    return found


def prompt_table(entries: Iterable[TokenLogprob | None]) -> list[Any]:
    """vLLM's `prompt_logprobs`: of each token but the first {id: {logprob, rank, decoded_token}}."""
    found: list[Any] = []
    for entry in entries:
        if entry is None:
            found.append(None)
            continue
        table = {
            str(id): {"logprob": max(value, LEAST), "rank": rank, "decoded_token": spelt(data)}
            for rank, (id, data, value) in enumerate(entry.top, 1)
        }
        own = {"logprob": max(entry.logprob, LEAST), "rank": entry.rank, "decoded_token": spelt(entry.data)}
        found.append(table | {str(entry.id): own})
    return found


# Answers


@dataclass(frozen=True)
class Echo:
    """What stands before the generated text. first: the bytes of the prompt's first token."""

    text: str = ""
    first: bytes = b""


def choice(index: int, sample: Sample, body: CompletionBody, echo: Echo) -> dict[str, Any]:
    result, logprobs = sample.result, None
    only_prompt = body.max_tokens == 0
    if body.logprobs is not None:
        before: list[TokenLogprob | bytes] = []
        if body.echo and sample.prompt_logprobs:
            before = [echo.first, *(entry for entry in sample.prompt_logprobs if entry is not None)]
        after = () if only_prompt else sample.logprobs or ()
        start = 0 if before else len(echo.text)
        logprobs = legacy_logprobs([*before, *after], Offsets(start), body.logprobs, len(before))
    found = {
        "index": index,
        "text": echo.text + ("" if only_prompt else result.content),
        "logprobs": logprobs,
        "finish_reason": reason_of(result.finish_reason, only_prompt),
        "stop_reason": None if only_prompt else result.matched,
    }
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_table(sample.prompt_logprobs or ())
    return found


def reason_of(reason: str | None, only_prompt: bool) -> str:
    return "length" if only_prompt or reason == "length" else "stop"


def usage(samples: Iterable[tuple[int, Usage]], only_prompt: bool = False) -> dict[str, Any]:
    """samples: (which prompt, usage) of each; the samples of a prompt share it."""
    prompts: dict[int, Usage] = {}
    made = 0
    for which, used in samples:
        prompts.setdefault(which, used)
        made += 0 if only_prompt else used.completion_tokens
    total = sum(used.prompt_tokens for used in prompts.values())
    return {
        "prompt_tokens": total,
        "completion_tokens": made,
        "total_tokens": total + made,
        "prompt_tokens_details": {"cached_tokens": sum(used.cached_tokens for used in prompts.values())},
    }


def answer(body: CompletionBody, name: str, samples: Sequence[Sample], echoes: Sequence[Echo]) -> dict[str, Any]:
    """samples: all of the first prompt, then all of the second …; echoes: one for each prompt."""
    n = body.n or 1
    used = [(i // n, sample.result.usage) for i, sample in enumerate(samples)]
    warnings = list(dict.fromkeys(text for sample in samples for text in sample.result.warnings))
    return {
        "id": f"cmpl-{secrets.token_hex(16)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": [choice(i, sample, body, echoes[i // n]) for i, sample in enumerate(samples)],
        "usage": usage([(which, u) for which, u in used if u is not None], body.max_tokens == 0),
        **({"warnings": warnings} if warnings else {}),
    }


@dataclass
class CompletionWriter:
    """Items to server-sent events of OpenAI's legacy shape."""

    body: CompletionBody
    name: str
    echoes: Sequence[Echo]
    media_type = "text/event-stream"
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._n = self.body.n or 1
        self._offsets: dict[int, Offsets] = {}
        self._used: list[tuple[int, Usage]] = []

    def begin(self, stream: Any) -> bytes:
        id = f"cmpl-{stream.id.removeprefix('req-')}"  # by which it can be cancelled
        head = {"id": id, "object": "text_completion", "created": int(time.time()), "model": self.name}
        self._head = json.dumps(head)[:-1]
        return b"".join(
            self._chunk(i, echo.text) for k, echo in enumerate(self.echoes) if echo.text
            for i in range(k * self._n, (k + 1) * self._n)
        )  # fmt: skip

    def feed(self, items: list[Item]) -> bytes:
        return b"".join(map(self._item, items))

    def end(self) -> bytes:
        last = b""
        if self.body.stream_options and self.body.stream_options.include_usage:
            used = json.dumps(usage(self._used, self.body.max_tokens == 0))
            last = f'data: {self._head}, "choices": [], "usage": {used}}}\n\n'.encode()
        return last + b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return f"data: {json.dumps(shape(error, 'openai'))}\n\ndata: [DONE]\n\n".encode()

    def keep_alive(self) -> bytes:
        return b": waiting\n\n"

    def _item(self, item: Item) -> bytes:
        index, event, only_prompt = item.index, item.event, self.body.max_tokens == 0
        logprobs = None
        if self.body.logprobs is not None and item.logprobs:
            offsets = self._offsets.setdefault(index, Offsets(len(self.echoes[index // self._n].text)))
            logprobs = legacy_logprobs(item.logprobs, offsets, self.body.logprobs)
        if isinstance(event, TextDelta):
            return b"" if only_prompt else self._chunk(index, event.text, logprobs)
        if not isinstance(event, Finish):
            return b""
        self._used.append((index // self._n, event.usage))
        end = {"finish_reason": reason_of(event.reason, only_prompt), "stop_reason": event.matched}
        return self._chunk(index, "", logprobs, end, event.warnings)

    def _chunk(
        self, index: int, text: str, logprobs: Any = None, end: Any = None, warnings: Sequence[str] = ()
    ) -> bytes:
        last = json.dumps(end)[1:-1] if end else '"finish_reason": null'
        extra = f', "warnings": {json.dumps(warnings)}' if warnings else ""
        return (
            f'data: {self._head}, "choices": [{{"index": {index}, "text": {quoted(text)}, '
            f'"logprobs": {json.dumps(logprobs) if logprobs else "null"}, {last}}}]{extra}}}\n\n'
        ).encode()


# Several prompts


class Together:
    """Several calls of equally many samples to one backend, as if they were one call: what `collect` and
    `stream_response` need of a backend. Sample i of call k has the index k * n + i; a few calls run at once."""

    def __init__(self, backend: Backend, calls: Sequence[Call]) -> None:
        self.name, self._backend, self._calls = backend.name, backend, calls
        self.n: int = calls[0].sampling.get("n") or 1
        self.call = replace(calls[0], sampling={**calls[0].sampling, "n": self.n * len(calls)})

    async def open(self, call: Call) -> TogetherStream:
        """call: `self.call`, with what the caller's rights made of it. The first few are open when this returns: what
        is wrong with them is an error before anything is sent."""
        calls = [replace(c, tenant=call.tenant, priority=call.priority) for c in self._calls]
        tasks = [asyncio.ensure_future(self._opened(k, c)) for k, c in enumerate(calls[:TOGETHER])]
        try:
            return TogetherStream(self, calls, await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise  # a stream that is dropped is cancelled

    async def _opened(self, k: int, call: Call) -> Stream:
        """Retried where there is no room for more at once: the first of the calls was let in."""
        while True:
            try:
                return await self._backend.open(call)
            except ApiError as error:
                if len(self._calls) > 1 and error.status == 400:
                    raise ApiError(400, f"prompt {k}: {error.message}", error.param, error.code) from None
                if k == 0 or error.retry_after is None:
                    raise
                await asyncio.sleep(min(error.retry_after, 5.0))


class TogetherStream:
    """Their streams, read as one or collected."""

    def __init__(self, together: Together, calls: Sequence[Call], first: Sequence[Stream]) -> None:
        self._together, self._calls = together, calls
        self.id, self.opened = first[0].id, first[0].opened
        self._open: dict[int, Stream] = dict(enumerate(first))
        self._room = asyncio.Semaphore(TOGETHER)
        self._tasks: list[asyncio.Task[Any]] = []
        self._news: list[Item] = []
        self._error: Exception | None = None
        self._left = len(calls)
        self._some, self._taken = asyncio.Event(), asyncio.Event()

    async def _stream(self, k: int) -> Stream:
        if k not in self._open:
            self._open[k] = await self._together._opened(k, self._calls[k])
        return self._open[k]

    def _start(self, work: Callable[[int], Coroutine[Any, Any, Any]]) -> None:
        self._tasks = [asyncio.ensure_future(work(k)) for k in range(len(self._calls))]

    async def _pass_on(self, k: int) -> None:
        try:
            async with self._room:
                n = self._together.n
                async for items in await self._stream(k):
                    self._news += [replace(item, index=k * n + item.index) for item in items]
                    self._some.set()
                    while len(self._news) > WAITING:  # nobody reads: the rest waits in the streams
                        self._taken.clear()
                        await self._taken.wait()
        except Exception as error:
            self._error = error
        finally:
            self._left -= 1
            self._open.pop(k, None)
            self._some.set()

    def __aiter__(self) -> AsyncIterator[list[Item]]:
        return self

    async def __anext__(self) -> list[Item]:
        if not self._tasks:
            self._start(self._pass_on)
        while not self._news and self._left and self._error is None:
            self._some.clear()
            await self._some.wait()
        if self._error is not None:
            self.cancel()
            raise self._error
        found, self._news = self._news, []
        self._taken.set()
        if not found:
            raise StopAsyncIteration
        return found

    async def collect(self) -> list[Sample]:
        async def one(k: int) -> list[Sample]:
            async with self._room:
                samples = await (await self._stream(k)).collect()
            del self._open[k]
            return [replace(sample, index=k * self._together.n + sample.index) for sample in samples]

        self._start(one)
        return [sample for samples in await asyncio.gather(*self._tasks) for sample in samples]

    def cancel(self) -> None:
        for stream in self._open.values():
            stream.cancel()
        for task in self._tasks:
            task.cancel()

    def answer_now(self) -> None:
        """Nothing here thinks."""


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["completions"], route_class=Route)

    async def prompts(body: CompletionBody, backend: Backend) -> list[str | list[int]]:
        if body.suffix is None:
            return body.prompt
        control = (await backend.ask("tokenize", text=FIM))["ids"]
        if len(control) != 3:
            raise ApiError(400, f"suffix: the model {backend.name} has no fill-in-the-middle tokens", "suffix")
        texts = [body.suffix, *body.prompt]
        suffix, *before = [(await backend.ask("tokenize", text=text, plain=True))["ids"] for text in texts]
        return [middle(prefix, suffix, control) for prefix in before]

    async def echo(body: CompletionBody, backend: Backend, prompt: str | list[int], first: int | None) -> Echo:
        """first: id of the prompt's first token, where its text is needed."""
        if not body.echo:
            return Echo()
        text = prompt if isinstance(prompt, str) else (await backend.ask("detokenize", ids=prompt))["text"]
        start = "" if first is None else (await backend.ask("detokenize", ids=[first]))["text"]
        return Echo(text, start.encode())

    @routes.post("/v1/completions", response_class=Response)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue prompts, whole or as server-sent events."""
        body.check()
        backend = await server.models.get(body.model, request.state.caller)
        await model_info(backend, "chat")
        given = await prompts(body, backend)
        calls, notes = body.calls(given)
        together = Together(backend, calls)
        asked: Any = together if len(given) > 1 else backend
        if body.stream:
            echoes = [await echo(body, backend, prompt, None) for prompt in given]
            writer = CompletionWriter(body, backend.name, echoes)
            return await stream_response(server, request, asked, together.call, writer, notes)
        samples = await collect(server, request, asked, together.call, notes)
        echoes = []
        for prompt, sample in zip(given, samples[:: together.n], strict=True):
            known = bool(sample.prompt_ids) and body.logprobs is not None
            echoes.append(await echo(body, backend, prompt, sample.prompt_ids[0] if known else None))
        return await asyncio.to_thread(plain_response, answer(body, backend.name, samples, echoes))

    return routes
