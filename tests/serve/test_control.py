"""Answers that are being streamed can be hurried and cancelled by those who asked for them, and by nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from qwen3.chat import Finish, TextDelta
from tests.serve.conftest import AppClient, Running, bearer
from tests.serve.fakes import REPORT, USAGE, FakeStream

PATH = "/v1/chat/completions/control"
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def while_streaming(client: AppClient, act: Callable[[str], Any], **headers: Any) -> tuple[str, FakeStream, Any]:
    """(the stream's whole text, the fake stream, what `act` gave), act being run with the response's id meanwhile."""
    client.backend.script = [*(TextDelta("x", (1,)) for _ in range(200)), Finish("stop", USAGE, REPORT)]
    client.backend.delay = 0.01

    async def work() -> tuple[str, Any]:
        task = asyncio.create_task(client.http.post("/v1/chat/completions", json=BODY, **headers))
        while not client.server.streams:
            await asyncio.sleep(0.005)
        (id,) = client.server.streams
        found = await act("chatcmpl-" + id.removeprefix("req-"))
        if not client.backend.streams[0].cancelled:
            client.backend.streams[0].delay = 0.0
        return (await task).text, found

    text, found = client.run(work())
    return text, client.backend.streams[0], found


@pytest.mark.parametrize(
    ("action", "hurried", "cancelled"),
    [("answer_now", True, False), ("reasoning_end", True, False), ("cancel", False, True)],
)
def test_actions(app_client: AppClient, action: str, hurried: bool, cancelled: bool) -> None:
    async def act(id: str) -> httpx.Response:
        return await app_client.http.post(PATH, json={"id": id, "action": action, "why": 1})

    text, stream, answer = while_streaming(app_client, act)
    assert answer.status_code == 200
    found = answer.json()
    assert found["ok"]
    assert found["id"] in text
    assert found["action"] == action
    assert "why is not a field" in found["warnings"][0]
    assert (stream.hurried, stream.cancelled) == (hurried, cancelled)
    assert not app_client.server.streams


def test_delete_cancels(app_client: AppClient) -> None:
    async def act(id: str) -> httpx.Response:
        return await app_client.http.delete(f"/v1/requests/{id}")

    _, stream, answer = while_streaming(app_client, act)
    assert answer.json()["ok"]
    assert stream.cancelled


def test_others_find_nothing(keyed_client: AppClient) -> None:
    async def act(id: str) -> list[httpx.Response]:
        mine, other = bearer("bob"), bearer("alice")
        http = keyed_client.http
        return [
            await http.post(PATH, json={"id": id, "action": "cancel"}, headers=mine),
            await http.delete(f"/v1/requests/{id}", headers=mine),
            await http.post(PATH, json={"id": id, "action": "answer_now"}),
            await http.post(PATH, json={"id": id, "action": "answer_now"}, headers=other),
        ]

    _, stream, answers = while_streaming(keyed_client, act, headers=bearer("alice"))
    assert [answer.status_code for answer in answers] == [404, 404, 401, 200]
    assert not stream.cancelled
    assert stream.hurried


def test_an_admin_may_end_what_others_asked_for(keyed_client: AppClient) -> None:
    async def act(id: str) -> httpx.Response:
        return await keyed_client.http.delete(f"/v1/requests/{id}", headers=bearer("alice"))

    _, stream, answer = while_streaming(keyed_client, act, headers=bearer("bob"))
    assert answer.status_code == 200
    assert stream.cancelled


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"id": "chatcmpl-" + "0" * 32, "action": "cancel"}, 404, "id"),
        ({"id": "x", "action": "cancel"}, 404, "id"),
        ({"id": "x" * 600, "action": "cancel"}, 400, "id"),
        ({"id": "x", "action": "explode"}, 400, "action"),
        ({"action": "cancel"}, 400, "id"),
        ([], 400, None),
    ],
)
def test_errors(app_client: AppClient, body: Any, status: int, param: str | None) -> None:
    answer = app_client.post(PATH, body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def events(response: httpx.Response) -> Any:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_answer_now_and_cancel_on_a_real_server(server: Running) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is 12 + 30?"}], "stream": True, "max_tokens": 3000,
        "logit_bias": {}, "stream_options": {"include_usage": True}, "thinking": {"loop_guard": False},
    }  # fmt: skip
    with server.client() as client:
        # `</think>` is made impossible, so that only we end the thinking.
        (close,) = client.post("/tokenize", json={"prompt": "</think>", "add_special_tokens": False}).json()["tokens"]
        body["logit_bias"] = {str(close): -100}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            found = []
            for chunk in events(response):
                found.append(chunk)
                if len(found) == 4:
                    assert client.post(PATH, json={"id": chunk["id"], "action": "answer_now"}).status_code == 200
        assert found[-1]["thinking"]["ended_by"] == "client"
        assert found[-1]["usage"]["completion_tokens"] < 1000
        body |= {"ignore_eos": True, "enable_thinking": False}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            found = []
            for chunk in events(response):
                found.append(chunk)
                if len(found) == 4:
                    assert client.delete(f"/v1/requests/{chunk['id']}").status_code == 200
        assert found[-2]["choices"][0]["stop_reason"] == "cancelled"
        assert found[-1]["warnings"][-1] == "the answer was cancelled before it was complete"
