"""How Triton kernels are launched, and how all that a step needs are compiled at once.

`launch` starts a kernel. Inside `collect()` it only notes what would be started: a dry run of a step that costs no
compilation. `compile_all` then compiles what was noted in parallel threads (Triton's passes, the assembler and the C
compiler that builds its launchers run outside Python's lock), so that the first real step finds every kernel ready.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PDL = not _INTERPRETED
"""Programmatic dependent launch: a kernel may start while its predecessor ends. The interpreter has no such thing."""
EARLY = {"PDL": PDL, "launch_pdl": PDL}
"""What such a kernel is launched with."""

Job = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]
_noted: dict[Any, Job] | None = None
_ready: dict[Any, tuple[Any, ...]] = {}  # what Triton's own launch looks up anew each time, for 50 µs


@triton.jit
def wait(PDL: tl.constexpr):
    """Lets the next kernel start; then waits for the one before. Nothing that it writes may be read earlier."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Start `kernel[grid](*args, **meta)`: runtime arguments by position, constants and launch options by name."""
    if _INTERPRETED and _noted is None:
        kernel[grid](*args, **meta)
        return
    key = (kernel, tuple(meta.items()), *[_kind(value) for value in args])
    if _noted is not None:
        _noted.setdefault(key, (kernel, grid, args, meta))
        return
    found = _ready.get(key)
    if found is None:
        found = _ready[key] = _compiled(kernel, grid, args, meta)
    run, function, packed, constants = found
    stream = torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
    run(*grid, *(1,) * (3 - len(grid)), stream, function, packed, None, None, None, *args, *constants)


def _kind(value: Any) -> Any:
    """What of an argument Triton compiles for."""
    if isinstance(value, Tensor):
        return (value.dtype, value.data_ptr() & 15 == 0)
    if isinstance(value, int) and not isinstance(value, bool):
        return value == 1, value & 15 == 0, -(2**31) <= value < 2**31
    return type(value)


def _compiled(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], meta: dict[str, Any]) -> tuple[Any, ...]:
    """Compile, load and wrap one variant. The constants follow the runtime arguments, in the kernel's own order."""
    built = kernel.warmup(*args, grid=grid, **meta)
    names = kernel.arg_names[len(args) :]
    constants = tuple(meta[name] if name in meta else kernel.signature.parameters[name].default for name in names)
    return built.run, built.function, built.packed_metadata, constants


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. (Triton's own costs 20 µs on the host.)"""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


@contextmanager
def collect() -> Iterator[list[Job]]:
    """Within the block kernels are noted, not started: tensors they would fill hold garbage. Not thread-safe."""
    global _noted
    found: list[Job] = []
    _noted = {}
    try:
        yield found
    finally:
        found += _noted.values()
        _noted = None


def compile_all(jobs: list[Job], threads: int = 16) -> None:
    """Compile and load what `collect` noted; what is ready already costs microseconds. Raises what the compiler
    raises."""
    device = torch.cuda.current_device() if jobs else 0

    def build(job: Job) -> None:
        torch.cuda.set_device(device)
        _compiled(*job)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(build, job) for job in jobs]:
            done.result()
