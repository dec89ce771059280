"""Two kinds of servers: the application in this process with models that only play, and `qwen3 serve` as it is."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from qwen3.serve import logs
from qwen3.serve.app import create_app
from qwen3.serve.keys import Keys
from qwen3.serve.run import bind, process
from qwen3.serve.settings import Settings
from tests.serve.fakes import FakeBackend, FakeModels

KEYS = {"alice": "alice-secret-0123456789", "bob": "bob-secret-0123456789"}


class AppClient:
    """The application on an event loop of its own; requests from this thread, as with httpx. Streams come whole."""

    def __init__(self, settings: Settings | None = None, models: FakeModels | None = None, keys: Keys | None = None):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.models = models or FakeModels()
        self.app = create_app(settings or Settings(models=(("fake", "fake"),)), self.models, keys)
        self.server = self.app.state.server
        self._life = self.app.router.lifespan_context(self.app)
        self.run(self._life.__aenter__())
        self.run(self.server.started.wait())
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=20)

    @property
    def backend(self) -> FakeBackend:
        return self.models.backend

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def request(self, method: str, path: str, **args: Any) -> httpx.Response:
        return self.run(self.http.request(method, path, **args))

    def get(self, path: str, **args: Any) -> httpx.Response:
        return self.request("GET", path, **args)

    def post(self, path: str, body: Any = None, **args: Any) -> httpx.Response:
        """`body` as JSON."""
        return self.request("POST", path, **({"json": body} if body is not None else {}), **args)

    def delete(self, path: str, **args: Any) -> httpx.Response:
        return self.request("DELETE", path, **args)

    def close(self) -> None:
        self.run(self.http.aclose())
        self.run(self._life.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@pytest.fixture
def log_as_it_was() -> Iterator[None]:
    """Undoes what `qwen3.serve.logs.setup` does."""
    before = logs.LOG.handlers[:], logs.LOG.level, logs.LOG.propagate
    yield
    logs.LOG.handlers[:], logs.LOG.propagate = before[0], before[2]
    logs.LOG.setLevel(before[1])
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def make_client() -> Iterator[Callable[..., AppClient]]:
    """`make_client(settings, models, keys)`: an AppClient that is closed with the test."""
    made: list[AppClient] = []

    def make(*args: Any, **named: Any) -> AppClient:
        made.append(AppClient(*args, **named))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def app_client(make_client: Callable[..., AppClient]) -> AppClient:
    return make_client()


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of KEYS; alice is an admin."""
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.touch(0o600)
    path.write_text(f"alice:{KEYS['alice']}:admin\nbob:{KEYS['bob']}\n")
    return path


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}.{KEYS[name]}"}


@pytest.fixture
def keyed_client(make_client: Callable[..., AppClient], key_file: Path) -> AppClient:
    """With the keys of KEYS; send `headers=bearer("alice")`."""
    return make_client(Settings(models=(("fake", "fake"),), api_key_file=key_file))


class Listening(AppClient):
    """The application on a real socket, as `qwen3 serve` runs it, in a thread. process: its `serve.run.Process`."""

    def __init__(self, settings: Settings | None = None, models: FakeModels | None = None, keys: Keys | None = None):
        self.models = models or FakeModels()
        self.app = create_app(settings or Settings(models=(("fake", "fake"),)), self.models, keys)
        self.server = self.app.state.server
        listener = bind("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        ready = threading.Event()
        self.process = process(self.app, ready.set)
        self._thread = threading.Thread(target=self.process.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def request(self, method: str, path: str, **args: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=20, **args)

    def say(self, data: bytes, wait: float = 10.0) -> bytes:
        """What comes back for these bytes, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            found = b""
            with suppress(ConnectionError):
                connection.sendall(data)
            with suppress(ConnectionError):
                while piece := connection.recv(65_536):
                    found += piece
            return found

    def close(self) -> None:
        self.process.handle_exit(signal.SIGTERM, None)
        self._thread.join(0.5)
        if self._thread.is_alive():
            self.process.handle_exit(signal.SIGTERM, None)
            self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listening]]:
    """`listen(settings, models, keys)`: a Listening that is closed with the test."""
    made: list[Listening] = []

    def make(*args: Any, **named: Any) -> Listening:
        made.append(Listening(*args, **named))
        return made[-1]

    yield make
    for listening in made:
        listening.close()


@dataclass
class Running:
    """A `qwen3 serve` process. url: of its root. info: the line of --json. log: the file its stderr goes to."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    info: dict[str, Any] = field(default_factory=dict)

    def client(self, **args: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **args)

    def stop(self, how: int = signal.SIGTERM, wait: float = 40) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(wait)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(5)
            assert self.process.stdout is not None
            self.process.stdout.close()


def start_server(folder: Path, *flags: str, ready: bool = True, env: dict[str, str] | None = None) -> Running:
    """`qwen3 serve --port 0 --json FLAGS` in a home of its own; waits until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    home = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3", "serve", "--port", "0", "--json", *flags],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **home, **(env or {})}, cwd=folder,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith('{"url"'):
        process.wait(10)
        process.stdout.close()
        raise AssertionError(f"no server, exit code {process.returncode}: {log.read_text()}")
    info = json.loads(line)
    running = Running(process, info["url"], log, info)
    end = time.monotonic() + 60
    while ready and httpx.get(running.url + "/ready").status_code != 200:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    return running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`qwen3 serve` with the embedded model."""
    running = start_server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def server_with_keys(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[Running]:
    """The same with the keys of KEYS."""
    running = start_server(tmp_path_factory.mktemp("keyed"), "--api-key-file", str(key_file))
    yield running
    running.stop()
