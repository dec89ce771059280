"""The Python front door: a model's name in, an object that chats out.

    llm = LLM("qwen3:0.6b")
    print(llm.chat("What is 27 * 14?").content)

Any number of threads may call one LLM: whoever waits for tokens moves the engine, one step at a time under a lock, for
all requests together. When nobody waits, a thread may compute what the next turns' prompts will begin with
(`engine/idle.py`); nothing else runs in the background.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from warnings import catch_warnings, simplefilter

import torch

from qwen3 import family, vectors
from qwen3.asking import Asked, Asking, Form
from qwen3.chat import Event, Finish, Message, Result, SandboxTemplate, ThinkingPolicy, fold
from qwen3.checkpoint import Resolved, read_config, resolve
from qwen3.checkpoint.adapter import Adapter, read_adapter
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.engine.adapters import Loaded
from qwen3.engine.engine import Engine
from qwen3.engine.idle import IdleWork
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request
from qwen3.engine.sampler import TokenLogprob
from qwen3.errors import Qwen3Error, UsageError
from qwen3.family import Mode
from qwen3.model import Qwen3, load_model
from qwen3.model.threads import prepare_cpu
from qwen3.options import Aside, adapter_place, check_options, context_length, guesser, prompt_ids
from qwen3.tokenizer import Tokenizer


@dataclass(frozen=True)
class Timing:
    """Seconds and speeds of one generation. `first_answer` is None when it ended without text or tool call."""

    queued: float
    prompt: float  # first forward to first token
    first_token: float  # call to first token
    first_answer: float | None  # call to first token of the answer, after the thinking
    total: float
    prompt_tokens_per_second: float
    decode_tokens_per_second: float  # tokens after the first over the time they took; 0 for a single token

    @classmethod
    def of(cls, request: Request) -> Timing | None:
        """Of a request that has ended; None if it had no token."""
        clock = request.clock
        if not (clock.first_token and clock.finished):
            return None
        prompt, decode = clock.first_token - clock.started, clock.finished - clock.first_token
        return cls(
            queued=clock.started - clock.added,
            prompt=prompt,
            first_token=clock.first_token - clock.added,
            first_answer=clock.first_answer - clock.added if clock.first_answer else None,
            total=clock.finished - clock.added,
            prompt_tokens_per_second=len(request.ids) / prompt if prompt > 0 else 0.0,
            decode_tokens_per_second=(len(request.output) - 1) / decode if decode > 0 else 0.0,
        )


@dataclass(frozen=True)
class Generation(Result):
    """A whole generation: what `Result` has (content, reasoning_content, tool_calls, finish_reason, warnings, thinking,
    usage, matched, message), and what it was made of.

    prompt_ids, ids: the tokens, `ids` with forced and end tokens. text: `ids` as they are, tags included. logprobs: one
    entry per id if asked for, else None; prompt_logprobs: one per prompt id, the first None. seed: gives these tokens
    again (the i-th of n with the same place among as many). timing: see Timing.
    """

    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    seed: int | None = None
    timing: Timing | None = None


class ChatStream:
    """Iterator over the events of one generation. `close`, or leaving a `with` block, cancels what still runs; a stream
    that is simply dropped is cancelled with the engine's next step.

    result: everything that came so far, as a Generation; complete once the iterator has ended.
    """

    def __init__(self, llm: LLM, asked: Asked) -> None:
        self._llm = llm
        self._asked = asked
        self._request = asked.requests[0]
        self._events: list[Event] = []
        self._unread: list[Event] = []

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> Event:
        while not self._unread:
            self._unread = self._llm._wait(self._request)
            if not self._unread:
                raise StopIteration
            self._unread.reverse()
        event = self._unread.pop()
        if isinstance(event, Finish) and self._request.error is not None:
            raise self._request.error
        self._events.append(event)
        if isinstance(event, Finish):
            self._llm._expect_next(self._asked, self._events)
        return event

    @property
    def result(self) -> Generation:
        return self._llm._generation(self._request, self._events)

    def answer_now(self) -> None:
        """Have the thinking closed, so that the answer follows: with the engine's next steps, and without effect where
        it is over. From any thread, and from a signal handler; the report then says `ended_by="client"`."""
        self._llm._hurried.append(self._request)

    def close(self) -> None:
        """Cancel what still runs; what is left unread (up to Finish) counts into `result`. Twice is no error."""
        self._llm._cancel([self._request])
        self._events += reversed(self._unread)
        self._events += self._request.take_events()
        self._unread = []

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only a flag: the garbage collector may run inside the engine's own step.
        self._request.abandoned = True


class LLM:
    """A model ready to answer. Threads may share it; `close`, or leaving a `with` block, frees the memory.

    model: a folder, a GGUF file, a family tag (`qwen3:8b`), a hub id (`owner/name@revision`, with `:Q4_K_M` behind it
    for one of its GGUF files); None: the embedded demonstration model. device: "cuda", "cpu" or a torch device; None:
    CUDA if present. dtype: "bfloat16", "float16", "float32" or a torch dtype; None: the checkpoint's own (on a CPU
    float32 where that is faster). context: longest prompt and answer together in tokens; None: all the model has.
    weights: "fp8" keeps the projections in FP8, in half the bytes; "int8" and "int4" all matrices in so many bits, on a
    CPU; None: as the checkpoint has them. prefill_ahead: when an answer of `chat` has ended and nothing else is to do,
    compute what the next turn's prompt will begin with. speculation: "ngram", or the name of a small model with the
    same tokenizer (`qwen3:0.6b`), guesses tokens that are then verified, the same ones in less time. adapters: folders
    of LoRA adapters, by the names that calls choose them by. draft_tokens, max_batch, max_queue, kv_dtype,
    prefix_cache, invariant: see `Engine`.

    Attributes: `resolved` (None when made by `of`), `config`, `mode` ("hybrid", "thinking", "instruct", "base"),
    `template` (a name, or a SandboxTemplate where it is not one of Qwen's), `tokenizer`, `context`, `warnings` (seen
    while loading).

    Raises ModelNotFoundError, RemoteError, CorruptFileError, UnsafeFileError, OutOfMemoryError (with the numbers,
    before anything is loaded) or UsageError. Calls raise QueueFullError where `max_queue` is reached.
    """

    def __init__(
        self,
        model: str | Any | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        context: int | None = None,
        *,
        weights: str | None = None,
        max_batch: int | None = None,
        max_queue: int | None = None,
        kv_dtype: str | torch.dtype | None = None,
        prefix_cache: bool = True,
        invariant: bool = False,
        prefill_ahead: bool = True,
        speculation: str | None = None,
        draft_tokens: int | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        where, number_type = check_options(model, device, dtype, weights)
        resolved = resolve(model)
        config = read_config(resolved.path)
        context_length(context, config)
        read = {name: read_adapter(folder, config) for name, folder in (adapters or {}).items()}
        aside = Aside(lambda: find_tokenizer(resolved, config))
        if resolved.path.is_dir():  # one that is missing is told before gigabytes are read
            aside.result()
        with catch_warnings(record=True) as seen:
            simplefilter("always", UserWarning)
            guess = guesser(speculation, draft_tokens, where, number_type, lambda: aside.result()[0])
            network = load_model(resolved.path, where, number_type, quantization=weights, meanwhile=aside.start)
            tokenizer, untold = aside.result()
            prepare_cpu(network)  # before the engine takes what is left of the memory
        mode, template, unclear = detect_mode(resolved, config, tokenizer.control.endoftext)
        warnings = [warning for warning in (untold, unclear) if warning]
        warnings += [str(item.message) for item in seen]
        self._build(
            network, tokenizer, mode, template, context, prefill_ahead,
            max_batch=max_batch, max_queue=max_queue, kv_dtype=kv_dtype, prefix_cache=prefix_cache, invariant=invariant,
            speculation=guess, draft_tokens=draft_tokens, adapters=read,
        )  # fmt: skip
        self.resolved: Resolved | None = resolved
        self.warnings += warnings

    @classmethod
    def of(
        cls,
        model: Qwen3,
        tokenizer: Tokenizer,
        *,
        mode: Mode = "hybrid",
        context: int | None = None,
        prefill_ahead: bool = False,
        **engine: Any,
    ) -> LLM:
        """An LLM around a network that is in memory already (a trainer's, say). Its weights are used, not copied.
        prefill_ahead: not for one whose weights change meanwhile. engine: keyword arguments of `Engine`."""
        if mode not in family.TEMPLATE_OF:
            raise UsageError(f"mode={mode!r} must be one of {', '.join(family.TEMPLATE_OF)}")
        llm = cls.__new__(cls)
        llm._build(model, tokenizer, mode, family.TEMPLATE_OF[mode], context, prefill_ahead, **engine)
        llm.resolved = None
        return llm

    def _build(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        mode: Mode,
        template: str | SandboxTemplate,
        context: int | None,
        prefill_ahead: bool,
        **engine: Any,
    ) -> None:
        self.config = model.config
        self.context = context_length(context, model.config)
        self.tokenizer = tokenizer
        self.mode: Mode = mode
        self.template = template
        self.warnings: list[str] = []
        self._asking = Asking(tokenizer, model.config, mode, template)
        self._lock = threading.Lock()
        self._hurried: deque[Request] = deque()  # whose thinking is to be closed
        self._engine: Engine | None = Engine(model, tokenizer, max_len=self.context, **engine)
        self._idle = IdleWork(self._engine, self._lock) if prefill_ahead and self._engine.prefix_cache else None

    @property
    def engine(self) -> Engine:
        """What runs the requests, for those who move it themselves (one thread at a time). No idle work is going on
        when it is handed out; the next `chat` may begin some, unless `prefill_ahead` is off."""
        if self._idle is not None:
            self._idle.rest()
        return self._open()

    def _open(self) -> Engine:
        if self._engine is None:
            raise UsageError("this LLM is closed")
        return self._engine

    @property
    def model(self) -> Qwen3:
        """The network, for those who want logits."""
        return self._open().model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    # Asking

    def chat(
        self,
        messages: str | Sequence[Any],
        thinking: ThinkingPolicy | None = None,
        sampling: SamplingParams | None = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        schema: Any = None,
        adapter: Any = None,
        stream: bool = False,
        *,
        parallel_tool_calls: bool = True,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Any:
        """Answer a conversation: a Generation, a list of them for n > 1, a ChatStream of events with stream=True.

        messages: dicts with role and content (OpenAI's shape), or one string, which is a user's message. thinking: see
        ThinkingPolicy; None leaves it to soft switches and the model. sampling: see SamplingParams; None takes what
        Qwen published for the mode (thinking's, for mode "auto"). tools: JSON schemas the model may call. tool_choice:
        "auto" (None), "none" (the tools stay out of the prompt), "required", or one tool: its name, or {"type":
        "function", "function": {"name": …}}. parallel_tool_calls: whether there may be several calls at once. schema
        (a JSON schema as dict, bool or text, or a pydantic model), regex, grammar (Lark or EBNF): what the answer must
        match, after any thinking; one of them. A schema goes with tools the model may call, and then binds the answer
        that is no call. adapter: the name of one that is loaded, or a folder, loaded now under its own name.

        Raises UsageError for what is wrong or contradictory before anything runs; a prompt longer than the context is
        such an error, it is never cut. Ctrl-C cancels the request and leaves the LLM usable.
        """
        form = Form.of(tools, tool_choice, parallel_tool_calls, schema, regex, grammar)
        asked = self._asking.chat(messages, form, thinking, sampling, self._open().check).using(self._adapter(adapter))
        if stream:
            return self._stream([asked])
        found = self._collect([asked])[0]
        self._expect_next(asked, found[0].message)
        return found if len(found) > 1 else found[0]

    def chat_batch(
        self,
        conversations: Sequence[str | Sequence[Any]],
        thinking: ThinkingPolicy | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        schema: Any = None,
        adapter: Any = None,
        *,
        parallel_tool_calls: bool = True,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> list[Any]:
        """`chat` for many conversations at once, results in order (for n > 1 each is a list). All are checked first,
        and nothing is computed ahead of what follows them. sampling: for all, or one each: with one seed all meet the
        same luck, and statistics over them are worth little."""
        if isinstance(conversations, str):
            raise UsageError("conversations must be a list of conversations; use chat for a single one")
        form = Form.of(tools, tool_choice, parallel_tool_calls, schema, regex, grammar)
        name, groups, own = self._adapter(adapter), [], _each(sampling, len(conversations))
        for i, messages in enumerate(conversations):
            try:
                groups.append(self._asking.chat(messages, form, thinking, own[i], self._open().check).using(name))
            except UsageError as error:
                raise UsageError(f"conversations[{i}]: {error}") from None
        return [found if len(found) > 1 else found[0] for found in self._collect(groups)]

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        thinking: ThinkingPolicy | None = None,
        stream: bool = False,
        *,
        schema: Any = None,
        regex: str | None = None,
        grammar: str | None = None,
        adapter: Any = None,
    ) -> Any:
        """Continue raw prompts, no chat template: a list of Generation in order (for n > 1 each is a list), for a
        single prompt with stream=True a ChatStream.

        prompts: a text, a list of texts, token ids, or a list of id lists. Control strings in a text become control
        tokens, as in the official pipeline: do not put untrusted text here. The same token machine runs as in `chat`,
        so a think block is split off into `reasoning_content`, and schema, regex and grammar bind what follows it;
        `text` has everything as it came. Sampling defaults are those of the model's mode, of non-thinking where the
        prompt closes its think block. adapter: as for `chat`; sampling: as for `chat_batch`.
        """
        form = Form.of(schema=schema, regex=regex, grammar=grammar)
        name, groups, every = self._adapter(adapter), [], prompt_ids(prompts, self.tokenizer)
        own = _each(sampling, len(every))
        for i, ids in enumerate(every):
            try:
                groups.append(self._asking.raw(ids, form, thinking, own[i], self._open().check).using(name))
            except UsageError as error:
                raise UsageError(f"prompts[{i}]: {error}") from None
        if stream:
            return self._stream(groups)
        return [found if len(found) > 1 else found[0] for found in self._collect(groups)]

    def embed(self, inputs: str | Sequence[str | Sequence[int]], dimensions: int | None = None) -> torch.Tensor:
        """Vectors of length 1, float32 [inputs, dimensions], for texts or token ids; for Qwen3-Embedding models. A
        query is "Instruct: what it is for\nQuery:text" there. dimensions: the first so many numbers; None: all."""
        given = [inputs] if isinstance(inputs, str) else inputs
        ids = vectors.embedding_ids(self.tokenizer, given, self.context)
        return torch.stack(self._between_steps(len(ids), vectors.embed(self.model, ids, dimensions)))

    def rerank(self, query: str, documents: Sequence[str], instruction: str | None = None) -> list[float]:
        """How relevant each document is to the query, 0 to 1; for Qwen3-Reranker models. instruction: what for."""
        ids = vectors.rerank_ids(self.tokenizer, query, documents, instruction, self.context)
        return self._between_steps(len(ids), vectors.rerank(self.model, self.tokenizer, ids))

    # Adapters

    def load_adapter(self, name: str, adapter: str | os.PathLike[str] | Adapter) -> None:
        """Let calls use a LoRA adapter by this name: a folder in PEFT's format, or one that is in memory. It replaces
        one of the same name. Raises what `checkpoint.adapter.read_adapter` and `Engine.load_adapter` raise."""
        read = adapter if isinstance(adapter, Adapter) else read_adapter(adapter, self.config)
        with self._alone():
            self._open().load_adapter(name, read)

    def unload_adapter(self, name: str) -> None:
        """Raises UsageError for one that is not loaded, or in use."""
        with self._alone():
            self._open().unload_adapter(name)

    @property
    def adapters(self) -> dict[str, Loaded]:
        """Those that are loaded, by name: rank, modules, source."""
        return self._open().adapters

    def _adapter(self, adapter: Any) -> str | None:
        """The name of a call's adapter. A folder is loaded, unless it is already and was not written to since."""
        if adapter is None:
            return None
        name, folder = adapter_place(adapter, self.adapters)
        if folder is not None:
            self.load_adapter(name, folder)
        return name

    def close(self) -> None:
        """Cancel what runs and free the weights. The LLM cannot be used afterwards; closing twice is no error."""
        if self._idle is not None:
            self._idle.close()
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()
        if engine is not None and engine.model.device.type == "cuda":
            del engine
            torch.cuda.empty_cache()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.resolved.name if self.resolved else "in memory"
        return f"LLM({name}, {self.mode}, context {self.context:,})"

    # Moving the engine

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else moves the engine meanwhile."""
        with self._idle.kept_off() if self._idle is not None else nullcontext(), self._lock:
            yield

    def _submit(self, groups: list[Asked]) -> None:
        with self._alone():
            for asked in groups:
                self._open().add_samples(asked.requests)

    def _between_steps(self, count: int, batches: Iterator[tuple[list[int], Any]]) -> list[Any]:
        """What the batches say of each of `count` places; requests go on after each batch."""
        found: list[Any] = [None] * count
        while True:
            with self._alone():
                batch = next(batches, None)
            if batch is None:
                return found
            for place, value in zip(*batch, strict=True):
                found[place] = value

    def _advance(self) -> None:
        """One step, by whoever holds the lock."""
        engine = self._open()
        while self._hurried:
            engine.answer_now(self._hurried.popleft().id)
        engine.advance()

    def _stream(self, groups: list[Asked]) -> ChatStream:
        if (count := sum(len(asked.requests) for asked in groups)) != 1:
            raise UsageError(f"stream=True gives one answer, not {count}: leave it out, or take one prompt, n=1")
        self._submit(groups)
        return ChatStream(self, groups[0])

    def _expect_next(self, asked: Asked, reply: Message | Sequence[Event]) -> None:
        """An answer has ended by itself: most likely the conversation goes on from it. reply: it, or its events."""
        request = asked.requests[0]
        if self._idle is None or asked.messages is None or len(asked.requests) > 1:
            return
        if request.finish_reason not in ("stop", "tool_calls"):
            return
        asking = self._asking

        def ids() -> list[int]:
            with suppress(Qwen3Error):  # a template of its own may refuse what comes next
                return asking.next_ids(asked, reply if isinstance(reply, Message) else fold(reply).message)
            return []

        self._idle.expect(ids, request.experts, request.adapter)

    def _wait(self, request: Request) -> list[Event]:
        """The next events of a request, moving the engine until there are some; [] once it is over."""
        try:
            while True:
                with self._lock:
                    if not request.events and not request.done:
                        self._advance()
                    events = request.take_events()
                if events or request.done:
                    return events
        except BaseException:
            self._cancel([request])
            raise

    def _collect(self, groups: list[Asked]) -> list[list[Generation]]:
        """Run to the end. An error of one request cancels all of this call."""
        flat = [request for asked in groups for request in asked.requests]
        results: dict[int, Generation] = {}
        try:
            self._submit(groups)
            left = flat
            while left:
                with self._lock:
                    if not any(request.done for request in left):
                        self._advance()
                    ended = [(request, request.take_events()) for request in left if request.done]
                for request, events in ended:
                    if request.error is not None:
                        raise request.error
                    results[request.id] = self._generation(request, events)
                if ended:
                    left = [request for request in left if request.id not in results]
        except BaseException:
            self._cancel(flat)
            raise
        return [[results[request.id] for request in asked.requests] for asked in groups]

    def _cancel(self, requests: Sequence[Request]) -> None:
        with self._lock:
            if self._engine is not None:
                for request in requests:
                    self._engine.cancel(request.id)

    def _generation(self, request: Request, events: Sequence[Event]) -> Generation:
        base = fold(events)
        params = request.params
        return Generation(
            **{name: getattr(base, name) for name in base.__dataclass_fields__},
            ids=tuple(request.output),
            prompt_ids=tuple(request.ids),
            text=self.tokenizer.decode(request.output),
            logprobs=None if params.logprobs is None else list(request.logprobs),
            prompt_logprobs=None if params.prompt_logprobs is None else list(request.prompt_logprobs),
            seed=request.params.seed,
            timing=Timing.of(request),
        )


__all__ = ["LLM", "ChatStream", "Generation", "Timing", "check_options"]


def _each(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams | None]:
    """What each of `count` prompts is sampled with."""
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling] * count
    if len(sampling) != count:
        raise UsageError(f"sampling has {len(sampling)} entries for {count} prompts: give one each, or one for all")
    return list(sampling)
