"""Sections of faults: files and batches on a disk that is full, and under a server that is killed again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.serve.faults import FLAGS, Found, section
from tests.serve.raw import CHAT, Answer, Connection, Served, bounce, chat, request

ENDED = ("completed", "failed", "expired", "cancelled")


def lines(count: int, tokens: int) -> bytes:
    """A batch's input: each request with a seed of its own, so that its answer is always the same."""
    rows = [
        {"custom_id": f"row-{i}", "method": "POST", "url": CHAT,
         "body": chat(f"What is {i} * 7?", max_tokens=tokens, seed=i, temperature=0.8)}
        for i in range(count)
    ]  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def form(data: bytes) -> bytes:
    """The bytes of an upload of a batch's input."""
    edge = b"edge-of-a-part"
    part = b"--%s\r\ncontent-disposition: form-data; name=%s\r\n\r\n%s\r\n"
    body = part % (edge, b'"purpose"', b"batch")
    body += (
        part % (edge, b'"file"; filename="in.jsonl"\r\ncontent-type: application/jsonl', data) + b"--%s--\r\n" % edge
    )
    return request("/v1/files", body).replace(b"application/json", b"multipart/form-data; boundary=" + edge, 1)


async def upload(served: Served, data: bytes) -> Answer:
    answer = await bounce(served, form(data), 60)
    assert answer is not None, "an upload without an answer"
    return answer


async def start(served: Served, data: bytes) -> str:
    """The id of a batch that has begun."""
    file = (await upload(served, data)).json["id"]
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    answer = await served.ask("/v1/batches", body)
    assert answer.status == 200, answer
    return str(answer.json["id"])


async def finished(served: Served, batch: str, seconds: float) -> dict[str, Any]:
    """The batch once it has ended, or as it is after so many seconds."""
    begin = time.monotonic()
    while True:
        state: dict[str, Any] = (await served.ask(f"/v1/batches/{batch}")).json
        if state["status"] in ENDED or time.monotonic() - begin > seconds:
            return state
        await asyncio.sleep(0.1)


async def output(served: Served, state: dict[str, Any]) -> list[tuple[str, Any]]:
    """(custom id, answer) in the order of the output file."""
    content = (await served.ask(f"/v1/files/{state['output_file_id']}/content")).body
    rows = [json.loads(line) for line in content.splitlines()]
    return [(row["custom_id"], row["response"]["body"]["choices"]) for row in rows]


@contextmanager
def small_disk(place: Path, size: int) -> Any:
    """A file system of `size` bytes at `place`; yields False where this user may not make one."""
    place.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True
    ).returncode
    try:
        yield made == 0
    finally:
        if made == 0:
            subprocess.run(["umount", "-l", place], check=False)


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


@section({"rows": 600, "wait": 20}, {"rows": 60, "wait": 4}, starts=True)
async def disk_full(room: Path, found: Found, rows: int, wait: float) -> None:
    """No room for a batch's output, then room again: an error that says so, nothing lost, and the server goes on."""
    place, size = room / "files", 2_000_000
    data = lines(rows, 40)
    with small_disk(place, size) as small:
        served = Served(room, (*FLAGS, "--files-dir", str(place)), None if small else small_files)
        found.figures["by"] = "tmpfs" if small else "RLIMIT_FSIZE"
        async with served:
            large = await upload(served, b"x" * (size + 500_000))
            found.check(
                large.status in (413, 503, 507), f"a file that does not fit: {large.status} {large.body[:200]!r}"
            )
            filler = place / "filler"
            if small:
                room_left = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
                filler.write_bytes(b"x" * max(room_left - len(data) - 16_384, 0))
            batch = await start(served, data)
            state = await finished(served, batch, wait)
            errors = str(state.get("errors"))
            found.figures |= {"status": state["status"], "errors": errors[:300], "counts": state.get("request_counts")}
            if small:
                found.check(
                    "space" in errors.lower() or "disk" in errors.lower(), f"the batch does not say why: {state}"
                )
            found.check((await served.ask(CHAT, chat(max_tokens=4))).status == 200, "no answers while the disk is full")
            filler.unlink(missing_ok=True)
            if small:  # one that waited goes on by itself
                later = await finished(served, batch, 120)
                found.check(
                    later["request_counts"] == {"total": rows, "completed": rows, "failed": 0}, f"later: {later}"
                )
                found.check(len(await output(served, later)) == rows, "rows are missing in the output")
            again = await finished(served, await start(served, lines(10, 10)), 60)
            found.check(again["status"] == "completed", f"with room again: {again}")
            found.check(not any("Traceback" in line for line in served.trouble()), "a traceback in the log")


