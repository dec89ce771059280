"""Ollama's API under /api: chat and generate, the models there are, embeddings.

Models are not managed over HTTP: what is served was named when the server started.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from array import array
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from qwen3 import __version__
from qwen3.serve.answer import collect, stream_response
from qwen3.serve.body import Route, dumps
from qwen3.serve.calls import Call, ModelInfo
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import (
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
from qwen3.serve.ollama_writer import Shape, Writer, nanoseconds, now
from qwen3.serve.openai.completions import FIM, middle
from qwen3.serve.openai.prompts import MAX_PROMPTS
from qwen3.serve.runs import loaded
from qwen3.serve.thinking import spellings, thinking_of

if TYPE_CHECKING:
    from qwen3.serve.app import Server
    from qwen3.serve.backend import Backend

API_VERSION = "0.12.6"
"""Ollama's release whose API this is: clients compare it with what they need."""

_FIXED = "it is decided when the server starts"
_OTHER = "this sampler has no such step"
_IMAGES = "Qwen3 reads text only"


def _unbounded(value: int) -> int:
    if value < -2 or value == 0:
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

    num_predict: Annotated[int, Field(ge=-2, le=INT32), AfterValidator(_unbounded)] | None = None
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

    def notes(self, context: int) -> list[str]:
        found = [f"options.{line}" for line in self.ignored()]
        if self.num_ctx is not None and self.num_ctx != context:
            found.append(f"options.num_ctx has no effect: the context is {context:,} tokens")
        return found


class PromptBody(ThinkingBody):
    """What chat and generate share. keep_alive: only 0, with nothing to answer, does something: it unloads."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "truncate": "a prompt is never cut",
        "shift": "an answer ends where the context does",
    }

    model: Name
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    stream: bool | None = None
    keep_alive: float | str | None = None
    think: bool | str | int | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None

    def form(self) -> Any:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return self.format
        if self.format != "json":
            raise ApiError(400, f'format must be "json" or a JSON schema, not {self.format!r:.40}', "format")
        return {"type": "object"}

    def call(self, info: ModelInfo, **prompt: Any) -> tuple[Call, list[str]]:
        """The call with `prompt`, and what is to be said about the request."""
        options = self.options or Options()
        sampling = options.sampling()
        if self.logprobs:
            sampling["logprobs"] = self.top_logprobs or 0
        given, more = spellings(self)
        thinking, warnings = thinking_of(
            {"think": self.think} | given, info=info, max_tokens=sampling.get("max_tokens")
        )
        notes = [*self.ignored(), *options.notes(info.context), *more, *warnings]
        if self.keep_alive is not None:
            notes.append("keep_alive has no effect: how long models stay is for the server (--idle-unload)")
        return Call(schema=self.form(), thinking=thinking, sampling=sampling, **prompt), notes


class ChatBody(PromptBody):
    messages: Annotated[
        list[dict[str, Any]] | None,
        Field(max_length=MAX_MESSAGES),
        WithJsonSchema(
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["role", "content"],
                    "properties": {
                        "role": {"enum": ["system", "user", "assistant", "tool"]},
                        "content": {"type": "string"},
                    },
                },
            }
        ),
    ] = None
    tools: Tools | None = None

    @property
    def empty(self) -> bool:
        return not self.messages


class GenerateBody(PromptBody):
    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    template: Text | None = None
    context: TokenIds | None = None
    raw: bool | None = None
    images: list[Any] | None = None

    @property
    def empty(self) -> bool:
        return not self.prompt and not self.suffix


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


def chat_call(body: ChatBody, info: ModelInfo) -> tuple[Call, list[str]]:
    turns, notes = messages(body.messages or [])
    call, more = body.call(
        info, messages=turns, tools=body.tools or None, continue_last=turns[-1].get("role") == "assistant"
    )
    return call, [*notes, *more]


def generate_call(body: GenerateBody, info: ModelInfo, ids: list[int] | None = None) -> tuple[Call, list[str]]:
    """ids: the prompt where it has been encoded, around the middle that is to be filled in."""
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


# Models


def size_name(parameters: int) -> str:
    """As there: 751.6M, 8.2B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def details(info: ModelInfo | None) -> dict[str, Any]:
    found = {"parent_model": "", "format": "", "family": "qwen3", "families": ["qwen3"]}
    if info is None:
        return {**found, "parameter_size": "", "quantization_level": ""}
    kind = "gguf" if "gguf" in info.source.lower() else "safetensors"
    return {**found, "format": kind, "parameter_size": size_name(info.parameters), "quantization_level": info.dtype}


