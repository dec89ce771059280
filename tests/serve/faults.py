"""What clients and machines do to a server, each as a section: a coroutine that does it and says what went wrong.

tests/serve/test_faults.py runs them small, tools/serve_faults.py at full size. Loopback only, all counts bounded.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.serve.raw import BUSY, CHAT, Answer, Connection, Served, bounce, chat, endless, request

# Times short enough to wait for; room for all clients of a section.
FLAGS = (
    "--max-per-key", "2000", "--max-queue", "256", "--max-batch", "16", "--drain", "20",
    "--header-timeout", "2", "--body-timeout", "3", "--write-timeout", "4",
)  # fmt: skip
HEADER, BODY, WRITE, DRAIN = 2.0, 3.0, 4.0, 20.0


@dataclass
class Found:
    """What a section saw: figures, and failures in words."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, right: Any, wrong: str) -> None:
        if not right and wrong not in self.failures:
            self.failures.append(wrong)


Run = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Section:
    """One kind of fault. full, short: keyword arguments of a campaign, of a test. ends: the server is gone after it.
    limits, flags: of a server of its own. starts: it starts its servers itself, `run(room, found, **size)`."""

    run: Run
    full: dict[str, Any]
    short: dict[str, Any]
    ends: bool = False
    starts: bool = False
    limits: Callable[[], None] | None = None
    flags: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        return self.ends or self.limits is not None or bool(self.flags)


SECTIONS: dict[str, Section] = {}


def section(full: dict[str, Any], short: dict[str, Any], **more: Any) -> Callable[[Run], Run]:
    def note(run: Run) -> Run:
        SECTIONS[run.__name__] = Section(run, full, short, **more)
        return run

    return note


async def play(served: Served, name: str, size: dict[str, Any]) -> Found:
    """Runs a section; afterwards the server must be idle, well, and as large in descriptors as before."""
    found, part = Found(), SECTIONS[name]
    before, told = served.process.num_fds(), len(served.trouble())
    start = time.monotonic()
    await part.run(served, found, **size)
    if not part.ends:
        quiet = await served.idle(20)
        found.check(quiet is not None, f"not idle 20 s later: {await busy(served)}")
        found.figures["idle_after_s"] = quiet
        await asyncio.sleep(0.2)
        found.figures["descriptors"] = [before, served.process.num_fds()]
        found.check(served.process.num_fds() <= before + 3, f"descriptors leak: {found.figures['descriptors']}")
        cut = (await served.stats()).get("qwen3_cut_calls_total")
        last = await served.ask(CHAT, chat(max_tokens=8, stream=True))
        found.check(last.status == 200 and last.done, f"the next request got {last.status}: {last.body[:200]!r}")
        now = (await served.stats()).get("qwen3_cut_calls_total")
        found.check(now == cut, "a stream that ended as it should is counted as cut")
    for line in served.trouble()[told:]:
        found.check(False, f"log: {line[:200]}")
    found.figures["seconds"] = time.monotonic() - start
    return found


async def busy(served: Served) -> dict[str, float]:
    return {name: value for name, value in (await served.stats()).items() if value and "_bucket" not in name}


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@section({"clients": 200}, {"clients": 40})
async def drops(served: Served, found: Found, clients: int) -> None:
    """Clients that leave at random points of plain and streamed requests, some politely, some not."""
    dice = random.Random(1)
    bodies = (
        (CHAT, endless(400)),
        (CHAT, endless(400, stream=True)),
        (CHAT, endless(400, stream=True, n=3)),
        ("/v1/completions", {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}),
        ("/api/chat", {"model": "embedded", **chat(), "options": {"num_predict": 400}}),
        ("/v1/messages", {"model": "embedded", "max_tokens": 400, "stream": True, **chat()}),
    )
    left: Counter[str] = Counter()

    async def client(wait: float, path: str, body: dict[str, Any], how: str, after: float, reset: bool) -> None:
        await asyncio.sleep(wait)
        data = request(path, body)
        async with Connection(served.port, reset) as connection:
            if how == "request":
                await connection.send(data[: int(len(data) * after)])
            else:
                await connection.send(data)
                with suppress(TimeoutError):
                    async with asyncio.timeout(after * 2):
                        count = 0
                        async for _ in connection.lines():
                            count += 1
                            if how == "stream" and count > after * 60:
                                break
        left[how] += 1

    await asyncio.gather(*(
        client(dice.uniform(0, 3), *dice.choice(bodies), dice.choice(("request", "time", "stream", "stream")),
               dice.random(), dice.random() < 0.5)
        for _ in range(clients)
    ))  # fmt: skip
    found.figures["clients"] = dict(left)
    quiet = await served.idle(10)
    found.figures["free_after_s"] = quiet
    found.check(quiet is not None and quiet < 5, f"blocks or requests remain: {await busy(served)}")


