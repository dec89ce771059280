"""From what a user typed to a model folder: a path, a family tag, a hub id, or nothing (the embedded model)."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3 import family
from qwen3.checkpoint.folder import UNSAFE_SUFFIXES
from qwen3.checkpoint.gguf.files import part_names, stem
from qwen3.checkpoint.gguf.reader import is_gguf
from qwen3.checkpoint.journal import finish_interrupted_save
from qwen3.checkpoint.resolved import EMBEDDED, Resolved, embedded_folder, files_sha256, weights_sha256
from qwen3.errors import CorruptFileError, ModelNotFoundError, UnsafeFileError, UsageError

if TYPE_CHECKING:
    from qwen3.checkpoint.download import Progress

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s:@]+))?(?::(?P<quant>[\w.-]+))?", re.ASCII
)
_TAG = re.compile(r"(?P<tag>qwen3:[\w.-]+)(?:@(?P<revision>[^\s:@]+))?", re.ASCII | re.IGNORECASE)
_SOFT_SWITCH = re.compile(r"/(no_)?think(\s|$)")
_PATH_STARTS = ("/", "./", "../", "~")


def looks_like_model(text: str) -> bool:
    """Whether the first word of `qwen3 run` names a model: then a missing one is an error. Otherwise it is a prompt.

    A model: an existing path, `embedded`, `qwen3:…`, `owner/name[@revision][:quant]`, a text that starts with `/`,
    `./`, `../` or `~`, or ends in `.gguf`. The soft switches `/think` and `/no_think` begin a prompt.
    """
    if not text or _exists(text):
        return bool(text)
    if _SOFT_SWITCH.match(text) or "\n" in text:
        return False
    if text == EMBEDDED or text.startswith(_PATH_STARTS) or text.lower().endswith(".gguf"):
        return True
    return bool(_TAG.fullmatch(text) or _HUB_ID.fullmatch(text))


def resolve(
    name: str | os.PathLike[str] | None = None,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    refresh: bool = False,
) -> Resolved:
    """Finds the model `name` on this disk, or downloads it.

    Order: an existing path, a family tag (`qwen3:8b`), a hub id (`Qwen/Qwen3-8B@revision`, or of a GGUF file
    `Qwen/Qwen3-8B-GGUF@revision:Q4_K_M`), and for None or "embedded" the packaged model. A hub model that is complete
    in the cache is used without asking the hub, unless `refresh`.
    `offline` None: as `HF_HUB_OFFLINE` says. `progress`: called while downloading (None: a bar or lines on stderr).

    Raises ModelNotFoundError (nothing of that name, or not cached while offline) with near names, RemoteError when the
    hub fails, CorruptFileError or UnsafeFileError for a path that is no model file or a download with a wrong hash.
    """
    if name is None or name == EMBEDDED:
        return _embedded()
    text = os.fspath(name)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is not a model name")
    if _exists(text):
        return _from_path(Path(text).expanduser())
    if isinstance(name, Path) or text.startswith(_PATH_STARTS) or text.lower().endswith(".gguf"):
        raise ModelNotFoundError(f"{text}: no such file or folder{_near_path(text)}")

    from qwen3.checkpoint import hub

    if match := _TAG.fullmatch(text):
        member = family.resolve_tag(match["tag"])
        if member is None:
            raise ModelNotFoundError(f"{text}: no such Qwen3 model{_suggest(text)}")
        return hub.fetch(
            member.repo, match["revision"], name=member.tag, offline=offline, progress=progress, refresh=refresh
        )
    if match := _HUB_ID.fullmatch(text):
        return hub.fetch(
            match["repo"], match["revision"], match["quant"], offline=offline, progress=progress, refresh=refresh
        )
    raise ModelNotFoundError(f"{text}: no such file, family tag or hub repository{_suggest(text)}")


def _embedded() -> Resolved:
    path = embedded_folder()
    if path is None:
        raise ModelNotFoundError("this installation has no embedded model; name one, for example qwen3:0.6b")
    return Resolved(path, "embedded", EMBEDDED, sha256=weights_sha256(path), source="embedded")


def _from_path(path: Path) -> Resolved:
    if path.is_dir():
        finish_interrupted_save(path)
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{path} is not a model folder: it has no config.json{_what_instead(path)}")
        return Resolved(path, "folder", path.resolve().name, sha256=weights_sha256(path))
    if is_gguf(path):
        parts = [path.with_name(name) for name in part_names(path.name)]
        return Resolved(parts[0], "gguf", stem(path.name), sha256=files_sha256(parts))
    if path.suffix.lower() == ".gguf":
        raise CorruptFileError(f"{path}: not a GGUF file, it does not begin with GGUF")
    if path.name.endswith(UNSAFE_SUFFIXES):
        raise UnsafeFileError(f"{path} is a pickle, which can run code and is never opened; use safetensors")
    if path.name.endswith((".safetensors", ".json")):
        raise ModelNotFoundError(f"{path} is one file of a model; give its folder, {path.parent}")
    raise ModelNotFoundError(f"{path} is not a model: expected a model folder or a .gguf file")


def _what_instead(path: Path) -> str:
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs:
        return f"; did you mean {ggufs[0]}?"
    inside = sorted(path.glob("snapshots/*/config.json")) or sorted(path.glob("*/config.json"))
    return f"; did you mean {inside[0].parent}?" if inside else ""


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL in it, no such user after ~
        return False


def _near_path(text: str) -> str:
    path = Path(text)
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.expanduser().parent), n=1, cutoff=0.75)
    except (OSError, RuntimeError):
        return ""
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _suggest(text: str) -> str:
    """Near names from the family, for someone who typed one without its `qwen3:` or owner."""
    wanted = text.lower().removeprefix("qwen/").replace(":", "-")
    by_name = {member.name.lower(): member for member in family.MODELS.values()}
    aliased = family.resolve_tag(wanted.replace("qwen3-", "qwen3:", 1))
    if aliased is not None:
        return f"; did you mean {aliased.tag} or {aliased.repo}?"
    near = difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.6)
    if not near:
        return "; the published models are qwen3:0.6b, 1.7b, 4b, 8b, 14b, 32b, 30b-a3b and 235b-a22b"
    return f"; did you mean {' or '.join(by_name[name].tag for name in near)}?"