def entry(backend: Any, since: str) -> dict[str, Any]:
    """One model as /api/tags lists it. digest: of where the weights come from, not of the weights."""
    info: ModelInfo | None = backend.info
    source = f"{info.source}@{info.revision}" if info else backend.name
    return {
        "name": backend.name,
        "model": backend.name,
        "modified_at": since,
        "size": info.size_bytes if info else 0,
        "digest": hashlib.sha256(source.encode()).hexdigest(),
        "details": details(info),
    }


def shown(info: ModelInfo, since: str) -> dict[str, Any]:
    """The answer of /api/show."""
    capabilities = {
        "embedding": ["embedding"],
        "reranker": [],
    }.get(info.kind, ["completion"] + ([] if info.mode == "base" else ["tools"]))
    if info.kind == "chat" and info.mode in ("hybrid", "thinking"):
        capabilities.append("thinking")
    architecture = "qwen3moe" if info.active_parameters < info.parameters else "qwen3"
    sampling = info.sampling.get("thinking") or next(iter(info.sampling.values()), {})
    return {
        "modelfile": f"# served by qwen3 {__version__}\nFROM {info.source}\n",
        "parameters": "\n".join(f"{name} {value:g}" for name, value in sampling.items()),
        "template": "",
        "license": "",
        "details": details(info),
        "model_info": {
            "general.architecture": architecture,
            "general.basename": info.source,
            "general.parameter_count": info.parameters,
            f"{architecture}.context_length": info.context,
            f"{architecture}.embedding_length": info.hidden_size,
        },
        "capabilities": capabilities,
        "modified_at": since,
    }


class NameBody(Body):
    model: Name | None = None
    name: Name | None = None
    stream: bool | None = None
    insecure: bool | None = None
    verbose: bool | None = None

    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "insecure": "nothing is fetched",
        "verbose": "there is nothing more to show",
    }

    @property
    def wanted(self) -> str:
        if self.model is None and self.name is None:
            raise ApiError(400, "model is missing: name one of those that /api/tags lists", "model")
        return self.model or self.name or ""


class EmbedBody(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "truncate": "an input is never cut",
        "keep_alive": "how long models stay is for the server",
    }

    model: Name
    input: Text | Annotated[list[Text], Field(max_length=MAX_PROMPTS)]
    dimensions: Annotated[int, Field(ge=1, le=INT32)] | None = None
    truncate: bool | None = None
    options: Options | None = None
    keep_alive: float | str | None = None


