"""How much, how long, how many: on a real socket, with models that only play."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.chat import TextDelta
from qwen3.serve.body import _values, parse
from qwen3.serve.errors import ApiError
from qwen3.serve.keys import Caller
from qwen3.serve.limits import BODIES, Limits
from qwen3.serve.settings import Settings
from tests.serve.conftest import AppClient, Listening, bearer
from tests.serve.fakes import SCRIPT, FakeModels
from tests.serve.test_app import BODIES as EXAMPLES
from tests.serve.test_app import CHAT, HELLO, message_of

QUICK: dict[str, Any] = {"models": (("fake", "fake"),), "header_timeout": 0.4, "body_timeout": 0.5, "max_body": 4096}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def status(answer: bytes) -> int:
    """Of the only answer in these bytes, whose error has our shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    code = int(head.split()[1])
    if code >= 400:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return code


# JSON


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('a,[]{}"\\:', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('k,["\\', max_size=3), inner, max_size=4),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int]:
    """(depth, commas and opening brackets)."""
    if not isinstance(value, (dict, list)):
        return 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((d for d, _ in inner), default=0), 1 + max(0, len(inner) - 1) + sum(n for _, n in inner)


@given(NESTED, st.booleans())
def test_depth_and_values_are_counted_as_they_are(value: Any, ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii).encode()
    depth, values = counted(value)
    assert _values(body) == values
    assert parse(body, max(1, depth)) == value
    if depth > 1 and (body.count(b"[") + body.count(b"{")) > depth - 1:
        with pytest.raises(ApiError, match="deeper"):
            parse(body, depth - 1)


def test_many_values() -> None:
    """More than memory could be filled with by a small body; in a text they are no values."""
    for body in (b"[" + b"1," * (2 << 20) + b"1]", b"[" + b"[]," * (2 << 20) + b"[]]", b"[" * (5 << 20)):
        with pytest.raises(ApiError, match="values"):
            parse(body, 64)
    assert len(parse(b'["' + b'1,[\\"' * (1 << 20) + b'"]', 64)[0]) == 4 << 20


# Bodies


@pytest.mark.parametrize("path", EXAMPLES)
def test_bodies_that_are_too_long(make_client: Callable[..., AppClient], path: str) -> None:
    client = make_client(Settings(**{**QUICK, "max_body": 2048}))
    fits = client.post(path, {**EXAMPLES[path], "user": "x" * 1000})
    assert fits.status_code == 200
    for size in (2048, 100_000, 1_000_000):
        answer = client.post(path, {**EXAMPLES[path], "user": "x" * size})
        assert answer.status_code == 413
        assert "2,048 bytes" in message_of(answer)
        assert answer.headers["connection"] == "close"
    assert len(client.backend.calls) == 1


def test_chunks_are_counted(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**QUICK))

    def chunks(count: int) -> Any:
        for _ in range(count):
            yield b"x" * 1000

    answer = httpx.post(server.url + CHAT, content=chunks(10), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    body = json.dumps(HELLO).encode()
    pieces = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body)
    said = server.say(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200")


def test_a_length_that_is_far_too_much_is_not_waited_for(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**{**QUICK, "body_timeout": 30.0}))
    start = time.monotonic()
    assert status(server.say(HEAD + b"content-length: 99999999999\r\n\r\n{")) == 413
    assert time.monotonic() - start < 2


def test_a_body_that_crawls(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**QUICK))
    start = time.monotonic()
    assert status(server.say(HEAD + b"content-length: 100\r\n\r\n{")) == 408
    assert 0.4 < time.monotonic() - start < 3
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        with suppress(ConnectionError):
            for _ in range(10):  # each byte in time, the whole not
                slow.sendall(b" ")
                time.sleep(0.1)
        assert status(slow.recv(65_536)) == 408


def test_large_bodies_of_many(make_client: Callable[..., AppClient]) -> None:
    """Together they may take so much memory and no more."""
    limits = Limits(Settings(**QUICK))
    with limits.memory() as (take, _):
        take(BODIES * 4096 - 10)
        with limits.memory() as (more, release):
            more(10)
            with pytest.raises(ApiError) as caught:
                more(1)
            assert caught.value.status == 503
            release()
            assert limits.held == BODIES * 4096 - 10
    assert limits.held == 0
    client = make_client(Settings(**QUICK))
    client.post(CHAT, HELLO)
    client.post(CHAT, {})
    assert client.server.limits.held == 0


# Headers


def test_headers_that_crawl(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**QUICK))
    for start_of_it in (b"", b"G", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "):
        start = time.monotonic()
        assert status(server.say(start_of_it)) == 408
        assert 0.3 < time.monotonic() - start < 3
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:  # the second request of a connection
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # may pass between two
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionError):
            for letter in b"GET /heal":
                slow.sendall(bytes([letter]))
                time.sleep(0.1)
        assert status(slow.recv(65_536)) == 408
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 5_000_000,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /?" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /" + b"a" * 5_000_000,
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a" * 3_000_000 + b": b",
    ],
    ids=["one", "many", "endless", "path", "query", "endless-path", "endless-name"],
)
def test_giant_headers(listen: Callable[..., Listening], head: bytes) -> None:
    server = listen(Settings(models=(("fake", "fake"),)))
    said = server.say(head)
    if said:  # else the connection was reset while we still wrote
        assert status(said) in (400, 431)
    assert server.get("/health").status_code == 200


def test_trailers_without_end(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(models=(("fake", "fake"),)))
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    for trailer in (b"x: " + b"a" * 3_000_000, b"a: b\r\n" * 500_000):
        said = server.say(head + trailer)
        assert not said.startswith(b"HTTP/1.1 200")
    assert server.get("/health").status_code == 200


