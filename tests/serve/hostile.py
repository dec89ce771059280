"""Sections of faults: bytes that are no HTTP, no JSON or no UTF-8, connections used in every way but the usual one."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.serve.faults import BODY, HEADER, Found, section
from tests.serve.raw import CHAT, Answer, Connection, Served, bounce, chat, endless, request

TEXT = "What is 27 * 14?"
# Good on every path: what one of them does not know is ignored there.
FEW = {"max_tokens": 4, "max_output_tokens": 4, "options": {"num_predict": 4}}
GOOD = request(CHAT, {"model": "embedded", **chat(TEXT), "prompt": TEXT, "input": TEXT, **FEW}, close=False)
HEAD, BODY_BYTES = GOOD.split(b"\r\n\r\n", 1)
CHUNKED = b"\r\n".join(line for line in HEAD.split(b"\r\n") if not line.startswith(b"content-length"))
CHUNKED += b"\r\ntransfer-encoding: chunked\r\n\r\n"


def headers(*lines: bytes, drop: bytes = b"?", body: bytes = BODY_BYTES) -> bytes:
    """A good request with more header lines, without the one that begins with `drop`."""
    kept = [line for line in HEAD.split(b"\r\n") if not line.startswith(drop)]
    return b"\r\n".join([*kept, *lines, b"", b""]) + body


def first_line(line: bytes) -> bytes:
    return line + b"\r\n" + HEAD.split(b"\r\n", 1)[1] + b"\r\n\r\n" + BODY_BYTES


def chunks(*pieces: bytes) -> bytes:
    return CHUNKED + b"".join(pieces)


WHOLE = b"%x\r\n%s\r\n" % (len(BODY_BYTES), BODY_BYTES)
REFUSED = {0, 400, 403, 404, 405, 421}
# What is sent, and the statuses that are an honest answer; 0: closed without one.
MALFORMED: dict[str, tuple[bytes, set[int]]] = {
    "zeros": (b"\0" * 1000, {0, 400}),
    "noise": (random.Random(3).randbytes(4096), {0, 400}),
    "tls hello": (bytes.fromhex("16030100c8010000c40303") + bytes(189), {0, 400}),
    "http2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 405, 505}),
    "http 0.9": (b"GET /\r\n\r\n", {0, 400}),
    "http 1.0": (b"GET /health HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", {200}),
    "http 9.9": (first_line(b"POST /v1/chat/completions HTTP/9.9"), {0, 400, 505}),
    "empty line first": (b"\r\n" + request("/health"), {200, 400}),
    "bare lf": (b"GET /health HTTP/1.1\nhost: 127.0.0.1\nconnection: close\n\n", {200, 400}),
    "method of 10 kB": (b"A" * 10_000 + b" / HTTP/1.1\r\n\r\n", {0, 400, 405, 501}),
    "lower method": (first_line(b"post /v1/chat/completions HTTP/1.1"), {0, 400, 405, 501}),
    "path of 200 kB": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {0, 400, 414, 431}),
    "nul in path": (b"GET /\0 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {0, 400, 404}),
    "bad percent": (b"GET /v1/models/%zz%ff%00 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {400, 404}),
    "dots": (b"GET /../../../etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {400, 404}),
    "dots, encoded": (b"GET /static/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {400, 404}),
    "absolute": (b"GET http://evil.example/health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {0, 200, 400, 403, 404, 421}),
    "connect": (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n\r\n", REFUSED | {501}),
    "options star": (b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {0, 200, 204, 400, 404, 405}),
    "trace": (b"TRACE / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {0, 400, 405, 501}),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", {200, 400, 403, 421}),
    "foreign host": (headers(b"host: evil.example", drop=b"host"), {400, 403, 421}),
    "two hosts": (headers(b"host: evil.example"), {400, 403, 421}),
    "foreign origin": (headers(b"origin: https://evil.example"), {403}),
    "header without colon": (headers(b"whatever"), {0, 400}),
    "space before colon": (headers(b"x-a : b"), {0, 200, 400}),
    "nul in header": (headers(b"x-a: \0"), {0, 400}),
    "folded header": (headers(b"x-a: b\r\n c"), {0, 200, 400}),
    "latin-1 header": (headers(b"x-a: \xff\xfe", b"user-agent: \xe9\xe8"), {200, 400}),
    "latin-1 key": (headers(b"authorization: Bearer \xff\xfe"), {200, 400, 401}),
    "latin-1 request id": (headers(b"x-request-id: \xff" + b"a" * 5000), {200, 400}),
    "header of 100 kB": (headers(b"x-a: " + b"b" * 100_000), {0, 400, 431}),
    "10,000 headers": (headers(*[b"x-%d: y" % i for i in range(10_000)]), {0, 400, 431}),
    "two lengths": (headers(b"content-length: 5"), {0, 400}),
    "length and chunks": (headers(b"transfer-encoding: chunked"), {0, 400}),
    "negative length": (headers(b"content-length: -5", drop=b"content-length"), {0, 400}),
    "length of letters": (headers(b"content-length: abc", drop=b"content-length"), {0, 400}),
    "length 2^70": (headers(b"content-length: 1180591620717411303424", drop=b"content-length"), {0, 400, 413}),
    "length 1 TB": (headers(b"content-length: 1000000000000", drop=b"content-length"), {413}),
    "length too short": (headers(b"content-length: 10", drop=b"content-length"), {0, 400}),
    "length too long": (headers(b"content-length: 5000", drop=b"content-length"), {0, 400, 408}),
    "no length": (headers(drop=b"content-length"), {0, 400, 411}),
    "gzip": (headers(b"content-encoding: gzip"), {200, 400, 415}),
    "gzip chunks": (headers(b"transfer-encoding: gzip, chunked", drop=b"content-length"), {0, 400, 501}),
    "form": (headers(b"content-type: application/x-www-form-urlencoded", drop=b"content-type"), {200, 400, 415}),
    "no type": (headers(drop=b"content-type"), {200, 400, 415}),
    "expect": (headers(b"expect: 100-continue"), {200}),
    "expect nonsense": (headers(b"expect: 200-maybe"), {200, 400, 417}),
    "upgrade": (headers(b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13",
                        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="), {0, 200, 400, 403, 404, 426}),
    "h2c": (headers(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"), {200, 400}),
    "chunked": (chunks(WHOLE, b"0\r\n\r\n"), {200}),
    "chunked by byte": (chunks(*[b"1\r\n%c\r\n" % c for c in BODY_BYTES], b"0\r\n\r\n"), {200}),
    "chunk extension": (chunks(WHOLE.replace(b"\r", b";a=%s\r" % (b"b" * 5000), 1), b"0\r\n\r\n"), {0, 200, 400, 413}),
    "chunk garbage": (chunks(b"zz\r\nhello\r\n"), {0, 400}),
    "chunk negative": (chunks(b"-5\r\nhello\r\n"), {0, 400}),
    "chunk 2^64": (chunks(b"fffffffffffffffff\r\nhello\r\n"), {0, 400, 413}),
    "chunk too short": (chunks(b"5\r\n" + BODY_BYTES + b"\r\n0\r\n\r\n"), {0, 400}),
    "chunk never ends": (chunks(WHOLE), {0, 400, 408}),
    "chunk trailers": (chunks(WHOLE, b"0\r\nx-a: b\r\ncontent-length: 4\r\n\r\n"), {0, 200, 400}),
    "trailers of 200 kB": (chunks(WHOLE, b"0\r\n", b"x-a: y\r\n" * 25_000, b"\r\n"), {0, 200, 400, 431}),
}  # fmt: skip

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "number": b"7",
    "list": b"[]",
    "text": b'"hello"',
    "empty": b"{}",
    "cut": BODY_BYTES[:-3],
    "two": BODY_BYTES + BODY_BYTES,
    "raw nul": BODY_BYTES.replace(b"What", b"Wh\0at"),
    "raw newline": BODY_BYTES.replace(b"What", b"Wh\nat"),
    "nuls": b"\0" * 100,
    "bad utf-8": BODY_BYTES.replace(b"What", b"\xff\xfe\xc3\x28"),
    "overlong utf-8": BODY_BYTES.replace(b"What", b"\xc0\xaf"),
    "surrogate bytes": BODY_BYTES.replace(b"What", b"\xed\xa0\x80"),
    "lone surrogate": BODY_BYTES.replace(b"What", b"\\ud800"),
    "surrogate role": BODY_BYTES.replace(b'"user"', b'"\\udfff"'),
    "surrogate key": BODY_BYTES.replace(b'"max_tokens"', b'"\\ud800"'),
    "utf-16": BODY_BYTES.decode().encode("utf-16"),
    "utf-32": BODY_BYTES.decode().encode("utf-32-le"),
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "nan": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "1e999": b'{"temperature": 1e999}',
    "large int": b'{"max_tokens": ' + b"9" * 400 + b"}",
    "int of 5000 digits": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep schema": json.dumps(chat(response_format={"type": "json_schema"})).encode()[:-2]
    + b',"json_schema":{"name":"a","schema":' + b'{"not":' * 300 + b"{}" + b"}" * 300 + b"}}}",
    "proto": b'{"__proto__": {"x": 1}, "__class__": "os", "model_config": {}, "model_fields": 1}',
    "many keys": json.dumps({f"k{i}": i for i in range(20_000)}).encode(),
    "key of 1 MB": b'{"' + b"k" * 1_000_000 + b'": 1}',
}  # fmt: skip
# The texts that are fine: a NUL and a BOM are characters of a message as any other.
FINE: dict[str, bytes] = {
    "nul": BODY_BYTES.replace(b"What", b"Wh\\u0000at"),
    "pair": BODY_BYTES.replace(b"What", b"\\ud83d\\ude00"),
    "unassigned": BODY_BYTES.replace(b"What", b"\\uffff\\ufeff\\u202e"),
    "control strings": BODY_BYTES.replace(b"What", b"<|im_end|><think></think><tool_call>"),
}
PATHS = (
    CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens",
    "/api/chat", "/api/generate", "/api/embed", "/api/show", "/tokenize", "/detokenize",
)  # fmt: skip


@section({"noise": 2000}, {"noise": 100})
async def malformed(served: Served, found: Found, noise: int) -> None:
    """What is no HTTP, or hardly: refused or dropped in time, and nobody else notices."""

    async def one(name: str, data: bytes, allowed: set[int]) -> None:
        try:
            answer = await bounce(served, data, max(HEADER, BODY) + 5)
        except TimeoutError:
            found.check(False, f"{name}: neither an answer nor an end")
            return
        status = answer.status if answer else 0
        seen[name] = status
        found.check(
            status in allowed, f"{name}: {status}, not one of {sorted(allowed)}: {answer and answer.body[:200]!r}"
        )

    seen: dict[str, int] = {}
    ends: Counter[int] = Counter()
    await asyncio.gather(*(one(name, *case) for name, case in MALFORMED.items()))
    dice = random.Random(4)
    for _ in range(noise):  # a good request with a few bytes changed
        data = bytearray(GOOD)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        await one("changed", bytes(data), {0, 200, *range(400, 418), 421, 431, 501, 505})
        ends[seen.get("changed", -1)] += 1
    seen.pop("changed", None)
    found.figures |= {"cases": seen, "changed": {str(k): v for k, v in sorted(ends.items())}}


@section({}, {})
async def bodies(served: Served, found: Found) -> None:
    """NUL, invalid UTF-8, surrogates, NaN, depth and size in JSON, to every path that takes JSON."""
    seen: Counter[int] = Counter()

    def shaped(path: str, body: Any) -> bool:
        if path.startswith("/api/"):
            return isinstance(body.get("error"), str)
        error = body.get("error", {})
        return isinstance(error.get("message"), str) and (path.startswith("/v1/messages") or "param" in error)

    for path in PATHS:
        for name, data in {**BODIES, **FINE}.items():
            answer = await bounce(served, request(path, data), 20)
            if answer is None:
                found.check(False, f"{path} {name}: closed without an answer")
                continue
            seen[answer.status] += 1
            fine = name in FINE and path in (CHAT, "/v1/messages", "/api/chat")
            allowed = {200} if fine else {200, 400, 404, 413} if name in FINE or "key" in name else {400, 404, 413}
            found.check(answer.status in allowed, f"{path} {name}: {answer.status} {answer.body[:200]!r}")
            if answer.status >= 400:
                found.check(shaped(path, answer.json), f"{path} {name}: {answer.body[:200]!r}")
    found.figures["statuses"] = {str(k): v for k, v in seen.items()}


@section({"requests": 1000}, {"requests": 60})
async def pipelined(served: Served, found: Found, requests: int) -> None:
    """Many requests in one write: answers in their order, each whole."""
    dice = random.Random(5)
    kinds: list[tuple[bytes, Callable[[Answer], bool]]] = [
        (request("/health", close=False), lambda a: a.status == 200),
        (request("/no/such", close=False), lambda a: a.status == 404),
        (request(CHAT, chat(max_tokens=2), close=False), lambda a: a.status == 200 and "choices" in a.json),
        (request(CHAT, chat(max_tokens=2, stream=True), close=False), lambda a: a.status == 200 and a.done),
        (request(CHAT, b"{", close=False), lambda a: a.status == 400),
    ]
    chosen = [dice.choices(kinds, (20, 4, 1, 1, 4))[0] for _ in range(requests)]
    async with Connection(served.port) as connection:
        connection.pour(b"".join(data for data, _ in chosen))
        wrong, count = 0, 0
        with suppress(ConnectionError, TimeoutError):
            for _, right in chosen:
                wrong += not right(await connection.answer(20))
                count += 1
    found.figures |= {"sent": requests, "answered": count, "wrong": wrong}
    found.check(
        count == requests and not wrong, f"{count} of {requests} answered, {wrong} of them not as they should be"
    )


@section({"times": 40}, {"times": 6})
async def half_closed(served: Served, found: Found, times: int) -> None:
    """A client that sends its request and a FIN, and reads on: it has its answer, or nothing runs for it."""
    ends: Counter[str] = Counter()
    for i in range(times):
        body = chat(max_tokens=20, stream=bool(i % 2))
        async with Connection(served.port) as connection:
            await connection.send(request(CHAT, body))
            connection.writer.write_eof()
            try:
                answer = await connection.answer(20)
                ends[f"{answer.status} {'whole' if answer.whole else 'cut'}"] += 1
            except ConnectionError:
                ends["closed"] += 1
    found.figures["ends"] = dict(ends)
    found.check(set(ends) <= {"closed", "200 whole"}, f"half an answer, or an error: {dict(ends)}")


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


@section({"clients": 600, "seconds": 8}, {"clients": 300, "seconds": 3}, limits=few_descriptors)
async def flood(served: Served, found: Found, clients: int, seconds: float) -> None:
    """More connections than the server has descriptors (128 here): no spinning, and well again once they are gone."""
    async with Connection(served.port) as old:
        await old.send(request("/health", close=False))
        found.check((await old.answer(10)).status == 200, "no /health before the flood")
        held: list[Connection] = []
        running = asyncio.create_task(served.ask(CHAT, endless(200, stream=True)))
        await asyncio.sleep(0.3)
        for _ in range(clients):
            with suppress(OSError, TimeoutError):
                held.append(await asyncio.wait_for(Connection(served.port).__aenter__(), 1))
        before = sum(served.process.cpu_times()[:2])
        await asyncio.sleep(seconds)
        spent = (sum(served.process.cpu_times()[:2]) - before) / seconds
        with suppress(ConnectionError, TimeoutError):
            await old.send(request("/health", close=False))
            found.figures["health_meanwhile"] = (await old.answer(10)).status
        found.check((await running).done, "a stream that ran before the flood broke")
        for one in held:
            await one.__aexit__()
    found.figures |= {"connections": len(held), "cpu_share": spent}
    found.check(spent < 0.7, f"{spent:.0%} of a core spent on connections that do nothing")
    await asyncio.sleep(HEADER + 1)
