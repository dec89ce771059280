"""Batches: what a file of requests comes to, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3.serve.app import create_app
from qwen3.serve.errors import ApiError
from qwen3.serve.keys import ANONYMOUS, Caller
from qwen3.serve.openai import batch_lines, batches, files, journal
from qwen3.serve.openai.batch_lines import scan, seeded, settled
from qwen3.serve.openai.batches import LOW, Batch, Batches
from qwen3.serve.openai.files import FileStore
from qwen3.serve.openai.journal import Journal
from tests.serve.batch_server import SeededBackend, settings
from tests.serve.fakes import FakeModels

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]


def line(id: str, url: str = CHAT, **body: Any) -> bytes:
    body = {"messages": [{"role": "user", "content": f"say {id}"}], **body}
    return json.dumps({"custom_id": id, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def lines(count: int) -> bytes:
    """Every seventh is wrong."""
    return b"".join(line(f"r{i}", **({"temperature": -1} if i % 7 == 3 else {})) for i in range(count))


class Place:
    """A store and its batches in a folder; `answer` is called for each request."""

    def __init__(self, folder: Path, answer: batches.Answer, **args: Any) -> None:
        self.files = FileStore(folder)
        self.batches = Batches(folder, self.files, answer, lambda: False, **args)

    def batch(self, data: bytes, owner: Caller = ANONYMOUS, **more: Any) -> Batch:
        file = self.files.add(owner.id, "in.jsonl", "batch", [data])
        now = int(time.time())
        batch = Batch(f"batch_{file.id[-8:]}", asdict(owner), CHAT, file.id, now, now + 3600)
        for name, value in more.items():
            setattr(batch, name, value)
        return batch

    async def ended(self, batch: Batch) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while batch.status not in batches.ENDED or batch.id in self.batches._running:
                await asyncio.sleep(0.002)
        return self.batches.shown(batch)

    def output(self, batch: Batch) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.files.path(batch.output_file_id or "").read_bytes().splitlines()]

    def errors(self, batch: Batch) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.files.path(batch.error_file_id or "").read_bytes().splitlines()]

    async def close(self) -> None:
        await self.batches.stop()
        self.files.close()


async def echo(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
    return 200, json.dumps({"id": "x-1", "said": json.loads(body)}).encode(), 0.0


def played(folder: Path, answer: batches.Answer, play: Callable[[Place], Any], **args: Any) -> Any:
    """What `play` comes to, with a Place that has been started."""

    async def run() -> Any:
        place = Place(folder, answer, **args)
        place.batches.start()
        try:
            return await play(place)
        finally:
            await place.close()

    return asyncio.run(run())


# The input


def test_input_is_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = line("a") + b"\n   \n" + line("b")[:-1]
    path.write_bytes(good)
    found, errors = scan(path, CHAT)
    assert [(item.custom_id, good[item.start : item.start + item.size]) for item in found] == [
        ("a", line("a")), ("b", line("b")[:-1]),
    ]  # fmt: skip
    assert errors == []
    bad = [
        (b"{", "invalid_json_line"), (b"[1]", "invalid_json_line"), (b"\xff", "invalid_json_line"),
        (b'{"a": NaN}', "invalid_json_line"), (b"[" * 100_000, "invalid_json_line"),
        (line("a"), "duplicate_custom_id"), (line(""), "invalid_custom_id"), (line("x" * 513), "invalid_custom_id"),
        (line("c", url="/v1/embeddings"), "mismatched_url"), (line("d", stream=True), "invalid_body"),
        (line("e").replace(b"POST", b"GET"), "invalid_method"),
        (line("f").replace(b'"body"', b'"boddy"'), "unknown_field"),
        (b'{"custom_id": "g", "method": "POST", "url": "%s", "body": 1}' % CHAT.encode(), "invalid_body"),
    ]  # fmt: skip
    path.write_bytes(line("a") + b"".join(text.strip() + b"\n" for text, _ in bad))
    _, errors = scan(path, CHAT)
    assert [(error["line"], error["code"]) for error in errors] == [(i, code) for i, (_, code) in enumerate(bad, 2)]
    assert errors[5]["message"] == "line 7: line 1 has the custom_id 'a' already"


def test_input_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    assert scan(path, CHAT)[1][0]["code"] == "empty_file"
    assert scan(tmp_path / "gone", CHAT)[1][0]["code"] == "file_lost"
    path.write_bytes(b"x\n" * 1000)
    assert len(scan(path, CHAT)[1]) == batch_lines.MAX_ERRORS
    monkeypatch.setattr(batch_lines, "MAX_LINES", 3)
    path.write_bytes(lines(5))
    assert [(e["code"], e["line"]) for e in scan(path, CHAT)[1]] == [("too_many_requests", 4)]


def test_seeds_and_ids_do_not_depend_on_the_moment() -> None:
    body = {"messages": []}
    one, again, other = (seeded(body, CHAT, "b", id)["seed"] for id in ("x", "x", "y"))
    assert one == again != other
    assert 0 <= one < 2**53
    assert seeded({"seed": 5}, CHAT, "b", "x") == {"seed": 5}
    assert seeded(body, "/v1/embeddings", "b", "x") == body

    def response(id: str, call: str, now: float) -> dict[str, Any]:
        return {
            "id": f"resp_{id}", "created_at": now, "metadata": {"id": "mine", "created": 1}, "timings": {"a": now},
            "output": [{"id": f"fc_{id}", "call_id": call, "text": "x"}, {"id": f"fc_{id}", "call_id": call}],
            "usage": {"input_tokens_details": {"cached_tokens": int(now)}, "input_tokens": 3},
        }  # fmt: skip

    first = settled(response("1", "call_1", 3.0), "salt", 77)
    assert (
        first == settled(response("2", "call_9", 4.0), "salt", 77) != settled(response("1", "call_1", 3), "salt2", 77)
    )
    assert first["metadata"] == {"id": "mine", "created": 1}
    assert first["created_at"] == 77
    assert first["usage"] == {"input_tokens_details": {}, "input_tokens": 3}
    ids = [first["id"], first["output"][0]["id"], first["output"][0]["call_id"]]
    assert [id.split("_")[0] for id in ids] == ["resp", "fc", "call"]
    assert len(set(ids)) == 3
    assert first["output"][0]["call_id"] == first["output"][1]["call_id"]


# The journal


def test_journal_is_read_up_to_where_it_was_cut(tmp_path: Path) -> None:
    """At every byte: what was whole is there, the rest is gone, and what is appended next is read again."""
    path = tmp_path / "j"

    async def write(items: list[tuple[int, str, bytes]]) -> dict[int, str]:
        book = Journal(path, 10)
        writer = asyncio.create_task(book.run())
        await asyncio.gather(*(book.append(*item) for item in items))
        writer.cancel()
        book.close()
        return book.places

    items = [(3, "o", b'{"a": 1}'), (0, "e", b"{}"), (7, "o", "é".encode())]
    assert asyncio.run(write(items)) == {3: "o", 0: "e", 7: "o"}
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        book = Journal(path, 10)
        count = sum(end <= cut for end in ends)
        assert list(book.places) == [3, 0, 7][:count]
        assert path.stat().st_size == ([0, *ends][count])
        book.close()
    assert asyncio.run(write([(1, "o", b"[]")])) == {3: "o", 0: "e", 1: "o"}
    book = Journal(path, 10)
    assert list(book.lines("o")) == [b"[]\n", b'{"a": 1}\n']
    assert list(book.lines("e", lambda place: b"%d" % place, 3)) == [b"{}\n", b"2\n"]
    book.close()


def test_journal_with_a_flipped_bit_ends_before_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    text = b"".join(journal._line(i, "o", b'{"x": "%d"}' % i) for i in range(3))
    size = len(text) // 3
    for at in range(size, 2 * size):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        book = Journal(path, 3)
        assert list(book.places) == [0]
        book.close()
    path.write_bytes(text)
    assert list(Journal(path, 2).places) == [0, 1]  # a place that the batch does not have


def full_after(monkeypatch: pytest.MonkeyPatch, room: list[int]) -> None:
    """`room[0]` bytes can be written in all, by pwrite and by files that are written whole."""
    real_pwrite, real_write = os.pwrite, files.write_atomic

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real_pwrite(fd, data[: room[0]], at)
        room[0] -= done
        return done

    def write(path: Path, parts: Any) -> int:
        parts = list(parts)
        if (size := sum(map(len, parts))) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= size
        return real_write(path, parts)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for module in (files, batches):
        monkeypatch.setattr(module, "write_atomic", write)
    for module in (journal, batches):
        monkeypatch.setattr(module, "PAUSE", (0.01, 0.02))


# Running


def test_a_batch_from_file_to_files(tmp_path: Path) -> None:
    seen: list[tuple[Caller, str, dict[str, Any]]] = []

    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        value = json.loads(body)
        seen.append((caller, path, value))
        await asyncio.sleep(0.001 * (len(seen) % 3))
        bad = value.get("temperature") == -1
        return 400 if bad else 200, json.dumps({"error": {}} if bad else {"said": value["messages"]}).encode(), 0.0

    async def play(place: Place) -> None:
        batch = place.batch(lines(30), Caller("alice", "a", 2))
        await place.batches.create(batch)
        shown = await place.ended(batch)
        assert shown["status"] == "completed"
        assert shown["request_counts"] == {"total": 30, "completed": 26, "failed": 4}
        assert [row["custom_id"] for row in place.output(batch)] == [f"r{i}" for i in range(30) if i % 7 != 3]
        assert [row["custom_id"] for row in place.errors(batch)] == ["r3", "r10", "r17", "r24"]
        row = place.output(batch)[1]
        assert row["response"]["body"] == {"said": [{"role": "user", "content": "say r1"}]}
        assert (row["response"]["status_code"], row["error"]) == (200, None)
        assert place.files.get(batch.output_file_id or "", "alice").purpose == "batch_output"
        with pytest.raises(ApiError, match="there is no file"):
            place.files.get(batch.output_file_id or "", "bob")
        assert list((tmp_path / "batches").iterdir()) == [tmp_path / "batches" / f"{batch.id}.json"]

    played(tmp_path, answer, play, together=4)
    assert {caller for caller, _, _ in seen} == {Caller("alice", "a", 2 + LOW)}
    assert {path for _, path, _ in seen} == {CHAT}
    assert len({value["seed"] for _, _, value in seen}) == 30


def test_a_bad_input_file_fails_the_batch(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        batch = place.batch(line("a") + line("a") + b"nonsense\n")
        await place.batches.create(batch)
        shown = await place.ended(batch)
        assert (shown["status"], shown["output_file_id"]) == ("failed", None)
        assert [error["line"] for error in shown["errors"]["data"]] == [2, 3]

    played(tmp_path, echo, play)


def test_what_may_be_different_later_is_asked_again(tmp_path: Path) -> None:
    tries = 0

    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        nonlocal tries
        tries += 1
        return (503, b'{"error": {"message": "full"}}', 0.0) if tries < 4 else await echo(caller, path, body)

    async def play(place: Place) -> None:
        batch = place.batch(line("a"))
        await place.batches.create(batch)
        while tries < 2:
            await asyncio.sleep(0.01)
        assert place.batches.shown(batch)["paused"] == "full"
        assert (await place.ended(batch))["paused"] is None
        assert batch.completed == 1

    played(tmp_path, answer, play)
    assert tries == 4


def test_at_most_so_many_at_once(tmp_path: Path) -> None:
    now = most = 0

    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1
        return await echo(caller, path, body)

    async def play(place: Place) -> None:
        made = [place.batch(lines(20)) for _ in range(3)]
        for batch in made:
            await place.batches.create(batch)
        for batch in made:
            await place.ended(batch)

    played(tmp_path, answer, play, together=5)
    assert most == 5


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_what_was_not_answered_is_said_line_by_line(tmp_path: Path, how: str) -> None:
    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        number = int(json.loads(body)["messages"][0]["content"].split("r")[1])
        await asyncio.sleep(0 if number < 5 else 3600)
        return await echo(caller, path, body)

    async def play(place: Place) -> None:
        batch = place.batch(b"".join(line(f"r{i}") for i in range(9)), expires_at=time.time() + 0.4)
        if how == "cancelled":
            batch.expires_at += 100
        await place.batches.create(batch)
        while place.batches.shown(batch)["request_counts"]["completed"] < 5:
            await asyncio.sleep(0.002)
        if how == "cancelled":
            await place.batches.cancel(batch)
            assert batch.status == "cancelling"
            await place.batches.cancel(batch)  # twice is once
        shown = await place.ended(batch)
        assert (shown["status"], shown["request_counts"]) == (how, {"total": 9, "completed": 5, "failed": 4})
        assert [row["custom_id"] for row in place.output(batch)] == [f"r{i}" for i in range(5)]
        errors = [(row["custom_id"], row["error"]["code"], row["response"]) for row in place.errors(batch)]
        assert errors == [(f"r{i}", f"batch_{how}", None) for i in range(5, 9)]
        with pytest.raises(ApiError, match=f"has {how} already"):
            await place.batches.cancel(batch)

    played(tmp_path, answer, play, together=9)


def test_a_full_disk_pauses_a_batch_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = [1 << 30]
    asked: list[str] = []

    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        asked.append(json.loads(body)["messages"][0]["content"])
        return await echo(caller, path, body)

    async def play(place: Place) -> None:
        batch = place.batch(lines(40))
        full_after(monkeypatch, room)
        await place.batches.create(batch)
        room[0] = 3000
        pauses = 0
        while batch.status not in batches.ENDED:
            await asyncio.sleep(0.005)
            if place.batches.shown(batch)["paused"]:
                shown = place.batches.shown(batch)
                assert "disk is full" in shown["paused"]
                assert shown["errors"]["data"][0]["message"] == shown["paused"]
                pauses += 1
                room[0] += 500 if pauses < 20 else 1 << 20
        assert pauses > 5
        assert (await place.ended(batch))["paused"] is None
        assert [row["custom_id"] for row in place.output(batch)] == [f"r{i}" for i in range(40)]
        room[0] = 0
        with pytest.raises(ApiError, match="disk is full") as caught:
            await place.batches.create(place_batch)
        assert caught.value.status == 507

    place_batch = Batch("b", asdict(ANONYMOUS), CHAT, "file", 0, 1)
    played(tmp_path, answer, play, together=4)
    assert sorted(asked) == sorted(f"say r{i}" for i in range(40))  # and none was asked twice


def test_a_server_about_to_end_gives_up_and_the_next_goes_on(tmp_path: Path) -> None:
    async def slow(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        number = int(json.loads(body)["messages"][0]["content"].split("r")[1])
        await asyncio.sleep(0 if number < 4 else 3600)
        return await echo(caller, path, body)

    ending = False

    async def first() -> Batch:
        place = Place(tmp_path, slow)
        place.batches._hold = lambda: ending
        place.batches.start()
        batch = place.batch(b"".join(line(f"r{i}") for i in range(8)))
        await place.batches.create(batch)
        while place.batches.shown(batch)["request_counts"]["completed"] < 4:
            await asyncio.sleep(0.002)
        nonlocal ending
        ending = True
        async with asyncio.timeout(2):
            while place.batches._running:
                await asyncio.sleep(0.01)
        await place.close()
        return batch

    batch = asyncio.run(first())
    asked: list[bytes] = []

    async def answer(caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        asked.append(body)
        return await echo(caller, path, body)

    async def play(place: Place) -> None:
        again = place.batches.get(batch.id, "anonymous")
        await place.ended(again)
        assert [row["custom_id"] for row in place.output(again)] == [f"r{i}" for i in range(8)]

    played(tmp_path, answer, play)
    assert len(asked) == 4


# Killed


def prepared(folder: Path, count: int, id: str = "batch_0123") -> Batch:
    """A folder with a batch that has not begun, of the same ids each time."""
    store = FileStore(folder)
    file = store.add("anonymous", "in.jsonl", "batch", [lines(count)], id="file-0123")
    now = int(time.time())
    batch = Batch(id, asdict(ANONYMOUS), CHAT, file.id, 1_700_000_000, now + 3600)
    (folder / "batches").mkdir()
    (folder / "batches" / f"{id}.json").write_text(json.dumps(asdict(batch)))
    store.close()
    return batch


def lived(folder: Path, lives: int, step: int, seed: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.serve.batch_server", str(folder), str(lives), str(step), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    story: list[dict[str, Any]] = json.loads(done.stdout)
    return story


def results(folder: Path) -> dict[str, bytes]:
    record = json.loads((folder / "batches" / "batch_0123.json").read_bytes())
    assert record["status"] == "completed"
    return {name: (folder / "files" / f"{record[f'{name}_file_id']}.data").read_bytes() for name in ("output", "error")}


@pytest.mark.parametrize(
    ("lives", "count", "step", "seed"), [(62, 320, 6, 1), pytest.param(400, 2000, 5, 2, marks=pytest.mark.slow)]
)
def test_killed_at_random_points_it_ends_in_the_same_files(
    tmp_path: Path, lives: int, count: int, step: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path / "whole", count)
    prepared(tmp_path / "killed", count)
    start = time.monotonic()
    assert lived(tmp_path / "whole", 0, 1, seed)[-1]["states"] == ["completed"]
    whole = time.monotonic() - start
    story = lived(tmp_path / "killed", lives, step, seed)
    killed = sum(life["status"] == 9 for life in story)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    output = results(tmp_path / "killed")["output"].splitlines()
    assert [json.loads(text)["custom_id"] for text in output] == [f"r{i}" for i in range(count) if i % 7 != 3]
    counts = [life["lines"] for life in story[:-1]]
    assert counts == sorted(counts) or "completed" in story[-2]["states"]  # nothing that was written is lost
    with capsys.disabled():
        places = len(set(counts))
        print(f"\n{killed} kills, {places} different counts of lines, {whole:.1f} s undisturbed")
    assert killed >= 50
    assert places >= 10
    left = {path.suffix for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert left <= {".json", ".data", ""}


# Over HTTP


def test_over_http_with_the_applications_own_routes(tmp_path: Path) -> None:
    async def play() -> None:
        import httpx

        app = create_app(settings(tmp_path), FakeModels(SeededBackend()))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
        ):
            made = await http.post("/v1/files", files={"file": ("x/../in.jsonl", lines(10))}, data={"purpose": "batch"})
            assert (made.status_code, made.json()["filename"]) == (200, "in.jsonl"), made.text
            body = {"input_file_id": made.json()["id"], "endpoint": CHAT, "completion_window": "24h", "odd": 1}
            batch = (await http.post("/v1/batches", json={**body, "metadata": {"a": "b"}})).json()
            assert batch["warnings"] == ["odd is not a field of this request and was ignored"]
            assert (batch["status"], batch["metadata"]) == ("validating", {"a": "b"})
            refused = await http.delete(f"/v1/files/{made.json()['id']}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
            async with asyncio.timeout(10):
                while batch["status"] != "completed":
                    await asyncio.sleep(0.01)
                    batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
            assert batch["request_counts"] == {"total": 10, "completed": 9, "failed": 1}
            content = await http.get(f"/v1/files/{batch['output_file_id']}/content")
            row = json.loads(content.text.splitlines()[0])
            assert row["response"]["body"]["object"] == "chat.completion"
            assert len(row["response"]["body"]["choices"][0]["message"]["content"]) == 64
            error = json.loads((await http.get(f"/v1/files/{batch['error_file_id']}/content")).text)
            assert error["response"]["status_code"] == 400
            assert error["response"]["body"]["error"]["param"] == "temperature"
            listed = (await http.get("/v1/batches?limit=1")).json()
            assert (listed["data"][0]["id"], listed["has_more"]) == (batch["id"], False)
            assert (await http.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 409
            for path in ("/v1/batches/batch_no", "/v1/batches/..%2f..%2fetc", "/v1/files/no/content"):
                assert (await http.get(path)).status_code == 404
            for wrong, param in (
                ({"input_file_id": "file-no"}, "file_id"), ({"endpoint": "/x"}, "endpoint"),
                ({"completion_window": "1h"}, "completion_window"), ({"metadata": {"a": 1}}, "metadata.a"),
                ({"input_file_id": batch["output_file_id"]}, "input_file_id"),
            ):  # fmt: skip
                answer = await http.post("/v1/batches", json={**body, **wrong})
                assert answer.status_code in (400, 404), wrong
                assert answer.json()["error"]["param"] == param

    asyncio.run(play())


def test_a_batch_is_its_owners_alone(tmp_path: Path, key_file: Path) -> None:
    from dataclasses import replace

    from tests.serve.conftest import bearer

    async def play() -> None:
        import httpx

        app = create_app(replace(settings(tmp_path), api_key_file=key_file), FakeModels(SeededBackend()))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
        ):
            alice, bob = bearer("alice"), bearer("bob")
            form: Any = {"files": {"file": ("in.jsonl", lines(3))}, "data": {"purpose": "batch"}}
            assert (await http.post("/v1/files", **form)).status_code == 401
            file = (await http.post("/v1/files", **form, headers=alice)).json()["id"]
            body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
            assert (await http.post("/v1/batches", json=body, headers=bob)).status_code == 404
            batch = (await http.post("/v1/batches", json=body, headers=alice)).json()["id"]
            for method, path in (
                ("GET", f"/v1/files/{file}"), ("GET", f"/v1/files/{file}/content"), ("DELETE", f"/v1/files/{file}"),
                ("GET", f"/v1/batches/{batch}"), ("POST", f"/v1/batches/{batch}/cancel"),
            ):  # fmt: skip
                assert (await http.request(method, path, headers=bob)).status_code == 404, path
            for path in ("/v1/files", "/v1/batches"):
                assert (await http.get(path, headers=bob)).json()["data"] == []
                assert len((await http.get(path, headers=alice)).json()["data"]) >= 1

    asyncio.run(play())


def test_a_small_disk(tmp_path: Path) -> None:
    """A real file system that is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        (disk / "filler").write_bytes(b"x" * 150_000)

        async def play(place: Place) -> None:
            with pytest.raises(OSError, match="No space"):
                place.files.add("anonymous", "big", "batch", [b"x" * 300_000])
            assert [path.suffix for path in (disk / "files").iterdir()] == []
            batch = place.batch(b"".join(line(f"r{i}", user="x" * 400) for i in range(60)))
            await place.batches.create(batch)
            async with asyncio.timeout(10):
                while not place.batches.shown(batch)["paused"]:
                    await asyncio.sleep(0.01)
            assert "disk is full" in place.batches.shown(batch)["paused"]
            (disk / "filler").unlink()
            assert (await place.ended(batch))["status"] == "completed"
            assert [row["custom_id"] for row in place.output(batch)] == [f"r{i}" for i in range(60)]

        played(disk, echo, play)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