def test_what_is_no_http(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**QUICK))
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        assert status(server.say(noise)) in (400, 408)
    both = HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"
    assert status(server.say(both)) in (400, 408)
    assert server.models.backend.calls == []


def test_connections_are_counted(listen: Callable[..., Listening]) -> None:
    server = listen(Settings(**{**QUICK, "max_connections": 3, "header_timeout": 30.0}))
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    time.sleep(0.1)
    assert status(server.say(b"")) == 503
    for connection in held:
        connection.close()
    time.sleep(0.1)
    assert server.get("/health").status_code == 200


# Requests at once


def test_requests_of_one_key(make_client: Callable[..., AppClient], tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.touch(0o600)
    path.write_text("alice:alice-secret-0123456789\nbob:bob-secret-0123456789:max=1\n")
    client = make_client(Settings(models=(("fake", "fake"),), api_key_file=path, max_per_key=3))
    client.backend.delay = 0.25

    def ask(name: str) -> httpx.Response:
        return client.post(CHAT, HELLO, headers=bearer(name))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, ["alice"] * 6 + ["bob"] * 4))
    alice, bob = answers[:6], answers[6:]
    assert sorted(answer.status_code for answer in alice) == [200] * 3 + [429] * 3
    assert sorted(answer.status_code for answer in bob) == [200] + [429] * 3
    refused = next(answer for answer in alice if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-should-retry"] == "true"
    assert "3 requests" in message_of(refused)
    assert ask("bob").status_code == 200
    assert client.server.limits.running == 0


def test_requests_of_all(make_client: Callable[..., AppClient]) -> None:
    client = make_client(Settings(models=(("fake", "fake"),), max_queue=2, max_batch=1))
    client.backend.delay = 0.1
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post(CHAT, HELLO), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 3
    assert client.get("/health").status_code == 200


def test_a_slot_is_given_back_whatever_happens() -> None:
    limits = Limits(Settings(max_per_key=1))
    alice = Caller("alice")
    for error in (ValueError, asyncio.CancelledError, ApiError):
        with pytest.raises(error), limits.slot(alice):
            raise error(*([400, "x"] if error is ApiError else []))
    assert limits.running == 0
    assert not limits._by_caller
    with limits.slot(alice), limits.slot(Caller("bob")), pytest.raises(ApiError), limits.slot(alice):
        raise AssertionError


def test_who_asks_again_at_once_is_not_refused_for_the_answer_just_read() -> None:
    """An answer's last byte is read before the server is done with its request; that takes a moment."""
    limits, alice = Limits(Settings(max_per_key=1)), Caller("alice")

    async def work() -> None:
        with limits.slot(alice):
            waiting = asyncio.create_task(limits.turn(alice))
            await asyncio.sleep(0.03)
            assert not waiting.done()
        await waiting
        with limits.slot(alice):
            begun = time.monotonic()
            await asyncio.wait_for(limits.turn(alice), 5)
            assert time.monotonic() - begun >= 0.2
            with pytest.raises(ApiError), limits.slot(alice):
                pass
        with pytest.raises(StopIteration):  # it ends without waiting for anything
            limits.turn(alice).send(None)

    asyncio.run(work())


def test_streams_can_be_hurried_when_no_more_are_taken(make_client: Callable[..., AppClient], key_file: Path) -> None:
    models = FakeModels()
    client = make_client(Settings(models=(("fake", "fake"),), api_key_file=key_file, max_per_key=1), models)
    models.backend.delay = 0.3
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, CHAT, {**HELLO, "stream": True}, headers=bearer("alice"))
        end = time.monotonic() + 5
        while not client.server.streams and time.monotonic() < end:
            time.sleep(0.02)
        (id,) = client.server.streams
        assert client.post(CHAT, HELLO, headers=bearer("alice")).status_code == 429
        control = {"id": id, "action": "cancel"}
        assert client.post(f"{CHAT}/control", control, headers=bearer("bob")).status_code == 404
        assert client.post(f"{CHAT}/control", control, headers=bearer("alice")).status_code == 200
        assert running.result().status_code == 200
    assert models.backend.streams[0].cancelled


# Readers


@pytest.mark.parametrize("what", ["a file", "an answer"])
def test_readers_that_take_nothing(listen: Callable[..., Listening], tmp_path: Path, what: str) -> None:
    """They are dropped, whether what they were sent comes in pieces or is there already."""
    server = listen(Settings(models=(("fake", "fake"),), files_dir=tmp_path, write_timeout=0.4))
    if what == "a file":
        upload = {"files": {"file": ("a.jsonl", b"x" * (16 << 20))}, "data": {"purpose": "batch"}}
        file = httpx.post(server.url + "/v1/files", timeout=20, **upload).json()["id"]
        ask = f"GET /v1/files/{file}/content HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    else:
        server.models.backend.script = (TextDelta("x" * (16 << 20), (1,)), *SCRIPT[-1:])
        body = json.dumps(HELLO).encode()
        ask = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(ask)
        end = time.monotonic() + 10
        while not (open_now := server.process.server_state.connections):
            assert time.monotonic() < end
        time.sleep(0.3)
        slow.recv(1000)
        while open_now:
            assert time.monotonic() < end
            time.sleep(0.02)
        left = 0
        with suppress(ConnectionError):
            while piece := slow.recv(1 << 20):
                left += len(piece)
    assert left < 8 << 20  # of what its length says; the rest was given up
    assert server.get("/health").status_code == 200
