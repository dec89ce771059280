"""How a server ends: running answers to their end, nothing new, the second signal at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from qwen3.serve.settings import Settings
from tests.serve.conftest import Listening, Running, start_server
from tests.serve.fakes import SCRIPT
from tests.serve.test_app import CHAT, HELLO, message_of


def serving(listen: Callable[..., Listening], delay: float, **given: Any) -> Listening:
    server = listen(Settings(models=(("fake", "fake"),), **given))
    server.models.backend.delay = delay
    return server


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def streaming(server: Listening, pool: ThreadPoolExecutor, stream: bool = True) -> Future[httpx.Response]:
    before = len(server.models.backend.streams)
    running = pool.submit(server.post, CHAT, {**HELLO, "stream": stream})
    wait_for(lambda: len(server.models.backend.streams) > before)
    return running


@pytest.mark.parametrize("stream", [True, False])
def test_running_answers_end_as_if_nothing_were(listen: Callable[..., Listening], stream: bool) -> None:
    server = serving(listen, 0.2)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url) as kept:
        assert kept.get("/ready").status_code == 200
        running = streaming(server, pool, stream)
        server.process.handle_exit(signal.SIGTERM, None)
        assert kept.get("/ready").status_code == 503
        assert kept.get("/health").status_code == 200
        refused = kept.post(CHAT, json=HELLO)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        answer = running.result(10)
    assert answer.status_code == 200
    assert "world" in answer.text
    assert answer.text.rstrip().endswith("[DONE]") == stream
    server._thread.join(5)
    assert not server._thread.is_alive()
    assert not server.process.cut
    assert server.models.closed
    with pytest.raises(httpx.ConnectError):
        server.get("/health")


def test_what_takes_too_long_is_cut(listen: Callable[..., Listening]) -> None:
    server = serving(listen, 5.0, drain=0.3)
    with ThreadPoolExecutor(1) as pool:
        running = streaming(server, pool)
        start = time.monotonic()
        server.process.handle_exit(signal.SIGTERM, None)
        server._thread.join(8)
        assert 0.3 <= time.monotonic() - start < 4
        answer = running.result(10)  # of which nothing had been sent yet
        assert answer.status_code == 503
        assert "ended before" in message_of(answer)
    assert server.process.cut
    assert server.models.backend.streams[0].cancelled


def test_the_second_signal_does_not_wait(listen: Callable[..., Listening]) -> None:
    server = serving(listen, 1.2)
    with ThreadPoolExecutor(1) as pool:
        running = streaming(server, pool)
        wait_for(lambda: bool(server.server.streams))  # its head is sent
        for _ in range(2):
            server.process.handle_exit(signal.SIGINT, None)
        start = time.monotonic()
        server._thread.join(8)
        assert time.monotonic() - start < 3
        with pytest.raises(httpx.HTTPError):
            running.result(10)
    assert server.process.cut
    assert server.models.closed


def test_nothing_runs_nothing_waits(listen: Callable[..., Listening]) -> None:
    server = serving(listen, 0.0)
    with httpx.Client(base_url=server.url) as kept:  # an idle connection is no reason to stay
        assert kept.post(CHAT, json=HELLO).status_code == 200
        start = time.monotonic()
        server.process.handle_exit(signal.SIGINT, None)
        server._thread.join(5)
    assert time.monotonic() - start < 1
    assert not server.process.cut


def test_models_that_do_not_end_are_not_waited_for_long(
    listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr("qwen3.serve.run.CLOSING", 0.3)
    server = serving(listen, 0.0)

    async def never(drain: float = 0.0) -> None:
        await asyncio.sleep(60)

    server.models.close = never  # type: ignore[method-assign]
    server.process.handle_exit(signal.SIGTERM, None)
    server._thread.join(5)
    assert not server._thread.is_alive()


def test_a_break_in_the_middle_closes_the_connection(listen: Callable[..., Listening]) -> None:
    """Whoever reads must notice that an answer is not whole."""
    server = serving(listen, 0.0)
    server.models.backend.script = (*SCRIPT[:3], ValueError("inside"))
    answer = server.post(CHAT, {**HELLO, "stream": True})
    assert "inside" not in answer.text
    assert "internal error" in answer.text


@pytest.fixture
def real(tmp_path: Any) -> Any:
    running = start_server(tmp_path)
    yield running
    running.stop(signal.SIGKILL)


LONG = {**HELLO, "stream": True, "ignore_eos": True, "thinking": {"loop_guard": False}}


@pytest.mark.parametrize(("how", "times", "code"), [(signal.SIGTERM, 1, 0), (signal.SIGINT, 2, 130)])
def test_the_process(real: Running, how: int, times: int, code: int) -> None:
    """A stream of the embedded model is under way when the signal comes."""
    body = {**LONG, "max_tokens": 200 if code == 0 else 3000}
    found: list[str] = []
    begun = threading.Event()

    def read() -> None:
        try:
            with real.client() as client, client.stream("POST", CHAT, json=body) as answer:
                for line in answer.iter_lines():
                    found.append(line)
                    begun.set()
        except httpx.HTTPError as error:
            found.append(f"cut: {type(error).__name__}")

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    for _ in range(times):
        real.process.send_signal(how)
        time.sleep(0.3)
    assert real.process.wait(40) == code
    reader.join(10)
    errors = [line for line in found if '"error"' in line or line.startswith("cut")]
    assert len(errors) == (code != 0), found[-3:]
    assert code != 0 or "data: [DONE]" in found[-2:]
    log = real.log.read_text()
    assert "Traceback" not in log
    if code == 0:
        assert "1 running answer has 30 s to end" in log
