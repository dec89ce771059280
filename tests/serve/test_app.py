"""What holds for every path, whatever dialect answers: ids, shapes of errors, methods, bodies, states."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from qwen3.errors import ModelNotFoundError
from qwen3.serve.app import create_app
from qwen3.serve.body import Route
from qwen3.serve.errors import ApiError
from qwen3.serve.settings import Settings
from tests.serve.conftest import AppClient
from tests.serve.fakes import FakeBackend, FakeModels

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
BODIES = {
    "/v1/chat/completions": HELLO,
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {**HELLO, "max_tokens": 16, "model": "fake"},
    "/api/chat": {**HELLO, "model": "fake", "stream": False},
    "/api/generate": {"model": "fake", "prompt": "Hello", "stream": False},
}


def message_of(response: httpx.Response) -> str:
    """The message of an error, which must have the shape of its path's dialect."""
    body, path = response.json(), response.request.url.path
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        return body["error"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(body["error"]) >= {"type", "message"}
        return body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def json_posts(client: AppClient) -> list[str]:
    paths = client.app.openapi()["paths"]
    return [
        path
        for path, methods in paths.items()
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {}) and "{" not in path
    ]


def test_the_server_needs_no_torch() -> None:
    code = (
        "import sys, qwen3.serve.app as a; a.create_app(); import qwen3.serve.run;"
        "sys.exit(','.join({'torch', 'numpy'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_all_dialects_are_there(app_client: AppClient) -> None:
    assert set(BODIES) <= set(json_posts(app_client))
    for path, body in BODIES.items():
        answer = app_client.post(path, body)
        assert answer.status_code == 200, (path, answer.text)
        assert "Hello world" in answer.text or path == "/v1/completions"
    assert len(app_client.backend.calls) == len(BODIES)


def test_bodies_are_parsed_by_our_own_parser(app_client: AppClient) -> None:
    def routes(items: Any) -> Any:
        for item in items:
            inner = getattr(item, "original_router", None)
            yield from routes(inner.routes) if inner is not None else [item]

    found = [route for route in routes(app_client.app.routes) if isinstance(route, APIRoute)]
    assert len(found) > 20
    for route in found:
        if route.body_field is not None and "multipart" not in str(route.openapi_extra or route.body_field.field_info):
            assert isinstance(route, Route) or route.path == "/v1/files", route.path


# Methods and paths


@pytest.mark.parametrize("path", ["/nope", "/v1/messages/nope", "/api/nope", "/v1/chat/completions/", "/v1"])
def test_unknown_path(app_client: AppClient, path: str) -> None:
    answer = app_client.get(path)
    assert answer.status_code == 404
    assert path in message_of(answer)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/messages"), ("POST", "/health")]
)
def test_wrong_method(app_client: AppClient, method: str, path: str) -> None:
    answer = app_client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] in message_of(answer)
    assert answer.headers["x-should-retry"] == "false"


