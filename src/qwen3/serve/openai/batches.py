"""`/v1/batches`: files of requests, answered when nobody else waits, through the same routes as over HTTP.

A batch survives whatever ends the server: `<id>.json` says how far it got, `<id>.journal` has the results. One that was
killed ends in the same files as one that was not (see `batch_lines.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field
from starlette.types import Message

from qwen3.errors import UsageError
from qwen3.serve.body import LARGE, Route, dumps
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.fields import Body, Label, Name
from qwen3.serve.keys import Caller
from qwen3.serve.logs import event
from qwen3.serve.openai.batch_lines import Line, digest, result_line, scan, seeded, settled
from qwen3.serve.openai.files import (
    LONGEST,
    SHORTEST,
    TEMPORARY,
    FileStore,
    Limit,
    disk_error,
    page,
    store_of,
    write_atomic,
)
from qwen3.serve.openai.journal import PAUSE, Journal

if TYPE_CHECKING:
    from qwen3.serve.app import Server

MAX_BATCHES = 100
WINDOW = 86_400
LOW = 1000  # added to the caller's priority: whoever waits for an answer goes first
TOGETHER = 128  # requests of all batches under way, and never more than half of what may wait
LATER = (408, 429, 499, 503)  # statuses that another time may be different
ENDED = ("completed", "failed", "expired", "cancelled")
T = TypeVar("T")


@dataclass
class Batch:
    """What is on disk about a batch; `owner` is a Caller's fields. Times are in seconds since 1970."""

    id: str
    owner: dict[str, Any]
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    status: str = "validating"
    metadata: dict[str, str] | None = None
    output_kept: int = LONGEST
    errors: list[dict[str, Any]] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: dict[str, int] = field(default_factory=dict)

    def turn(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    def shown(self, paused: str | None = None) -> dict[str, Any]:
        """OpenAI's object. paused: why nothing moves just now; an error among others for clients that know no more."""
        errors = [*(self.errors or ())]
        if paused:
            errors.append({"code": "paused", "message": paused, "param": None, "line": None})
        moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.times.get(f"{name}_at") for name in moments},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
            "paused": paused,
        }


# Running


Answer = Callable[[Caller, str, bytes], Awaitable[tuple[int, bytes, float]]]
"""(caller, path, JSON body) -> (status, JSON body, seconds after which to try again)."""


