"""Files: kept whole, on disk, each its owner's alone."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from qwen3.errors import UsageError
from qwen3.serve.app import create_app
from qwen3.serve.errors import ApiError
from qwen3.serve.openai import batches, files
from qwen3.serve.openai.files import FileStore, clean_name, kept_for, page, write_atomic
from qwen3.serve.settings import Settings
from tests.serve.fakes import FakeModels


@pytest.fixture
def client(make_client: Callable[..., Any], tmp_path: Path) -> Any:
    client = make_client(Settings(models=(("fake", "fake"),), files_dir=tmp_path))
    return client


def upload(client: Any, data: bytes = b"{}\n", name: str = "in.jsonl", **form: str) -> Any:
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch", **form})


def test_upload_list_get_content_delete(client: Any, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    made = upload(client, data)
    assert made.status_code == 200, made.text
    file = made.json()
    assert (file["object"], file["bytes"], file["filename"], file["status"]) == (
        "file", len(data), "in.jsonl", "processed",
    )  # fmt: skip
    assert file["expires_at"] - file["created_at"] == files.KEPT
    assert client.get(f"/v1/files/{file['id']}").json() == file
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.content == data
    assert content.headers["content-type"] == "application/octet-stream"
    assert 'filename="in.jsonl"' in content.headers["content-disposition"]
    second = upload(client, name="two.jsonl").json()
    listed = client.get("/v1/files?limit=1&order=asc").json()
    assert listed["has_more"]
    rest = client.get(f"/v1/files?order=asc&after={listed['last_id']}").json()
    assert {listed["first_id"], rest["first_id"]} == {file["id"], second["id"]}
    assert client.get("/v1/files?purpose=batch_output").json()["data"] == []
    assert client.delete(f"/v1/files/{file['id']}").json() == {"id": file["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert {path.stem for path in (tmp_path / "files").iterdir()} == {second["id"]}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"odd": "1"}, "odd"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "4000"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
    ],
)
def test_wrong_fields_are_named(client: Any, form: dict[str, str], param: str) -> None:
    answer = upload(client, **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/files").json()["data"] == []


def test_what_is_no_upload(client: Any) -> None:
    assert client.post("/v1/files", {"purpose": "batch"}).status_code == 415
    assert client.post("/v1/files", data={"purpose": "batch"}).status_code == 415
    missing = client.post("/v1/files", files={"other": ("a", b"")}, data={"purpose": "batch"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "file")
    text = client.post("/v1/files", files={"file": (None, b"text"), "purpose": (None, "batch")})
    assert (text.status_code, text.json()["error"]["param"]) == (400, "file")
    two = client.post("/v1/files", files=[("file", ("a", b"1")), ("file", ("b", b"2"))], data={"purpose": "batch"})
    assert two.status_code == 400
    broken = client.post(
        "/v1/files", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 400
    assert broken.json()["error"]["message"]
    bad = client.get("/v1/files?limit=0")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "limit")
    assert client.get("/v1/files?after=file-no").status_code == 400


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("in.jsonl", "in.jsonl"), ("../../etc/passwd", "passwd"), ("..\\..\\x.jsonl", "x.jsonl"),
        ("a/", "upload.jsonl"),
        ("..", "upload.jsonl"), ("", "upload.jsonl"),
        (None, "upload.jsonl"), ("a\nb", "upload.jsonl"),
        ("n" * 300, "n" * 255), ("é 世界.jsonl", "é 世界.jsonl"), ("\ud800", "?"), ("a\x00b", "upload.jsonl"),
    ],
)  # fmt: skip
def test_names_are_never_paths(given: str | None, shown: str) -> None:
    assert clean_name(given) == shown


def test_ids_are_never_paths(client: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.data").write_text("secret")
    for id in ("../secret", "..%2fsecret", "%2e%2e%2fsecret", "/etc/passwd", "." * 500, "file-%00"):
        for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "secret" not in answer.text or "there is no" in answer.text or "nothing at" in answer.text


def test_without_a_folder_files_live_as_long_as_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(batches, "TEMPORARY", 1000)

    async def play() -> None:
        app = create_app(Settings(models=(("fake", "fake"),)), FakeModels())
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
        ):
            for size, status in ((600, 200), (600, 507), (400, 200)):
                answer = await http.post("/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "batch"})
                assert answer.status_code == status, answer.text
            assert len(list(tmp_path.glob("qwen3-files-*/files/*"))) == 4
        assert list(tmp_path.iterdir()) == []

    asyncio.run(play())


def test_no_place_for_files(app_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_client.server, "files", None)
    for answer in (app_client.get("/v1/files"), app_client.get("/v1/batches"), upload(app_client)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "files_are_off")
        assert "--files-dir" in answer.json()["error"]["message"]


def test_a_full_disk_is_said_and_leaves_nothing(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1

    monkeypatch.setattr(os, "fsync", fsync)
    for writes in range(4):  # the data, its folder, the record, its folder
        room = [writes]
        answer = upload(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
        assert str(tmp_path) not in answer.text
        assert client.get("/v1/files").json()["data"] == []
        assert list((tmp_path / "files").iterdir()) == []
    room = [9]
    assert upload(client).status_code == 200


def test_what_a_kill_left_behind_is_cleaned(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    kept = store.add("a", "in.jsonl", "batch", [b"1", b"2"])
    short = store.add("a", "in.jsonl", "batch", [b"123"])
    store.close()
    folder = tmp_path / "files"
    store.path(short.id).write_bytes(b"1")
    (folder / "file-orphan.data").write_bytes(b"x")
    (folder / ".abc.partial").write_bytes(b"x")
    (folder / "file-odd.json").write_text('{"id": "file-odd"}')
    (folder / "file-other.json").write_bytes((folder / f"{kept.id}.json").read_bytes())
    store = FileStore(tmp_path)
    assert store.of("a") == [kept]
    assert {path.name for path in folder.iterdir()} == {f"{kept.id}.json", f"{kept.id}.data"}
    assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="in use by another server"):
        FileStore(tmp_path)
    store.close()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--files-dir .* cannot be used"):
        FileStore(tmp_path / "file")


def test_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    now = time.time()
    old, used, new = (store.add("a", "f", "batch", [b""], kept=kept) for kept in (10, 10, 1000))
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert store.of("a") == [new]
    with pytest.raises(ApiError, match="there is no file"):
        store.get(old.id, "a")
    store.expire({used.id})
    assert {path.stem for path in (tmp_path / "files").iterdir()} == {used.id, new.id}
    assert kept_for({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}) == 3600
    store.close()


def test_too_many_files(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 1)
    assert upload(client).status_code == 200
    assert upload(client).json()["error"]["code"] == "too_many_files"


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert write_atomic(path, [b"old"]) == 3

    def parts() -> Any:
        yield b"new"
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_atomic(path, parts())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_pages() -> None:
    items = [{"id": str(i)} for i in range(5)]
    assert page(items, 2, "1") == {
        "object": "list", "data": items[2:4], "first_id": "2", "last_id": "3", "has_more": True,
    }  # fmt: skip
    assert json.dumps(page([], 5, None)["data"]) == "[]"
