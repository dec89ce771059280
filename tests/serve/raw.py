"""A server process, and clients that talk to it in raw bytes: what no HTTP library lets one send, or leave out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
BUSY = ("qwen3_running_sequences", "qwen3_queued_sequences", "qwen3_kv_blocks_used")


def chat(text: str = "What is 27 * 14?", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def endless(tokens: int, **more: Any) -> dict[str, Any]:
    """A request that takes `tokens` tokens, whatever the model would rather do."""
    return chat("Tell me a long story.", max_tokens=tokens, ignore_eos=True, thinking={"loop_guard": False}, **more)


@dataclass
class Answer:
    """What came back. whole: the body ended as its framing says it does, not because the connection did."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """What stands after each `data: ` of an event stream."""
        return [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]

    @property
    def done(self) -> bool:
        """A stream that ended as it should."""
        return self.whole and self.events[-1:] == ["[DONE]"]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object, of the whole answer or in a stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            found = [json.loads(event).get("error") for event in self.events if event != "[DONE]"]
            return next((error for error in found if error), None)
        return self.json.get("error")


def request(path: str, body: Any = None, method: str | None = None, close: bool = True, **headers: str) -> bytes:
    """The bytes of a request. body: bytes as they are, or something to write as JSON."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", "host: 127.0.0.1"]
    lines += ["connection: close"] * close
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer off a connection. Raises ConnectionError where it ended before the head did."""
    start = time.monotonic()
    try:
        while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 1"):
            continue  # 100 Continue
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ConnectionError(f"no answer, only {getattr(error, 'partial', b'')[:80]!r}") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body, whole = b"", True
    try:
        if "chunked" in headers.get("transfer-encoding", ""):
            pieces = []
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                pieces.append((await reader.readexactly(size + 2))[:-2])
            await reader.readexactly(2)
            body = b"".join(pieces)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        whole, body = False, b"".join(pieces) if "chunked" in str(headers) else getattr(error, "partial", b"")
    return Answer(int(first.split()[1]), headers, body, whole, time.monotonic() - start)


class Connection:
    """An open connection, as a context manager; its end is a FIN, or with `reset` a RST."""

    def __init__(self, port: int, reset: bool = False, receive: int | None = None) -> None:
        self.port, self.reset, self.receive = port, reset, receive
        self.sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Connection:
        found = socket.socket()
        found.setblocking(False)
        if self.receive:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive)
        if self.reset:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            await asyncio.get_running_loop().sock_connect(found, ("127.0.0.1", self.port))
            limit = 2**26 if self.receive is None else 2**10
            self.reader, self.writer = await asyncio.open_connection(sock=found, limit=limit)
        except OSError:
            found.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.sending:
            self.sending.cancel()
            await asyncio.gather(self.sending, return_exceptions=True)
        self.writer.transport.abort() if self.reset else self.writer.close()

    def pour(self, data: bytes) -> None:
        """Sends beside whatever comes next, as far as the server takes it."""
        self.sending = asyncio.create_task(self.send(data))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, seconds: float = 60) -> Answer:
        return await asyncio.wait_for(read_answer(self.reader), seconds)

    async def closed(self, seconds: float) -> float | None:
        """Seconds until the server closes, reading what comes meanwhile; None: it does not."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    continue
        except TimeoutError:
            return None
        except ConnectionError:
            pass
        return time.monotonic() - start

    async def lines(self) -> AsyncIterator[bytes]:
        while line := await self.reader.readline():
            yield line


PROBE = """
import json, select, socket, sys, time
port, pause, took = int(sys.argv[1]), float(sys.argv[2]), []
with socket.create_connection(("127.0.0.1", port)) as connection:
    print(flush=True)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        start = time.perf_counter()
        connection.sendall(b"GET /health HTTP/1.1\\r\\nhost: 127.0.0.1\\r\\n\\r\\n")
        answer = b""
        while b"}" not in answer:
            piece = connection.recv(65536)
            assert piece, ("closed after", len(took), answer)
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        took.append((time.perf_counter() - start) * 1000)
        if select.select([sys.stdin], [], [], pause)[0]:
            break
print(json.dumps(took))
"""


