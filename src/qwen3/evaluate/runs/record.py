"""A run on disk: `run.json`, which says what was asked of whom, and `samples.jsonl`, a line per sample.

Lines are appended and flushed as samples finish, so that a process that is killed loses those it was at work on alone.
A last line that was cut in the middle is dropped; where a sample has two lines (it failed, and was asked again), the
later one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qwen3.checkpoint.header import read_json
from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, UsageError
from qwen3.family import find

HEAD, SAMPLES, RESULT, PAGE = "run.json", "samples.jsonl", "result.json", "report.html"
FORMAT = 1
FIXED = (
    "format", "suite", "model", "mode", "budget", "samples", "limit", "seed", "items", "sampling", "endpoint",
    "template_sha256", "checkpoint_sha256", "numbers", "judge",
)  # fmt: skip
"""Fields of the head that samples of one run share. The others (machine, commit, date, prices) may change."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """head: `run.json`. samples: objects with `item`, `sample`, `about`, `answer`, `score` (and `seed`, `flags`), one
    per item and sample, sorted by these two whatever order they came in."""

    head: dict[str, Any]
    samples: list[Record]


def read_run(folder: str | Path) -> Run:
    """The run in a folder, finished or not. Raises UsageError where there is none, CorruptFileError for a bad line."""
    folder = Path(folder)
    if not (folder / HEAD).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{HEAD}"))
        hint = f"; there are runs in its folders {', '.join(inside)}" if inside else ""
        raise UsageError(f"{folder}: no run is here (a run is a folder with {HEAD}){hint}")
    head = read_json(folder / HEAD)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise CorruptFileError(f"{folder / HEAD}: not the head of a run of format {FORMAT}")
    found = _read(folder / SAMPLES)[0]
    return Run(head, [found[key] for key in sorted(found)])


def model_name(model: str) -> str:
    """What a model is called wherever it came from: the same of its tag, repository, folder or file."""
    member = find(model)
    return (member.name if member else model.rstrip("/").rpartition("/")[2]).lower()


def _read(path: Path) -> tuple[dict[tuple[str, int], Record], int]:
    """Samples, and how many bytes of whole lines they take."""
    raw = path.read_bytes() if path.exists() else b""
    whole = raw.rfind(b"\n") + 1
    found: dict[tuple[str, int], Record] = {}
    for number, line in enumerate(raw[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
            found[str(record["item"]), int(record["sample"])] = record
        except (ValueError, KeyError, TypeError):
            raise CorruptFileError(
                f"{path}:{number}: not a sample; remove that line, and the same command asks it again"
            ) from None
    return found, whole


class Store:
    """A run's folder, open for more samples. done: what it has already."""

    def __init__(self, folder: Path, head: Mapping[str, Any], file: IO[bytes]) -> None:
        self.folder, self.head, self._file = folder, dict(head), file
        self.done, whole = _read(folder / SAMPLES)
        file.truncate(whole)
        file.seek(whole)

    def add(self, record: Record) -> None:
        """On disk (as far as this process can lose it) when it returns."""
        self.done[record["item"], record["sample"]] = record
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def say(self, name: str, value: Any) -> None:
        """Puts a field into the head."""
        self.head[name] = value
        write_json(self.folder / HEAD, self.head)


@contextmanager
def opened(folder: Path, head: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Store]:
    """The run in `folder`, made where there is none.

    Raises UsageError where another process writes to it, where files of something else are there, and where the run
    that is there differs in a field of FIXED: such samples are not mixed.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / HEAD).exists():
        raise UsageError(f"{folder}: has files, but is not a run; give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / SAMPLES, "a+b")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror})") from None
    with file:
        _lock(file, folder)
        old = read_run(folder).head if (folder / HEAD).exists() else None
        if old is None:
            write_json(folder / HEAD, head)
        else:
            # As JSON has them: tuples and lists are the same there.
            new = json.loads(json.dumps(dict(head)))
            if changed := [name for name in FIXED if old.get(name) != new.get(name)]:
                told = "; ".join(difference(name, old.get(name), new.get(name)) for name in changed)
                raise UsageError(f"{folder}: holds a run with other settings ({told}); give another --out")
            if old.get("commit") != head.get("commit"):
                say(f"this run was begun at commit {old.get('commit')}, and goes on at {head.get('commit')}")
        yield Store(folder, old or head, file)


def difference(name: str, old: Any, new: Any, sides: tuple[str, str] = ("there", "now")) -> str:
    """In words, what differs; of objects, the keys that do. sides: what the two are called."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return "; ".join(difference(f"{name}.{key}", old.get(key), new.get(key), sides) for key in keys)
    return f"{name}: {sides[0]} {json.dumps(old)}, {sides[1]} {json.dumps(new)}"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_atomic(path, [json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"])


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"{folder}: another process is at work on this run") from None