@section({"clients": 100}, {"clients": 20}, starts=True)
async def uploads_cut(room: Path, found: Found, clients: int) -> None:
    """Clients that leave in the middle of an upload: nothing of it stays."""
    dice, data = random.Random(7), form(lines(2000, 4))
    async with Served(room, (*FLAGS, "--files-dir", str(room / "files"))) as served:
        before = served.process.num_fds()

        async def client() -> None:
            await asyncio.sleep(dice.uniform(0, 2))
            async with Connection(served.port, dice.random() < 0.5) as connection:
                await connection.send(data[: int(dice.uniform(0.05, 0.999) * len(data))])
                await asyncio.sleep(dice.uniform(0, 0.2))

        await asyncio.gather(*(client() for _ in range(clients)))
        await asyncio.sleep(1)
        left = [path.name for path in (room / "files").rglob("*") if path.is_file() and path.name != "lock"]
        found.figures |= {"left": left, "descriptors": [before, served.process.num_fds()]}
        found.check(not left, f"{len(left)} files of uploads that were cut")
        found.check(served.process.num_fds() <= before + 2, "descriptors leak")
        found.check((await upload(served, lines(1, 1))).status == 200, "a whole upload is not taken afterwards")
        found.check(not served.trouble(), f"log: {served.trouble()[:2]}")


@section({"rows": 1500, "kills": 50}, {"rows": 60, "kills": 2}, starts=True)
async def batch_killed(room: Path, found: Found, rows: int, kills: int) -> None:
    """The whole server killed at random points of a batch: the output is that of a run nobody disturbed."""
    dice, data = random.Random(6), lines(rows, 24)
    flags = (*FLAGS, "--files-dir", str(room / "files"))
    async with Served(room, (*FLAGS, "--files-dir", str(room / "whole"))) as served:
        begin = time.monotonic()
        state = await finished(served, await start(served, data), 600)
        whole = await output(served, state)
        took = time.monotonic() - begin
    batch, done, ends = "", [], []
    for kill in range(kills):
        served = Served(room, flags)
        async with served:  # its end is a SIGKILL to the group
            batch = batch or await start(served, data)
            await asyncio.sleep(dice.uniform(0, 0.8 * took / kills))
            with suppress(Exception):
                counts = (await served.ask(f"/v1/batches/{batch}")).json["request_counts"]
                done.append(counts["completed"])
            if kill % 3 == 1:
                served.engine.kill()
            elif kill % 3 == 2:
                served.process.terminate()
                took_to_end = time.monotonic()
                code = await asyncio.to_thread(served.process.wait, 30)
                ends.append(time.monotonic() - took_to_end)
                found.check(code == 0, f"exit code {code} after SIGTERM beside a batch")
    async with Served(room, flags) as served:
        last = await finished(served, batch, 600)
        resumed = await output(served, last)
    found.figures |= {
        "rows": rows,
        "kills": kills,
        "completed_at_kills": done,
        "sigterm_to_end_s": ends,
        "counts": last["request_counts"],
    }
    found.check(len(whole) == rows, f"{len(whole)} of {rows} rows undisturbed")
    found.check(resumed == whole, f"{sum(a != b for a, b in zip(resumed, whole, strict=False))} rows differ")
