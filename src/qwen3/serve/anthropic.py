"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens.

Thinking is off where a request does not ask for it, as it is there: their clients then expect no thinking blocks. A
soft switch in the text still turns it on.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, WithJsonSchema

from qwen3.chat.policy import soft_switch
from qwen3.serve.answer import COUNTED, caller_id, collect, model_info, plain_response, stream_response
from qwen3.serve.anthropic_messages import Reader, refuse
from qwen3.serve.anthropic_writer import Shape, Writer
from qwen3.serve.body import Route
from qwen3.serve.calls import Call, ModelInfo
from qwen3.serve.fields import MAX_MESSAGES, MAX_TOOLS, MaxTokens, Name, Stop, Temperature, ThinkingBody, TopK, TopP
from qwen3.serve.seal import Seal
from qwen3.serve.thinking import spellings, thinking_of

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_TEXT_BLOCK = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_BLOCK}]}
_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "additionalProperties": False,
    "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _CONTENT},
}
_TOOL = {
    "type": "object",
    "required": ["name", "input_schema"],
    "properties": {
        "type": {"enum": ["custom", None]},
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "input_schema": {"type": "object"},
    },
}
_TOOL_CHOICE = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["auto", "any", "tool", "none"]},
        "name": {"type": "string"},
        "disable_parallel_tool_use": {"type": "boolean"},
    },
}
# What a block may be is checked where it is read (`anthropic_messages`), with better words than a union's.
Turns = Annotated[
    list[dict[str, Any]],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": _TURN}),
]
CustomTools = Annotated[
    list[dict[str, Any]],
    Field(max_length=MAX_TOOLS),
    WithJsonSchema({"type": "array", "maxItems": MAX_TOOLS, "items": _TOOL}),
]
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class PromptBody(ThinkingBody):
    """What makes the prompt: the body of count_tokens."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "metadata": "nothing is kept about users",
        "service_tier": "there is one tier",
        "inference_geo": "the model runs here",
        "speed": "every answer is as fast as it gets",
        "container": "there are no containers",
        "diagnostics": "usage says what was cached",
        "context_management": "a prompt is never cut",
        "mcp_servers": "only the client calls tools",
    }

    model: Name
    messages: Turns
    system: Annotated[Any, WithJsonSchema(_CONTENT)] = None
    tools: CustomTools | None = None
    tool_choice: Annotated[dict[str, Any], WithJsonSchema(_TOOL_CHOICE)] | None = None
    output_config: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Name | None = None
    inference_geo: Name | None = None
    speed: Name | None = None
    container: Any = None
    diagnostics: Any = None
    context_management: Any = None
    mcp_servers: list[Any] | None = None


class MessagesBody(PromptBody):
    max_tokens: MaxTokens
    stream: bool | None = None
    stop_sequences: Stop | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None


def to_call(body: PromptBody, info: ModelInfo, seal: Seal, tenant: str = "") -> tuple[Call, list[str]]:
    """The call, and what is to be said about the request. Raises ApiError naming the field that cannot be had."""
    reader = Reader(seal, tenant)
    messages = reader.messages(body.system, body.messages)
    reader.cached(body.cache_control)
    config = dict(body.output_config or {})
    effort, format = config.pop("effort", None), config.pop("format", None)
    for name in config:
        reader.warn(f"output_config.{name[:60]} is not a field of this request and was ignored")
    choice = body.tool_choice or {}
    sampling: dict[str, Any] = {}
    limit = None
    if isinstance(body, MessagesBody):
        limit = body.max_tokens
        values = {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        values["stop"] = body.stop_sequences or None
        sampling = {name: value for name, value in values.items() if value is not None}
    thinking, warnings = _thinking(body, effort, messages, info, limit)
    call = Call(
        messages=messages,
        tools=reader.tools(body.tools) if body.tools else None,
        tool_choice=_choice(choice),
        parallel_tool_calls=not choice.get("disable_parallel_tool_use"),
        schema=_schema(format),
        thinking=thinking,
        sampling=sampling,
        continue_last=messages[-1]["role"] == "assistant",
    )
    return call, [*body.ignored(), *reader.warnings, *warnings]


def _thinking(
    body: PromptBody, effort: Any, messages: list[dict[str, Any]], info: ModelInfo, limit: int | None
) -> tuple[dict[str, Any], list[str]]:
    given, warnings = spellings(body)
    if isinstance(body.thinking, dict):
        display = body.thinking.get("display")
        if display not in (None, "summarized", "omitted"):
            raise refuse("thinking.display", f"must be summarized or omitted, not {display!r:.40}")
        budget = body.thinking.get("budget_tokens")
        if limit is not None and type(budget) is int and budget >= limit:
            raise refuse("thinking.budget_tokens", f"is {budget} and must be less than max_tokens, which is {limit}")
    given["output_config.effort"] = effort
    if (
        all(value is None for value in given.values())
        and info.mode in ("hybrid", "base")
        and soft_switch(messages) is None
    ):
        return {"mode": "off"}, warnings
    policy, more = thinking_of(given, info=info, max_tokens=limit)
    return policy, [*warnings, *more]


def _choice(choice: dict[str, Any]) -> Any:
    kind = choice.get("type", "auto")
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise refuse("tool_choice.name", "must be a tool's name")
        return {"type": "function", "function": {"name": choice["name"]}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise refuse("tool_choice.type", f"must be auto, any, tool or none, not {kind!r:.40}")
    return _CHOICES[kind]


def _schema(format: Any) -> Any:
    if format is None:
        return None
    kind, schema = (format.get("type"), format.get("schema")) if isinstance(format, dict) else (None, None)
    if kind != "json_schema" or not isinstance(schema, dict):
        raise refuse("output_config.format", 'must be {"type": "json_schema", "schema": {…}}')
    return schema


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["anthropic"], route_class=Route)
    seal = Seal()

    @routes.post("/v1/messages")
    async def messages(body: MessagesBody, request: Request) -> Response:
        backend = await server.models.get(body.model, request.state.caller)
        tenant = caller_id(request)
        call, notes = to_call(body, await model_info(backend, turns=len(body.messages)), seal, tenant)
        omit = isinstance(body.thinking, dict) and body.thinking.get("display") == "omitted"
        shape = Shape(body.model, seal, tenant, omit)
        if body.stream:
            return await stream_response(server, request, backend, call, Writer(shape), notes)
        (sample,) = await collect(server, request, backend, call, notes)
        return plain_response(shape.message(sample, secrets.token_hex(16)))

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(body: PromptBody, request: Request) -> Response:
        backend = await server.models.get(body.model, request.state.caller)
        info = await model_info(backend, turns=len(body.messages) // COUNTED)
        call, notes = to_call(body, info, seal, caller_id(request))
        found = await backend.ask("count", call=call)
        return plain_response({"input_tokens": found["prompt_tokens"], **({"warnings": notes} if notes else {})})

    return routes
