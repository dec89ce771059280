"""Does bfloat16 work on this processor? Tried, in a child process: a flag in cpuinfo is no proof.

Some virtual machines announce AMX and kill the process that uses it. A child made by fork is what this process is, its
libraries' state included, so what it survives this process survives; and it costs milliseconds, so nothing is kept.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import platform
import signal
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SECONDS = 10.0  # a healthy child takes 0.02
_LIMIT = 2e-2  # relative distance from float32; bfloat16 rounds by up to 2⁻⁹
_LIMITED = "ONEDNN_MAX_CPU_ISA"


def advertised() -> bool:
    """Whether the processor claims to multiply bfloat16 natively (AVX512_BF16 or AMX on x86; ARM is taken not to)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@functools.cache
def works() -> bool:
    """Whether bfloat16 products run here and are right. Where only AMX is broken, oneDNN is told to do without it.

    False on systems without fork. The answer is kept for this process.
    """
    if survives(right):
        return True
    if _LIMITED in os.environ:
        return False
    os.environ[_LIMITED] = "AVX512_CORE_BF16"
    if survives(right):
        return True
    del os.environ[_LIMITED]
    return False


def right() -> bool:
    """Products as the engine takes them, one row and many, and attention: bfloat16 against float32."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device="cpu").bfloat16()

    with torch.inference_mode():
        for rows in (1, 5, 48):
            x, w = normal(rows, 256), normal(128, 256)
            if not _close(F.linear(x, w), x.float() @ w.float().T):
                return False
        q, k, v = (normal(1, 2, 64, 64) for _ in range(3))
        scores = q.float() @ k.float().transpose(-1, -2) / 8
        return _close(F.scaled_dot_product_attention(q, k, v), scores.softmax(-1) @ v.float())


def _close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(found.float() - wanted) < _LIMIT * torch.linalg.vector_norm(wanted))


def survives(check: Callable[[], bool], seconds: float = _SECONDS) -> bool:
    """Whether a forked child finds `check` true within `seconds`. What it prints, or its crash, reaches nobody."""
    if not hasattr(os, "fork"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside threads may deadlock the child: then its time runs out
        child = os.fork()
    if child == 0:
        verdict = 1
        try:
            import resource  # Unix has it

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            for number in (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE):
                signal.signal(number, signal.SIG_DFL)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            torch.set_num_threads(1)  # OpenMP's other threads did not come along
            verdict = 0 if check() else 1
        finally:
            os._exit(verdict)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except ChildProcessError:  # somebody else has collected it
        pass
    return False
