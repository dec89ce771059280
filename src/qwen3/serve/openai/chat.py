"""`/v1/chat/completions`: OpenAI's chat dialect, with spellings of vLLM, SGLang, DashScope and OpenRouter, and ours.

What comes back beside OpenAI's fields: `reasoning_content` and `reasoning` (the same text under both names),
`warnings`, `thinking` (what the thinking did), `timings` in seconds, `seed`, and a choice's `stop_reason`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, WithJsonSchema

from qwen3.chat import Result
from qwen3.chat.messages import REASONING_FIELDS
from qwen3.serve.answer import collect, model_info, plain_response, stream_response
from qwen3.serve.body import Route
from qwen3.serve.calls import Call, ModelInfo, Sample
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import (
    Body,
    Label,
    Logprobs,
    MaxTokens,
    Messages,
    Name,
    Priority,
    SamplingBody,
    Text,
    ThinkingBody,
    Tools,
    shown,
)
from qwen3.serve.openai.chat_writer import ChatWriter, logprobs_of, reason_of, stop_reason, usage_of
from qwen3.serve.openai.completions import prompt_table
from qwen3.serve.structured import StructuredBody, structure_of
from qwen3.serve.thinking import spellings, thinking_of

if TYPE_CHECKING:
    from qwen3.serve.app import Server

ToolChoice = Annotated[
    Any, WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}, {"type": "null"}]})
]
Refused = Annotated[Any, WithJsonSchema({"type": "null"})]  # known, to say what to use instead
# What a message may have, and what an assistant's may have beside that.
_MESSAGE = frozenset({"role", "content", "name", "tool_call_id", "id", "refusal", "annotations", "audio", "warnings"})
_TURN = frozenset({"tool_calls", "function_call", *REASONING_FIELDS})


class StreamOptions(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {"include_obfuscation": "chunks are not padded here"}

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(SamplingBody, ThinkingBody, StructuredBody):
    INEFFECTIVE: ClassVar[dict[str, str]] = {
        "store": "answers are not kept here",
        "prediction": "the model reads no prediction of its answer",
        "verbosity": "Qwen3 has no such control, say it in the messages",
        "web_search_options": "the server does not search",
        "preserve_thinking": "the template keeps reasoning within a tool loop, and drops that of earlier questions",
        "prompt_cache_key": "the prefix cache finds what is common by itself",
        "prompt_cache_retention": "the prefix cache keeps what there is room for",
    }

    messages: Messages
    model: Name | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    functions: Refused = None
    function_call: Refused = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    max_completion_tokens: MaxTokens | None = None
    modalities: list[Text] | None = None
    audio: dict[str, Any] | None = None
    service_tier: Name | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prediction: dict[str, Any] | None = None
    verbosity: Label | None = None
    web_search_options: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    preserve_thinking: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    priority: Priority | None = None

    def to_call(self, info: ModelInfo | None) -> tuple[Call, list[str]]:
        """The call, and what is to be said about the request. Raises ApiError 400 naming what is wrong."""
        self._check()
        notes = self._notes()
        messages = self._conversation(notes)
        limit = self._limit()
        structure, more = structure_of(self)
        notes += more
        given, more = spellings(self)
        notes += more
        thinking, more = thinking_of(given, info=info, max_tokens=limit)
        notes += more
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        call = Call(
            messages=messages,
            tools=self.tools or None,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            thinking=thinking,
            sampling=self.sampling(max_tokens=limit, logprobs=logprobs),
            salt=self.cache_salt or "",
            priority=self.priority or 0,
            continue_last=bool(self.continue_final_message),
            **structure,
        )
        return call, notes

    @property
    def forced(self) -> bool:
        """Whether one tool is to be called by its name, which OpenAI's clients see end with "stop"."""
        return isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "function"

    @property
    def shows_reasoning(self) -> bool:
        omitted = isinstance(self.thinking, dict) and self.thinking.get("display") == "omitted"
        return self.include_reasoning is not False and not omitted and not (self.reasoning or {}).get("exclude")

    def _check(self) -> None:
        for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, name) is not None:
                raise ApiError(400, f"{name} is OpenAI's old form and not taken here: use {instead}", name)
        for i, tool in enumerate(self.tools or ()):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
                raise ApiError(
                    400,
                    f'tools[{i}] must be {{"type": "function", "function": {{"name": …}}}}: this server has no tools '
                    "of its own",
                    f"tools[{i}]",
                )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs, logprobs")
        if self.audio is not None or (self.modalities or ["text"]) != ["text"]:
            raise ApiError(400, "Qwen3 writes text only: leave modalities and audio out", "modalities")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is given, but stream is not true", "stream_options, stream")
        if self.stream and self.prompt_logprobs is not None:
            raise ApiError(400, "prompt_logprobs is not possible in a stream", "prompt_logprobs, stream")
        if self.continue_final_message and self.add_generation_prompt:
            raise ApiError(
                400, "continue_final_message continues a message and add_generation_prompt begins one: leave one out",
                "continue_final_message, add_generation_prompt", "contradiction",
            )  # fmt: skip
        if self.continue_final_message and self.messages[-1].get("role") != "assistant":
            raise ApiError(
                400, "continue_final_message needs an assistant message at the end", "continue_final_message, messages"
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise ApiError(
                400,
                "add_generation_prompt false leaves nothing to answer: set continue_final_message to go on "
                "with the last message",
                "add_generation_prompt",
            )

    def _notes(self) -> list[str]:
        notes = self.ignored()
        if self.stream_options is not None:
            notes += [f"stream_options.{text}" for text in self.stream_options.ignored()]
        if self.service_tier not in (None, "auto", "default"):
            notes.append("service_tier has no effect: there is one tier here")
        for name in ("summary", "generate_summary"):
            if (self.reasoning or {}).get(name):
                notes.append(f"reasoning.{name} has no effect: the reasoning itself is sent")
        if (self.priority or 0) < 0:
            notes.append("priority below 0 counts as 0: a request can only wait longer than its key has to")
        return notes

    def _limit(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ApiError(
                400, f"max_tokens is {old} and max_completion_tokens {new}: leave one out",
                "max_tokens, max_completion_tokens", "contradiction",
            )  # fmt: skip
        return new if old is None else old

    def _conversation(self, notes: list[str]) -> list[dict[str, Any]]:
        """The messages with a role for each that the template knows; all else is checked where they are rendered."""
        found, names = [], []
        for i, message in enumerate(self.messages):
            role = message.get("role")
            if role == "function" or message.get("function_call") is not None:
                where = f"messages[{i}].{'role' if role == 'function' else 'function_call'}"
                raise ApiError(400, f"{where} is OpenAI's old form: use tool_calls, and the role tool", where)
            if message.get("name") is not None and role in ("system", "developer", "user", "assistant"):
                names.append(i)
            unknown = [
                key for key in message if key not in _MESSAGE and key not in (_TURN if role == "assistant" else ())
            ]
            notes += [f"messages[{i}].{shown(key)} has no meaning here and was ignored" for key in unknown[:4]]
            kept = {key: value for key, value in message.items() if key not in unknown} if unknown else message
            found.append({**kept, "role": "system"} if role == "developer" else kept)
        if names:
            others = f" and of {len(names) - 1} more" if len(names) > 1 else ""
            notes.append(
                f"messages[{names[0]}].name{others} is not shown to the model: its template has no place for it"
            )
        return found


# Answers


def message_of(result: Result, fields: tuple[str, ...]) -> dict[str, Any]:
    """The assistant's message. fields: under which names its reasoning stands."""
    message: dict[str, Any] = {"role": "assistant", "content": result.content}
    if result.tool_calls and not result.content:
        message["content"] = None
    message["refusal"] = None
    message |= dict.fromkeys(fields, result.reasoning_content or None)
    if result.tool_calls:
        message["tool_calls"] = [call.to_dict() for call in result.tool_calls]
    return message


def reasoning_fields(setting: str, shown: bool) -> tuple[str, ...]:
    """Names of the fields that carry the reasoning. setting: of `--reasoning-field`."""
    if not shown:
        return ()
    return {
        "both": ("reasoning_content", "reasoning"),
        "content": ("reasoning_content",),
        "reasoning": ("reasoning",),
    }.get(setting, ())


def completion(body: ChatBody, name: str, samples: list[Sample], id: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """The whole response. name: the model's public one. samples: their warnings complete. fields: see `message_of`."""
    choices: list[dict[str, Any]] = []
    warnings: list[str] = []
    for sample in samples:
        result = sample.result
        warnings += result.warnings
        choice: dict[str, Any] = {
            "index": sample.index,
            "message": message_of(result, fields),
            "logprobs": None if sample.logprobs is None else logprobs_of(sample.logprobs),
            "finish_reason": reason_of(result.finish_reason, body.forced),
            "stop_reason": stop_reason(result.finish_reason, result.matched),
        }
        if len(samples) > 1 and result.thinking:
            choice["thinking"] = asdict(result.thinking)
        choices.append(choice)
    first = samples[0]
    found = {
        "id": id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": usage_of([sample.result.usage for sample in samples if sample.result.usage]),
        "service_tier": "default",
        "system_fingerprint": None,
        "warnings": list(dict.fromkeys(warnings)),
        "thinking": asdict(first.result.thinking) if first.result.thinking else None,
        "timings": first.timing,
        "seed": first.seed,
    }
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_table(first.prompt_logprobs or ())
    return found


def new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(16)}"


def router(server: Server) -> APIRouter:
    routes = APIRouter(route_class=Route, tags=["chat"])

    @routes.post("/v1/chat/completions", response_class=Response)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        backend = await server.models.get(body.model, request.state.caller)
        call, notes = body.to_call(await model_info(backend, "chat", len(body.messages)))
        fields = reasoning_fields(server.settings.reasoning_field, body.shows_reasoning)
        if body.stream:
            writer = ChatWriter(body, backend.name, fields)
            return await stream_response(server, request, backend, call, writer, notes)
        samples = await collect(server, request, backend, call, notes)
        answer = completion(body, backend.name, samples, new_id(), fields)
        return plain_response(answer)

    return routes
