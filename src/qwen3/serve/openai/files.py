"""`/v1/files`: the JSONL files of batches, on disk in one folder, each its owner's alone.

`<id>.data` is written first and `<id>.json` last; what has no `.json` is nobody's, and goes when the server starts.
Names that clients give are shown again, and never become part of a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import UsageError
from qwen3.serve.errors import ApiError

if TYPE_CHECKING:
    from qwen3.serve.app import Server

KEPT = 30 * 86_400  # seconds, where nothing else was asked for
SHORTEST, LONGEST = 3600, 30 * 86_400
MAX_FILES = 1000  # of one owner
TEMPORARY = 256 << 20  # bytes of uploads at most where no folder was given: that may be memory
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_CHUNK = 1 << 20
Limit = Annotated[int, Query(ge=1, le=10_000)]
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class StoredFile:
    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int

    def shown(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if name != "owner"}
        return {**found, "object": "file", "status": "processed"}


def disk_error(error: OSError, what: str) -> ApiError:
    """What a client is told; never a path."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "the server's disk is full" if full else f"the server cannot write: {os.strerror(error.errno or 0)}"
    return ApiError(507 if full else 500, f"{what} was not stored: {why}", code="disk_full" if full else "io_error")


class FileStore:
    """Files of all owners in one folder, which one server has to itself."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        """most: bytes of uploads, None: as many as fit. Raises UsageError if another server uses the folder, or it
        cannot be written."""
        self.root, self.folder, self._most = folder, folder / "files", most
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "wb")  # noqa: SIM115 held as long as we are there
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--files-dir {folder} is in use by another server: give each its own") from None
        except OSError as error:
            raise UsageError(f"--files-dir {folder} cannot be used: {error.strerror}") from None
        self._files: dict[str, StoredFile] = {}
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(ValueError, TypeError, OSError):
                file = StoredFile(**json.loads(path.read_bytes()))
                if path.stem == file.id and self.path(file.id).stat().st_size == file.bytes:
                    self._files[file.id] = file
        for path in list(self.folder.iterdir()):
            if path.stem not in self._files:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._lock.close()

    def path(self, id: str) -> Path:
        return self.folder / f"{id}.data"

    def add(
        self,
        owner: str,
        filename: str,
        purpose: str,
        parts: Iterable[bytes],
        kept: int = KEPT,
        id: str | None = None,
        created: int | None = None,
    ) -> StoredFile:
        """Blocks. A file that has the id already is replaced. Raises OSError, and has then stored nothing."""
        id, created = id or f"file-{secrets.token_hex(16)}", created or int(time.time())
        record = self.folder / f"{id}.json"
        try:
            size = write_atomic(self.path(id), parts)
            file = StoredFile(id, owner, filename, purpose, size, created, created + kept)
            write_atomic(record, [json.dumps(asdict(file)).encode()])
        except OSError:
            record.unlink(missing_ok=True)
            self.path(id).unlink(missing_ok=True)
            raise
        self._files[id] = file
        return file

    def get(self, id: str, owner: str) -> StoredFile:
        """Raises ApiError 404; another owner's file is as if it were not there."""
        file = self._files.get(id)
        if file is None or file.owner != owner or file.expires_at <= time.time():
            raise ApiError(404, f"there is no file {id[:80]!r}", "file_id", "file_not_found")
        return file

    def of(self, owner: str) -> list[StoredFile]:
        """The oldest first."""
        now = time.time()
        found = [file for file in self._files.values() if file.owner == owner and file.expires_at > now]
        return sorted(found, key=lambda file: (file.created_at, file.id))

    def check_room(self, owner: str, size: int) -> None:
        """Raises ApiError if `owner` may not upload so many bytes more."""
        if len(self.of(owner)) >= MAX_FILES:
            raise ApiError(400, f"you have {MAX_FILES} files already: delete some", "file", "too_many_files")
        if self._most is not None and sum(file.bytes for file in self._files.values()) + size > self._most:
            raise ApiError(
                507,
                f"without --files-dir the server keeps {self._most:,} bytes of files, and this would be more",
                "file",
                "disk_full",
            )

    def delete(self, id: str) -> None:
        if self._files.pop(id, None) is not None:
            (self.folder / f"{id}.json").unlink(missing_ok=True)
            self.path(id).unlink(missing_ok=True)

    def expire(self, in_use: set[str]) -> None:
        """Delete what is past its time and `in_use` by nobody."""
        now = time.time()
        for file in list(self._files.values()):
            if file.expires_at <= now and file.id not in in_use:
                self.delete(file.id)


