"""What a model's name comes down to: a place on this disk, and what identifies the weights there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from qwen3.checkpoint.folder import INDEX, SINGLE, read_manifest
from qwen3.checkpoint.header import read_json
from qwen3.errors import Qwen3Error

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Resolved:
    """A model that is on this disk.

    `kind`: "folder", "gguf" (`path` is the file, of a split model the first) or "embedded". `name` is what to call it,
    `repo` and `revision` what was asked of a hub, `commit` what that was at the time (ModelScope names none: there it
    is a hash over the file hashes).
    `sha256`: see `weights_sha256`. `source`: "path", "embedded", "cache" or "download".
    """

    path: Path
    kind: Literal["folder", "gguf", "embedded"]
    name: str
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    sha256: str | None = None
    source: Literal["path", "embedded", "cache", "download"] = "path"

    def describe(self) -> str:
        """One line for people: repository, revision, hash, or the path."""
        digest = f", sha256 {self.sha256[:12]}…" if self.sha256 else ""
        if self.repo is None:
            return f"{EMBEDDED if self.kind == 'embedded' else self.path}{digest}"
        revision = self.revision if self.revision == self.commit else f"{self.revision} = {self.commit}"
        return f"{self.repo}@{revision}{digest} ({'downloaded' if self.source == 'download' else 'from the cache'})"


def embedded_folder() -> Path | None:
    """The folder of the packaged model; None in an installation without one."""
    path = Path(str(resources.files("qwen3"))) / "data" / "embedded"
    return path if (path / "config.json").is_file() else None


def weights_sha256(folder: Path) -> str | None:
    """What identifies a folder's weights where that is known without reading them, else None.

    The sha256 of the only weight file, or of the lines "hash  name" of several: from the blob names a hub cache links
    to, or from our manifest.
    """
    try:
        found = _blob_names(folder)
        if found is None:
            manifest = read_manifest(folder) or {}
            found = {name: digest for name, (_, digest) in manifest.items() if name.endswith(".safetensors")}
    except Qwen3Error:
        return None
    return _together(found)


def files_sha256(files: Sequence[Path]) -> str | None:
    """As `weights_sha256`, of these files."""
    found = {file.name: blob_name(file) or "" for file in files}
    return _together(found) if all(len(blob) == 64 for blob in found.values()) else None


def _together(found: dict[str, str]) -> str | None:
    if len(found) < 2:
        return next(iter(found.values()), None)
    return hashlib.sha256("".join(f"{found[name]}  {name}\n" for name in sorted(found)).encode()).hexdigest()


def blob_name(file: Path) -> str | None:
    """The hash a hub cache named this file's blob by (sha256, or git's SHA-1 for small files), if it is in one."""
    try:
        target = Path(os.readlink(file))
    except OSError:
        return None
    named = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name)
    return target.name if named else None


def _blob_names(folder: Path) -> dict[str, str] | None:
    """Weight file → sha256, when all of them are links into a hub cache."""
    try:
        files = [SINGLE] if (folder / SINGLE).exists() else set(read_json(folder / INDEX)["weight_map"].values())
        blobs = {name: blob_name(folder / name) or "" for name in files}
    except (Qwen3Error, OSError, KeyError, TypeError, AttributeError):
        return None
    return blobs if all(len(blob) == 64 for blob in blobs.values()) else None