class Batches:
    """All batches of a server. hold: whether the server is about to end, so that nothing new is begun. together:
    requests under way at once."""

    def __init__(
        self, folder: Path, files: FileStore, answer: Answer, hold: Callable[[], bool], together: int = TOGETHER
    ) -> None:
        self.folder, self._files, self._answer, self._hold = folder / "batches", files, answer, hold
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._batches: dict[str, Batch] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._halted: dict[str, asyncio.Event] = {}
        self._journals: dict[str, Journal] = {}
        self._trouble: dict[str, str] = {}
        self._room = asyncio.Semaphore(together)
        self._saving = threading.Lock()
        for path in self.folder.glob("*.json"):
            try:
                batch = Batch(**json.loads(path.read_bytes()))
            except (ValueError, TypeError) as error:
                event("batch is unreadable", logging.ERROR, file=path.name, error=str(error))
            else:
                self._batches[batch.id] = batch
        ended = {batch.id for batch in self._batches.values() if batch.status in ENDED}
        for path in list(self.folder.iterdir()):
            if path.suffix == ".partial" or (path.suffix == ".journal" and path.stem in ended):
                path.unlink()

    def start(self) -> None:
        """Go on with what has not ended."""
        for batch in sorted(self._batches.values(), key=lambda batch: batch.created_at):
            if batch.status not in ENDED:
                self._launch(batch)
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """What was under way is asked again next time."""
        tasks = [*self._running.values(), self._keeper]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """Give up what runs as soon as the server is about to end; now and then delete what is past its time."""
        for rounds in itertools.count():
            if self._hold():
                for task in self._running.values():
                    task.cancel()
            if rounds % 2400 == 0:
                self._files.expire({b.input_file_id for b in self._batches.values() if b.status not in ENDED})
                for batch in list(self._batches.values()):
                    if batch.status in ENDED and batch.created_at + WINDOW + LONGEST < time.time():
                        (self.folder / f"{batch.id}.json").unlink(missing_ok=True)
                        del self._batches[batch.id]
            await asyncio.sleep(0.25)

    def _launch(self, batch: Batch) -> None:
        self._halted[batch.id] = asyncio.Event()

        def done(task: asyncio.Task[None]) -> None:
            del self._running[batch.id]
            if not task.cancelled() and (error := task.exception()):
                event("batch stopped", logging.ERROR, id=batch.id, error=repr(error))
                self._trouble[batch.id] = "an internal error; the batch goes on when the server is started again"

        task = self._running[batch.id] = asyncio.create_task(self._run(batch))
        task.add_done_callback(done)

    # What clients ask

    def shown(self, batch: Batch) -> dict[str, Any]:
        paused = self._trouble.get(batch.id)
        if journal := self._journals.get(batch.id):
            batch.completed, batch.failed = journal.counts["o"], journal.counts["e"]
            paused = paused or (_refused(journal.trouble) if journal.trouble else None)
        return batch.shown(paused)

    def get(self, id: str, owner: str) -> Batch:
        batch = self._batches.get(id)
        if batch is None or batch.owner["id"] != owner:
            raise ApiError(404, f"there is no batch {id[:80]!r}", "batch_id", "batch_not_found")
        return batch

    def of(self, owner: str) -> list[Batch]:
        """The newest first."""
        found = [batch for batch in self._batches.values() if batch.owner["id"] == owner]
        return sorted(found, key=lambda batch: (-batch.created_at, batch.id))

    def user_of(self, file_id: str) -> str | None:
        """A batch that has not ended and reads this file."""
        users = (b.id for b in self._batches.values() if b.input_file_id == file_id and b.status not in ENDED)
        return next(users, None)

    async def create(self, batch: Batch) -> None:
        """Raises ApiError if there are too many, or it cannot be stored."""
        if sum(b.status not in ENDED for b in self.of(batch.owner["id"])) >= MAX_BATCHES:
            raise ApiError(429, f"{MAX_BATCHES} of your batches are under way", code="too_many_batches", retry_after=60)
        try:
            await asyncio.to_thread(self._save, batch)
        except OSError as error:
            raise disk_error(error, "batch") from None
        self._batches[batch.id] = batch
        self._launch(batch)

    async def cancel(self, batch: Batch) -> None:
        if batch.status in ENDED:
            raise ApiError(409, f"the batch has {batch.status} already", "batch_id", "batch_ended")
        if batch.status == "in_progress" or batch.status == "validating":
            batch.turn("cancelling")
            with contextlib.suppress(OSError):  # its end will be saved, once that is possible
                await asyncio.to_thread(self._save, batch)
            self._halted[batch.id].set()

    # One batch

    def _save(self, batch: Batch) -> None:
        with self._saving:  # so that the last to write knows all
            write_atomic(self.folder / f"{batch.id}.json", [json.dumps(asdict(batch)).encode()])

    async def _lasting(self, batch: Batch, work: Callable[[], T]) -> T:
        """What blocking work gives; tried again for as long as the disk refuses."""
        pause = PAUSE[0]
        while True:
            try:
                found = await asyncio.to_thread(work)
            except OSError as error:
                self._trouble[batch.id] = _refused(error)
                event("batch paused", logging.WARNING, id=batch.id, error=str(error.strerror))
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE[1])
            else:
                self._trouble.pop(batch.id, None)
                return found

    async def _run(self, batch: Batch) -> None:
        """From wherever it stands to its end."""
        input = self._files.path(batch.input_file_id)
        lines, errors = await self._lasting(batch, lambda: scan(input, batch.endpoint))
        if errors:
            batch.errors = errors
            batch.turn("failed")
            await self._lasting(batch, lambda: self._save(batch))
            return
        batch.total = len(lines)
        if batch.status == "validating":
            batch.turn("in_progress")
            await self._lasting(batch, lambda: self._save(batch))
        path = self.folder / f"{batch.id}.journal"
        journal = self._journals[batch.id] = await self._lasting(batch, lambda: Journal(path, len(lines)))
        writer = asyncio.create_task(journal.run())
        try:
            if batch.status == "in_progress":
                await self._answer_all(batch, lines, journal)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        status = "cancelled" if batch.status == "cancelling" else "completed"
        if len(journal.places) < len(lines) and status == "completed":
            status = "expired"
        elif status == "completed":
            batch.turn("finalizing")
            await self._lasting(batch, lambda: self._save(batch))
        await self._lasting(batch, lambda: self._finish(batch, lines, journal, status))
        del self._journals[batch.id]
        journal.close()
        path.unlink()
        event("batch ended", id=batch.id, status=batch.status, completed=batch.completed, failed=batch.failed)

    async def _answer_all(self, batch: Batch, lines: list[Line], journal: Journal) -> None:
        """Returns when all are answered, the time is over, or it is cancelled."""
        todo = [place for place in range(len(lines)) if place not in journal.places]
        halted = asyncio.create_task(self._halted[batch.id].wait())
        tasks = (asyncio.create_task(self._pump(batch, lines, journal, todo)), halted)
        try:
            left = max(0.0, batch.expires_at - time.time())
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, batch: Batch, lines: list[Line], journal: Journal, todo: list[int]) -> None:
        async with asyncio.TaskGroup() as group:
            for place in todo:
                await self._room.acquire()
                task = group.create_task(self._one(batch, lines[place], place, journal))
                task.add_done_callback(lambda _: self._room.release())

    async def _one(self, batch: Batch, line: Line, place: int, journal: Journal) -> None:
        with open(self._files.path(batch.input_file_id), "rb") as file:
            file.seek(line.start)
            request = json.loads(file.read(line.size))["body"]
        caller = Caller(**batch.owner)
        caller = replace(caller, priority=caller.priority + LOW)
        body = dumps(seeded(request, batch.endpoint, batch.id, line.custom_id))
        while True:
            status, data, wait = await self._answer(caller, batch.endpoint, body)
            if status not in LATER:
                break
            self._trouble[batch.id] = json.loads(data)["error"]["message"]
            await asyncio.sleep(min(max(wait, 0.2), 30.0))
        self._trouble.pop(batch.id, None)
        salt = digest(batch.id, line.custom_id)

        def result() -> bytes:
            return result_line(line, salt, status, settled(json.loads(data), salt, batch.created_at))

        text = result() if len(data) < LARGE else await asyncio.to_thread(result)
        await journal.append(place, "o" if status < 400 else "e", text)

    def _finish(self, batch: Batch, lines: list[Line], journal: Journal, status: str) -> None:
        """Blocks. Once more gives the same files."""
        count = len(lines) - journal.counts["o"]
        why = {"expired": "the batch's 24 hours were over", "cancelled": "the batch was cancelled"}.get(status, "")

        def missing(place: int) -> bytes:
            return result_line(
                lines[place], digest(batch.id, lines[place].custom_id), error=(f"batch_{status}", f"{why} before this")
            )

        for name, number, parts in (
            ("output", journal.counts["o"], journal.lines("o")),
            ("error", count, journal.lines("e", missing, len(lines))),
        ):
            if number:
                id = f"file-{digest(batch.id, name)[:32]}"
                filename = f"{batch.id}_{name}.jsonl"
                self._files.add(batch.owner["id"], filename, "batch_output", parts, batch.output_kept, id)
                setattr(batch, f"{name}_file_id", id)
        batch.completed, batch.failed = journal.counts["o"], count
        batch.turn(status)
        self._save(batch)


