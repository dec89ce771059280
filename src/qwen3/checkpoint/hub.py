"""A model from a hub's cache, or into it: only the files that are needed, checked, in Hugging Face's cache layout.

models--<owner>--<name>/blobs/<hash>   snapshots/<commit>/<file> -> ../../blobs/<hash>   refs/<revision>
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import tempfile
import threading
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from qwen3 import family
from qwen3.checkpoint.cache import is_complete, is_offline
from qwen3.checkpoint.download import (
    PARTIAL,
    Cancelled,
    Listing,
    Progress,
    RemoteFile,
    StderrProgress,
    describe_failure,
    download,
    open_url,
)
from qwen3.checkpoint.folder import UNSAFE_SUFFIXES, find_weight_files, stored_format
from qwen3.checkpoint.gguf.choose import choose, models
from qwen3.checkpoint.gguf.config import check_beginning
from qwen3.checkpoint.gguf.files import stem
from qwen3.checkpoint.resolved import Resolved, files_sha256, weights_sha256
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, ModelNotFoundError, Qwen3Error, RemoteError, UnsafeFileError, UsageError

_SMALL_FILES = re.compile(
    r"config\.json|generation_config\.json|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json"
    r"|vocab\.json|merges\.txt|added_tokens\.json|special_tokens_map\.json|chat_template\.(jinja|json)|qwen3\.manifest\.json"
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_COMMIT = re.compile(r"[0-9a-zA-Z]{6,64}")
_CONNECTIONS = 4


class Hub(Protocol):
    """A hub's dialect."""

    name: str
    endpoint: str
    default_revision: str

    def cache(self) -> Path:
        """Its cache folder."""

    def headers(self) -> dict[str, str]:
        """What goes with each request to it."""

    def listing(self, repo: str, revision: str) -> Listing:
        """Raises ModelNotFoundError or RemoteError."""

    def refusal(self, what: str, status: int, reason: str) -> Qwen3Error:
        """What an HTTP status means; `what` was asked for."""


def fetch(
    repo: str,
    revision: str | None = None,
    quant: str | None = None,
    *,
    name: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    refresh: bool = False,
) -> Resolved:
    """The model `repo` at `revision` (a branch, tag or commit) from the cache, else downloaded; see `resolve`.

    quant: which of its GGUF files (see `gguf.choose`).
    """
    hub = _the_hub()
    known = family.resolve_repo(repo)
    if known is not None:  # hubs ignore case, caches do not
        repo = known[0].repo if known[1] is None else known[0].variants[known[1]]
    revision = revision or hub.default_revision
    if any(part in ("", ".", "..") for part in revision.split("/")):
        raise UsageError(f"{repo}@{revision}: not a revision")
    root = hub.cache() / ("models--" + repo.replace("/", "--"))
    offline = is_offline() if offline is None else offline
    snapshot = _cached(root, revision)
    cached, certain = None, False
    if snapshot is not None and quant is None and is_complete(snapshot):
        cached, certain = _resolved(snapshot, repo, revision, name, "cache"), _has_text(snapshot)
    elif snapshot is not None and (files := _local_gguf(snapshot, repo, quant, offline)):
        # which of several files a repository's name alone means, its hub knows
        cached, certain = _resolved(snapshot, repo, revision, name, "cache", files), quant is not None
    if cached is not None and (offline or (certain and not refresh)):
        return cached
    if offline:
        part, wanted = "only in part " if snapshot is not None else "", f":{quant}" if quant else ""
        raise ModelNotFoundError(
            f"{repo}@{revision}{wanted} is {part or 'not '}in the cache {hub.cache()} and asking {hub.name} is "
            f"switched off (HF_HUB_OFFLINE); go online once with `qwen3 pull {repo}@{revision}{wanted}`"
        )
    try:
        listing = hub.listing(repo, revision)
    except RemoteError:
        if cached is None or refresh:
            raise
        return cached  # all the weights are there; only tokenizer files might have been added
    if not _COMMIT.fullmatch(listing.commit):
        raise RemoteError(f"{hub.name} gave {repo} the impossible commit {listing.commit[:80]!r}")
    small, weights = _choose(hub, repo, listing.files, quant)
    downloaded = _download(hub, repo, listing.commit, small, weights, root, progress or StderrProgress())
    _write_ref(root, revision, listing.commit)
    files = [file.name for file in weights if file.name.lower().endswith(".gguf")]
    source: Literal["cache", "download"] = "download" if downloaded else "cache"
    return _resolved(root / "snapshots" / listing.commit, repo, revision, name, source, files)


