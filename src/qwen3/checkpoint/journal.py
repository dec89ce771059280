"""Replacing the files of a folder all at once: either the old set or the new one, whenever the power goes.

New files are written into a staging folder inside the target. When all of them are on disk, a journal naming the moves
is put in place by one rename: that is the commit. Then the moves are done and the journal is removed. Whoever opens
the folder in between finishes the moves first, so a half-replaced folder is never read.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qwen3.checkpoint.header import read_json
from qwen3.errors import CorruptFileError, Qwen3Error

JOURNAL = "qwen3.journal.json"
STAGING_PREFIX = ".saving-"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty staging folder inside `folder` (made if need be), with the folder locked against other writers.

    What killed writers left is finished or cleared first. On an exception the staging folder is removed again.
    Raises Qwen3Error when the folder cannot be written or another process is writing to it.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Qwen3Error(f"{folder}: cannot make this folder ({error.strerror})") from None
    with _lock(folder, wait=False):
        _finish(folder)
        for left in folder.glob(STAGING_PREFIX + "*"):
            shutil.rmtree(left, ignore_errors=True)
        stage = folder / f"{STAGING_PREFIX}{os.getpid()}"
        try:
            stage.mkdir()
            yield stage
        except BaseException as error:
            if not (folder / JOURNAL).exists():  # once committed, the staged files are the new state
                _discard(folder, stage, made)
            if isinstance(error, OSError) and not isinstance(error, Qwen3Error):
                raise Qwen3Error(f"{error.filename or folder}: cannot be written ({error.strerror})") from None
            raise


def commit(folder: Path, stage: Path, *, order: Sequence[str], remove: Sequence[str]) -> None:
    """Moves the files `order` from `stage` into `folder` and deletes `remove`; after a crash the next open goes on."""
    for name in order:
        fsync(stage / name)
    fsync(stage)
    draft = stage / JOURNAL
    draft.write_text(json.dumps({"staging": stage.name, "move": list(order), "remove": list(remove)}))
    fsync(draft)
    os.replace(draft, folder / JOURNAL)
    fsync(folder)
    _finish(folder)


def finish_interrupted_save(folder: str | Path) -> None:
    """Completes a save that was cut off after its commit; does nothing in any other folder.

    Raises CorruptFileError if that is impossible (a read-only folder, staged files gone).
    """
    folder = Path(folder)
    if not (folder / JOURNAL).exists():
        return
    with _lock(folder, wait=True):
        _finish(folder)


def fsync(path: Path) -> None:
    """Waits until a file's or folder's content is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, parts: Iterable[bytes]) -> int:
    """Bytes written. The file is whole or not there, whenever the power fails. Raises OSError, and leaves nothing."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    size = 0
    try:
        with open(partial, "wb") as file:
            for part in parts:
                size += file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)
    return size


def _finish(folder: Path) -> None:
    journal = folder / JOURNAL
    if not journal.exists():
        return
    stage, moves, removals = _read_journal(folder)
    try:
        # no config.json and no manifest while files are mixed: nothing else can take the folder for a model
        for name in (*removals, *(name for name in moves if (stage / name).exists())):
            if name in removals or name.endswith(".json"):
                (folder / name).unlink(missing_ok=True)
        for name in moves:
            if (stage / name).exists():
                os.replace(stage / name, folder / name)
            elif not (folder / name).exists():
                raise CorruptFileError(f"{folder}: an interrupted save lost {name}; save the model again")
        fsync(folder)
        journal.unlink(missing_ok=True)
        shutil.rmtree(stage, ignore_errors=True)
        fsync(folder)
    except OSError as error:
        raise CorruptFileError(
            f"{folder}: a save was interrupted here and cannot be finished ({error.strerror}); make the folder writable"
        ) from None


def _read_journal(folder: Path) -> tuple[Path, list[str], list[str]]:
    data: Any = read_json(folder / JOURNAL, limit=1 << 24)
    stage, moves, removals = (
        data.get(key) if isinstance(data, dict) else None for key in ("staging", "move", "remove")
    )
    names = [stage, *moves, *removals] if isinstance(moves, list) and isinstance(removals, list) else [None]
    plain = all(isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name for name in names)
    if not plain or not str(stage).startswith(STAGING_PREFIX):
        raise CorruptFileError(f"{folder / JOURNAL}: not a journal of this program; delete it and save the model again")
    return folder / str(stage), list(moves or ()), list(removals or ())


def _discard(folder: Path, stage: Path, made: bool) -> None:
    shutil.rmtree(stage, ignore_errors=True)
    if made:
        with suppress(OSError):  # somebody else may have put something there
            folder.rmdir()


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """An advisory lock on the folder itself; where the system has none, the journal alone must do."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Qwen3Error(f"{folder}: another process is writing to this folder") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(fd)
