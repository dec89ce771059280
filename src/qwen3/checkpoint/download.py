"""One file over HTTP: resumed after any cut, even in a later run, checked against its hash, then renamed into place.

Used for every hub. (huggingface_hub downloads files too, but since 1.x discards what it had when a run is interrupted.)
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from qwen3.errors import CorruptFileError, RemoteError

# progress(what, bytes done, bytes in all): the first call has done = what is already there, the last done = total
Progress = Callable[[str, int, int], None]
PARTIAL = ".qwen3.incomplete"
_CHUNK = 1 << 20
_TRIES = 5  # failures in a row without a byte in between
_RETRY_STATUS = {408, 429, 500, 502, 503, 504}
# any other OSError comes from the disk
_NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository as its hub lists it: `sha256`, or the SHA-1 git gives its blob, or neither, in hex."""

    name: str
    size: int
    url: str
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str | None:
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """What a hub says about one revision of a repository."""

    commit: str
    files: tuple[RemoteFile, ...]


class Cancelled(Exception):
    """Another file failed, or the user interrupted; what is on disk will be resumed."""


def download(
    file: RemoteFile,
    target: Path,
    *,
    headers: Mapping[str, str],
    advance: Callable[[int], None] = lambda count: None,
    stop: threading.Event | None = None,
) -> None:
    """Brings `file` to `target`, going on from `target` + ".qwen3.incomplete" if an earlier run left that.

    `headers` are not sent on to another host. `advance` gets byte counts as they arrive (negative when a part had to be
    thrown away). Raises RemoteError after five failures without progress, CorruptFileError for a wrong hash or size
    (then nothing is left on disk), OSError when the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    while not _try_download(file, target, partial, headers, advance, stop or threading.Event()):
        pass  # another process gave up on the same file just now: start over


def _try_download(
    file: RemoteFile,
    target: Path,
    partial: Path,
    headers: Mapping[str, str],
    advance: Callable[[int], None],
    stop: threading.Event,
) -> bool:
    """False if the partial file was taken away while this process waited for its lock."""
    with partial.open("a+b") as out, _locked(out):
        same = partial.exists() and partial.stat().st_ino == os.fstat(out.fileno()).st_ino
        if target.exists():  # another process finished it while this one waited
            if same:
                partial.unlink()
            return True
        if not same:
            return False
        resumed = out.seek(0, os.SEEK_END) > 0
        digest = _transfer(file, out, headers, advance, stop)
        if digest != file.digest and file.digest and resumed:  # the old part may have been bad: once more, all of it
            advance(-_truncate(out))
            digest = _transfer(file, out, headers, advance, stop)
        if file.digest and digest != file.digest:
            partial.unlink()
            raise CorruptFileError(
                f"{file.name} from {_host(file.url)} has hash {digest} instead of {file.digest}; the download was "
                "removed, try again, or another hub"
            )
        out.flush()
        os.fsync(out.fileno())
        os.replace(partial, target)
        return True


def open_url(url: str, headers: Mapping[str, str], *, timeout: float | None = None) -> Any:
    """A GET response; raises urllib's and http.client's errors. A redirect takes only User-Agent and Range along."""
    request = urllib.request.Request(url)
    for name, value in headers.items():
        if name.lower() in ("user-agent", "range"):
            request.add_header(name, value)
        else:
            request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=timeout or _timeout(), context=_tls())


def describe_failure(error: Exception) -> str:
    """A short reason for people."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "it did not answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__


class StderrProgress:
    """The default progress: a bar on a terminal, else a line at the start, every ten seconds and at the end."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.bar = self.stream.isatty() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
        self.began: tuple[float, int] | None = None
        self.shown = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        first, last = self.began is None, done >= total
        if self.began is None:
            self.began = (now, done)
            print(what, file=self.stream, flush=True)
        if not (first or last) and now - self.shown < (0.2 if self.bar else 10.0):
            return
        self.shown = now
        speed = (done - self.began[1]) / max(now - self.began[0], 1e-6)
        left = f"{(total - done) / speed:.0f} s left" if speed > 0 and not last else ""
        line = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB ({done / max(total, 1):.0%})  {speed / 1e6:.1f} MB/s  {left}"
        if self.bar:
            filled = int(30 * done / max(total, 1))
            print(f"\r  {'━' * filled}{' ' * (30 - filled)} {line}\033[K", end="\n" if last else "", file=self.stream)
            self.stream.flush()
        elif not first or last:
            print(f"  {line}", file=self.stream, flush=True)


def _transfer(
    file: RemoteFile,
    out: IO[bytes],
    headers: Mapping[str, str],
    advance: Callable[[int], None],
    stop: threading.Event,
) -> str:
    """Fills `out` (open for appending, perhaps not empty) to the file's size; returns its hash of the listed kind."""
    if out.seek(0, os.SEEK_END) > file.size:
        advance(-_truncate(out))
    state, failures = _hash_so_far(file, out), 0
    while (have := out.seek(0, os.SEEK_END)) < file.size:
        try:
            with open_url(file.url, {**headers, "Range": f"bytes={have}-"} if have else headers) as response:
                if have and response.status != 206:  # the server cannot resume: from the start
                    advance(-_truncate(out))
                    state = _hash_so_far(file, out)
                while block := response.read(_CHUNK):
                    if stop.is_set():
                        raise Cancelled
                    out.write(block)
                    state.update(block)
                    advance(len(block))
                    failures = 0
                    if out.tell() > file.size:
                        _truncate(out)
                        raise CorruptFileError(
                            f"{file.name} from {_host(file.url)} is longer than the announced {file.size} bytes"
                        )
            if out.tell() < file.size:
                raise ConnectionError("the connection was cut")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                advance(-_truncate(out))
                state = _hash_so_far(file, out)
            elif error.code not in _RETRY_STATUS:
                raise
            failures = _wait(file, error, failures, stop)
        except _NETWORK_ERRORS as error:
            failures = _wait(file, error, failures, stop)
    return str(state.hexdigest())


def _wait(file: RemoteFile, error: Exception, failures: int, stop: threading.Event) -> int:
    failures += 1
    if failures >= _TRIES:
        raise RemoteError(
            f"{file.name}: {_host(file.url)} failed {failures} times ({describe_failure(error)}); "
            "what has arrived is kept, try again to go on"
        ) from None
    if stop.wait(min(10.0, 0.25 * 2**failures)):
        raise Cancelled
    return failures


def _hash_so_far(file: RemoteFile, out: IO[bytes]) -> Any:
    if file.sha256 or not file.git_sha1:
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    out.seek(0)
    while block := out.read(_CHUNK):
        state.update(block)
    return state


def _truncate(out: IO[bytes]) -> int:
    """Empties the file; how many bytes it had."""
    out.flush()
    size = out.seek(0, os.SEEK_END)
    out.truncate(0)
    return size


@contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """Keeps two processes from appending to one file; the second waits."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows, or a file system without locks: the hash will tell
        pass
    yield


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _timeout() -> float:
    try:
        return max(1.0, float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "10")))
    except ValueError:
        return 10.0


def _tls() -> ssl.SSLContext:
    """The system's certificates, or certifi's where Python finds none (macOS installers, slim containers)."""
    context = ssl.create_default_context()
    if not context.get_ca_certs() and not os.environ.get("SSL_CERT_FILE"):
        with suppress(ImportError):
            context.load_verify_locations(import_module("certifi").where())
    return context