@section({"readers": 64, "others": 8, "tokens": 2000}, {"readers": 4, "others": 2, "tokens": 1000})
async def slow_readers(served: Served, found: Found, readers: int, others: int, tokens: int) -> None:
    """Streams read at one byte a second beside ones that are read as they come."""
    # Tokens that are no text are not sent: a model that samples many of them behind its end fills nobody's buffer.
    text = dict.fromkeys(range(8192, 8218), -100)
    large = request(CHAT, endless(tokens, stream=True, logprobs=True, top_logprobs=20, logit_bias=text))

    async def crawl() -> None:
        async with Connection(served.port, receive=2048) as connection:
            await connection.send(large)
            with suppress(ConnectionError):
                while await connection.reader.read(1):
                    await asyncio.sleep(1)

    async def cut() -> float:
        found = re.search(r'qwen3_cut_calls_total\{why="slow_reader"\} (\S+)', await served.metrics())
        return float(found[1]) if found else 0.0

    start, peak, took, running = time.monotonic(), served.memory(), 0.0, True
    first, before = peak, await cut()
    crawlers = [asyncio.create_task(crawl()) for _ in range(readers)]
    normal = asyncio.gather(*(served.ask(CHAT, endless(150, stream=True)) for _ in range(others)))
    while running or not normal.done():
        now = await served.stats()
        running, peak = any(now[name] for name in BUSY), max(peak, served.memory())
        took = took or (time.monotonic() - start if normal.done() else 0.0)
        await asyncio.sleep(0.2)
    found.check(all(answer.done for answer in normal.result()), "a stream beside the readers broke")
    gone, dropped = time.monotonic() - start, 0.0
    while dropped < readers and time.monotonic() - start < gone + 2 * WRITE:
        dropped = await cut() - before
        await asyncio.sleep(0.2)
    found.figures |= {
        "others_s": took, "readers_gone_s": gone, "server_grew_bytes": peak - first, "dropped": dropped,
    }  # fmt: skip
    found.check(peak - first < 24e6 + 5e5 * readers, f"memory grew by {(peak - first) / 1e6:.0f} MB")
    found.check(dropped >= readers, f"{dropped:.0f} of {readers} slow readers were dropped")
    for crawler in crawlers:
        crawler.cancel()
    await asyncio.gather(*crawlers, return_exceptions=True)


