"""Which Qwen3 models are on this disk: the embedded one and what the hub caches hold."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3.checkpoint.folder import find_weight_files
from qwen3.checkpoint.gguf.choose import models, parts
from qwen3.checkpoint.resolved import EMBEDDED, embedded_folder
from qwen3.errors import Qwen3Error

_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class CachedModel:
    """One model on this disk. `bytes` counts each file once; `complete` is False after an unfinished download."""

    name: str
    path: Path
    source: Literal["embedded", "huggingface", "modelscope"]
    bytes: int
    complete: bool
    revisions: tuple[str, ...] = ()
    commit: str | None = None


def huggingface_cache() -> Path:
    """Where Hugging Face's own tools keep models: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or str(_user_cache() / "huggingface")
    return Path(os.path.expandvars(named or os.path.join(home, "hub"))).expanduser()


def modelscope_cache() -> Path:
    """Where this program keeps models from ModelScope: QWEN3_MODELSCOPE_CACHE, else ~/.cache/qwen3/modelscope."""
    named = os.environ.get("QWEN3_MODELSCOPE_CACHE")
    return Path(named or _user_cache() / "qwen3" / "modelscope").expanduser()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to ask a hub."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def is_complete(snapshot: Path) -> bool:
    """Whether a cached snapshot has a config and every weight file its index names."""
    try:
        return (snapshot / "config.json").is_file() and all(path.is_file() for path in find_weight_files(snapshot))
    except (Qwen3Error, OSError):
        return False


def list_cached() -> list[CachedModel]:
    """The embedded model, then every snapshot of a Qwen3 repository in the caches, sorted by name."""
    found: list[CachedModel] = []
    path = embedded_folder()
    if path is not None:
        found.append(CachedModel(EMBEDDED, path, "embedded", _size(path), is_complete(path)))
    found += _scan(huggingface_cache(), "huggingface") + _scan(modelscope_cache(), "modelscope")
    return found


def _scan(cache: Path, source: Literal["huggingface", "modelscope"]) -> list[CachedModel]:
    models = []
    for repo in sorted(cache.glob("models--*--*")):
        name = repo.name.removeprefix("models--").replace("--", "/")
        refs: dict[str, list[str]] = {}
        for ref in sorted(path for path in repo.glob("refs/**/*") if path.is_file()):
            refs.setdefault(_read(ref).strip(), []).append(str(ref.relative_to(repo / "refs")))
        for snapshot in sorted(repo.glob("snapshots/*")):
            if _is_qwen3(snapshot, name):
                revisions = tuple(refs.get(snapshot.name, ()))
                size, complete = _size(snapshot), is_complete(snapshot) or _has_whole_gguf(snapshot)
                models.append(CachedModel(name, snapshot, source, size, complete, revisions, snapshot.name))
    return models


def _has_whole_gguf(snapshot: Path) -> bool:
    found = models(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.suffix.lower() == ".gguf")
    return bool(found) and all((snapshot / part).is_file() for name in found for part in parts(name))


def _is_qwen3(snapshot: Path, name: str) -> bool:
    try:
        return json.loads(_read(snapshot / "config.json")).get("model_type") in ("qwen3", "qwen3_moe")
    except (ValueError, AttributeError, RecursionError):
        return "qwen3" in name.lower() and snapshot.is_dir()  # no config yet: an unfinished download


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _size(folder: Path) -> int:
    files = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