class EmbeddingsBody(Body):
    """The older form, of one text."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {"keep_alive": "how long models stay is for the server"}

    model: Name
    prompt: Text
    options: Options | None = None
    keep_alive: float | str | None = None


def router(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["ollama"], route_class=Route)
    since = now()

    def plain(value: dict[str, Any], notes: list[str] | None = None) -> Response:
        return Response(dumps({**value, **({"warnings": notes} if notes else {})}), media_type="application/json")

    async def answered(
        body: ChatBody | GenerateBody, request: Request, make: Callable[[Backend, ModelInfo], Any]
    ) -> Response:
        """make: what gives the call and the notes."""
        shape = Shape(body.model, isinstance(body, ChatBody))
        backend = await server.models.get(body.model, request.state.caller)
        streams = body.stream is not False
        if body.empty:
            return await kept(body, request, backend, shape)
        info = await loaded(backend)
        shape.loading = time.perf_counter() - shape.started
        call, notes = await make(backend, info)
        if streams:
            return await stream_response(server, request, backend, call, Writer(shape), notes)
        (sample,) = await collect(server, request, backend, call, notes)
        return plain(shape.whole(sample))

    async def kept(body: ChatBody | GenerateBody, request: Request, backend: Backend, shape: Shape) -> Response:
        """Nothing to answer: that is how a model is loaded, or unloaded."""
        unload = body.keep_alive in (0, "0", "0s", "0m")
        if not unload:
            await backend.load()
        elif not request.state.caller.admin:
            raise ApiError(403, "keep_alive 0 unloads a model for all: that takes an admin's key", "keep_alive")
        elif backend.busy:
            raise ApiError(409, f"{backend.name} is answering: it cannot be unloaded now", "keep_alive", "busy")
        else:
            await backend.close()
        value = {**shape.part(), "done": True, "done_reason": "unload" if unload else "load"}
        return lines(value, body.stream)

    def lines(value: dict[str, Any], stream: bool | None) -> Response:
        """One object, as the only line of a stream unless that was not wanted."""
        if stream is False:
            return plain(value)
        return Response(dumps(value) + b"\n", media_type=Writer.media_type)

    @routes.post("/chat")
    async def chat(body: ChatBody, request: Request) -> Response:
        async def make(backend: Backend, info: ModelInfo) -> Any:
            return chat_call(body, info)

        return await answered(body, request, make)

    @routes.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        async def make(backend: Backend, info: ModelInfo) -> Any:
            return generate_call(body, info, await around(backend, body) if body.suffix else None)

        return await answered(body, request, make)

    async def around(backend: Backend, body: GenerateBody) -> list[int]:
        """Prompt and suffix as texts around Qwen's fill-in-the-middle tokens."""
        control = (await backend.ask("tokenize", text=FIM))["ids"]
        if len(control) != 3:
            raise ApiError(400, f"suffix: the model {backend.name} has no fill-in-the-middle tokens", "suffix")
        texts = (body.prompt or "", body.suffix or "")
        before, after = [(await backend.ask("tokenize", text=text, plain=True))["ids"] for text in texts]
        return middle(before, after, control)

    # Models

    @routes.get("/version")
    async def version() -> Response:
        return plain({"version": API_VERSION, "server": f"qwen3 {__version__}"})

    @routes.get("/tags")
    async def tags() -> Response:
        return plain({"models": [entry(backend, since) for backend in server.models.list()]})

    @routes.get("/ps")
    async def ps() -> Response:
        idle = server.settings.idle_unload
        expires = (datetime.now(UTC) + timedelta(seconds=idle or 10 * 365 * 86_400)).isoformat()
        found = []
        for backend in server.models.list():
            if backend.state == "ready" and (info := backend.info):
                video = info.size_bytes if info.device.startswith("cuda") else 0
                more = {"expires_at": expires, "size_vram": video, "context_length": info.context}
                found.append({**entry(backend, since), **more})
        return plain({"models": found})

    @routes.post("/show")
    async def show(body: NameBody, request: Request) -> Response:
        backend = await server.models.get(body.wanted, request.state.caller)
        return plain(shown(await loaded(backend), since), body.ignored())

    @routes.post("/pull")
    async def pull(body: NameBody, request: Request) -> Response:
        """Of what is served already, which clients do before they chat."""
        try:
            await server.models.get(body.wanted, request.state.caller)
        except ApiError as error:
            if error.status != 404:
                raise
            raise managed("pulled", "qwen3 pull MODEL, then qwen3 serve MODEL", 404) from None
        return lines({"status": "success"}, body.stream)

    def managed(what: str, instead: str, status: int = 400) -> ApiError:
        return ApiError(status, f"models are not {what} over HTTP: use {instead}", "model", "not_supported")

    @routes.post("/create")
    async def create() -> Response:
        raise managed("created", "qwen3 convert or qwen3 quantize, then qwen3 serve PATH")

    @routes.post("/copy")
    async def copy() -> Response:
        raise managed("copied", "qwen3 serve NAME=MODEL to give a model another name")

    @routes.post("/push")
    async def push() -> Response:
        raise managed("pushed", "your hub's own client")

    @routes.delete("/delete")
    async def delete() -> Response:
        raise managed("deleted", "the files of the Hugging Face cache, which qwen3 ls shows")

    @routes.api_route("/blobs/{digest}", methods=["GET", "POST"], include_in_schema=False)
    async def blobs(digest: str) -> Response:
        raise managed("created", "qwen3 convert", 404)

    # Embeddings

    async def vectors(request: Request, model: str, inputs: list[str], size: int | None) -> tuple[list[Any], int]:
        """(a vector for each input, tokens of all)."""
        backend = await server.models.get(model, request.state.caller)
        if (info := await loaded(backend)).kind != "embedding":
            raise ApiError(
                400,
                f"{backend.name} is a {info.kind} model; embeddings come from one such as Qwen/Qwen3-Embedding-0.6B",
                "model",
                "wrong_model_kind",
            )
        if not inputs:
            return [], 0
        if "" in inputs:
            raise ApiError(400, "input: an empty text has no embedding", "input")
        found = await backend.ask("embed", inputs=inputs, dimensions=size)
        numbers = await asyncio.to_thread(lambda: array("f", base64.b64decode(found["vectors"])).tolist())
        length = len(numbers) // len(inputs)
        return [numbers[i * length : (i + 1) * length] for i in range(len(inputs))], sum(found["tokens"])

    @routes.post("/embed")
    async def embed(body: EmbedBody, request: Request) -> Response:
        started = time.perf_counter()
        inputs = [body.input] if isinstance(body.input, str) else body.input
        found, tokens = await vectors(request, body.model, inputs, body.dimensions)
        value = {
            "model": body.model,
            "embeddings": found,
            "total_duration": nanoseconds(time.perf_counter() - started),
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
        return plain(value, body.ignored())

    @routes.post("/embeddings")
    async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
        found, _ = await vectors(request, body.model, [body.prompt] if body.prompt else [], None)
        return plain({"embedding": found[0] if found else []}, body.ignored())

    return routes
