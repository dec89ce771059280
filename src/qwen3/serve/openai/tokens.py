"""Counting without generating: `/tokenize` and `/detokenize` (vLLM's and llama.cpp's shapes in one), and
`/v1/chat/completions/input_tokens`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, Request, Response

from qwen3.serve.answer import COUNTED, model_info, plain_response
from qwen3.serve.body import Route
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import Body, Messages, Name, Text, TokenIds
from qwen3.serve.openai.chat import ChatBody

if TYPE_CHECKING:
    from qwen3.serve.app import Server

_SPECIALS = "Qwen's tokenizer adds no tokens around a text"


class TokenizeBody(ChatBody):
    """A text (`prompt`, or llama.cpp's `content`), or what `/v1/chat/completions` takes. parse_special: whether control
    strings in a text become control tokens (the default); those in messages never do. with_pieces: each token with its
    text; return_token_strs: the texts in a list of their own."""

    INEFFECTIVE: ClassVar[dict[str, str]] = {
        **ChatBody.INEFFECTIVE,
        "add_special": _SPECIALS,
        "add_special_tokens": _SPECIALS,
    }

    messages: Messages | None = None  # type: ignore[assignment]
    prompt: Text | None = None
    content: Text | None = None
    parse_special: bool | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def text(self) -> str | None:
        """None: the messages are meant. Raises ApiError unless there is one of the three."""
        given = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given)
            raise ApiError(400, f"give one of prompt, content and messages, not {found or 'none'}", found or "prompt")
        return self.prompt if self.content is None else self.content

    def notes(self) -> list[str]:
        """Of a text: what was given and says nothing about it."""
        own = TokenizeBody.__annotations__.keys() | {"model"}
        others = sorted(self.model_fields_set - own - (self.model_extra or {}).keys())
        return self.ignored() + [f"{name} has no effect: it goes with messages" for name in others]


class DetokenizeBody(Body):
    tokens: TokenIds
    model: Name | None = None


def tokenized(body: TokenizeBody, context: int, ids: list[int], pieces: list[str], notes: list[str]) -> dict[str, Any]:
    tokens: list[Any] = list(ids)
    if body.with_pieces:
        tokens = [{"id": id, "piece": piece} for id, piece in zip(ids, pieces, strict=True)]
    found = {"count": len(ids), "max_model_len": context, "tokens": tokens}
    found["token_strs"] = pieces if body.return_token_strs else None
    return _noted(found, notes)


def _noted(value: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    return value | ({"warnings": notes} if notes else {})


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["tokens"], route_class=Route)

    @routes.post("/tokenize", response_class=Response)
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        """Ids of a text, or of a conversation's prompt."""
        text = body.text()
        backend = await server.models.get(body.model, request.state.caller)
        if text is None:
            call, notes = body.to_call(await model_info(backend, "chat", len(body.messages or ()) // COUNTED))
            found = await backend.ask("tokenize", call=call)
        else:
            notes = body.notes()
            found = await backend.ask("tokenize", text=text, plain=body.parse_special is False)
        assert backend.info is not None
        value = tokenized(body, backend.info.context, found["ids"], found["pieces"], notes)
        return await asyncio.to_thread(plain_response, value)  # a long text has many tokens

    @routes.post("/detokenize", response_class=Response)
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        """The text of ids, under vLLM's name and llama.cpp's."""
        backend = await server.models.get(body.model, request.state.caller)
        if backend.info is None:
            await backend.load()
        if (most := max(body.tokens, default=0)) >= backend.info.vocab_size:
            last = backend.info.vocab_size - 1
            raise ApiError(400, f"tokens holds {most}, which is no token of {backend.name} (0 to {last})", "tokens")
        text = (await backend.ask("detokenize", ids=body.tokens))["text"]
        return plain_response(_noted({"prompt": text, "content": text}, body.ignored()))

    @routes.post("/v1/chat/completions/input_tokens", response_class=Response)
    async def input_tokens(body: ChatBody, request: Request) -> Response:
        """Tokens of the prompt that the same request to `/v1/chat/completions` would have."""
        backend = await server.models.get(body.model, request.state.caller)
        call, notes = body.to_call(await model_info(backend, "chat", len(body.messages) // COUNTED))
        count = (await backend.ask("count", call=call))["prompt_tokens"]
        return plain_response(_noted({"object": "response.input_tokens", "input_tokens": count}, notes))

    return routes
