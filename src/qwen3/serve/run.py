"""A server's life as a process: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from qwen3.errors import Qwen3Error, UsageError
from qwen3.serve.app import Server
from qwen3.serve.logs import event
from qwen3.serve.protocol import protocol
from qwen3.serve.settings import Settings

KEEP_ALIVE = 75  # seconds that an idle connection stays: longer than the proxies in front keep theirs
CLOSING = 10.0  # seconds that the models' processes have to end
SEND_BUFFER = 256 << 10  # bytes of an answer that wait in the kernel; else megabytes for each reader that does not read


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError for an address that is none, Qwen3Error for one that cannot be had."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(
            f"--host {host}: {error.strerror}; use 127.0.0.1, 0.0.0.0 or an address of this machine"
        ) from None
    family, kind, proto, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # of what it accepts
        if host.strip("[]") == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Qwen3Error(
                f"port {port} on {host} is in use: stop what uses it, or take another one with --port {port + 1} "
                "(--port 0: any that is free)"
            ) from None
        if error.errno == errno.EACCES:
            raise Qwen3Error(f"port {port} is for root alone: take one above 1023 with --port") from None
        raise Qwen3Error(f"--host {host} --port {port}: {error.strerror}") from None
    return listener


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Where a person on this machine finds the server."""
    port = listener.getsockname()[1]
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Process(uvicorn.Server):
    """The first SIGTERM or SIGINT lets running answers end, the second ends at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.server: Server = app.state.server
        self.life = app.router.lifespan_context(app)
        self.ready = ready
        self.signal: int | None = None
        self.deadline = 0.0
        self.cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.life.__aenter__()
        await super().startup(sockets)
        gc.freeze()  # what was imported stays: a collection that walks it stops all streams for 40 ms
        if (keys := self.server.keys) is not None:

            def reload() -> None:
                try:
                    keys.reload()
                    event("keys read again", keys=len(keys))
                except UsageError as error:
                    event("the keys stay as they were", 40, error=str(error))

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        self.watch = asyncio.create_task(self.wait_for_models())

    async def wait_for_models(self) -> None:
        await self.server.started.wait()
        if self.server.failure is None:
            self.ready()
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        ended = await super().on_tick(counter)
        if self.signal is None or ended:
            return ended
        running = self.server.metrics.in_flight
        self.cut = running > 0 and time.monotonic() > self.deadline
        return running == 0 or self.cut

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # all is closed: one more signal must not make a traceback of it

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.should_exit = self.force_exit = self.cut = True
            return
        self.signal = sig
        self.server.drain()
        self.deadline = time.monotonic() + self.server.settings.drain
        if running := self.server.metrics.in_flight:
            event(
                f"{running} running {'answer has' if running == 1 else 'answers have'} "
                f"{self.server.settings.drain:g} s to end; the same signal again ends them now"
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.watch.cancel()
        if self.cut:  # answers that run end with an error of the engine's, which their clients can read
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING / 2):
                    await self.server.models.close()
        await super().shutdown(sockets)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                await self.life.__aexit__(None, None, None)


def process(app: FastAPI, ready: Callable[[], None]) -> Process:
    """What serves `app` once its `run(sockets=[…])` is called."""
    config = uvicorn.Config(
        app,
        http=protocol(app.state.server.settings),
        ws="none",
        lifespan="off",  # begun and ended here, where errors are seen
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
    return Process(config, app, ready)


def run(app: FastAPI, listener: socket.socket, ready: Callable[[], None]) -> int:
    """Serves until a signal comes; returns the exit code: 0, or where answers were cut 130 (SIGINT) or 1. ready: called
    once the models are there. Raises what kept them from loading."""
    server: Server = app.state.server
    settings = server.settings
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        wanted = settings.max_connections + 256
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == -1 else min(hard, wanted), hard))
    serving = process(app, ready)
    serving.run(sockets=[listener])
    if server.failure is not None and serving.signal is None:
        raise server.failure
    if not serving.cut:
        return 0
    return 130 if serving.signal == signal.SIGINT else 1
