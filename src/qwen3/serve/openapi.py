"""`/openapi.json`: the requests as FastAPI reads them from the bodies' classes, the answers and errors as told here.

The answers are built by hand, for speed; these schemas describe them, and a test holds every route to its own.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qwen3.serve.errors import dialect_of
from qwen3.serve.security import OPEN_PATHS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
ANYTHING: Schema = {}
OBJECT: Schema = {"type": "object"}
BYTES: Schema = {"type": "string", "format": "binary"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def const(*values: str) -> Schema:
    return {"const": values[0]} if len(values) == 1 else {"enum": list(values)}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def table(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def record(needed: dict[str, Schema], **more: Schema) -> Schema:
    """An object that has all of `needed`, and `more` where there is something to say."""
    return {"type": "object", "required": list(needed), "properties": needed | more}


def listing(items: Schema, **more: Schema) -> Schema:
    return record({"object": const("list"), "data": several(items)}, **more)


WARNINGS = several(TEXT)
USAGE = {"prompt_tokens": COUNT, "total_tokens": COUNT}
CACHED = record({"cached_tokens": COUNT})
TOOL_CALL = record(
    {"id": TEXT, "type": const("function"), "function": record({"name": TEXT, "arguments": TEXT})},
)
LOGPROB = {"token": TEXT, "logprob": NUMBER, "bytes": several(COUNT)}
SUMMARY = record({"type": const("summary_text"), "text": TEXT})
ENDS = ("stop", "length", "tool_calls")
OLLAMA_TIMES = {
    "total_duration": COUNT,
    "load_duration": COUNT,
    "prompt_eval_count": COUNT,
    "prompt_eval_duration": COUNT,
    "eval_count": COUNT,
    "eval_duration": COUNT,
}
OLLAMA_ENTRY = {"name": TEXT, "model": TEXT, "modified_at": TEXT, "size": COUNT, "digest": TEXT, "details": OBJECT}

SCHEMAS: dict[str, Schema] = {
    "OpenAIError": record(
        {"error": record({"message": TEXT, "type": TEXT, "param": maybe(TEXT), "code": maybe(TEXT)})}
    ),
    "AnthropicError": record({"type": const("error"), "error": record({"type": TEXT, "message": TEXT})}),
    "OllamaError": record({"error": TEXT}),
    "ThinkingReport": record(
        {"mode": const("on", "off", "auto"), "budget": maybe(COUNT), "used": COUNT, "forced_tokens": COUNT},
        ended_by=maybe(
            const("natural", "budget", "steps", "time", "client", "loop", "eos", "length", "cancelled", "stop")
        ),
        source=maybe(const("explicit", "switch", "default", "auto")),
        steps=COUNT,
        discarded_tokens=COUNT,
        window=maybe(COUNT),
    ),
    "ChatUsage": record(
        USAGE
        | {
            "completion_tokens": COUNT,
            "prompt_tokens_details": CACHED,
            "completion_tokens_details": record({"reasoning_tokens": COUNT}),
        }
    ),
    "ChatLogprobs": record(
        {"content": several(record(LOGPROB | {"top_logprobs": several(record(LOGPROB))}))}, refusal={"type": "null"}
    ),
    "ChatMessage": record(
        {"role": const("assistant"), "content": maybe(TEXT)},
        refusal={"type": "null"},
        reasoning_content=maybe(TEXT),
        reasoning=maybe(TEXT),
        tool_calls=several(TOOL_CALL),
    ),
    "ChatCompletion": record(
        {
            "id": TEXT,
            "object": const("chat.completion"),
            "created": COUNT,
            "model": TEXT,
            "choices": several(
                record(
                    {"index": COUNT, "message": ref("ChatMessage"), "finish_reason": const(*ENDS)},
                    logprobs=maybe(ref("ChatLogprobs")),
                    stop_reason={"type": ["string", "integer", "null"]},
                    thinking=ref("ThinkingReport"),
                )
            ),
            "usage": ref("ChatUsage"),
        },
        warnings=WARNINGS,
        thinking=maybe(ref("ThinkingReport")),
        timings=table(maybe(NUMBER)),
        seed=maybe(WHOLE),
        service_tier=TEXT,
        system_fingerprint=maybe(TEXT),
        prompt_logprobs=several(maybe(OBJECT)),
    ),
    "Completion": record(
        {
            "id": TEXT,
            "object": const("text_completion"),
            "created": COUNT,
            "model": TEXT,
            "choices": several(
                record(
                    {"index": COUNT, "text": TEXT, "finish_reason": const("stop", "length")},
                    logprobs=maybe(
                        record(
                            {
                                "tokens": several(TEXT),
                                "token_logprobs": several(maybe(NUMBER)),
                                "top_logprobs": maybe(several(maybe(table(NUMBER)))),
                                "text_offset": several(COUNT),
                            }
                        )
                    ),
                    stop_reason={"type": ["string", "integer", "null"]},
                )
            ),
            "usage": record(USAGE | {"completion_tokens": COUNT, "prompt_tokens_details": CACHED}),
        },
        warnings=WARNINGS,
    ),
    "Response": record(
        {
            "id": TEXT,
            "object": const("response"),
            "created_at": NUMBER,
            "model": TEXT,
            "status": const("completed", "incomplete", "failed", "in_progress"),
            "output": several(
                {
                    "oneOf": [
                        record(
                            {"type": const("message"), "id": TEXT, "role": const("assistant")},
                            content=several(record({"type": const("output_text"), "text": TEXT})),
                            status=TEXT,
                        ),
                        record(
                            {"type": const("reasoning"), "id": TEXT, "summary": several(SUMMARY)},
                            content=several(record({"type": const("reasoning_text"), "text": TEXT})),
                            encrypted_content=maybe(TEXT),
                        ),
                        record(
                            {
                                "type": const("function_call"),
                                "id": TEXT,
                                "call_id": TEXT,
                                "name": TEXT,
                                "arguments": TEXT,
                            }
                        ),
                    ]
                }
            ),
            "usage": maybe(
                record(
                    {
                        "input_tokens": COUNT,
                        "output_tokens": COUNT,
                        "total_tokens": COUNT,
                        "input_tokens_details": CACHED,
                        "output_tokens_details": record({"reasoning_tokens": COUNT}),
                    }
                )
            ),
        },
        error=maybe(OBJECT),
        incomplete_details=maybe(record({"reason": TEXT})),
        warnings=WARNINGS,
        thinking=maybe(ref("ThinkingReport")),
    ),
    "Model": record(
        {"id": TEXT, "object": const("model"), "created": COUNT, "owned_by": TEXT, "state": TEXT},
        max_model_len=COUNT,
        kind=const("chat", "embedding", "reranker"),
        capabilities=several(TEXT),
        thinking=record({"mode": TEXT, "modes": several(TEXT)}),
    ),
    "File": record(
        {"id": TEXT, "object": const("file"), "bytes": COUNT, "created_at": COUNT, "filename": TEXT, "purpose": TEXT},
        expires_at=maybe(COUNT),
        status=TEXT,
    ),
    "Batch": record(
        {
            "id": TEXT,
            "object": const("batch"),
            "endpoint": TEXT,
            "input_file_id": TEXT,
            "status": const(
                "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
            ),
            "created_at": COUNT,
            "request_counts": record({"total": COUNT, "completed": COUNT, "failed": COUNT}),
        },
        output_file_id=maybe(TEXT),
        error_file_id=maybe(TEXT),
        errors=maybe(OBJECT),
        metadata=maybe(OBJECT),
        paused=maybe(TEXT),
    ),
    "AnthropicMessage": record(
        {
            "id": TEXT,
            "type": const("message"),
            "role": const("assistant"),
            "model": TEXT,
            "content": several(
                {
                    "oneOf": [
                        record({"type": const("thinking"), "thinking": TEXT, "signature": TEXT}),
                        record({"type": const("text"), "text": TEXT}),
                        record({"type": const("tool_use"), "id": TEXT, "name": TEXT, "input": OBJECT}),
                    ]
                }
            ),
            "stop_reason": const("end_turn", "max_tokens", "stop_sequence", "tool_use"),
            "stop_sequence": maybe(TEXT),
            "usage": record({"input_tokens": COUNT, "output_tokens": COUNT}),
        },
        warnings=WARNINGS,
        thinking=ref("ThinkingReport"),
    ),
    "OllamaChat": record(
        {
            "model": TEXT,
            "created_at": TEXT,
            "message": record(
                {"role": const("assistant"), "content": TEXT},
                thinking=TEXT,
                tool_calls=several(record({"function": OBJECT})),
            ),
            "done": TRUTH,
        },
        done_reason=TEXT,
        thinking_report=ref("ThinkingReport"),
        warnings=WARNINGS,
        **OLLAMA_TIMES,
    ),
    "OllamaGenerate": record(
        {"model": TEXT, "created_at": TEXT, "response": TEXT, "done": TRUTH},
        thinking=TEXT,
        done_reason=TEXT,
        thinking_report=ref("ThinkingReport"),
        warnings=WARNINGS,
        **OLLAMA_TIMES,
    ),
}

EVENTS, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"
# One event; its data is JSON, but for the `[DONE]` that ends OpenAI's streams. A line of Ollama's is JSON, too.
STREAMS = {EVENTS: record({"data": TEXT}, event=TEXT), LINES: TEXT}
STATUS = record({"status": TEXT})
CONTROL = record({"id": TEXT, "action": TEXT, "ok": TRUTH}, warnings=WARNINGS)
EMBEDDING = record({"object": const("embedding"), "index": COUNT, "embedding": {"anyOf": [several(NUMBER), TEXT]}})
# (method, path) → schema of the answer, and the media type of the stream where there may be one instead
ANSWERS: dict[tuple[str, str], tuple[Schema, str | None]] = {
    ("get", "/health"): (STATUS, None),
    ("get", "/ready"): (STATUS, None),
    ("get", "/version"): (record({"version": TEXT}), None),
    ("get", "/status.json"): (record({"version": TEXT, "status": TEXT, "models": several(OBJECT)}), None),
    ("post", "/v1/chat/completions"): (ref("ChatCompletion"), EVENTS),
    ("post", "/v1/completions"): (ref("Completion"), EVENTS),
    ("post", "/v1/responses"): (ref("Response"), EVENTS),
    ("post", "/v1/embeddings"): (listing(EMBEDDING, model=TEXT, usage=record(USAGE), warnings=WARNINGS), None),
    ("post", "/v1/rerank"): (
        record(
            {
                "id": TEXT,
                "object": const("list"),
                "model": TEXT,
                "results": several(
                    record({"index": COUNT, "relevance_score": NUMBER}, document=record({"text": TEXT}))
                ),
                "usage": record(USAGE),
            },
            warnings=WARNINGS,
        ),
        None,
    ),
    ("post", "/v1/score"): (
        listing(record({"index": COUNT, "object": const("score"), "score": NUMBER}), usage=record(USAGE)),
        None,
    ),
    ("get", "/v1/models"): (listing(ref("Model")), None),
    ("get", "/v1/models/{id}"): (ref("Model"), None),
    ("post", "/v1/files"): (ref("File"), None),
    ("get", "/v1/files"): (listing(ref("File"), has_more=TRUTH, first_id=maybe(TEXT), last_id=maybe(TEXT)), None),
    ("get", "/v1/files/{file_id}"): (ref("File"), None),
    ("delete", "/v1/files/{file_id}"): (record({"id": TEXT, "object": const("file"), "deleted": TRUTH}), None),
    ("post", "/v1/batches"): (ref("Batch"), None),
    ("get", "/v1/batches"): (listing(ref("Batch"), has_more=TRUTH, first_id=maybe(TEXT), last_id=maybe(TEXT)), None),
    ("get", "/v1/batches/{batch_id}"): (ref("Batch"), None),
    ("post", "/v1/batches/{batch_id}/cancel"): (ref("Batch"), None),
    ("post", "/tokenize"): (
        record(
            {
                "count": COUNT,
                "max_model_len": COUNT,
                "tokens": several({"anyOf": [COUNT, record({"id": COUNT, "piece": TEXT})]}),
                "token_strs": maybe(several(TEXT)),
            },
            warnings=WARNINGS,
        ),
        None,
    ),
    ("post", "/detokenize"): (record({"prompt": TEXT, "content": TEXT}, warnings=WARNINGS), None),
    ("post", "/v1/chat/completions/input_tokens"): (record({"input_tokens": COUNT}, warnings=WARNINGS), None),
    ("post", "/v1/chat/completions/control"): (CONTROL, None),
    ("delete", "/v1/requests/{id}"): (CONTROL, None),
    ("post", "/v1/messages"): (ref("AnthropicMessage"), EVENTS),
    ("post", "/v1/messages/count_tokens"): (record({"input_tokens": COUNT}, warnings=WARNINGS), None),
    ("post", "/api/chat"): (ref("OllamaChat"), LINES),
    ("post", "/api/generate"): (ref("OllamaGenerate"), LINES),
    ("get", "/api/version"): (record({"version": TEXT}), None),
    ("get", "/api/tags"): (record({"models": several(record(OLLAMA_ENTRY))}), None),
    ("get", "/api/ps"): (
        record(
            {
                "models": several(
                    record(OLLAMA_ENTRY | {"expires_at": TEXT, "size_vram": COUNT, "context_length": COUNT})
                )
            }
        ),
        None,
    ),
    ("post", "/api/show"): (record({"details": OBJECT, "model_info": OBJECT, "capabilities": several(TEXT)}), None),
    ("post", "/api/pull"): (STATUS, LINES),
    ("post", "/api/embed"): (record({"model": TEXT, "embeddings": several(several(NUMBER))}), None),
    ("post", "/api/embeddings"): (record({"embedding": several(NUMBER)}), None),
}

# Errors

ERRORS = {
    400: "Something about the request is wrong; `param` names the field.",
    401: "A key is missing or unknown.",
    403: "The key, the host or the origin may not.",
    404: "There is no such model, file, batch or running answer.",
    408: "The body did not arrive in time.",
    409: "What is asked for cannot be done now.",
    413: "The body is too large.",
    415: "The body is of another media type.",
    429: "The key has too many requests under way; `retry-after` says when to come back.",
    503: "The model is loading, full or ending; `retry-after` says when to come back.",
    507: "The server's disk is full.",
}
ERROR_OF = {"openai": "OpenAIError", "anthropic": "AnthropicError", "ollama": "OllamaError"}
PLAIN = {("get", "/metrics"): "text/plain", ("get", "/v1/files/{file_id}/content"): "application/octet-stream"}
RETRIES = {"retry-after": {"description": "Seconds.", "schema": {"type": "string"}}}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application, made once: what FastAPI knows, with the answers and errors."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, summary=app.summary
        )
        parts = found.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas |= SCHEMAS
        parts["responses"] = {
            f"{kind}{status}": {
                "description": words,
                "content": {JSON: {"schema": ref(kind)}},
                **({"headers": RETRIES} if status in (429, 503) else {}),
            }
            for kind in ERROR_OF.values()
            for status, words in ERRORS.items()
        }
        parts["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        found["security"] = [{}, {"bearer": []}, {"apiKey": []}]  # {}: a server without keys
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                _answers(operation, method, path)
                if method == "get" and path in OPEN_PATHS:
                    operation["security"] = []
        app.openapi_schema = found
    return app.openapi_schema


def _answers(operation: dict[str, Any], method: str, path: str) -> None:
    """Fills in what an operation may answer."""
    content: dict[str, Any] = {}
    if kind := PLAIN.get((method, path)):
        content = {kind: {"schema": TEXT if kind.startswith("text") else BYTES}}
    elif answer := ANSWERS.get((method, path)):
        schema, stream = answer
        content = {JSON: {"schema": schema}} | ({stream: {"schema": STREAMS[stream]}} if stream else {})
    kind = ERROR_OF[dialect_of(path)]
    errors: dict[str, Any] = {str(status): {"$ref": f"#/components/responses/{kind}{status}"} for status in ERRORS}
    if path in ("/health", "/ready"):
        errors["503"] = {
            "description": "Stuck, or not ready.",
            "content": {JSON: {"schema": STATUS}},
            "headers": RETRIES,
        }
    fine = {"200": {"description": "The answer.", "content": content}} if content else {}
    operation["responses"] = fine | errors