@section({"seconds": 20, "clients": 16, "times": 10}, {"seconds": 2.5, "clients": 8, "times": 10})
async def overload(served: Served, found: Found, seconds: float, clients: int, times: int) -> None:
    """Ten times the requests that the engine can answer: what it answers must not become less."""
    body = request(CHAT, endless(64))

    async def load(rate: float | None) -> tuple[float, Counter[str], list[float]]:
        """Answers a second; asked for by `clients` in turn, or at a rate whatever becomes of them."""
        seen: Counter[str] = Counter()
        ends: list[float] = []
        waits: list[float] = []

        async def one() -> None:
            try:
                async with Connection(served.port) as connection:
                    await connection.send(body)
                    answer = await connection.answer(60)
            except (OSError, TimeoutError) as error:
                seen[type(error).__name__] += 1
                return
            seen[str(answer.status)] += 1
            if answer.status == 200:
                ends.append(time.monotonic())
            else:
                waits.append(float(answer.headers.get("retry-after", -1)))

        async def turns() -> None:
            while time.monotonic() - start < seconds:
                await one()

        start = time.monotonic()
        if rate is None:
            await asyncio.gather(*(turns() for _ in range(clients)))
        else:
            tasks: set[asyncio.Task[None]] = set()
            while (elapsed := time.monotonic() - start) < seconds:
                for _ in range(int(elapsed * rate) - len(tasks)):
                    tasks.add(asyncio.create_task(one()))
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)
        low, high = start + seconds * 0.2, start + seconds
        return sum(low <= end < high for end in ends) / (high - low), seen, waits

    def spent() -> list[float]:
        return [round(sum(process.cpu_times()[:2]), 2) for process in (served.process, served.engine, psutil.Process())]

    await load(None)  # warm
    before, cpu = (await load(None))[0], [spent()]
    good, seen, waits = await load(before * times)
    cpu.append(spent())
    await served.idle(60)
    peak = (before + (await load(None))[0]) / 2  # of before and after: other work on this machine comes and goes
    found.figures |= {
        "peak_per_s": peak, "overloaded_per_s": good, "offered_per_s": before * times, "statuses": dict(seen),
        "cpu_s_of_server_engine_and_clients": [round(last - first, 2) for first, last in zip(*cpu, strict=True)],
    }  # fmt: skip
    found.check(good >= 0.9 * peak, f"goodput fell from {peak:.1f} to {good:.1f} requests/s")
    found.check(set(seen) <= {"200", "429", "503"}, f"other ends than 200, 429 and 503: {dict(seen)}")
    found.check(all(wait > 0 for wait in waits), "a refusal without retry-after")


@section({"streams": 32, "plain": 8}, {"streams": 6, "plain": 2}, ends=True)
async def drain(served: Served, found: Found, streams: int, plain: int) -> None:
    """SIGTERM to the whole process group under load: every answer that has begun ends, nothing new begins, exit 0."""
    open_ones = [asyncio.create_task(served.ask(CHAT, endless(80, stream=True))) for _ in range(streams)]
    open_ones += [asyncio.create_task(served.ask(CHAT, endless(60))) for _ in range(plain)]
    await under_way(served, streams + plain)
    os.killpg(served.process.pid, signal.SIGTERM)
    start = time.monotonic()
    await asyncio.sleep(0.1)
    late = []
    while served.process.poll() is None and len(late) < 10:
        with suppress(OSError):
            late.append((await served.ask("/ready")).status)
            answer = await served.ask(CHAT, chat(max_tokens=4))
            late.append(answer.status)
            found.check("retry-after" in answer.headers, "a request while draining has no retry-after")
        await asyncio.sleep(0.05)
    answers = await asyncio.gather(*open_ones, return_exceptions=True)
    broken = [a for a in answers[:streams] if not isinstance(a, Answer) or not a.done or a.error]
    broken += [a for a in answers[streams:] if not isinstance(a, Answer) or a.status != 200 or not a.whole]
    await asyncio.to_thread(served.process.wait, DRAIN + 5)
    took = time.monotonic() - start
    found.figures |= {"exit_code": served.process.returncode, "exit_after_s": took, "while_draining": Counter(late)}
    found.check(not broken, f"{len(broken)} of {len(answers)} answers broke: {str(broken[:1])[:300]}")
    found.check(set(late) == {503}, f"while draining: {dict(Counter(late))}")
    found.check(served.process.returncode == 0, f"exit code {served.process.returncode}")
    found.check(took < DRAIN + 3, f"{took:.1f} s for a drain of {DRAIN} s")
    found.check(not left_over(served), "a process of the server lives on")


@section({"streams": 16}, {"streams": 4}, ends=True)
async def second_signal(served: Served, found: Found, streams: int) -> None:
    """Ctrl-C twice, as a terminal sends it to the whole group: the second one ends it at once, exit code 130."""
    open_ones = [asyncio.create_task(served.ask(CHAT, endless(3000, stream=True))) for _ in range(streams)]
    await under_way(served, streams)
    os.killpg(served.process.pid, signal.SIGINT)
    await asyncio.sleep(0.5)
    found.check(served.process.poll() is None, "the first signal did not wait for the streams")
    start = time.monotonic()
    os.killpg(served.process.pid, signal.SIGINT)
    await asyncio.to_thread(served.process.wait, 15)
    found.figures |= {"exit_code": served.process.returncode, "exit_after_s": time.monotonic() - start}
    await asyncio.gather(*open_ones, return_exceptions=True)
    found.check(served.process.returncode == 130, f"exit code {served.process.returncode}")
    found.check(time.monotonic() - start < 3, "the second signal was slow")
    await asyncio.sleep(0.3)
    found.check(not left_over(served), "a process of the server lives on")


