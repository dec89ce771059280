"""What operators and their machines ask a server: is it alive, is it ready, what does it do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from qwen3 import __version__
from qwen3.serve.body import dumps

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_FRESH = {"cache-control": "no-store"}


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["operation"])
    since = time.monotonic()

    @routes.get("/health")
    async def health() -> Response:
        """Liveness: the process answers, and no engine of its is stuck. Says nothing else of models: one that takes no
        step is ended and started again; where that takes long, only starting all again may help."""
        stuck = any(backend.stuck for backend in server.models.list())
        return _state("stuck" if stuck else "ok", not stuck)

    @routes.get("/ready")
    async def ready() -> Response:
        """Readiness: 200 where a request would be served now, 503 while the first model loads or restarts, after it
        failed, and as soon as the server was told to end."""
        state = server.state()
        return _state(state, state == "ready")

    @routes.get("/version")
    async def version() -> Response:
        return _json(200, {"version": __version__})

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Counts in Prometheus' format. Where keys are set, any key may read them."""
        return Response(server.metrics.text(), headers={**_FRESH, "content-type": CONTENT_TYPE_LATEST})

    @routes.get("/status.json")
    async def status() -> Response:
        """The figures of the status page: the models as they are, and arrays by second of the last minutes. tokens,
        prompt: tokens that came out and that were computed of prompts; running, queued, used_blocks: sums over models.
        """
        models = [{"name": each.name, "state": each.state, **(each.stats or {})} for each in server.models.list()]
        body: dict[str, Any] = {
            "version": __version__,
            "status": server.state(),
            "uptime": time.monotonic() - since,
            "draining": server.draining,
            "requests": server.metrics.in_flight,
            "models": models,
            "history": server.metrics.history.arrays(("tokens", "prompt"), ("running", "queued", "used_blocks")),
        }
        return _json(200, body)

    return routes


def _state(state: str, fine: bool) -> Response:
    return _json(200 if fine else 503, {"status": state}, {} if fine else {"retry-after": "2"})


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(value), status, {**_FRESH, **(headers or {})}, "application/json")
