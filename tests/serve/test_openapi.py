"""`/openapi.json` against the routes there are; answers and errors of every dialect against what it says of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi.routing import APIRoute

from qwen3.serve.app import ROUTERS, create_app
from qwen3.serve.errors import dialect_of
from qwen3.serve.openapi import ANSWERS, ERROR_OF, ERRORS, PLAIN
from tests.serve.conftest import Running

CLIENTS = Path(os.environ.get("QWEN3_CLIENTS", "nowhere")) / "schemathesis" / "bin"
needs_clients = pytest.mark.skipif(
    not CLIENTS.is_dir(), reason="QWEN3_CLIENTS has no schemathesis; tools/client_envs.py makes it"
)
# Of Ollama, answered with why that is not done over HTTP; and a response is never stored.
REFUSED = {
    ("post", "/api/create"), ("post", "/api/copy"), ("post", "/api/push"), ("delete", "/api/delete"),
    ("get", "/v1/responses/{id}"),
}  # fmt: skip
USER = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": "embedded", "messages": USER, "enable_thinking": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_it_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for pointer in set(references(document)):
        found: Any = document
        for part in pointer.removeprefix("#/").split("/"):
            found = found[part]
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@needs_clients
def test_a_validator_of_others_takes_it(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    done = subprocess.run([CLIENTS / "openapi-spec-validator", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_route_is_in_it_with_answers_and_errors(document: dict[str, Any]) -> None:
    told = {(method, path) for method, path, _ in operations(document)}
    server = create_app().state.server
    there = {
        (method.lower(), route.path_format)
        for module in ROUTERS
        for route in module.router(server).routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods - {"HEAD"}
    }
    assert told == there
    assert told - REFUSED == set(ANSWERS) | set(PLAIN)
    for method, path, operation in operations(document):
        responses = operation["responses"]
        assert ("200" in responses) == ((method, path) not in REFUSED), path
        assert "422" not in responses
        name = ERROR_OF[dialect_of(path)]
        for status in ERRORS:
            if status != 503 or path not in ("/health", "/ready"):
                assert responses[str(status)]["$ref"].endswith(f"{name}{status}")
        if method == "post" and (method, path) not in REFUSED and not path.endswith("/cancel"):
            assert operation["requestBody"]["content"], path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/models",
        "/v1/models/{id}", "/v1/files", "/v1/batches", "/v1/messages", "/v1/messages/count_tokens", "/api/chat",
        "/api/generate", "/api/tags", "/api/show", "/api/ps", "/api/version", "/api/embed", "/tokenize", "/detokenize",
        "/v1/chat/completions/control", "/health", "/ready", "/metrics",
    ],
)  # fmt: skip
def test_what_clients_expect_is_there(document: dict[str, Any], path: str) -> None:
    assert path in document["paths"]


def check(document: dict[str, Any], method: str, path: str, response: httpx.Response) -> None:
    """The response's status, media type and body are in the document."""
    told = document["paths"][path][method]["responses"][str(response.status_code)]
    if pointer := told.get("$ref"):
        told = document["components"]["responses"][pointer.rsplit("/", 1)[1]]
    kind = response.headers["content-type"].split(";")[0]
    schema = told["content"][kind]["schema"]
    if kind == "application/json":
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())


ASKED: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "chat": ("post", "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 1, "n": 2}),
    "chat thinking": ("post", "/v1/chat/completions", {"messages": USER, "thinking_budget": 4, "no_such": 1}),
    "chat tools": ("post", "/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required"}),
    "chat stream": ("post", "/v1/chat/completions", CHAT | {"stream": True}),
    "count": ("post", "/v1/chat/completions/input_tokens", CHAT),
    "completions": ("post", "/v1/completions", {"prompt": ["1,", "3"], "max_tokens": 3, "logprobs": 1, "echo": True}),
    "responses": ("post", "/v1/responses", {"model": "embedded", "input": "What is 6 * 7?"}),
    "models": ("get", "/v1/models", None),
    "messages": (
        "post", "/v1/messages",
        {"model": "embedded", "max_tokens": 99, "messages": USER, "thinking": {"type": "enabled", "budget_tokens": 20}},
    ),
    "count_tokens": ("post", "/v1/messages/count_tokens", {"model": "embedded", "messages": USER}),
    "ollama chat": ("post", "/api/chat", {"model": "embedded", "messages": USER, "stream": False}),
    "ollama stream": ("post", "/api/chat", {"model": "embedded", "messages": USER}),
    "ollama generate": ("post", "/api/generate", {"model": "embedded", "prompt": "Hello", "stream": False}),
    "ollama tags": ("get", "/api/tags", None),
    "ollama ps": ("get", "/api/ps", None),
    "ollama show": ("post", "/api/show", {"model": "embedded"}),
    "ollama version": ("get", "/api/version", None),
    "tokenize": ("post", "/tokenize", {"prompt": "Hello", "with_pieces": True, "return_token_strs": True}),
    "detokenize": ("post", "/detokenize", {"tokens": [1, 2]}),
    "health": ("get", "/health", None),
    "ready": ("get", "/ready", None),
    "metrics": ("get", "/metrics", None),
    "status": ("get", "/status.json", None),
    "version": ("get", "/version", None),
}  # fmt: skip


def test_what_is_refused_is_not_described_as_good(document: dict[str, Any]) -> None:
    bodies = document["components"]["schemas"]
    efforts = {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]}
    for name in ("qwen3__serve__openai__chat__ChatBody", "ResponsesBody"):
        field = bodies[name]["properties"]["reasoning_effort"]
        assert efforts["enum"] in [kind.get("enum") for kind in field["anyOf"]], name
    predicted = bodies["Options"]["properties"]["num_predict"]["anyOf"][0]
    for value, good in ((-1, True), (-2, True), (1, True), (0, False), (-3, False)):
        assert jsonschema.Draft202012Validator(predicted).is_valid(value) == good


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_as_it_says(document: dict[str, Any], server: Running, name: str) -> None:
    method, path, body = ASKED[name]
    response = httpx.request(method.upper(), server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    check(document, method, path, response)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses", "/tokenize"])
def test_errors_are_as_it_says(document: dict[str, Any], server: Running, path: str) -> None:
    good = {"model": "embedded", "messages": USER, "max_tokens": 5, "input": "Hello"}
    for status, body in ((400, b'{"model": 3'), (400, b"[]"), (400, b'{"model": 3}'), (404, b'{"model": "none-such"}')):
        if status == 404:
            wanted = good if path != "/tokenize" else {"prompt": "Hello"}
            body = json.dumps(wanted | {"model": "none-such"}).encode()
        response = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
        assert response.status_code == status, response.text
        check(document, "post", path, response)


@needs_clients
@pytest.mark.timeout(240)
def test_no_request_makes_it_fail(tmp_path: Path) -> None:
    """A few hundred of the cases that `tools/fuzz_openapi.py` tries."""
    from tools.fuzz_openapi import fuzz, served

    server = served(tmp_path)
    try:
        for seed in (1, 2):  # bodies as described, and bodies that get answers
            found = fuzz(CLIENTS.parents[1], server, seed, 4, "fuzzing", tmp_path)
            assert not found["failures"], "\n".join(found["failures"])
            assert found["cases"] >= 150
    finally:
        server.stop()