def left_over(served: Served) -> list[psutil.Process]:
    """Processes of the server's session that live on."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == served.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def under_way(served: Served, count: int) -> None:
    """Waits until so many requests are in the engine."""
    for _ in range(200):
        now = await served.stats()
        if now["qwen3_running_sequences"] + now["qwen3_queued_sequences"] >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{count} requests were sent; the server knows of {await busy(served)}")


@section({"rounds": 5, "streams": 24, "plain": 8}, {"rounds": 1, "streams": 4, "plain": 2})
async def engine_killed(served: Served, found: Found, rounds: int, streams: int, plain: int) -> None:
    """SIGKILL to the engine's process under load: errors that say so, then a new engine."""
    back, ends = [], Counter[str]()
    for _ in range(rounds):
        open_ones = [asyncio.create_task(served.ask(CHAT, endless(2000, stream=True))) for _ in range(streams)]
        open_ones += [asyncio.create_task(served.ask(CHAT, endless(2000))) for _ in range(plain)]
        await under_way(served, streams + plain)
        served.engine.kill()
        killed, status = time.monotonic(), 200
        while status == 200 and time.monotonic() - killed < 2:  # until the kernel has taken the process apart
            status = (await served.ask("/ready")).status
        found.check(status == 503, f"/ready says {status} without an engine")
        meanwhile = await served.ask(CHAT, chat(max_tokens=4))
        found.check(meanwhile.status in (200, 503), f"a request without an engine got {meanwhile.status}")
        for i, answer in enumerate(await asyncio.gather(*open_ones)):
            ends[f"{answer.status} {(answer.error or {}).get('type')}"] += 1
            found.check(answer.whole and answer.error, f"no error object: {answer.body[-300:]!r}")
            ended = answer.status == 503 or (i < streams and answer.status == 200 and answer.done)
            found.check(ended, f"request {i} ended with {answer.status} {answer.body[-300:]!r}")
        back.append(await served.ready(30))
        found.check((await served.ask(CHAT, chat(max_tokens=4))).status == 200, "no answer after the restart")
    found.figures |= {"recovered_after_s": back, "ends": dict(ends)}
    found.check(max(back) < 30, f"{max(back):.1f} s until ready again")  # the pause doubles with each death