def _refused(error: OSError) -> str:
    return disk_error(error, "the last result").message


class InProcess:
    """Answers requests by the application's own routes, without what guards them against the network."""

    def __init__(self, app: FastAPI) -> None:
        self._app = FastAPI(openapi_url=None)
        self._app.router, self._app.state = app.router, app.state
        self._app.exception_handlers = app.exception_handlers

    async def __call__(self, caller: Caller, path: str, body: bytes) -> tuple[int, bytes, float]:
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        found: dict[str, Any] = {}
        parts: list[bytes] = []

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.Future()  # this client never leaves
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.update(message)
            else:
                parts.append(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "client": None,
            "server": None,
            "state": {"caller": caller, "id": f"req_{secrets.token_hex(12)}", "started": time.perf_counter()},
        }
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            event("internal error", logging.ERROR, path=path, error=repr(error))
            return 500, dumps(shape(ApiError.of(error), "openai")), 0.0
        return found["status"], b"".join(parts), float(dict(found["headers"]).get(b"retry-after", 1))


# Routes


class Kept(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST, le=LONGEST)]


class BatchBody(Body):
    input_file_id: Name
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[Label, Field(max_length=64)], Label], Field(max_length=16)] | None = None
    output_expires_after: Kept | None = None


def router(server: Server) -> APIRouter:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Files need no flag: without a folder for them they live as long as the server."""
        with contextlib.ExitStack() as stack:
            if server.files is None:
                try:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen3-files-"))
                    server.files = FileStore(Path(folder), TEMPORARY)
                except (OSError, UsageError) as error:
                    event("no place for files", logging.WARNING, error=str(error))
                    yield
                    return
            together = max(1, min(TOGETHER, server.settings.max_queue // 2))
            answer = InProcess(app)
            server.batches = Batches(server.files.root, server.files, answer, lambda: server.draining, together)
            server.batches.start()
            try:
                yield
            finally:
                await server.batches.stop()
                server.files.close()

    routes = APIRouter(tags=["batches"], route_class=Route, lifespan=lifespan)

    def batches() -> Batches:
        store_of(server)
        assert isinstance(server.batches, Batches)
        return server.batches

    @routes.post("/v1/batches")
    async def create(body: BatchBody, request: Request) -> dict[str, Any]:
        all, caller = batches(), request.state.caller
        file = store_of(server).get(body.input_file_id, caller.id)
        if file.purpose != "batch":
            raise ApiError(400, f"input_file_id: this file's purpose is {file.purpose!r}, not 'batch'", "input_file_id")
        now = int(time.time())
        batch = Batch(
            f"batch_{secrets.token_hex(16)}", asdict(caller), body.endpoint, file.id, now, now + WINDOW,
            metadata=body.metadata,
            output_kept=body.output_expires_after.seconds if body.output_expires_after else LONGEST,
        )  # fmt: skip
        await all.create(batch)
        warnings = body.ignored()
        return all.shown(batch) | ({"warnings": warnings} if warnings else {})

    @routes.get("/v1/batches")
    async def list_batches(request: Request, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
        all = batches()
        return page([all.shown(batch) for batch in all.of(request.state.caller.id)], limit, after)

    @routes.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str, request: Request) -> dict[str, Any]:
        return batches().shown(batches().get(batch_id, request.state.caller.id))

    @routes.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, request: Request) -> dict[str, Any]:
        all = batches()
        batch = all.get(batch_id, request.state.caller.id)
        await all.cancel(batch)
        return all.shown(batch)

    return routes
