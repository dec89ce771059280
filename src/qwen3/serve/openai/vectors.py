"""Embeddings, reranking and scores: texts in, numbers out, by models of the kinds "embedding" and "reranker".

Shapes: `/v1/embeddings` is OpenAI's, `/v1/rerank` Jina's and Cohere's (with `meta`), `/v1/score` vLLM's.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from array import array
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field

from qwen3.serve.answer import model_info, plain_response
from qwen3.serve.body import Route
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import INT32, Body, Label, Name, Text
from qwen3.serve.openai.prompts import MAX_PROMPTS, Prompts
from qwen3.tokenizer import check_unicode

if TYPE_CHECKING:
    from qwen3.serve.app import Server
    from qwen3.serve.backend import Backend

Instruction = Annotated[Text, Field(min_length=1, max_length=8192)]


def _documents(value: list[Any]) -> list[str]:
    texts: list[str] = []
    for i, item in enumerate(value):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise ValueError(f"entry {i} is neither a text nor an object with a text")
        check_unicode(text, f"entry {i}")  # whose UsageError is a ValueError
        texts.append(text)
    return texts


Documents = Annotated[
    list[str | dict[str, Any]], Field(min_length=1, max_length=MAX_PROMPTS), AfterValidator(_documents)
]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]


class EmbeddingBody(Body):
    """instruction (not OpenAI's): what the vectors are for; put before each input as Qwen3-Embedding was trained, for
    queries only."""

    input: Prompts
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=INT32)] | None = None
    instruction: Instruction | None = None
    user: Label | None = None

    def inputs(self) -> list[str | list[int]]:
        for i, item in enumerate(self.input):
            if not item:
                raise ApiError(400, f"input: entry {i} is empty: there is nothing to embed", "input")
            if self.instruction is not None and not isinstance(item, str):
                raise ApiError(400, "instruction goes with texts, not with token ids", "instruction, input")
        if self.instruction is None:
            return self.input
        return [f"Instruct: {self.instruction}\nQuery:{text}" for text in self.input]


class RerankBody(Body):
    query: Text
    documents: Documents
    model: Name | None = None
    top_n: Annotated[int, Field(ge=1, le=INT32)] | None = None
    return_documents: bool | None = None
    instruction: Instruction | None = None
    user: Label | None = None


class ScoreBody(Body):
    text_1: Texts
    text_2: Texts
    model: Name | None = None
    instruction: Instruction | None = None
    user: Label | None = None

    def pairs(self) -> tuple[list[str], list[str]]:
        """Equally many of both: one text goes with all of the others."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise ApiError(
                400,
                f"text_1 has {len(first)} texts and text_2 {len(second)}: give one, or as many as text_2",
                "text_1, text_2",
            )
        return first, second


def embedding_answer(body: EmbeddingBody, name: str, vectors: bytes, tokens: list[int]) -> dict[str, Any]:
    """vectors: float32, little endian, one after the other."""
    size = len(vectors) // len(tokens)
    data = []
    for i in range(len(tokens)):
        part = vectors[i * size : (i + 1) * size]
        value = base64.b64encode(part).decode() if body.encoding_format == "base64" else array("f", part).tolist()
        data.append({"object": "embedding", "index": i, "embedding": value})
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return {"object": "list", "model": name, "data": data, "usage": usage, **_warnings(body)}


def rerank_answer(body: RerankBody, name: str, scores: list[float], tokens: list[int]) -> dict[str, Any]:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: body.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if body.return_documents is not False:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    total = sum(tokens)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": name,
        "results": results,
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "meta": {"tokens": {"input_tokens": total}},
        **_warnings(body),
    }


def score_answer(body: ScoreBody, name: str, scores: list[float], tokens: list[int]) -> dict[str, Any]:
    total = sum(tokens)
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)],
        "usage": {"prompt_tokens": total, "total_tokens": total},
        **_warnings(body),
    }


def _warnings(body: Body) -> dict[str, Any]:
    ignored = body.ignored()
    return {"warnings": ignored} if ignored else {}


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["vectors"], route_class=Route)

    async def backend_for(name: str | None, kind: str, request: Request) -> Backend:
        backend = await server.models.get(name, request.state.caller)
        await model_info(backend, kind)
        return backend

    @routes.post("/v1/embeddings", response_class=Response)
    async def embeddings(body: EmbeddingBody, request: Request) -> Response:
        inputs = body.inputs()
        backend = await backend_for(body.model, "embedding", request)
        found = await backend.ask("embed", inputs=inputs, dimensions=body.dimensions)

        def response() -> Response:  # megabytes of numbers: not on the event loop
            vectors = base64.b64decode(found["vectors"])
            return plain_response(embedding_answer(body, backend.name, vectors, found["tokens"]))

        return await asyncio.to_thread(response)

    @routes.post("/v1/rerank", response_class=Response)
    @routes.post("/v2/rerank", include_in_schema=False)
    @routes.post("/rerank", include_in_schema=False)
    async def rerank(body: RerankBody, request: Request) -> Response:
        backend = await backend_for(body.model, "reranker", request)
        found = await backend.ask("rerank", query=body.query, documents=body.documents, instruction=body.instruction)
        return plain_response(rerank_answer(body, backend.name, found["scores"], found["tokens"]))

    @routes.post("/v1/score", response_class=Response)
    @routes.post("/score", include_in_schema=False)
    async def score(body: ScoreBody, request: Request) -> Response:
        queries, documents = body.pairs()
        backend = await backend_for(body.model, "reranker", request)
        scores: list[float] = []
        tokens: list[int] = []
        start = 0
        while start < len(queries):  # each run of pairs with one query is one question
            end = start
            while end < len(queries) and queries[end] == queries[start]:
                end += 1
            found = await backend.ask(
                "rerank", query=queries[start], documents=documents[start:end], instruction=body.instruction
            )
            scores, tokens, start = scores + found["scores"], tokens + found["tokens"], end
        return plain_response(score_answer(body, backend.name, scores, tokens))

    return routes
