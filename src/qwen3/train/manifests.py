"""Folders of shards that are written one after the other and are whole once `manifest.json` is there.

Until then `N.done` says of shard N what it is and what the folder is about, so that a call which was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, UsageError

MANIFEST = "manifest.json"


def begun(
    folder: Path, about: Mapping[str, Any], made: str, manifest: Callable[[Path], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Entries of the shards that are there; none where the manifest is, which `manifest` reads. made: "shards that were
    made with", say, for messages. Raises UsageError where they are not about this."""
    for left in folder.glob(".*.partial"):  # of a process that was killed
        left.unlink()
    if (folder / MANIFEST).exists():
        _same(folder, manifest(folder), about, made)
        return []
    entries: list[dict[str, Any]] = []
    while (path := folder / f"{len(entries):05d}.done").exists():
        found = read_json(path)
        _same(folder, found["about"], about, made)
        entries.append(found["entry"])
    return entries


def mark_done(folder: Path, number: int, about: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Shard `number` is whole."""
    _write_json(folder / f"{number:05d}.done", {"about": about, "entry": entry})


def finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """All of them are."""
    _write_json(folder / MANIFEST, manifest)


def clear_marks(folder: Path) -> None:
    for path in folder.glob("[0-9]*.done"):
        path.unlink()


def fingerprint(about: Mapping[str, Any]) -> str:
    """Changes with anything in a manifest, and so with any byte of any file that it has the SHA-256 of."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Raises CorruptFileError."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        raise CorruptFileError(f"{path}: not JSON; delete the folder to make it anew") from None
    if not isinstance(found, dict):
        raise CorruptFileError(f"{path}: not a JSON object; delete the folder to make it anew")
    return found


def _same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], made: str) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UsageError(
                f"{folder} holds {made} {name} {found.get(name)!r:.200}, not {value!r:.200}: give another folder, or "
                "delete it to begin anew"
            )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, [json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"])
