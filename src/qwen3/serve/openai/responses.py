"""OpenAI's Responses API without its store: every request brings the whole conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, WithJsonSchema

from qwen3.serve.answer import caller_id, collect, model_info, plain_response, stream_response
from qwen3.serve.body import Route
from qwen3.serve.calls import Call, ModelInfo
from qwen3.serve.either import Either
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import (
    INT32,
    MAX_MESSAGES,
    MAX_TOOLS,
    Label,
    Logprobs,
    MaxTokens,
    Name,
    Seed,
    Temperature,
    Text,
    ThinkingBody,
    TopP,
)
from qwen3.serve.openai.responses_items import Reader, choice, functions, refuse
from qwen3.serve.openai.responses_writer import Shape, Writer
from qwen3.serve.seal import Seal
from qwen3.serve.thinking import spellings, thinking_of

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_STATELESS = "this server stores no responses: send the whole conversation as input"
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {"type": "string"},
    },
}
_TOOL = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {
        "type": {"const": "function"},
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
    },
}
_CHOICE = {"type": "string", "enum": ["auto", "none", "required"]}
_NAMED_CHOICE = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
}
_SEALED, _LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"

Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class ResponsesBody(ThinkingBody):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "max_tool_calls": "it counts built-in tools, and there are none",
        "user": "nothing is kept about users",
        "safety_identifier": "nothing is kept about users",
        "prompt_cache_key": "prompts are cached automatically, by their beginnings",
        "prompt_cache_retention": "prompts are cached while there is room",
        "prompt_cache_options": "prompts are cached automatically, by their beginnings",
        "service_tier": "there is one tier",
        "store": "this server stores no responses",
        "moderation": "there is none",
    }

    model: Name | None = None
    input: Annotated[
        Any,
        Either(
            "a text or a list of items",
            {"type": "string"},
            {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": _MESSAGE},
        ),
    ]
    instructions: Text | None = None
    tools: (
        Annotated[
            list[dict[str, Any]],
            Field(max_length=MAX_TOOLS),
            WithJsonSchema({"type": "array", "maxItems": MAX_TOOLS, "items": _TOOL}),
        ]
        | None
    ) = None
    tool_choice: Annotated[Any, Either("a text or an object", _CHOICE, _NAMED_CHOICE)] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    max_output_tokens: MaxTokens | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=INT32)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None  # not OpenAI's; batches give one to every request
    top_logprobs: Logprobs | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    include: list[Label] | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Label | None = None
    conversation: Any = None
    prompt: dict[str, Any] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: Label | None = None
    moderation: dict[str, Any] | None = None


def to_call(body: ResponsesBody, info: ModelInfo, seal: Seal, tenant: str = "") -> tuple[Call, list[str]]:
    """The call, and what is to be said about the request. Raises ApiError naming the field that cannot be had."""
    for name in ("previous_response_id", "conversation"):
        if getattr(body, name) is not None:
            raise refuse(name, f"is not possible: {_STATELESS}", "not_supported")
    if body.background:
        raise refuse("background", f"is not possible: {_STATELESS}", "not_supported")
    if body.prompt is not None:
        raise refuse("prompt", "is a stored template, and this server stores none: send its text", "not_supported")
    reader = Reader(seal, tenant)
    messages = reader.messages(body.instructions, body.input)
    if not messages:
        raise refuse("input", "is empty: give a text or at least one item")
    given, more = spellings(body)
    thinking, warnings = thinking_of(given, info=info, max_tokens=body.max_output_tokens)
    schema, notes = _format(body.text or {})
    notes += _notes(body)
    values = {
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "logprobs": (body.top_logprobs or 0) if _wants_logprobs(body) else None,
    }
    call = Call(
        messages=messages,
        tools=functions(body.tools) if body.tools else None,
        tool_choice=choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        schema=schema,
        thinking=thinking,
        sampling={name: value for name, value in values.items() if value is not None},
        continue_last=messages[-1]["role"] == "assistant",
    )
    return call, [*body.ignored(), *reader.warnings, *more, *warnings, *notes]


def _wants_logprobs(body: ResponsesBody) -> bool:
    return bool(body.top_logprobs) or _LOGPROBS in (body.include or ())


def _format(text: dict[str, Any]) -> tuple[Any, list[str]]:
    """(schema, warnings) of `text`."""
    notes = [f"text.{name[:60]} has no effect" for name in text if name != "format" and text[name] is not None]
    format = text.get("format") or {"type": "text"}
    kind = format.get("type") if isinstance(format, dict) else None
    if kind == "text":
        return None, notes
    if kind == "json_object":
        return {"type": "object"}, notes
    if kind != "json_schema" or not isinstance(format.get("schema"), (dict, bool)):
        raise ApiError(
            400, 'text.format must be of type text, json_object, or json_schema with a "schema"', "text.format"
        )
    return format["schema"], notes


def _notes(body: ResponsesBody) -> list[str]:
    notes = []
    if body.truncation == "auto":
        notes.append("truncation 'auto' has no effect: a prompt is never cut, one that is too long is refused")
    if (body.reasoning or {}).get("summary"):
        notes.append("reasoning.summary: the summary is the reasoning itself, in full")
    notes += [
        f"include: {name[:60]!r} has no effect" for name in body.include or () if name not in (_SEALED, _LOGPROBS)
    ]
    return notes


def echo(body: ResponsesBody, name: str) -> dict[str, Any]:
    """Fields of the request that a Response repeats. name: the model's."""
    reasoning = body.reasoning or {}
    return {
        "model": body.model or name,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": False,
        "background": False,
        "temperature": body.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["openai"], route_class=Route)
    seal = Seal()

    @routes.post("/v1/responses")
    async def responses(body: ResponsesBody, request: Request) -> Response:
        backend = await server.models.get(body.model, request.state.caller)
        tenant = caller_id(request)
        turns = len(body.input) // 2 if isinstance(body.input, list) else 1  # reasoning and its message are one
        call, notes = to_call(body, await model_info(backend, turns=turns), seal, tenant)
        shape = Shape(
            echo(body, backend.name),
            seal,
            tenant,
            summary=bool((body.reasoning or {}).get("summary")),
            sealed=_SEALED in (body.include or ()),
            logprobs=_wants_logprobs(body),
        )
        if body.stream:
            return await stream_response(server, request, backend, call, Writer(shape), notes)
        (sample,) = await collect(server, request, backend, call, notes)
        return plain_response(shape.whole(sample))

    @routes.get("/v1/responses/{id}")
    @routes.delete("/v1/responses/{id}", include_in_schema=False)
    async def stored(id: str) -> Response:
        raise ApiError(404, f"there is no response {id[:100]!r}: {_STATELESS}", "id", "not_found")

    return routes
