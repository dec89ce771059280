"""What `qwen3 serve` can be told, checked once: every error names the flag and says what is allowed."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3.checkpoint.folder import is_adapter
from qwen3.errors import UsageError

REASONING_FIELDS = ("both", "content", "reasoning", "none")
LOG_FORMATS = ("plain", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_NAME = re.compile(r"[^\s/=\x00-\x1f][^\s=\x00-\x1f]{0,199}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?")
_ORIGIN = re.compile(r"https?://[^\s/?#@\\]+|null")


@dataclass(frozen=True)
class Settings:
    """All flags of `qwen3 serve`. Times are in seconds, sizes in bytes; None: the default of what it goes to.

    models: (public name, what `LLM` is given) of each; the first is the default one. adapters: (public name, folder)
    of LoRA adapters of the first; each is a model to clients. max_queue: requests of all keys
    that may be under way; the next one is refused with 503. max_per_key: of one key (429). drain: how long running
    answers may take after SIGTERM. idle_unload: a model nobody asked for that long gives its memory back.
    max_loaded: models in memory at once (None: all). shared_prefix: one prefix cache for all keys, which lets a key
    find out by timing what others asked. header_timeout: from the first byte of a request to the end of its headers.
    body_timeout: for the whole body. write_timeout: a reader that takes nothing for so long is dropped.
    """

    models: tuple[tuple[str, str], ...] = (("embedded", "embedded"),)
    adapters: tuple[tuple[str, str], ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_queue: int = 256
    max_per_key: int = 64
    max_loaded: int | None = None
    idle_unload: float | None = None
    max_batch: int | None = None
    context: int | None = None
    device: str | None = None
    dtype: str | None = None
    weights: str | None = None
    kv_dtype: str | None = None
    speculation: str | None = None
    drain: float = 30.0
    reasoning_field: str = "both"
    reasoning_memory: bool = True
    shared_prefix: bool = False
    files_dir: Path | None = None
    max_body: int = 32 << 20
    max_file: int = 256 << 20
    max_header: int = 64 << 10
    max_depth: int = 64
    max_connections: int = 1024
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0
    log_format: str = "plain"
    log_level: str = "info"
    trace: str | None = None
    page: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for the first field that is wrong."""
        if not self.models:
            raise UsageError("models is empty: name at least one model to serve")
        names = [name for name, _ in (*self.models, *self.adapters)]
        for place, name in enumerate(names):
            what, how = ("models", "NAME=MODEL") if place < len(self.models) else ("--adapter", "NAME=DIR")
            if not _NAME.fullmatch(name):
                raise UsageError(f"{what}: {name!r} is no name to serve a model under; use {how}")
            if name.casefold() in map(str.casefold, names[:place]):
                raise UsageError(f"{what}: two are called {name!r}; give one another name with {how}")
        for name, folder in self.adapters:
            if not is_adapter(folder):
                raise UsageError(f"--adapter {name}={folder}: there is no adapter in this folder")
        self._numbers()
        for field, allowed in (
            ("reasoning_field", REASONING_FIELDS), ("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS),
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise UsageError(f"{flag(field)} {getattr(self, field)!r} is none of: {', '.join(allowed)}")
        for field, pattern, example in (
            ("allowed_hosts", _HOST, "chat.example.org"), ("allowed_origins", _ORIGIN, "https://chat.example.org"),
        ):  # fmt: skip
            for value in getattr(self, field):
                if value != "*" and not pattern.fullmatch(value):
                    raise UsageError(f"{flag(field)} {value!r} is not understood; it looks like {example}")
        if not self.host or re.search(r"[\s/]", self.host):
            raise UsageError(f"--host {self.host!r} is no address; use 127.0.0.1, 0.0.0.0 or a name")
        if self.public and self.api_key_file is None and not self.insecure:
            raise UsageError(
                f"--host {self.host} lets the network in, and no keys are set: make one with `qwen3 serve --make-key "
                f"NAME` and give the file by --api-key-file FILE, stay on 127.0.0.1, or say --insecure"
            )

    def _numbers(self) -> None:
        whole = {
            "port": (0, 65535), "max_queue": (1, 100_000), "max_per_key": (1, 100_000), "max_loaded": (1, 1000),
            "max_batch": (1, 65_536), "context": (1, 1 << 24), "max_body": (1024, 1 << 34), "max_file": (1024, 1 << 40),
            "max_header": (1024, 1 << 20), "max_depth": (8, 128), "max_connections": (1, 1_000_000),
        }  # fmt: skip
        seconds = {
            "idle_unload": (1.0, 1e7), "drain": (0.0, 86_400.0), "header_timeout": (0.1, 3600.0),
            "body_timeout": (0.1, 86_400.0), "write_timeout": (0.1, 86_400.0),
        }  # fmt: skip
        for field, (low, high) in (*whole.items(), *seconds.items()):
            value = getattr(self, field)
            if value is None:
                continue
            kinds = (int,) if field in whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                raise UsageError(f"{flag(field)} {value!r} is no {'whole ' if field in whole else ''}number")
            if not low <= value <= high:
                raise UsageError(f"{flag(field)} {value} must be {low:,} to {high:,}")

    @property
    def public(self) -> bool:
        """Whether others than this machine can reach the address; a name that is not known counts as such."""
        try:
            return not ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host != "localhost"

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of `LLM` that were given, for all models."""
        names = ("device", "dtype", "weights", "kv_dtype", "speculation", "context", "max_batch")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def flag(field: str) -> str:
    """How a field is spelt on the command line."""
    return "--" + field.replace("_", "-")


def named(models: list[str] | tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(public name, model) of `NAME=MODEL` or MODEL: a path goes by its last part, everything else by itself."""
    found = []
    for text in models:
        name, equals, spec = text.partition("=")
        if not equals:
            spec = text
            name = (
                Path(text).resolve().name if text.startswith(("/", "./", "../", "~")) or os.path.isdir(text) else text
            )
        if not spec or not name:
            raise UsageError(f"models: {text!r} is neither MODEL nor NAME=MODEL")
        found.append((name, spec))
    return tuple(found)


def adapted(given: list[str] | tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(public name, folder) of `NAME=DIR` or DIR, which goes by its own name."""
    found = []
    for text in given:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text).expanduser().resolve()
        found.append((name if equals else path.name, str(path)))
    return tuple(found)
