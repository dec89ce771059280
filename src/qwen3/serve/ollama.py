"""Ollama's /api/chat and /api/generate. Thinking is on by default there, as it is here."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from qwen3.serve.answer import collect, model_info, plain_response, stream_response
from qwen3.serve.body import Route
from qwen3.serve.calls import Call, ModelInfo
from qwen3.serve.either import Either
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import (
    EFFORTS,
    INT32,
    MAX_MESSAGES,
    Body,
    Logprobs,
    MinP,
    Name,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Text,
    ThinkingBody,
    TokenIds,
    Tools,
    TopK,
    TopP,
)
from qwen3.serve.ollama_models import STAYS, add_models, lines
from qwen3.serve.ollama_writer import Shape, Writer
from qwen3.serve.openai.completions import FIM, middle
from qwen3.serve.thinking import spellings, thinking_of

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_FIXED = "it is decided when the server starts"
_OTHER = "this sampler has no such step"
_THINK = (
    {"type": "boolean"},
    {"type": "string", "enum": list(EFFORTS)},
    {"type": "integer", "minimum": 0, "maximum": INT32},
)
_IMAGES = "Qwen3 reads text only"


_PREDICTED = {"type": "integer", "minimum": -2, "maximum": INT32, "not": {"const": 0}}


def _unbounded(value: int) -> int:
    if value == 0:
        raise ValueError("must be 1 or more, or -1 for no limit but the context")
    return value


class Options(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa"), _FIXED),
        **dict.fromkeys(("low_vram", "f16_kv", "logits_all", "vocab_only", "embedding_only"), _FIXED),
        **dict.fromkeys(("tfs_z", "typical_p", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline"), _OTHER),
        "repeat_last_n": "repeat_penalty looks at the whole text",
        "num_keep": "a prompt is never cut",
    }

    num_predict: (
        Annotated[int, Field(ge=-2, le=INT32), AfterValidator(_unbounded), WithJsonSchema(_PREDICTED)] | None
    ) = None
    num_ctx: Annotated[int, Field(ge=1, le=INT32)] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    numa: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    embedding_only: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    mirostat: Any = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    penalize_newline: Any = None
    repeat_last_n: Any = None
    num_keep: Any = None

    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")
        values = {name: getattr(self, name) for name in names}
        values["max_tokens"] = self.num_predict if self.num_predict and self.num_predict > 0 else None
        values["stop"] = self.stop or None
        values["repetition_penalty"] = self.repeat_penalty
        return {name: value for name, value in values.items() if value is not None}

    def notes(self, info: ModelInfo | None) -> list[str]:
        found = [f"options.{line}" for line in self.ignored()]
        if info is not None and self.num_ctx is not None and self.num_ctx != info.context:
            found.append(f"options.num_ctx has no effect: the context is {info.context:,} tokens")
        return found


_SECONDS = {"type": "number", "minimum": -INT32, "maximum": INT32}


class PromptBody(ThinkingBody):
    """What chat and generate share. keep_alive: only 0, with nothing to answer, does something: it unloads."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "truncate": "a prompt is never cut",
        "shift": "an answer ends where the context does",
    }

    model: Name
    format: Annotated[Any, Either('"json" or a JSON schema', {"type": "string"}, {"type": "object"})] | None = None
    options: Options | None = None
    stream: bool | None = None
    keep_alive: Annotated[Any, Either("a duration", {"type": "string"}, _SECONDS)] | None = None
    think: Annotated[Any, Either("true, false, an effort or a number of tokens", *_THINK)] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is to be answered: that is how a model is loaded, or unloaded."""
        return not any(getattr(self, name, None) for name in ("messages", "prompt", "suffix"))

    def form(self) -> Any:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return self.format
        if self.format != "json":
            raise ApiError(400, f'format must be "json" or a JSON schema, not {self.format!r:.40}', "format")
        return {"type": "object"}

    def call(self, info: ModelInfo | None, **prompt: Any) -> tuple[Call, list[str]]:
        """The call with `prompt`, and what is to be said about the request. info: None: not known, as nothing is to be
        answered."""
        options = self.options or Options()
        sampling = options.sampling()
        if self.logprobs:
            sampling["logprobs"] = self.top_logprobs or 0
        given, more = spellings(self)
        number = type(self.think) is int  # not there: a budget in tokens
        given = {"think.budget" if number else "think": self.think, **given}
        thinking, warnings = thinking_of(given, info=info, max_tokens=sampling.get("max_tokens"))
        notes = [*self.ignored(), *options.notes(info), *more, *warnings]
        if self.keep_alive is not None and not self.empty:
            notes.append(f"keep_alive has no effect: {STAYS}")
        return Call(schema=self.form(), thinking=thinking, sampling=sampling, **prompt), notes


_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant", "tool"]}, "content": {"type": "string"}},
}
Turns = Annotated[
    list[dict[str, Any]],
    Field(max_length=MAX_MESSAGES),
    WithJsonSchema({"type": "array", "maxItems": MAX_MESSAGES, "items": _TURN}),
]


class ChatBody(PromptBody):
    messages: Turns | None = None
    tools: Tools | None = None


class GenerateBody(PromptBody):
    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    template: Text | None = None
    context: TokenIds | None = None
    raw: bool | None = None
    images: list[Any] | None = None


def messages(given: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The conversation in OpenAI's shape, and what was ignored of it. Raises ApiError for images."""
    found, notes = [], []
    known = {"role", "content", "thinking", "tool_calls", "tool_name", "tool_call_id", "images"}
    for i, message in enumerate(given):
        if message.get("images"):
            raise ApiError(400, f"messages[{i}].images: {_IMAGES}", f"messages[{i}].images")
        notes += [f"messages[{i}].{name[:60]} was ignored" for name in sorted(message.keys() - known)[:4]]
        turn: dict[str, Any] = {
            name: message[name] for name in ("role", "thinking", "tool_calls", "tool_call_id") if name in message
        }
        turn["content"] = message.get("content") or ""
        if message.get("tool_name") is not None:
            turn["name"] = message["tool_name"]
        found.append(turn)
    return found, notes