def test_all_methods_of_a_path_are_said(app_client: AppClient) -> None:
    """A path may have several routes, here one for each method."""
    for path, methods in (("/v1/files/x", "DELETE, GET"), ("/v1/batches", "GET, POST"), (CHAT, "POST")):
        answer = app_client.request("PUT", path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
        assert methods in message_of(answer)
        assert app_client.request("OPTIONS", path).headers["allow"] == f"{methods}, OPTIONS"


def test_more_messages_than_can_fit_are_refused_early(app_client: AppClient) -> None:
    """Before each of them is looked at, which would hold the event loop: tens of milliseconds for 60,000."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": ""} for i in range(2 * 4096 + 1)]
    for path, body in BODIES.items():
        name = next((name for name in ("messages", "input") if name in body), None)
        if name and path != "/v1/completions":
            answer = app_client.post(path, {**body, name: turns})
            assert answer.status_code == 400, path
            assert "so many messages" in message_of(answer)
    assert app_client.backend.calls == []
    most = app_client.post(CHAT, {"messages": turns[1 : 4096 // 4 + 1]})
    assert most.status_code == 200
    for path in ("/v1/chat/completions/input_tokens", "/tokenize", "/v1/messages/count_tokens"):
        answer = app_client.post(path, {"model": "fake", "messages": turns[:4097]})
        assert (answer.status_code, path) == (200, path)
        many = app_client.post(path, {"model": "fake", "messages": turns * 3})
        assert (many.status_code, "so many messages" in message_of(many)) == (400, True)


def test_head_is_get_without_the_body(app_client: AppClient) -> None:
    whole, head = app_client.get("/health"), app_client.request("HEAD", "/health")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert app_client.request("HEAD", "/nope").status_code == 404
    assert app_client.request("HEAD", CHAT).status_code == 405


def test_options_says_what_is_allowed(app_client: AppClient) -> None:
    answer = app_client.request("OPTIONS", CHAT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "POST" in answer.headers["allow"]


def test_a_stuck_engine_is_seen_from_outside(app_client: AppClient) -> None:
    assert (app_client.get("/health").status_code, app_client.get("/health").json()) == (200, {"status": "ok"})
    app_client.backend.stuck = True
    answer = app_client.get("/health")
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"status": "stuck"}, "2")


# Request ids


def test_request_id(app_client: AppClient) -> None:
    own = app_client.get("/health").headers["x-request-id"]
    assert own.startswith("req_")
    assert own != app_client.get("/health").headers["x-request-id"]
    for good in ("abc-1.2_3", "x" * 128):
        assert app_client.get("/nope", headers={"x-request-id": good}).headers["x-request-id"] == good
    for bad in ("", "a b", "x" * 129, "ü", "a;b", "<script>", "a\tb"):
        sent = app_client.get("/health", headers={"x-request-id": bad.encode()}).headers["x-request-id"]
        assert sent.startswith("req_")


# Bodies


WRONG: list[tuple[bytes, str]] = [
    (b"", "missing"),
    (b"{", "JSON"),
    (b"[]", ""),
    (b'"text"', ""),
    (b"null", ""),
    (b"5", ""),
    (b'{"messages": NaN}', "JSON"),
    (b'{"temperature": 1e999, "messages": Infinity}', "JSON"),
    (b'{"prompt": "\\ud800"}', "JSON"),
    (b'\xff\xfe{\x00}\x00', "JSON"),
    (b'{"a": "\xff"}', "JSON"),
    (b"\x00" * 20, "JSON"),
    (b'{"messages": ' + b"[" * 65 + b"]" * 65 + b"}", "deeper"),
    (b'{"messages": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "deeper"),
    (b"[" * 100_000, "deeper"),
    (b'{"a": ' + b"1" * 5000 + b"}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), WRONG, ids=range(len(WRONG)))
def test_wrong_bodies_are_400_in_every_dialect(app_client: AppClient, body: bytes, says: str) -> None:
    for path in json_posts(app_client):
        answer = app_client.request("POST", path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (path, answer.status_code, answer.text)
        assert says in message_of(answer), path


def test_what_is_wrong_is_named(app_client: AppClient) -> None:
    answer = app_client.post(CHAT, {**HELLO, "temperature": "hot", "top_p": 7})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"
    assert "temperature" in message_of(answer)
    assert "1 more" in message_of(answer)
    answer = app_client.post("/v1/messages", {**BODIES["/v1/messages"], "temperature": "hot"})
    assert "temperature" in message_of(answer)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "JSON"])
def test_what_is_not_declared_as_json(app_client: AppClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = app_client.request("POST", CHAT, content=json.dumps(HELLO).encode(), headers=headers)
    assert answer.status_code == 415
    assert "application/json" in message_of(answer)
    # Ollama's own examples say `curl -d`, which declares a form.
    body = json.dumps(BODIES["/api/chat"]).encode()
    assert app_client.request("POST", "/api/chat", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
def test_what_is_declared_as_json(app_client: AppClient, kind: str) -> None:
    answer = app_client.request("POST", CHAT, content=json.dumps(HELLO).encode(), headers={"content-type": kind})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_packed_bodies_are_refused(app_client: AppClient, coding: str) -> None:
    for path in (CHAT, "/v1/files", "/api/chat"):
        answer = app_client.post(path, HELLO, headers={"content-encoding": coding})
        assert answer.status_code == 415
        assert "content-encoding" in message_of(answer)


def test_large_bodies_are_parsed_too(app_client: AppClient) -> None:
    text = 'a [[ {{ \\" ü ' * 40_000
    answer = app_client.post("/tokenize", {"prompt": text})
    assert answer.status_code == 200, answer.text[:200]
    assert app_client.backend.asked[-1][1]["text"] == text


# Errors


def test_an_unknown_error_shows_nothing_of_its_inside(app_client: AppClient, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(call: Any) -> Any:
        raise RuntimeError("secret inside")

    app_client.backend.open = broken  # type: ignore[method-assign]
    logging.getLogger("qwen3.serve").propagate = True
    for path, body in BODIES.items():
        answer = app_client.post(path, body)
        assert answer.status_code == 500, path
        assert "secret" not in answer.text
        assert "log" in message_of(answer)
        assert answer.headers["x-should-retry"] == "false"
        record = [record for record in caplog.records if record.exc_info][-1]
        assert "secret inside" in str(record.exc_info)
        assert record.__dict__["fields"]["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "status", "retry", "after"),
    [
        (ApiError(503, "full", retry_after=3.4), 503, "true", "3"),
        (ApiError(503, "full", retry_after=0.01), 503, "true", "1"),
        (ApiError(503, "does not fit"), 503, "false", None),
        (ApiError(429, "yours", retry_after=1.0), 429, "true", "1"),
        (ApiError(409, "conflict"), 409, "false", None),
        (ApiError(400, "no"), 400, "false", None),
        (ModelNotFoundError("no such model"), 404, "false", None),
    ],
)
def test_who_may_try_again(app_client: AppClient, error: Exception, status: int, retry: str, after: str | None) -> None:
    app_client.backend.error = error  # type: ignore[assignment]
    for path, body in BODIES.items():
        answer = app_client.post(path, body)
        assert answer.status_code == (529 if status == 503 and path == "/v1/messages" else status)
        assert answer.headers["x-should-retry"] == retry
        assert answer.headers.get("retry-after") == after
        assert message_of(answer) == str(error)


# States


def test_ready(make_client: Callable[..., AppClient]) -> None:
    client = make_client()
    assert client.get("/ready").json() == {"status": "ready"}
    for state, status in (("restarting", 503), ("loading", 503), ("failed", 503), ("unloaded", 200), ("ready", 200)):
        client.backend.state = state
        answer = client.get("/ready")
        assert answer.status_code == status
        assert answer.json()["status"] == ("ready" if status == 200 else state)
        assert client.get("/health").status_code == 200
    client.server.started.clear()
    assert client.get("/ready").json()["status"] == "loading"
    client.server.started.set()
    client.server.failure = RuntimeError("x")
    assert client.get("/ready").json()["status"] == "failed"


def test_draining(app_client: AppClient) -> None:
    app_client.server.drain()
    for path, body in BODIES.items():
        answer = app_client.post(path, body)
        assert answer.status_code == (529 if path == "/v1/messages" else 503)
        assert answer.headers["retry-after"]
    assert app_client.get("/v1/models").status_code == 503
    assert app_client.get("/ready").json() == {"status": "draining"}
    assert app_client.get("/health").status_code == 200
    assert app_client.get("/metrics").status_code == 200
    control = app_client.post("/v1/chat/completions/control", {"id": "req-x", "action": "cancel"})
    assert control.status_code == 404  # looked for, not refused


def test_the_life_of_the_application() -> None:
    """As any ASGI server runs it."""

    class Failing(FakeModels):
        async def start(self) -> None:
            raise ModelNotFoundError("there is no such model")

    async def live(models: FakeModels) -> Any:
        app = create_app(Settings(models=(("fake", "fake"),)), models)
        async with app.router.lifespan_context(app):
            await app.state.server.started.wait()
        assert models.closed
        return app.state.server

    assert asyncio.run(live(FakeModels())).failure is None
    assert "no such model" in str(asyncio.run(live(Failing())).failure)


def test_status_for_the_page(make_client: Callable[..., AppClient]) -> None:
    client = make_client(models=FakeModels(FakeBackend("one"), FakeBackend("two")))
    client.post(CHAT, {**HELLO, "model": "two"})
    status = client.get("/status.json").json()
    assert [model["name"] for model in status["models"]] == ["one", "two"]
    assert status["models"][0]["state"] == "ready"
    history = status["history"]
    assert {"time", "tokens", "prompt", "running", "queued", "used_blocks"} == set(history)
    assert {len(row) for row in history.values()} == {300}
    assert sum(history["tokens"]) == 6
    assert sum(history["prompt"]) == 4