def _local_gguf(snapshot: Path, repo: str, quant: str | None, offline: bool) -> list[str]:
    """The files of a GGUF model that is whole in the cache; none if it is not, or the hub has to be asked."""
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.suffix.lower() == ".gguf"]
    names = [name for name in names if (snapshot / name).is_file()]
    try:
        return choose(repo, names, quant) if names else []
    except (UsageError, ModelNotFoundError, CorruptFileError):
        if offline:
            raise
        return []


def _the_hub() -> Hub:
    choice = os.environ.get("QWEN3_HUB") or "huggingface"
    if choice == "huggingface":
        from qwen3.checkpoint.huggingface import HuggingFace

        return HuggingFace()
    if choice == "modelscope":
        from qwen3.checkpoint.modelscope import ModelScope

        return ModelScope()
    raise UsageError(f"QWEN3_HUB is {choice!r}; it must be huggingface or modelscope")


def _download(
    hub: Hub,
    repo: str,
    commit: str,
    small: Sequence[RemoteFile],
    weights: Sequence[RemoteFile],
    root: Path,
    progress: Progress,
) -> bool:
    """Brings what is missing of a snapshot; False if nothing was."""
    snapshot = root / "snapshots" / commit
    missing = [file for file in (*small, *weights) if not (snapshot / file.name).is_file()]
    if not missing:
        return False
    _check_writable(root, hub)
    # the small files say whether this is a model for us, before any of the big ones moves
    _download_all(hub, repo, [file for file in small if file in missing], root, snapshot, _uncounted)
    if small:
        ModelConfig.from_pretrained(snapshot)
        stored_format(snapshot)
    else:
        _look_at(weights[0], repo, hub)

    files = [file for file in weights if file in missing]
    total = sum(file.size for file in weights)
    have = total - sum(file.size for file in files) + sum(_partial_bytes(root, file) for file in files)
    free = shutil.disk_usage(root).free
    if total - have > free:
        raise Qwen3Error(
            f"{repo} needs {total - have:,} more bytes ({(total - have) / 1e9:.2f} GB) in {root}, but that disk has "
            f"{free:,} free ({free / 1e9:.2f} GB); free some, or set HF_HOME to another disk"
        )
    plural = "s" if len(weights) > 1 else ""
    what = f"{repo}@{commit[:12]}: {total / 1e9:.2f} GB in {len(weights)} file{plural} from {hub.name}"
    lock, done = threading.Lock(), have

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(what, done, total)

    if files:
        progress(what, have, total)
        _download_all(hub, repo, files, root, snapshot, advance)
    if small and not is_complete(snapshot):
        find_weight_files(snapshot)  # says what is wrong
        raise RemoteError(f"{hub.name} lists no complete model for {repo}; try another revision")
    return True


def _look_at(file: RemoteFile, repo: str, hub: Hub) -> None:
    """Whether a GGUF file is a model for us. What goes wrong on the way, the download itself will say."""
    with suppress(OSError, http.client.HTTPException):
        with open_url(file.url, {**hub.headers(), "Range": "bytes=0-4095"}) as response:
            start = response.read(4096)
        check_beginning(f"{repo} {file.name}", start)


def _choose(
    hub: Hub, repo: str, files: Sequence[RemoteFile], quant: str | None
) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """(small files, weight files) to download; of a GGUF model the latter alone. Pickle is never among them."""
    small = [file for file in files if _SMALL_FILES.fullmatch(file.name)]
    weights = [file for file in files if _WEIGHTS.fullmatch(file.name)]
    if any(file.name == "model.safetensors" for file in weights):
        weights = [file for file in weights if file.name == "model.safetensors"]
        small = [file for file in small if file.name != "model.safetensors.index.json"]
    names = [file.name for file in files]
    if quant is not None or (not weights and models(names)):
        small, chosen = [], choose(repo, names, quant)
        weights = [next(file for file in files if file.name == name) for name in chosen]
    elif not weights:
        if any(name.endswith(UNSAFE_SUFFIXES) for name in names):
            raise UnsafeFileError(f"{repo} holds pickled weights only, which are never opened; it needs safetensors")
        raise ModelNotFoundError(f"{repo} on {hub.name} holds no safetensors weights")
    elif "config.json" not in names:
        raise ModelNotFoundError(f"{repo} on {hub.name} has no config.json, so it is no model")
    for file in (*small, *weights):
        if file.digest is not None and not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", file.digest):
            raise RemoteError(f"{hub.name} gave {repo} {file.name} the impossible hash {file.digest[:80]!r}")
        if file.sha256 is None and file in weights:
            raise RemoteError(f"{hub.name} gave no sha256 for {repo} {file.name}, so it cannot be checked")
    return small, weights


