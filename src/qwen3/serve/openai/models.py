"""`/v1/models`: what can be asked for here, and what it can do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from qwen3.serve.models import Adapted

if TYPE_CHECKING:
    from qwen3.serve.app import Server
    from qwen3.serve.backend import Backend

THINKING = {"hybrid": ["on", "off", "auto"], "base": ["on", "off", "auto"], "thinking": ["on"], "instruct": ["off"]}
CAPABILITIES = {
    "chat": ["chat", "completions", "tools", "json_schema", "logprobs", "streaming"],
    "embedding": ["embeddings"],
    "reranker": ["rerank", "score"],
}


def described(backend: Backend | Adapted, created: int) -> dict[str, Any]:
    """OpenAI's object with more in it. What only a loaded model tells is left out of one that was never loaded."""
    found: dict[str, Any] = {
        "id": backend.name,
        "object": "model",
        "created": created,
        "owned_by": "qwen3",
        "state": backend.state,
    }
    if isinstance(backend, Adapted):
        found["parent"] = backend.base.name
    if (info := backend.info) is None:
        return found
    chats = info.kind == "chat"
    return found | {
        "max_model_len": info.context,
        "kind": info.kind,
        "capabilities": CAPABILITIES[info.kind] + (["thinking"] if chats and info.mode != "instruct" else []),
        "thinking": {"mode": info.mode, "modes": THINKING[info.mode] if chats else []},
        "sampling": info.sampling,
        "parameters": info.parameters,
        "active_parameters": info.active_parameters,
        "vocab_size": info.vocab_size,
        "hidden_size": info.hidden_size,
        "dtype": info.dtype,
        "device": info.device,
        "root": info.source,
        "revision": info.revision,
    }


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["models"])
    created = int(time.time())

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(backend, created) for backend in server.models.named()]}

    @routes.get("/v1/models/{id:path}")
    async def model(id: str, request: Request) -> dict[str, Any]:
        return described(await server.models.get(id, request.state.caller), created)

    return routes
