"""Ollama's routes about models, and its embeddings. What is served was named when the server started: models are shown
here, not managed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from array import array
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from qwen3 import __version__
from qwen3.serve.answer import model_info, plain_response
from qwen3.serve.body import dumps
from qwen3.serve.calls import ModelInfo
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import INT32, Body, Name, Text
from qwen3.serve.ollama_writer import Writer, nanoseconds, now
from qwen3.serve.openai.prompts import Prompts

if TYPE_CHECKING:
    from qwen3.serve.app import Server

API_VERSION = "0.12.6"
"""Ollama's release whose API this is: clients compare it with what they need."""

STAYS = "how long a model stays is decided when the server starts (--idle-unload)"


class NameBody(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "insecure": "nothing is fetched",
        "verbose": "there is nothing more to show",
    }

    model: Name | None = None
    name: Name | None = None
    stream: bool | None = None
    insecure: bool | None = None
    verbose: bool | None = None

    @property
    def wanted(self) -> str:
        if self.model is None and self.name is None:
            raise ApiError(400, "model is missing: name one of those that /api/tags lists", "model")
        return self.model or self.name or ""


class EmbedBody(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "truncate": "an input is never cut",
        "keep_alive": STAYS,
        "options": "there is nothing to choose",
    }

    model: Name
    input: Prompts
    dimensions: Annotated[int, Field(ge=1, le=INT32)] | None = None
    truncate: bool | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class EmbeddingsBody(Body):
    """The older form, of one text."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {"keep_alive": STAYS, "options": "there is nothing to choose"}

    model: Name
    prompt: Text
    options: dict[str, Any] | None = None
    keep_alive: Any = None


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
    capabilities = {"chat": ["completion"], "embedding": ["embedding"]}.get(info.kind, [])
    if info.kind == "chat" and info.mode != "base":
        capabilities += ["tools", *(["thinking"] if info.mode != "instruct" else [])]
    architecture = "qwen3moe" if 0 < info.active_parameters < info.parameters else "qwen3"
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


def managed(what: str, instead: str, status: int = 400) -> ApiError:
    return ApiError(status, f"models are not {what} over HTTP: {instead}", "model", "not_supported")


def lines(value: dict[str, Any], stream: bool | None) -> Response:
    """One object, as the only line of a stream unless that was not wanted."""
    if stream is False:
        return plain_response(value)
    return Response(dumps(value) + b"\n", media_type=Writer.media_type)


def add_models(routes: APIRouter, server: Server) -> None:
    since = now()

    def noted(value: dict[str, Any], body: Body) -> Response:
        return plain_response({**value, **({"warnings": notes} if (notes := body.ignored()) else {})})

    @routes.get("/version")
    async def version() -> Response:
        return plain_response({"version": API_VERSION, "server": f"qwen3 {__version__}"})

    @routes.get("/tags")
    async def tags() -> Response:
        return plain_response({"models": [entry(backend, since) for backend in server.models.named()]})

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
        return plain_response({"models": found})

    @routes.post("/show")
    async def show(body: NameBody, request: Request) -> Response:
        backend = await server.models.get(body.wanted, request.state.caller)
        return noted(shown(backend.info or await backend.load(), since), body)

    @routes.post("/pull")
    async def pull(body: NameBody, request: Request) -> Response:
        """Of what is served already, which clients do before they chat."""
        try:
            await server.models.get(body.wanted, request.state.caller)
        except ApiError as error:
            if error.status != 404:
                raise
            raise managed("pulled", "use `qwen3 pull MODEL`, then `qwen3 serve MODEL`", 404) from None
        return lines({"status": "success"}, body.stream)

    @routes.post("/create")
    async def create() -> Response:
        raise managed("created", "use `qwen3 convert` or `qwen3 quantize`, then `qwen3 serve PATH`")

    @routes.post("/copy")
    async def copy() -> Response:
        raise managed("copied", "`qwen3 serve NAME=MODEL` gives a model another name")

    @routes.post("/push")
    async def push() -> Response:
        raise managed("pushed", "use your hub's own client")

    @routes.delete("/delete")
    async def delete() -> Response:
        raise managed("deleted", "delete the files that `qwen3 ls` shows")

    @routes.api_route("/blobs/{digest}", methods=["GET", "POST"], include_in_schema=False)
    async def blobs(digest: str) -> Response:
        raise managed("created", "use `qwen3 convert`, then `qwen3 serve PATH`", 404)

    async def vectors(
        request: Request, model: str, inputs: list[Any], field: str, size: int | None
    ) -> tuple[list[list[float]], int]:
        """(a vector for each input, tokens of all)."""
        backend = await server.models.get(model, request.state.caller)
        await model_info(backend, "embedding")
        if not all(inputs):
            raise ApiError(400, f"{field}: an empty text has no embedding", field)
        found = await backend.ask("embed", inputs=inputs, dimensions=size)
        numbers = await asyncio.to_thread(lambda: array("f", base64.b64decode(found["vectors"])).tolist())
        length = len(numbers) // len(inputs)
        return [numbers[i * length : (i + 1) * length] for i in range(len(inputs))], sum(found["tokens"])

    @routes.post("/embed")
    async def embed(body: EmbedBody, request: Request) -> Response:
        started = time.perf_counter()
        found, tokens = await vectors(request, body.model, body.input, "input", body.dimensions)
        value = {
            "model": body.model,
            "embeddings": found,
            "total_duration": nanoseconds(time.perf_counter() - started),
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
        return noted(value, body)

    @routes.post("/embeddings")
    async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
        found, _ = await vectors(request, body.model, [body.prompt], "prompt", None)
        return noted({"embedding": found[0]}, body)
