"""`qwen3 serve` as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3.cli.main import main
from qwen3.serve.keys import Keys
from qwen3.serve.run import bind, url_of
from qwen3.serve.settings import Settings
from tests.serve.conftest import Running, bearer


@pytest.fixture
def qwen3(capsys: pytest.CaptureFixture[str], log_as_it_was: None) -> Callable[..., tuple[int, str, str]]:
    """`qwen3("serve", …)` in this process: (exit code, stdout, the one error line)."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0)
        assert "Traceback" not in captured.err
        return code, captured.out, "".join(errors)

    return run


# What goes wrong


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--host", "0.0.0.0"), 2, "--insecure"),
        (("--host", "::"), 2, "--api-key-file"),
        (("--port", "99999"), 2, "--port"),
        (("--drain", "nan"), 2, "--drain"),
        (("--api-key-file", "/nowhere/keys"), 2, "No such file"),
        (("--reasoning-field", "all"), 2, "both, content, reasoning, none"),
        (("--host", "no such host"), 2, "--host"),
        (("--host", "256.1.1.1", "--insecure"), 2, "--host"),
        (("a=x", "a=y"), 2, "two are called 'a'"),
        (("=x",), 2, "NAME=MODEL"),
        (("--nope",), 2, "--nope"),
    ],
)
def test_wrong_flags(qwen3: Any, flags: tuple[str, ...], code: int, says: str) -> None:
    found, out, error = qwen3("serve", *flags)
    assert (found, out) == (code, "")
    assert says in error


def test_a_port_in_use(qwen3: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, error = qwen3("serve", "--port", port)
    assert (code, out) == (1, "")
    assert f"port {port} on 127.0.0.1 is in use" in error
    assert f"--port {port + 1}" in error


def test_the_extra_is_missing(qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    missing = ("fastapi", "uvicorn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else real(name, *a))
    code, _, error = qwen3("serve")
    assert code == 1
    assert "fastapi, uvicorn" in error
    assert "pip install 'qwen3[serve]'" in error


def test_tracing_without_its_extra(qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    code, _, error = qwen3("serve", "--port", 0, "--trace", "http://localhost:4318")
    assert code == 1
    assert "pip install 'qwen3[trace]'" in error


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwen3", "serve", "./nowhere", "--port", "0", "--json"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "nowhere" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
    assert "Traceback" not in done.stderr


# Keys


def test_make_key(qwen3: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    code, out, _ = qwen3("serve", "--make-key", "alice", "--api-key-file", path)
    key = out.strip()
    assert code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    found = Keys(path).find(key)
    assert found is not None
    assert found.id == "alice"
    assert key.partition(".")[2] not in path.read_text()
    code, _, error = qwen3("serve", "--make-key", "alice", "--api-key-file", path)
    assert code == 2
    assert "a key of that name" in error
    code, out, _ = qwen3("serve", "--make-key", "bob", "--json")
    made = json.loads(out)
    assert set(made) == {"id", "key", "line", "file"}
    assert made["line"].startswith("bob:sha256=")
    assert qwen3("serve", "--make-key", "a b")[0] == 2


# A server


def test_what_is_said(server: Running) -> None:
    assert set(server.info) == {"url", "host", "port", "pid", "models", "keys", "version"}
    assert server.info["pid"] == server.process.pid
    assert server.info["models"] == ["embedded"]
    assert server.url == f"http://127.0.0.1:{server.info['port']}"
    log = server.log.read_text()
    for part in (
        "embedded",
        f"chat    {server.url}",
        f"{server.url}/v1 (OpenAI)",
        "everybody on this machine",
        "ready after",
    ):
        assert part in log
    assert "Traceback" not in log
    assert "\x1b" not in log


def test_it_answers(server: Running) -> None:
    with server.client() as client:
        asked = {"messages": [{"role": "user", "content": "What is 27 * 14?"}], "max_tokens": 64}
        answer = client.post("/v1/chat/completions", json=asked).json()
        assert answer["usage"]["completion_tokens"] > 0
        assert client.get("/health").json() == {"status": "ok"}
        assert "server" not in client.get("/health").headers


def test_from_start_to_end(tmp_path: Path) -> None:
    """It listens before the model is there; Ctrl-C is quick and no error; its port is free at once, though connections
    may still be closing."""
    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen3", "serve", "--port", str(port), "--no-page"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, text=True,
    )  # fmt: skip
    try:
        states: list[str] = []
        start = time.monotonic()
        while states[-1:] != ["ready"] and time.monotonic() - start < 90:
            try:
                states.append(httpx.get(url + "/ready").json()["status"])
            except httpx.ConnectError:
                assert not states
            time.sleep(0.02)
        assert states[0] == "loading"
        assert set(states) == {"loading", "ready"}
        with httpx.Client(base_url=url) as client:
            assert client.get("/", headers={"accept": "text/html"}).text == "Ollama is running"
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        assert time.monotonic() - start < 5
        bind("127.0.0.1", port).close()
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert "error" not in err
    assert "Traceback" not in err


def test_keys_of_a_process(server_with_keys: Running, key_file: Path) -> None:
    with server_with_keys.client() as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers=bearer("bob")).status_code == 200
        assert client.get("/ready").status_code == 200
        before = key_file.read_text()
        try:
            key_file.write_text(before + "carol:carol-secret-0123456789\n")
            server_with_keys.process.send_signal(signal.SIGHUP)
            carol = {"x-api-key": "carol-secret-0123456789"}
            end = time.monotonic() + 5
            while client.get("/v1/models", headers=carol).status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            key_file.write_text("nonsense\n")
            server_with_keys.process.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            assert client.get("/v1/models", headers=carol).status_code == 200
            assert "the keys stay as they were" in server_with_keys.log.read_text()
        finally:
            key_file.write_text(before)
            server_with_keys.process.send_signal(signal.SIGHUP)
    assert "2 keys of" in server_with_keys.log.read_text()


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://localhost:")],
)
def test_addresses(host: str, url: str) -> None:
    """What is printed can be opened on this machine."""
    with bind(host, 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(Settings(host=host, insecure=True), listener) == f"{url}{port}"
        socket.create_connection((url_of(Settings(host=host, insecure=True), listener)[7:].split(":")[0], port)).close()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").is_file(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_addresses_of_ipv6(host: str) -> None:
    with bind(host, 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        found = url_of(Settings(host=host, insecure=True), listener)
        assert found == (f"http://127.0.0.1:{port}" if host == "::" else f"http://[::1]:{port}")
