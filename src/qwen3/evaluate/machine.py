"""What this machine is and what it reaches at most: bandwidth, matrix products, energy. Nothing here knows a model."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_Attempt = Callable[[str, float, Callable[[], Any]], None]
_SECONDS = 0.12  # of repetitions for each ceiling


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on this device; None where it cannot do such a thing.

    copy, read: bytes/s (a copy counts what it reads and what it writes). float32, bf16, fp8: FLOP/s of a large matrix
    product. attention: FLOP/s of the best causal attention in torch (8,192 tokens, 16 heads of 128, bf16).
    """

    copy: float | None = None
    read: float | None = None
    float32: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    attention: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {f"{name}_{'bytes' if name in ('copy', 'read') else 'flop'}_s": v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, float | None]) -> Ceilings:
        return cls(**{name.partition("_")[0]: value for name, value in data.items()})


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The least seconds of one `work()` after a warm-up, over about a tenth of a second; at least three repetitions."""
    cuda = device.type == "cuda"

    def once() -> float:
        if not cuda:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    once()
    times = [once()]
    while len(times) < 3 or (sum(times) < _SECONDS and len(times) < 50):
        times.append(once())
    return min(times)


@torch.inference_mode()
def measure_ceilings(device: torch.device, elements: int | None = None) -> Ceilings:
    """Every ceiling of `device`, in about two seconds; needs about 4 GB there (GPU) or 0.3 GB (CPU).

    elements: float32 values of the buffers that are read and copied; None: 512 M on a GPU (2 GB: starting and ending a
    kernel must not count), 32 M on a CPU.
    """
    cuda = device.type == "cuda"
    count = elements or (512 << 20 if cuda else 32 << 20)
    found: dict[str, float] = {}

    def attempt(name: str, amount: float, work: Callable[[], Any]) -> None:
        try:
            rate = amount / seconds(work, device)
        except RuntimeError:  # no such kernel here, or no memory left for it
            return
        found[name] = max(rate, found.get(name, 0.0))

    _bandwidth(device, count, attempt)
    size = 8192 if cuda else 2048
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with suppress(torch.OutOfMemoryError):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            attempt(name, 2.0 * size**3, lambda a=a, b=b: a @ b)  # type: ignore[misc]
    if cuda:
        with suppress(torch.OutOfMemoryError, RuntimeError):
            a8, b8 = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
            one = torch.ones((), device=device)

            def product() -> torch.Tensor:
                return torch._scaled_mm(
                    a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
                )

            attempt("fp8", 2.0 * size**3, product)
        _attention(device, attempt)
    return Ceilings(**found)


def _bandwidth(device: torch.device, count: int, attempt: _Attempt) -> None:
    with suppress(torch.OutOfMemoryError):
        source = torch.randn(count, device=device)
        rows = source.view(torch.int32).view(-1, 1 << 14)
        attempt("read", source.nbytes, lambda: torch.sum(source))
        attempt("read", source.nbytes, lambda: torch.amax(source))
        attempt("read", source.nbytes, lambda: rows.amax(1))
        if device.type == "cuda":
            wide = source.view(torch.bfloat16).view(-1, 1 << 13)
            vector = torch.zeros(1 << 13, dtype=torch.bfloat16, device=device)
            attempt("read", source.nbytes, lambda: torch.mv(wide, vector))
        target = torch.empty_like(source)
        attempt("copy", 2 * source.nbytes, lambda: target.copy_(source))


def _attention(device: torch.device, attempt: _Attempt) -> None:
    heads, length, width = 16, 8192, 128
    with suppress(torch.OutOfMemoryError):
        q, k, v = (torch.randn(1, heads, length, width, device=device, dtype=torch.bfloat16) for _ in range(3))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                attempt(
                    "attention",
                    2.0 * length**2 * heads * width,  # two products of 2·S²·D a head, half of it masked
                    lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
                )


class Energy:
    """Joules a GPU has used, by NVML's counter (nvmlDeviceGetTotalEnergyConsumption, millijoules since the driver
    was loaded). `read` gives None where there is no such library, device or counter."""

    def __init__(self, device: torch.device) -> None:
        self._library: Any = None
        self._handle = ctypes.c_void_p()
        self.driver: str | None = None
        if device.type != "cuda":
            return
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        if library.nvmlInit_v2() != 0:
            return
        text = ctypes.create_string_buffer(96)
        if library.nvmlSystemGetDriverVersion(text, 96) == 0:
            self.driver = text.value.decode(errors="replace")
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        name = (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}").encode()
        if library.nvmlDeviceGetHandleByUUID(ctypes.c_char_p(name), ctypes.byref(self._handle)) == 0:
            self._library = library

    def read(self) -> float | None:
        """Joules so far, or None."""
        if self._library is None:
            return None
        value = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value)) != 0:
            return None
        return value.value / 1e3


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(device: torch.device) -> dict[str, Any]:
    """The machine in words, for the result's file."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    out = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "driver": Energy(device).driver,
        "cuda": torch.version.cuda,
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }
    if device.type == "cuda":
        out["device_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return out


def commit() -> str | None:
    """The commit of the checkout this package is in ("-dirty": with changes), None where it is not in one.

    QWEN3_COMMIT says it for a copy without its history.
    """
    if os.environ.get("QWEN3_COMMIT"):
        return os.environ["QWEN3_COMMIT"]
    here = Path(__file__).resolve().parent
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return None
    return ran.stdout.strip() or None
