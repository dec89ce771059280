"""`qwen3 doctor`: what this machine has, and what would not work on it."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from qwen3 import __version__
from qwen3.cli.console import out, out_json, size
from qwen3.errors import Qwen3Error

MERGES_SHA256 = "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5"
"""Of the published Qwen3 `merges.txt`, from which the packaged tokenizer is rebuilt."""
HUB_TIMEOUT_S = 5.0
LITTLE_DISK = 5_000_000_000  # bytes; Qwen3-1.7B in bfloat16 takes 4.1 GB
LITTLE_MEMORY = 2_000_000_000  # bytes; Qwen3-0.6B in bfloat16 takes 1.2 GB

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing looked at. "warn": something will be missing; "fail": something will not work."""

    name: str
    status: Status
    detail: str


def doctor(offline: bool, as_json: bool) -> int:
    """Runs every check, prints one line each; 1 if any failed."""
    checks = [check() for check in (_python, _torch, _device, _kernels, _memory, _cache, _disk)]
    checks += [_hub(offline), _tokenizer(), _embedded()]
    failed = [check for check in checks if check.status == "fail"]
    if as_json:
        out_json({"ok": not failed, "qwen3": __version__, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            out(f"{check.status:4}  {check.name.ljust(width)}  {check.detail}")
    return 1 if failed else 0


def _python() -> Check:
    text = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    return Check("python", "ok" if sys.version_info >= (3, 11) else "fail", text)


def _torch() -> Check:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return Check("torch", "fail", f"cannot be imported ({' '.join(str(error).split())}); pip install torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", "ok", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")


def _device() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return Check(
                "device", "ok", ", ".join(f"cuda:{i} {p.name} {size(p.total_memory)}" for i, p in enumerate(names))
            )
        from qwen3.model.load import cpu_has_bfloat16
    except Exception as error:
        return Check("device", "fail", " ".join(str(error).split()))
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        return Check("device", "warn", "cpu, though there is an NVIDIA driver: this PyTorch is the CPU build")
    kind = "native bfloat16" if cpu_has_bfloat16() else "no native bfloat16, so models run in float32"
    return Check("device", "ok", f"cpu, {os.cpu_count()} cores, {kind}")


def _kernels() -> Check:
    try:
        from qwen3.kernels import native

        there, state = native.library() is not None, native.state()
    except Exception as error:
        return Check("kernels", "fail", " ".join(str(error).split()))
    if there:
        return Check("kernels", "ok", f"compiled for this CPU ({state})")
    return Check("kernels", "warn", f"{state}; weights of 4 and 8 bits run slowly on this CPU")


def _memory() -> Check:
    try:
        from qwen3.checkpoint import available_bytes

        free = available_bytes()
    except Exception as error:
        return Check("memory", "fail", " ".join(str(error).split()))
    if free is None:
        return Check("memory", "warn", "this system does not say how much is free")
    little = free < LITTLE_MEMORY
    return Check(
        "memory", "warn" if little else "ok", f"{size(free)} free" + (", little for any model" if little else "")
    )


def _cache() -> Check:
    from qwen3.checkpoint.cache import huggingface_cache

    path = huggingface_cache()
    there = _existing(path)
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        return Check(
            "cache", "warn", f"{path} cannot be written ({error.strerror}): nothing can be pulled; set HF_HOME"
        )
    return Check("cache", "ok", f"{path}" + ("" if there == path else " (not there yet)"))


def _disk() -> Check:
    from qwen3.checkpoint.cache import huggingface_cache

    free = shutil.disk_usage(_existing(huggingface_cache())).free
    return Check("disk", "warn" if free < LITTLE_DISK else "ok", f"{size(free)} free where the cache is")


def _hub(offline: bool) -> Check:
    """One TCP connection to where the hub is, or to the proxy in front of it; nothing is asked for."""
    from qwen3.checkpoint.cache import is_offline

    name, address = _hub_address()
    if offline or is_offline():
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        return Check("hub", "ok", f"{name} was not asked ({why})")
    target = urlsplit(_proxy(address) or address)
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), timeout=HUB_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        return Check(
            "hub", "warn", f"{name} cannot be reached at {target.hostname}:{port} ({error}): nothing can be pulled"
        )
    return Check("hub", "ok", f"{name} answers at {target.hostname}:{port}")


def _hub_address() -> tuple[str, str]:
    """(name, URL) of the hub the environment asks for."""
    if os.environ.get("QWEN3_HUB") == "modelscope":
        from qwen3.checkpoint.modelscope import ModelScope

        return ModelScope.name, ModelScope().endpoint
    from qwen3.checkpoint.huggingface import HuggingFace

    return HuggingFace.name, HuggingFace().endpoint


def _proxy(address: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    return None if proxy is None or proxy_bypass(parts.hostname or "") else proxy


def _tokenizer() -> Check:
    import hashlib
    import lzma

    from qwen3.tokenizer import files

    try:
        digest = hashlib.sha256(lzma.decompress(files.packaged("merges.txt.xz"))).hexdigest()
    except (OSError, lzma.LZMAError) as error:
        return Check("tokenizer", "fail", f"the packaged merges.txt.xz cannot be read ({error}); reinstall qwen3")
    if digest != MERGES_SHA256:
        return Check("tokenizer", "fail", f"the packaged merges.txt has sha256 {digest}, not Qwen3's; reinstall qwen3")
    return Check("tokenizer", "ok", f"the packaged merges.txt is Qwen3's, sha256 {digest[:12]}…")


def _embedded() -> Check:
    """The hashes of the packaged model against its manifest."""
    from qwen3.checkpoint import resolve
    from qwen3.checkpoint.folder import read_manifest

    try:
        path = resolve("embedded").path
        manifest = read_manifest(path) or {}
        wrong = [name for name, (_, digest) in sorted(manifest.items()) if _sha256(path / name) != digest]
    except (Qwen3Error, OSError) as error:
        return Check("embedded", "fail", " ".join(str(error).split()))
    if wrong or not manifest:
        why = f"{wrong[0]} is not what was packaged" if wrong else "it has no manifest"
        return Check("embedded", "fail", f"{why}; reinstall qwen3")
    return Check(
        "embedded", "ok", f"{len(manifest)} files, {size(sum(count for count, _ in manifest.values()))}, as packaged"
    )


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _existing(path: Path) -> Path:
    """`path` or the nearest thing above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