def _download_all(
    hub: Hub, repo: str, files: Sequence[RemoteFile], root: Path, snapshot: Path, advance: Callable[[int], None]
) -> None:
    stop, headers = threading.Event(), hub.headers()

    def bring(file: RemoteFile) -> None:
        blob = _blob(root, file)
        try:
            if not blob.is_file():
                download(file, blob, headers=headers, advance=advance, stop=stop)
            _link(blob, snapshot / file.name)
        except (Qwen3Error, Cancelled):
            raise
        except Exception as error:
            raise _file_error(hub, repo, file, error) from None

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        jobs = [pool.submit(bring, file) for file in files]
        try:
            for job in jobs:
                job.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, Cancelled):
                raise
            failed = next(
                e for job in jobs if not job.cancelled() and (e := job.exception()) and type(e) is not Cancelled
            )
            raise failed from None


def _file_error(hub: Hub, repo: str, file: RemoteFile, error: Exception) -> Qwen3Error:
    """What a failed download of one file means."""
    what = f"{repo} {file.name}"
    if isinstance(error, urllib.error.HTTPError):
        return hub.refusal(what, error.code, describe_failure(error))
    if isinstance(error, urllib.error.URLError):
        return RemoteError(f"{what}: {hub.endpoint} cannot be reached ({describe_failure(error)})")
    if isinstance(error, OSError):
        return Qwen3Error(f"{error.filename or hub.cache()}: cannot be written ({error.strerror or error})")
    return RemoteError(f"{what}: {describe_failure(error)}")


def _uncounted(count: int) -> None:
    """Small files are not worth a progress bar."""


def _blob(root: Path, file: RemoteFile) -> Path:
    return root / "blobs" / (file.digest or f"unhashed-{file.size}-{file.name}")


def _partial_bytes(root: Path, file: RemoteFile) -> int:
    blob = _blob(root, file)
    try:
        return blob.stat().st_size if blob.is_file() else blob.with_name(blob.name + PARTIAL).stat().st_size
    except OSError:
        return 0


def _link(blob: Path, pointer: Path) -> None:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if pointer.is_symlink() and not pointer.exists():
        pointer.unlink()
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:
        pass
    except OSError:  # no symbolic links here: the snapshot holds the file itself
        os.replace(blob, pointer)


def _cached(root: Path, revision: str) -> Path | None:
    """The snapshot folder of a revision: by its ref, its commit, or the beginning of its commit."""
    snapshots = root / "snapshots"
    try:
        commit = (root / "refs" / revision).read_text().strip()
        if _COMMIT.fullmatch(commit) and (snapshots / commit).is_dir():
            return snapshots / commit
    except (OSError, UnicodeDecodeError):
        pass
    if re.fullmatch("[0-9a-f]{7,40}", revision):
        found = sorted(snapshots.glob(revision + "*"))
        return found[0] if len(found) == 1 else None
    return None


def _has_text(snapshot: Path) -> bool:
    return any((snapshot / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def _write_ref(root: Path, revision: str, commit: str) -> None:
    if commit.startswith(revision) and re.fullmatch("[0-9a-f]{7,}", revision):
        return
    ref = root / "refs" / revision
    try:
        if ref.is_file() and ref.read_text() == commit:
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        draft = ref.with_name(f"{ref.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        draft.write_text(commit)
        os.replace(draft, ref)
    except OSError:
        pass  # a cache that is complete but read-only still serves; only the shortcut to the commit is not kept


def _check_writable(root: Path, hub: Hub) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        variable = "QWEN3_MODELSCOPE_CACHE" if hub.name == "ModelScope" else "HF_HOME"
        raise Qwen3Error(
            f"{error.filename or root}: the model cache cannot be written ({error.strerror}); set {variable} to a "
            "folder that can"
        ) from None


def _resolved(
    snapshot: Path,
    repo: str,
    revision: str,
    name: str | None,
    source: Literal["cache", "download"],
    gguf: Sequence[str] = (),
) -> Resolved:
    files = [snapshot / file for file in gguf]
    return Resolved(
        path=files[0] if files else snapshot,
        kind="gguf" if files else "folder",
        name=f"{repo}:{stem(gguf[0])}" if files else name or repo,
        repo=repo,
        revision=revision,
        commit=snapshot.name,
        sha256=files_sha256(files) if files else weights_sha256(snapshot),
        source=source,
    )
