"""One line per request, and nothing in it that was said or that opens a door."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3.serve import logs
from qwen3.serve.settings import Settings
from tests.serve.conftest import KEYS, AppClient, bearer
from tests.serve.test_app import BODIES, CHAT, HELLO

SECRET = "what nobody else should read"


@pytest.fixture
def log(log_as_it_was: None) -> Callable[..., io.StringIO]:
    """`log(format, level)`: where the log goes."""

    def setup(log_format: str = "json", level: str = "debug") -> io.StringIO:
        stream = io.StringIO()
        logs.setup(log_format, level, stream)
        return stream

    return setup


def test_a_line(keyed_client: AppClient, log: Callable[..., io.StringIO]) -> None:
    stream = log()
    keyed_client.post(CHAT, HELLO, headers={**bearer("alice"), "x-request-id": "mine-1"})
    keyed_client.post(CHAT, {}, headers=bearer("bob"))
    good, bad = (json.loads(line) for line in stream.getvalue().splitlines())
    assert good["event"] == "request"
    assert good["level"] == "info"
    assert (good["id"], good["method"], good["path"], good["status"]) == ("mine-1", "POST", CHAT, 200)
    assert (good["key"], good["code"]) == ("alice", None)
    assert 0 <= good["ms"] < 10_000
    assert good["time"].endswith("Z")
    assert (bad["key"], bad["status"], bad["code"]) == ("bob", 400, "missing")


def test_plain_lines(app_client: AppClient, log: Callable[..., io.StringIO]) -> None:
    stream = log("plain", "info")
    app_client.post(CHAT, HELLO)
    app_client.get("/health")  # asked for every second: only at level debug
    app_client.get("/nope")
    first, second = stream.getvalue().splitlines()
    assert f"path={CHAT} status=200" in first
    assert "status=404 code=not_found" in second
    stream = log("plain", "warning")
    app_client.post(CHAT, HELLO)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_no_secrets(keyed_client: AppClient, log: Callable[..., io.StringIO], log_format: str) -> None:
    stream = log(log_format)
    for path, body in BODIES.items():
        text = json.dumps(body).replace("Hello", SECRET)
        for headers in (bearer("alice"), {"x-api-key": "wrong-" + SECRET}, {**bearer("bob"), "cookie": SECRET}):
            for content in (text, text[:-1], text.replace('"model"', f'"{SECRET}"'), f'"{SECRET}"'):
                keyed_client.request(
                    "POST", f"{path}?api_key={KEYS['alice']}&q={SECRET}", content=content.encode(),
                    headers={**headers, "content-type": "application/json"},
                )  # fmt: skip
    found = stream.getvalue()
    assert found.count(CHAT) >= 12
    for secret in (SECRET, *KEYS.values(), "Bearer"):
        assert secret not in found, [line for line in found.splitlines() if secret in line][:2]


def test_nobody_writes_lines_of_their_own(app_client: AppClient, log: Callable[..., io.StringIO]) -> None:
    stream = log("plain")
    for path in ("/a%0Ab", "/a%0D%0A2026-11-22T00:00:00.000Z%20info%20request%20status=200", "/%1b[31m", "/%E2%80%A8"):
        app_client.get(path)
        app_client.request("X\tY", path)
    assert all(line.startswith("20") and " info " in line[:40] for line in stream.getvalue().splitlines())
    assert len(stream.getvalue().splitlines()) == 8
    assert "\x1b" not in stream.getvalue()


def test_errors_of_ours_are_found_by_their_id(app_client: AppClient, log: Callable[..., io.StringIO]) -> None:
    async def broken(call: Any) -> Any:
        raise KeyError("inside")

    app_client.backend.open = broken  # type: ignore[method-assign]
    for log_format in ("json", "plain"):
        stream = log(log_format)
        answer = app_client.post(CHAT, HELLO)
        text = stream.getvalue()
        assert text.count(answer.headers["x-request-id"]) == 2
        assert "Traceback" in text
        assert "KeyError" in text


def test_keys_that_were_made_do_not_show(tmp_path: Path, log: Callable[..., io.StringIO], make_client: Any) -> None:
    from qwen3.serve.keys import add_key, new_key

    key, line = new_key("carol")
    add_key(tmp_path / "keys", line)
    stream = log()
    client = make_client(Settings(models=(("fake", "fake"),), api_key_file=tmp_path / "keys"))
    assert client.post(CHAT, HELLO, headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert "carol" in stream.getvalue()
    assert key.partition(".")[2] not in stream.getvalue()