def chat_call(body: ChatBody, info: ModelInfo | None) -> tuple[Call, list[str]]:
    turns, notes = messages(body.messages or [])
    goes_on = bool(turns) and turns[-1].get("role") == "assistant"
    call, more = body.call(info, messages=turns, tools=body.tools or None, continue_last=goes_on)
    return call, [*notes, *more]


def generate_call(body: GenerateBody, info: ModelInfo | None, ids: list[int] | None = None) -> tuple[Call, list[str]]:
    """ids: the prompt where it has been encoded, around the middle that is to be filled in. info: see `call`."""
    if body.images:
        raise ApiError(400, f"images: {_IMAGES}", "images")
    if body.template:
        raise ApiError(400, "template: the model's own is used, and no other; leave it out, or set raw", "template")
    notes = []
    if body.context:
        notes.append("context has no effect: send the conversation to /api/chat, its beginning is cached")
    prompt: dict[str, Any]
    if ids is not None or body.raw:
        if body.system:
            raise ApiError(400, "system is for the model's template, which raw and suffix go without", "system")
        prompt = {"prompt": body.prompt if ids is None else ids}
    else:
        turns = [{"role": "system", "content": body.system}] if body.system else []
        prompt = {"messages": [*turns, {"role": "user", "content": body.prompt}]}
    call, more = body.call(info, **prompt)
    return call, [*notes, *more]


def router(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["ollama"], route_class=Route)
    add_models(routes, server)

    async def answered(
        body: ChatBody | GenerateBody, request: Request, make: Callable[[Any, ModelInfo], Awaitable[Any]]
    ) -> Response:
        """make: gives the call and the notes."""
        shape = Shape(body.model, isinstance(body, ChatBody))
        backend = await server.models.get(body.model, request.state.caller)
        if body.empty:
            return await kept(body, request, backend, shape)
        await backend.load()
        info = await model_info(backend, turns=len(getattr(body, "messages", None) or ()))
        shape.loading = time.perf_counter() - shape.started
        call, notes = await make(backend, info)
        if body.stream is not False:
            return await stream_response(server, request, backend, call, Writer(shape), notes)
        (sample,) = await collect(server, request, backend, call, notes)
        return plain_response(shape.whole(sample))

    async def kept(body: ChatBody | GenerateBody, request: Request, backend: Any, shape: Shape) -> Response:
        """Nothing to answer; what is wrong with the request is wrong all the same."""
        call = chat_call(body, backend.info) if isinstance(body, ChatBody) else generate_call(body, backend.info)
        unload = body.keep_alive in (0, "0", "0s", "0m")
        if not unload:
            await backend.load()
        elif not request.state.caller.admin:
            raise ApiError(403, "keep_alive 0 unloads a model for all: that takes an admin's key", "keep_alive")
        elif backend.busy:
            raise ApiError(409, f"{backend.name} is answering: it cannot be unloaded now", "keep_alive", "busy")
        else:
            await backend.unload()
        value = {**shape.part(), "done": True, "done_reason": "unload" if unload else "load"}
        if call[1]:
            value["warnings"] = call[1]
        return lines(value, body.stream)

    @routes.post("/chat")
    async def chat(body: ChatBody, request: Request) -> Response:
        async def make(backend: Any, info: ModelInfo) -> Any:
            return chat_call(body, info)

        return await answered(body, request, make)

    @routes.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        async def make(backend: Any, info: ModelInfo) -> Any:
            return generate_call(body, info, await around(backend, body) if body.suffix else None)

        return await answered(body, request, make)

    async def around(backend: Any, body: GenerateBody) -> list[int]:
        """Prompt and suffix as texts around Qwen's fill-in-the-middle tokens."""
        control = (await backend.ask("tokenize", text=FIM))["ids"]
        if len(control) != 3:
            raise ApiError(400, f"suffix: the model {backend.name} has no fill-in-the-middle tokens", "suffix")
        texts = (body.prompt or "", body.suffix or "")
        before, after = [(await backend.ask("tokenize", text=text, plain=True))["ids"] for text in texts]
        return middle(before, after, control)

    return routes
