"""API keys: a file of them, and who the sender of a request is.

A line is `id:secret` or `id:sha256=HEX`, then perhaps `:` and options with commas: `admin`, `priority=N` (lower first),
`tenant=NAME` (whose prefix cache it shares; its own by default), `max=N` (requests at once). `#` begins a comment.
A client sends `id.secret` or the secret alone. Only digests are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from qwen3.errors import UsageError

MIN_SECRET, MAX_KEYS, MAX_PRESENTED = 8, 10_000, 1024
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """Who sends a request. id: the key's public id, the owner of files, batches and streams. tenant: whose prefix
    cache. limit: requests at once, None: the server's own."""

    id: str
    tenant: str = ""
    priority: int = 0
    admin: bool = False
    limit: int | None = None


ANONYMOUS = Caller("anonymous", admin=True)  # of a server without keys


@dataclass(frozen=True)
class _Key:
    digest: bytes
    caller: Caller


_NOBODY = _Key(hashlib.sha256(secrets.token_bytes(32)).digest(), Caller(""))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Keys:
    """The keys of one file. `find` says whose a key is; `reload` reads the file again, and keeps what it had if that
    fails. warnings: what the owner of the file should know."""

    def __init__(self, path: Path, shared_prefix: bool = False) -> None:
        self.path, self.shared_prefix = path, shared_prefix
        self.warnings: list[str] = []
        self._keys: dict[str, _Key] = {}
        self.reload()

    def __len__(self) -> int:
        return len(self._keys)

    def reload(self) -> None:
        """Raises UsageError with file and line for what is wrong there."""
        try:
            with open(self.path, "rb") as file:
                mode, data = os.fstat(file.fileno()).st_mode, file.read()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"--api-key-file {self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"--api-key-file {self.path}: not a text file (UTF-8)") from None
        keys: dict[str, _Key] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    key = self._parse(line.strip())
                    if key.caller.id in keys:
                        raise ValueError(f"the id {key.caller.id!r} is there twice")
                    if any(key.digest == other.digest for other in keys.values()):
                        raise ValueError("two ids have the same secret")
                except ValueError as error:
                    raise UsageError(f"--api-key-file {self.path}, line {number}: {error}") from None
                keys[key.caller.id] = key
        if not keys or len(keys) > MAX_KEYS:
            raise UsageError(f"--api-key-file {self.path}: {len(keys)} keys; 1 to {MAX_KEYS:,} are allowed")
        self.warnings = []
        if stat.S_ISREG(mode) and mode & 0o077:
            self.warnings.append(f"{self.path} can be read by others on this machine: chmod 600 {self.path}")
        self._keys = keys

    def _parse(self, line: str) -> _Key:
        name, colon, rest = line.partition(":")
        secret, _, options = rest.partition(":")
        if not colon or not _ID.fullmatch(name):
            raise ValueError("a line is id:secret[:options], the id of letters, digits, _ and -")
        if secret.startswith("sha256="):
            if not _HEX.fullmatch(secret[7:].lower()):
                raise ValueError("sha256= needs 64 hexadecimal digits")
            digest = bytes.fromhex(secret[7:])
        elif len(secret) < MIN_SECRET:
            raise ValueError(f"the secret of {name!r} is shorter than {MIN_SECRET} characters")
        else:
            digest = _digest(secret)
        tenant, priority, admin, limit = name, 0, False, None
        for option in filter(None, (part.strip() for part in options.split(","))):
            what, _, value = option.partition("=")
            if what == "admin" and not value:
                admin = True
            elif what == "tenant" and _ID.fullmatch(value):
                tenant = value
            elif what == "priority" and re.fullmatch(r"-?\d{1,9}", value):
                priority = int(value)
            elif what == "max" and re.fullmatch(r"[1-9]\d{0,5}", value):
                limit = int(value)
            else:
                raise ValueError(f"{option!r} is no option; there are admin, priority=N, tenant=NAME and max=N")
        return _Key(digest, Caller(name, "" if self.shared_prefix else tenant, priority, admin, limit))

    def find(self, presented: str) -> Caller | None:
        """Whose key this is. The work is the same whether the id is known or not, and no comparison ends early."""
        if len(presented) > MAX_PRESENTED:
            return None
        name, _, secret = presented.partition(".")
        key = self._keys.get(name, _NOBODY)
        found = key if hmac.compare_digest(key.digest, _digest(secret)) else _NOBODY
        whole = _digest(presented)
        for other in self._keys.values():
            if hmac.compare_digest(other.digest, whole):
                found = other
        return None if found is _NOBODY else found.caller


def new_key(name: str) -> tuple[str, str]:
    """(what the client sends, the line for the file) of a new key of 256 random bits. Raises UsageError."""
    if not _ID.fullmatch(name):
        raise UsageError(f"--make-key {name!r}: a name has letters, digits, _ and - only, at most 64")
    secret = secrets.token_urlsafe(32)
    return f"{name}.{secret}", f"{name}:sha256={_digest(secret).hex()}"


def add_key(path: Path, line: str) -> None:
    """Appends a line to a file of keys, made for the owner alone where there is none. Raises UsageError or OSError."""
    name = line.partition(":")[0]
    before = ""
    if path.exists():
        if name in Keys(path)._keys:
            raise UsageError(f"--make-key {name}: {path} has a key of that name; remove its line first")
        before = "" if path.read_bytes().endswith(b"\n") else "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(f"{before}{line}\n")
        file.flush()
        os.fsync(file.fileno())
