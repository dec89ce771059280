"""How Triton kernels are launched, and how all that a step needs are compiled at once.

`launch` starts a kernel. Inside `collect()` it only notes what would be started: a dry run of a step that costs no
compilation. `compile_all` then compiles what was noted in parallel threads (Triton's passes and the assembler run
outside Python's lock), so that the first real step finds every kernel ready.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

PDL = os.environ.get("TRITON_INTERPRET") != "1"
"""Programmatic dependent launch: a kernel may start while its predecessor ends. The interpreter has no such thing."""

Job = tuple[Any, Any, tuple[Any, ...], dict[str, Any]]
_noted: dict[Any, Job] | None = None


def launch(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
    """Start `kernel[grid](*args, **meta)`: runtime arguments by position, constants and launch options by name."""
    if _noted is None:
        kernel[grid](*args, **meta)
    else:
        _noted.setdefault((kernel, tuple(map(_kind, args)), tuple(sorted(meta.items()))), (kernel, grid, args, meta))


def _kind(value: Any) -> Any:
    """What of an argument Triton compiles for."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool):
        return value == 1, value % 16 == 0, abs(value) < 2**31
    return type(value)


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
    """Compile what `collect` noted; what is compiled already costs microseconds. Raises what the compiler raises."""
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel.warmup, *args, grid=grid, **meta) for kernel, grid, args, meta in jobs]:
            done.result()
