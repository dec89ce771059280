"""The Python front door: a model's name in, an object that chats out.

    llm = LLM("qwen3:0.6b")
    print(llm.chat("What is 27 * 14?").content)

Any number of threads may call one LLM: whoever waits for tokens moves the engine, one step at a time under a lock, for
all requests together. There is no background thread, so nothing runs when nobody listens.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from warnings import catch_warnings, simplefilter

import torch

from qwen3 import family
from qwen3.chat import (
    Event,
    Finish,
    Result,
    SandboxTemplate,
    ThinkingPolicy,
    TokenStream,
    encode,
    fold,
    resolve_mode,
)
from qwen3.chat.stream import EARLY_STOP
from qwen3.checkpoint import Resolved, resolve
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.config import ModelConfig
from qwen3.engine.engine import Engine
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request
from qwen3.engine.sampler import TokenLogprob
from qwen3.errors import UsageError
from qwen3.family import Mode
from qwen3.model import Qwen3, load_model
from qwen3.model.threads import prepare_cpu
from qwen3.options import check_options, checked, context_length, prompt_ids, unsupported
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

    def __init__(self, llm: LLM, request: Request) -> None:
        self._llm = llm
        self._request = request
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
        return event

    @property
    def result(self) -> Generation:
        return self._llm._generation(self._request, self._events)

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

    model: a folder, a family tag (`qwen3:8b`), a hub id (`owner/name@revision`); None: the embedded demonstration
    model. device: "cuda", "cpu" or a torch device; None: CUDA if present. dtype: "bfloat16", "float16", "float32" or a
    torch dtype; None: the checkpoint's own (on a CPU float32 where that is faster). context: longest prompt and answer
    together in tokens; None: all the model has. weights: "fp8" keeps the projections in FP8, in half the bytes; None:
    as the checkpoint has them. max_batch, max_queue, kv_dtype, prefix_cache, invariant: see `Engine`.

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
    ) -> None:
        where, number_type = check_options(model, device, dtype, weights)
        resolved = resolve(model)
        if resolved.kind == "gguf":
            raise UsageError(f"{resolved.path} is a GGUF file: not supported yet; take the safetensors repository")
        config = ModelConfig.from_pretrained(resolved.path)
        context_length(context, config)
        tokenizer, untold = find_tokenizer(resolved, config)
        mode, template, unclear = detect_mode(resolved, config, tokenizer.control.endoftext)
        warnings = [warning for warning in (untold, unclear) if warning]
        with catch_warnings(record=True) as seen:
            simplefilter("always", UserWarning)
            network = load_model(resolved.path, where, number_type, quantization=weights)
            prepare_cpu(network)  # before the engine takes what is left of the memory
        warnings += [str(item.message) for item in seen]
        self._build(
            network, tokenizer, mode, template, context,
            max_batch=max_batch, max_queue=max_queue, kv_dtype=kv_dtype, prefix_cache=prefix_cache, invariant=invariant,
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
        **engine: Any,
    ) -> LLM:
        """An LLM around a network that is in memory already (a trainer's, say). Its weights are used, not copied.
        engine: keyword arguments of `Engine`."""
        if mode not in family.TEMPLATE_OF:
            raise UsageError(f"mode={mode!r} must be one of {', '.join(family.TEMPLATE_OF)}")
        llm = cls.__new__(cls)
        llm._build(model, tokenizer, mode, family.TEMPLATE_OF[mode], context, **engine)
        llm.resolved = None
        return llm

    def _build(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        mode: Mode,
        template: str | SandboxTemplate,
        context: int | None,
        **engine: Any,
    ) -> None:
        self.config = model.config
        self.context = context_length(context, model.config)
        self.tokenizer = tokenizer
        self.mode: Mode = mode
        self.template = template
        self.warnings: list[str] = []
        self._lock = threading.Lock()
        self._engine: Engine | None = Engine(model, tokenizer, max_len=self.context, **engine)

    @property
    def engine(self) -> Engine:
        """What runs the requests, for those who move it themselves (one thread at a time)."""
        if self._engine is None:
            raise UsageError("this LLM is closed")
        return self._engine

    @property
    def model(self) -> Qwen3:
        """The network, for those who want logits."""
        return self.engine.model

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
    ) -> Any:
        """Answer a conversation: a Generation, a list of them for n > 1, a ChatStream of events with stream=True.

        messages: dicts with role and content (OpenAI's shape), or one string, which is a user's message. thinking: see
        ThinkingPolicy; None leaves it to soft switches and the model. sampling: see SamplingParams; None takes what
        Qwen published for the mode. tools: JSON schemas the model may call; tool_choice: "auto" (None) or "none" (the
        tools stay out of the prompt).

        Raises UsageError for what is wrong or not supported yet (`schema`, `adapter`, other tool choices), before
        anything runs; a prompt longer than the context is such an error, it is never cut. Ctrl-C cancels the request
        and leaves the LLM usable.
        """
        unsupported(schema=schema, adapter=adapter)
        requests = self._chat_requests(messages, thinking, sampling, tools, tool_choice)
        if stream:
            return self._stream(requests)
        found = self._collect([requests])[0]
        return found if len(found) > 1 else found[0]

    def chat_batch(
        self,
        conversations: Sequence[str | Sequence[Any]],
        thinking: ThinkingPolicy | None = None,
        sampling: SamplingParams | None = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
    ) -> list[Any]:
        """`chat` for many conversations at once, results in order (for n > 1 each is a list). All are checked first."""
        if isinstance(conversations, str):
            raise UsageError("conversations must be a list of conversations; use chat for a single one")
        groups = []
        for i, messages in enumerate(conversations):
            try:
                groups.append(self._chat_requests(messages, thinking, sampling, tools, tool_choice))
            except UsageError as error:
                raise UsageError(f"conversations[{i}]: {error}") from None
        return [found if len(found) > 1 else found[0] for found in self._collect(groups)]

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        sampling: SamplingParams | None = None,
        thinking: ThinkingPolicy | None = None,
        stream: bool = False,
    ) -> Any:
        """Continue raw prompts, no chat template: a list of Generation in order (for n > 1 each is a list), for a
        single prompt with stream=True a ChatStream.

        prompts: a text, a list of texts, token ids, or a list of id lists. Control strings in a text become control
        tokens, as in the official pipeline: do not put untrusted text here. The same token machine runs as in `chat`,
        so a think block is split off into `reasoning_content`; `text` has everything as it came. Sampling defaults are
        those of the model's mode, of non-thinking where the prompt closes its think block.
        """
        params = checked(sampling, SamplingParams, "sampling") or SamplingParams()
        policy = checked(thinking, ThinkingPolicy, "thinking") or ThinkingPolicy()
        policy.require_supported()
        groups = []
        for i, ids in enumerate(prompt_ids(prompts, self.tokenizer)):
            start = TokenStream(self.tokenizer, ids, policy)
            thinks = start.state != "answer" and not policy.off
            try:
                groups.append(self._requests(ids, params, policy, thinks, include_tools=True, warnings=()))
            except UsageError as error:
                raise UsageError(f"prompts[{i}]: {error}") from None
        if stream:
            return self._stream([request for requests in groups for request in requests])
        return [found if len(found) > 1 else found[0] for found in self._collect(groups)]

    def close(self) -> None:
        """Cancel what runs and free the weights. The LLM cannot be used afterwards; closing twice is no error."""
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

    # From what was asked to requests

    def _chat_requests(
        self,
        messages: str | Sequence[Any],
        thinking: ThinkingPolicy | None,
        sampling: SamplingParams | None,
        tools: Sequence[Any] | None,
        tool_choice: Any,
    ) -> list[Request]:
        params = checked(sampling, SamplingParams, "sampling") or SamplingParams()
        policy = checked(thinking, ThinkingPolicy, "thinking")
        if policy is not None:
            policy.require_supported()
        if tool_choice not in (None, "auto", "none"):
            raise UsageError(f"tool_choice={tool_choice!r} is not supported yet: use 'auto', 'none' or leave it out")
        if tool_choice == "none":
            tools = None
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        resolution = resolve_mode(turns, policy, self.mode, self.template)
        encoded = encode(
            resolution.messages,
            tokenizer=self.tokenizer,
            tools=tools,
            enable_thinking=resolution.enable_thinking,
            template=self.template,
        )
        warnings = (*resolution.warnings, *encoded.warnings)
        return self._requests(encoded.ids, params, resolution.policy, resolution.thinks, bool(tools), warnings)

    def _requests(
        self,
        ids: list[int],
        params: SamplingParams,
        policy: ThinkingPolicy,
        thinks: bool,
        include_tools: bool,
        warnings: Sequence[str],
    ) -> list[Request]:
        """The `n` requests of one prompt."""
        params = params.resolved(family.sampling_key(self.mode, thinks))
        noted = list(warnings)
        if thinks and params.greedy and self.mode in ("hybrid", "thinking"):
            noted.append(
                "temperature 0 while thinking: Qwen advises against it, the model may repeat itself without end"
            )
        forced = len(self.tokenizer.encode(EARLY_STOP)) if policy.budget else 0
        if thinks and policy.budget and params.max_tokens and params.max_tokens <= policy.budget + forced:
            noted.append(
                f"max_tokens={params.max_tokens} may leave no room for an answer after thinking.budget={policy.budget} "
                f"and {forced} closing tokens"
            )
        if params.seed is None:
            # One for all n: sample 0 can be had again alone. 53 bits: every JSON reader keeps it exactly.
            params = replace(params, seed=secrets.randbits(53))
        requests = []
        for index in range(params.n):
            stream = TokenStream(
                self.tokenizer,
                ids,
                policy,
                stop=params.stops,
                stop_token_ids=params.stop_ids,
                ignore_eos=params.ignore_eos,
                min_tokens=params.min_tokens,
                include_tools=include_tools,
            )
            requests.append(Request(ids, replace(params, n=1), stream, index, warnings=list(noted)))
        self.engine.check(requests[0])
        return requests

    # Moving the engine

    def _submit(self, groups: list[list[Request]]) -> None:
        with self._lock:
            for requests in groups:
                self.engine.add_samples(requests)

    def _stream(self, requests: list[Request]) -> ChatStream:
        if len(requests) != 1:
            raise UsageError(
                f"stream=True gives one answer, not {len(requests)}: leave it out, or take one prompt, n=1"
            )
        self._submit([requests])
        return ChatStream(self, requests[0])

    def _wait(self, request: Request) -> list[Event]:
        """The next events of a request, moving the engine until there are some; [] once it is over."""
        try:
            while True:
                with self._lock:
                    if not request.events and not request.done:
                        self.engine.advance()
                    events = request.take_events()
                if events or request.done:
                    return events
        except BaseException:
            self._cancel([request])
            raise

    def _collect(self, groups: list[list[Request]]) -> list[list[Generation]]:
        """Run to the end. An error of one request cancels all of this call."""
        flat = [request for requests in groups for request in requests]
        results: dict[int, Generation] = {}
        try:
            self._submit(groups)
            left = flat
            while left:
                with self._lock:
                    if not any(request.done for request in left):
                        self.engine.advance()
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
        return [[results[request.id] for request in requests] for requests in groups]

    def _cancel(self, requests: Sequence[Request]) -> None:
        with self._lock:
            if self._engine is not None:
                for request in requests:
                    self._engine.cancel(request.id)

    def _generation(self, request: Request, events: Sequence[Event]) -> Generation:
        base = fold(events)
        params, clock = request.params, request.clock
        return Generation(
            **{name: getattr(base, name) for name in base.__dataclass_fields__},
            ids=tuple(request.output),
            prompt_ids=tuple(request.ids),
            text=self.tokenizer.decode(request.output),
            logprobs=None if params.logprobs is None else list(request.logprobs),
            prompt_logprobs=None if params.prompt_logprobs is None else list(request.prompt_logprobs),
            seed=request.params.seed,
            timing=_timing(request) if clock.first_token and clock.finished else None,
        )


def _timing(request: Request) -> Timing:
    clock = request.clock
    prompt, decode = clock.first_token - clock.started, clock.finished - clock.first_token
    return Timing(
        queued=clock.started - clock.added,
        prompt=prompt,
        first_token=clock.first_token - clock.added,
        first_answer=clock.first_answer - clock.added if clock.first_answer else None,
        total=clock.finished - clock.added,
        prompt_tokens_per_second=len(request.ids) / prompt if prompt > 0 else 0.0,
        decode_tokens_per_second=(len(request.output) - 1) / decode if decode > 0 else 0.0,
    )


__all__ = ["LLM", "ChatStream", "Generation", "Timing", "check_options"]
