"""The server as a whole: what it holds, the application in front of it, and its life from start to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from qwen3 import __version__
from qwen3.errors import Qwen3Error
from qwen3.serve import anthropic, control, health, ollama, page
from qwen3.serve.edge import Edge, rendered
from qwen3.serve.errors import ApiError, dialect_of
from qwen3.serve.keys import Keys
from qwen3.serve.limits import Limits
from qwen3.serve.logs import event
from qwen3.serve.memory import ReasoningMemory
from qwen3.serve.metrics import Metrics
from qwen3.serve.models import Models
from qwen3.serve.openai import batches, chat, completions, files, responses, tokens, vectors
from qwen3.serve.openai import models as openai_models
from qwen3.serve.openapi import document
from qwen3.serve.security import Gate
from qwen3.serve.settings import Settings
from qwen3.serve.tracing import Tracing

ROUTERS: tuple[Any, ...] = (
    health, page, control, chat, completions, responses, vectors, openai_models, files, batches, tokens, anthropic,
    ollama,
)  # fmt: skip
DESCRIPTION = "Qwen3 models over the protocols of OpenAI, Anthropic and Ollama, with thinking under control."


class Server:
    """What all requests share. streams: the running ones, id -> (stream, id of its caller). failure: what kept the
    models from starting."""

    def __init__(self, settings: Settings, models: Any = None, keys: Keys | None = None) -> None:
        self.settings = settings
        if keys is None and settings.api_key_file is not None:
            keys = Keys(settings.api_key_file, settings.shared_prefix)
        self.keys = keys
        self.gate = Gate(settings, keys)
        self.limits = Limits(settings)
        if models is None:
            models = Models([(name, spec, settings.model_options()) for name, spec in settings.models], settings)
        self.models = models
        self.metrics = Metrics(lambda: self.models.list())
        self.tracing = Tracing(settings.trace) if settings.trace is not None else None
        self.metrics.tracing = self.tracing
        self.memory = ReasoningMemory(enabled=settings.reasoning_memory)
        self.streams: dict[str, tuple[Any, str]] = {}
        self.files: Any = None  # a FileStore and Batches (`serve.openai`), where there is a folder for them
        self.batches: Any = None
        self.draining = False
        self.started = asyncio.Event()
        self.failure: BaseException | None = None
        self._jobs: list[asyncio.Task[None]] = []

    def state(self) -> str:
        """ "ready", or why not: "draining", "loading", "restarting", "failed"."""
        if self.draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        if not self.started.is_set():
            return "loading"
        first = next(iter(self.models.list()), None)
        # A model that was unloaded for being idle is loaded by the next request: that is no reason to send none.
        return "ready" if first is None or first.state in ("ready", "unloaded") else str(first.state)

    async def start(self) -> None:
        """Begins to load the models; the server answers meanwhile."""
        self._jobs = [asyncio.create_task(self._load()), asyncio.create_task(self._sample())]

    async def _load(self) -> None:
        try:
            await self.models.start()
        except Exception as error:
            self.failure = error
            event("models failed", logging.DEBUG, error=str(error))  # whoever runs the server says it
        self.started.set()

    async def _sample(self) -> None:
        """Levels for the status page, once a second."""
        while True:
            totals = {"running": 0.0, "queued": 0.0, "used_blocks": 0.0}
            for backend in self.models.list():
                for name in totals:
                    totals[name] += (backend.stats or {}).get(name, 0)
            for name, level in totals.items():
                self.metrics.history.set(name, level)
            await asyncio.sleep(1.0)

    def drain(self) -> None:
        """From now on nothing new is taken."""
        self.draining = self.metrics.draining = True

    async def close(self, drain: float = 0.0) -> None:
        self.drain()
        for job in self._jobs:
            job.cancel()
            with suppress(asyncio.CancelledError):
                await job
        await self.models.close(drain)
        if self.tracing is not None:
            self.tracing.close()


def create_app(settings: Settings | None = None, models: Any = None, keys: Keys | None = None) -> FastAPI:
    """The ASGI application; `app.state.server` is its Server. models: something like `serve.models.Models`."""
    server = Server(settings or Settings(), models, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.close()

    app = FastAPI(
        title="qwen3",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = server
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    routers = [module.router(server) for module in ROUTERS]
    app.state.routes = [route for router in routers for route in router.routes]
    for router in routers:
        app.include_router(router)
    for kind in (ApiError, Qwen3Error, HTTPException, RequestValidationError, RecursionError):
        app.add_exception_handler(kind, _explain)
    app.add_middleware(Edge, server=server)
    return app


async def _explain(request: Request, error: Exception) -> Response:
    """Any error of a route, in the shape of its dialect."""
    path, headers = request.url.path, {}
    match error:
        case HTTPException() if isinstance(error.__cause__, ApiError):  # from reading the body, in FastAPI's wrapping
            found = error.__cause__
        case HTTPException(status_code=404):
            found = ApiError(404, f"there is nothing at {request.method} {path[:200]}", code="not_found")
        case HTTPException(status_code=405):
            # Starlette names the methods of the first route of a path, and a path may have several.
            routes = [route for route in request.app.state.routes if route.path_regex.match(path)]
            allowed = ", ".join(sorted({method for route in routes for method in route.methods}))
            headers = {"allow": allowed}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
            found = ApiError(405, f"{path[:200]} takes {allowed}, not {request.method[:16]}", code="method_not_allowed")
        case HTTPException():
            found = ApiError(error.status_code, str(error.detail))
        case RequestValidationError():
            found = _invalid(error)
        case RecursionError():
            found = ApiError(400, "the request nests too deep", code="too_deep")
        case _:
            found = ApiError.of(error)
    status, pairs, body = rendered(found, dialect_of(path))
    response = Response(body, status)
    response.raw_headers = [*pairs, *((k.lower().encode(), v.encode()) for k, v in headers.items())]
    request.state.code = found.code
    return response


def _invalid(error: RequestValidationError) -> ApiError:
    """400 that names the first field that is wrong, never 422."""
    problems = error.errors()
    first = problems[0]
    where = [str(part) for part in first["loc"][1:]]  # behind "body", "query" or "path"
    message = first["msg"].removeprefix("Value error, ")
    if param := first.get("ctx", {}).get("param"):  # of a body as a whole, in words of its own
        return ApiError(400, message, param, first["type"])
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', message)}", code="invalid_json"
        )
    if first["loc"] == ("body",) and first["type"] == "missing":
        return ApiError(400, "the body is missing: send a JSON object", code="missing_body")
    param = ".".join(where) or None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ApiError(400, f"{param or 'the body'}: {message}{more}", param, first["type"])