@section({"clients": 100, "seconds": 12}, {"clients": 10, "seconds": 4})
async def slow_loris(served: Served, found: Found, clients: int, seconds: float) -> None:
    """Headers and bodies that come a byte at a time, and connections on which nothing comes."""
    data = request(CHAT, chat("x" * 2000), close=False)
    head = data.index(b"\r\n\r\n") + 4
    took: dict[str, list[float]] = {"silent": [], "header": [], "body": []}

    async def crawl(kind: str) -> None:
        start = time.monotonic()
        async with Connection(served.port) as connection:
            closed = asyncio.create_task(connection.closed(60))
            if kind == "body":
                await connection.send(data[:head])
            piece = data[head:] if kind == "body" else data if kind == "header" else b""
            with suppress(ConnectionError):
                for byte in piece:
                    if closed.done():
                        break
                    await connection.send(bytes([byte]))
                    await asyncio.sleep(0.1)
            await closed
            took[kind].append(time.monotonic() - start)

    async def others() -> int:
        start, count = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            answer = await served.ask(CHAT, chat(max_tokens=8))
            found.check(answer.status == 200, f"another client got {answer.status}")
            count += 1
        return count

    crawlers = [asyncio.create_task(crawl(kind)) for kind in took for _ in range(clients // 2)]
    answers, waits = await served.health(others(), 0.01)
    found.figures["others"] = {"answers": answers, "health_p99_ms": quantile(waits, 0.99)}
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*crawlers), max(HEADER, BODY) + 6)
    for kind, limit in (("silent", HEADER), ("header", HEADER), ("body", BODY)):
        found.figures[f"{kind}_s"] = [round(x, 2) for x in (min(took[kind], default=0), max(took[kind], default=0))]
        found.check(len(took[kind]) == clients // 2, f"{kind}: only {len(took[kind])} were dropped")
        found.check(
            max(took[kind], default=99) < limit + 3, f"{kind}: dropped after {max(took[kind], default=99):.1f} s"
        )


@section({"times": 20, "limit": 50}, {"times": 2, "limit": 500})  # ms; a machine that runs other tests is no measure
async def long_prompts(served: Served, found: Found, times: int, limit: float) -> None:
    """10 MB in one message, in a hundred thousand messages, and more than a body may have; /health meanwhile."""
    words = "seven times six is forty two and "
    bodies = {
        "one_message": request(CHAT, chat(words * (10_000_000 // len(words)))),
        "no_words": request(CHAT, json.dumps(chat("\u4f60" * 3_300_000), ensure_ascii=False).encode()),
        "just_allowed": request(CHAT, chat(words * (32 * 4096 // len(words) - 8))),
        "many_messages": request(CHAT, {"messages": [{"role": "user", "content": "x" * 80}] * 100_000}),
        "completion": request("/v1/completions", {"prompt": words * (10_000_000 // len(words))}),
        "ids": request("/v1/completions", {"prompt": [17] * 3_000_000}),
        "tokenize": request("/tokenize", {"prompt": words * (10_000_000 // len(words))}),
        "nested": request(CHAT, {"messages": chat()["messages"], "x": json.loads("[" * 900 + "]" * 900)}),
        "too_large": request(CHAT, chat("x" * 40_000_000)),
    }  # fmt: skip

    async def several(data: bytes) -> list[Answer | None]:
        return [await bounce(served, data, 60) for _ in range(times)]

    for name, data in bodies.items():
        answers, waits = await served.health(several(data))
        statuses = {answer.status if answer else 0 for answer in answers}
        errors = [answer.error or {} for answer in answers if answer and answer.status != 200]
        found.figures[name] = {
            "status": sorted(statuses), "said": errors[-1].get("message", "")[:160] if errors else "",
            "health_p50_ms": statistics.median(waits), "health_p99_ms": quantile(waits, 0.99),
            "health_max_ms": max(waits),
        }  # fmt: skip
        allowed = {200, 400, 413} if name == "tokenize" else {400, 413}
        found.check(statuses <= allowed and all(errors), f"{name}: {statuses} {errors[-1:]}")
        most = 2 * limit if name in ("many_messages", "ids") else limit  # no prompts: a hundred thousand objects
        found.check(quantile(waits, 0.99) < most, f"{name}: /health p99 {quantile(waits, 0.99):.0f} ms")


@section({"times": 10, "gap": 1.0}, {"times": 1, "gap": 5.0})
async def forms(served: Served, found: Found, times: int, gap: float) -> None:
    """Forms that are hard to compile, one after the other, beside a stream: it goes on, and so does the server."""
    wide = {f"field_{i}": {"type": "string", "pattern": f"^[a-z]{{{i % 50},200}}$"} for i in range(400)}
    deep: dict[str, Any] = {"type": "integer"}
    for i in range(15):
        deep = {"anyOf": [{"type": "array", "items": deep}, {"type": "string", "maxLength": i}]}
    hard: list[dict[str, Any]] = [
        {"regex": "(a+)+b"},
        {"regex": "(.{1,1000}){1,1000}x"},
        {"regex": "(x+x+)+y|" + "|".join(f"[a-z]{{{i},{i + 500}}}" for i in range(200))},
        {"guided_json": {"enum": [f"value {i}" for i in range(50_000)]}},
        {"guided_json": {"type": "object", "properties": wide, "required": list(wide)}},
        {"guided_json": {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}}, "$ref": "#/$defs/x"}},
        {"guided_json": {"type": "string", "maxLength": 2**31 - 1}},
        {"guided_json": deep},
        {"grammar": "start: a\n" + "".join(f'a{i}: "x" a{i + 1} | "y"\n' for i in range(2000)) + 'a2000: "z"\na: a0'},
        {"grammar": "start: a+\na: " + "(" * 500 + '"x"' + ")" * 500},
    ]

    async def ask() -> list[tuple[int, float]]:
        answers = [await served.ask(CHAT, chat(max_tokens=8, **form)) for _ in range(times) for form in hard]
        return [(answer.status, round(answer.seconds, 2)) for answer in answers]

    gaps = []

    async def watch() -> None:
        """Notes the seconds between the events of a stream."""
        async with Connection(served.port) as connection:
            await connection.send(request(CHAT, endless(3000, stream=True)))
            last = time.monotonic()
            async for _ in connection.lines():
                now = time.monotonic()
                gaps.append(now - last)
                last = now

    watcher = asyncio.create_task(watch())
    seen, waits = await served.health(ask(), 0.01)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    statuses = [status for status, _ in seen]
    found.figures |= {
        "answers": seen, "health_p99_ms": quantile(waits, 0.99),
        "stream_gap_s": [statistics.median(gaps), quantile(gaps, 0.99), max(gaps)],
    }  # fmt: skip
    found.check(max(gaps) < gap, f"the stream beside it stood still for {max(gaps):.1f} s")
    found.check(set(statuses) <= {200, 400}, f"statuses {set(statuses)}")


@section({"times": 30}, {"times": 5})
async def leaves_in_prefill(served: Served, found: Found, times: int) -> None:
    """A prompt as long as the context, and a client that is gone before its first token."""
    dice, waits = random.Random(2), []
    for i in range(times):
        body = chat(" ".join(str(dice.randrange(1000)) for _ in range(1200)), max_tokens=200, stream=bool(i % 2))
        async with Connection(served.port, reset=bool(i % 3)) as connection:
            await connection.send(request(CHAT, body))
            await asyncio.sleep(dice.uniform(0.0, 0.25))
        waits.append(await served.idle(10))
    found.check(None not in waits, "requests whose client is gone go on")
    found.figures["idle_after_s"] = [
        round(max(w or 99 for w in waits), 2),
        round(statistics.median(w or 99 for w in waits), 2),
    ]
    found.check(max(w or 99 for w in waits) < 3, f"{max(w or 99 for w in waits):.1f} s until its blocks were free")


@section({"requests": 6000}, {"requests": 300})
async def soak(served: Served, found: Found, requests: int) -> None:
    """Short requests of all kinds, good and bad, on connections that stay: the memory of both processes stays, too."""
    kinds = [
        request(CHAT, chat(max_tokens=1), close=False),
        request(CHAT, chat(max_tokens=2, stream=True), close=False),
        request(CHAT, chat(max_tokens=0), close=False),
        request("/v1/messages", {"model": "embedded", "max_tokens": 1, **chat()}, close=False),
        request("/tokenize", {"prompt": "seven times six"}, close=False),
        request("/no/such", close=False),
    ]
    samples = []

    async def client(count: int) -> None:
        async with Connection(served.port) as connection:
            for i in range(count):
                await connection.send(kinds[i % len(kinds)])
                answer = await connection.answer(60)
                found.check(answer.status in (200, 400, 404), f"{answer.status} {answer.body[:100]!r}")

    for _ in range(6):
        await asyncio.gather(*(client(requests // 48) for _ in range(8)))
        samples.append([served.memory(), served.engine.memory_info().rss])
    found.figures["memory_after_each_sixth"] = samples
    for name, part in (("server", 0), ("engine", 1)):
        grown = samples[-1][part] - samples[2][part]
        found.check(grown < 8e6, f"the {name} grew by {grown / 1e6:.1f} MB in the second half")


async def serve(name: str, size: dict[str, Any], room: Path, shared: list[Served]) -> Found:
    """Plays a section: on the server in `shared`, which is started where there is none, or on one of its own."""
    part = SECTIONS[name]
    if part.starts:
        found, start = Found(), time.monotonic()
        await part.run(room, found, **size)
        found.figures["seconds"] = time.monotonic() - start
        return found
    if part.alone:
        async with Served(room / name, (*FLAGS, *part.flags), part.limits) as served:
            return await play(served, name, size)
    if not shared:
        shared.append(Served(room / "shared", FLAGS))
    await shared[0].ready()
    return await play(shared[0], name, size)