def page(items: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """OpenAI's list object: `limit` of the items, those behind the id `after`."""
    if after is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"after: there is no {after[:80]!r} in this list", "after")
        items = items[places[0] + 1 :]
    data = items[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }


def clean_name(name: str | None) -> str:
    """The last part of what a client calls its file, fit to be shown."""
    last = re.split(r"[/\\]", name or "")[-1].encode(errors="replace").decode()[:255]
    return last if _NAME.fullmatch(last) and last.strip(". ") else "upload.jsonl"


def kept_for(form: Any) -> int:
    """Seconds, from `expires_after`."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return KEPT
    if anchor != "created_at":
        raise ApiError(400, "expires_after.anchor must be 'created_at'", "expires_after.anchor")
    if not re.fullmatch(r"\d{1,9}", str(seconds)) or not SHORTEST <= int(seconds) <= LONGEST:
        raise ApiError(400, f"expires_after.seconds must be {SHORTEST} to {LONGEST}", "expires_after.seconds")
    return int(seconds)


def _chunks(file: IO[bytes]) -> Iterable[bytes]:
    file.seek(0)
    while chunk := file.read(_CHUNK):
        yield chunk


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"const": "batch"},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST, "maximum": LONGEST},
                    },
                }
            }
        },
    }
}


def store_of(server: Server) -> FileStore:
    if (store := server.files) is None:
        raise ApiError(
            503, "this server found no place for files: start it with --files-dir FOLDER", code="files_are_off"
        )
    assert isinstance(store, FileStore)
    return store


def router(server: Server) -> APIRouter:
    routes = APIRouter(tags=["files"])
    if server.settings.files_dir is not None:
        server.files = FileStore(server.settings.files_dir)

    @contextlib.asynccontextmanager
    async def form_of(request: Request) -> AsyncIterator[Any]:
        try:
            async with request.form(max_files=1, max_fields=8, max_part_size=1024) as form:
                yield form
        except OSError as error:
            raise disk_error(error, "file") from None

    @routes.post("/v1/files", openapi_extra=_FORM)
    async def create(request: Request) -> dict[str, Any]:
        store, owner = store_of(server), request.state.caller.id
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(415, "a file is uploaded as multipart/form-data, with the fields file and purpose")
        async with form_of(request) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise ApiError(400, "file is missing: upload one, with a file name", "file")
            if purpose != "batch":
                given = "missing" if purpose is None else f"{str(purpose)[:40]!r}"
                raise ApiError(400, f"purpose is {given}: only 'batch' is possible here", "purpose")
            if unknown := [name for name in form if name not in _FIELDS]:
                raise ApiError(400, f"{unknown[0][:60]} is not a field of an upload", unknown[0][:60])
            store.check_room(owner, upload.size or 0)
            parts, name, kept = _chunks(upload.file), clean_name(upload.filename), kept_for(form)
            file = await asyncio.to_thread(store.add, owner, name, "batch", parts, kept)
        return file.shown()

    @routes.get("/v1/files")
    async def files(
        request: Request,
        purpose: str | None = None,
        limit: Limit = 10_000,
        order: Order = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        found = [
            file.shown() for file in store_of(server).of(request.state.caller.id) if purpose in (None, file.purpose)
        ]
        return page(found if order == "asc" else found[::-1], limit, after)

    @routes.get("/v1/files/{file_id}")
    async def file(file_id: str, request: Request) -> dict[str, Any]:
        return store_of(server).get(file_id, request.state.caller.id).shown()

    @routes.delete("/v1/files/{file_id}")
    async def delete(file_id: str, request: Request) -> dict[str, Any]:
        store = store_of(server)
        store.get(file_id, request.state.caller.id)
        if server.batches is not None and (batch := server.batches.user_of(file_id)):
            raise ApiError(409, f"the batch {batch} still reads this file: cancel it first", "file_id", "file_in_use")
        store.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @routes.get("/v1/files/{file_id}/content", response_class=FileResponse)
    async def content(file_id: str, request: Request) -> FileResponse:
        store = store_of(server)
        file = store.get(file_id, request.state.caller.id)
        return FileResponse(store.path(file.id), media_type="application/octet-stream", filename=file.filename)

    return routes
