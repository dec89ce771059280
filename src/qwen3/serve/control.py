"""What can be done to an answer while it is being streamed: have it now, or not at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request

from qwen3.serve.answer import caller_id
from qwen3.serve.body import Route
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import Body, Name, shown

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_DIGITS = re.compile(r"[0-9a-f]{32}\Z")


class ControlBody(Body):
    """id: of a response (`chatcmpl-…`, `resp_…`, `msg_…`) whose stream runs. action: "answer_now" (llama.cpp's
    "reasoning_end" is the same) closes the thinking, "cancel" ends the answer."""

    id: Name
    action: Literal["answer_now", "reasoning_end", "cancel"]


def router(server: Server) -> APIRouter:
    routes = APIRouter(route_class=Route, tags=["control"])

    def running(id: str, request: Request) -> Any:
        """The stream, if it runs and is the caller's own; whose else it is nobody learns."""
        digits = _DIGITS.search(id)
        stream, owner = server.streams.get(f"req-{digits[0]}" if digits else "", (None, ""))
        caller = getattr(request.state, "caller", None)
        if stream is None or (owner != caller_id(request) and not (caller and caller.admin)):
            raise ApiError(404, f"no answer {shown(id)!r} is being streamed to you", "id", "not_running")
        return stream

    @routes.post("/v1/chat/completions/control")
    async def control(body: ControlBody, request: Request) -> dict[str, Any]:
        """End the thinking of an answer that is being streamed, or the answer."""
        stream = running(body.id, request)
        if body.action == "cancel":
            stream.cancel()
        else:
            stream.answer_now()
        ignored = body.ignored()
        return {"id": body.id, "action": body.action, "ok": True, **({"warnings": ignored} if ignored else {})}

    @routes.delete("/v1/requests/{id}")
    async def cancel(id: str, request: Request) -> dict[str, Any]:
        """Cancel an answer that is being streamed."""
        running(id, request).cancel()
        return {"id": id, "action": "cancel", "ok": True}

    return routes