@dataclass
class Served:
    """`qwen3 serve` as a process of its own, with a home of its own. limits: run in the child before the server."""

    room: Path
    flags: tuple[str, ...] = ()
    limits: Callable[[], None] | None = None
    port: int = 0
    process: psutil.Popen = field(init=False)

    def __post_init__(self) -> None:
        self.room.mkdir(parents=True, exist_ok=True)
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        self.log = self.room / "log"
        environment = {
            **os.environ,
            "HOME": str(self.room),
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "qwen3.cli.main", "serve", "embedded", "--port", str(self.port), *self.flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.room,
                preexec_fn=self.limits, start_new_session=True,
            )  # fmt: skip

    async def __aenter__(self) -> Served:
        try:
            await self.ready()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the server and its engine, as a machine that loses power would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    async def ready(self, seconds: float = 90) -> float:
        """Seconds until /ready says 200."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.said()[-2000:]}")
            try:
                if (await self.ask("/ready", seconds=5)).status == 200:
                    return time.monotonic() - start
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s:\n{self.said()[-2000:]}")

    async def ask(self, path: str = CHAT, body: Any = None, seconds: float = 120, **headers: str) -> Answer:
        """One request on a connection of its own."""
        async with Connection(self.port) as connection:
            await connection.send(request(path, body, **headers))
            return await connection.answer(seconds)

    async def health(self, work: Awaitable[Any], pause: float = 0.003) -> tuple[Any, list[float]]:
        """What `work` comes to, and the milliseconds of each /health meanwhile: asked for by a process of its own, so
        that our own work is not in them."""
        probe = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROBE, str(self.port), str(pause), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert probe.stdout
        await probe.stdout.readline()
        result = await work
        said, _ = await probe.communicate(b"")
        assert probe.returncode == 0, "/health failed"
        return result, json.loads(said)

    def said(self) -> str:
        """The log, without who asked whether it is ready."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if "path=/ready" not in line)

    def trouble(self) -> list[str]:
        """Lines of the log that no client should be able to cause; who kills the engine may be told of it."""
        bad = re.compile(r"(?!.*the engine's process of).*(Traceback|\berror\b|\bcritical\b)", re.I)
        return [line for line in self.said().splitlines() if bad.match(line)]

    async def metrics(self) -> str:
        return (await self.ask("/metrics", seconds=20)).body.decode()

    async def stats(self) -> dict[str, float]:
        """The server's gauges and counters by name, their labels summed up."""
        found: dict[str, float] = {}
        for line in (await self.metrics()).splitlines():
            if line and not line.startswith("#"):
                name, value = re.split(r"\{.*\}| ", line, maxsplit=1)
                found[name] = found.get(name, 0.0) + float(value)
        return found

    async def idle(self, seconds: float = 30) -> float | None:
        """Seconds until nothing runs, nothing waits and no block of the cache is in use; None: that does not come."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            now = await self.stats()
            if not any(now[name] for name in BUSY):
                return time.monotonic() - start
            await asyncio.sleep(0.05)
        return None

    @property
    def engine(self) -> psutil.Process:
        return next(p for p in self.process.children(recursive=True) if "qwen3.serve.worker" in p.cmdline())

    def memory(self) -> int:
        """Resident bytes of the server, its engine apart."""
        return self.process.memory_info().rss


async def bounce(served: Served, data: bytes, seconds: float) -> Answer | None:
    """The answer to these bytes, or None where the connection was closed without one. TimeoutError: neither."""
    async with Connection(served.port) as connection:
        connection.pour(data)
        try:
            return await connection.answer(seconds)
        except ConnectionError:
            return None
