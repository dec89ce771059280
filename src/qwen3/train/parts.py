"""Long work in parts, each a file that is whole or not there: the same call again goes on behind the last of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import UsageError


def begin_parts(parts: Path, asked: Mapping[str, Any]) -> Path:
    """The folder of an unfinished run of these arguments (JSON), made if need be; returns it. Raises UsageError where
    that run has others, and parts that are done."""
    told = parts / "arguments.json"
    if told.exists() and any(parts.glob("[0-9]*")):
        before = json.loads(told.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(asked)).items():
            if before.get(name) != value:
                raise UsageError(
                    f"{parts} has an unfinished run with {name}={before.get(name)}, not {value}: finish or delete it"
                )
        return parts
    parts.mkdir(parents=True, exist_ok=True)
    write_rows(told, [asked])
    return parts


def missing_parts(parts: Path, items: Sequence[Any], size: int) -> Iterator[tuple[int, Path, Sequence[Any]]]:
    """(number, file, items) of the parts of `size` items that are not there yet: write each with `write_rows`."""
    for number, start in enumerate(range(0, len(items), size)):
        path = parts / f"{number:06d}.jsonl"
        if not path.exists():
            yield number, path, items[start : start + size]


def all_rows(parts: Path) -> Iterator[Any]:
    """Of the parts, in their order."""
    for path in sorted(parts.glob("*.jsonl")):
        yield from read_rows(path)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """A line of JSON for each: all of the file, or nothing."""
    write_atomic(path, (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))


def read_rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
