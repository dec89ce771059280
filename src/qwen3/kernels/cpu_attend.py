"""`attend` in float32, caches in that or in float16, by the compiled kernels: norm, RoPE and the cache in one call,
attention in others.

A decode step's attention is bound by what PyTorch takes to start operators, fifteen a layer, and by copying a sequence
whose blocks do not lie in one piece. Here blocks are read where they are. Queries of a prompt's chunk go through their
keys sixteen at a time, side by side.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3.kernels import native
from qwen3.kernels.native.calling import call
from qwen3.kernels.plan import StepPlan

_WIDEST, _GROUP = 256, 16  # as attend.c has them


class Singles(NamedTuple):
    """Of a plan: its positions, slots and tables, and the queries that run one by one, int32. chunks: rows that do not,
    each (row, its first query, queries, keys)."""

    plan: weakref.ref[StepPlan]
    positions: Tensor
    slots: Tensor
    tables: Tensor
    which: Tensor
    rows: Tensor
    lengths: Tensor
    chunks: list[tuple[int, int, int, int]]


_last: Singles | None = None


def fits(qkv: Tensor, heads: int, kv_heads: int, k_cache: Tensor) -> bool:
    """Whether the compiled kernels take this: float32, caches in that or float16, heads of a size up to 256, a multiple
    of 16."""
    return (
        qkv.dtype == torch.float32 and k_cache.is_contiguous()
        and (k_cache.dtype == torch.float32 or (k_cache.dtype == torch.float16 and has_half()))
        and takes(k_cache.shape[-1]) and heads // kv_heads <= _GROUP
    )  # fmt: skip


def takes(dim: int) -> bool:
    """Whether heads have a size that the compiled kernels take."""
    return dim <= _WIDEST and dim % 16 == 0


@functools.cache
def has_half() -> bool:
    """Whether the compiled kernels read and write caches in float16 on this processor."""
    library = native.library()
    return library is not None and bool(library.qwen3_has_half())


def is_half(cache: Tensor) -> int:
    return int(cache.dtype == torch.float16)


def singles(plan: StepPlan) -> Singles:
    """Worked out by a step's first layer. The plan's tensors may not change while it is in use."""
    global _last
    known = _last  # another engine's thread may put its own there at any moment
    if known is not None and known.plan() is plan:
        return known
    which: list[int] = []
    rows: list[int] = []
    lengths: list[int] = []
    chunks: list[tuple[int, int, int, int]] = []
    starts = plan.starts.tolist()
    for row, length in enumerate(plan.lengths.tolist()):
        first, last = starts[row], starts[row + 1]
        if last - first > 1 and not plan.invariant:
            chunks.append((row, first, last - first, length))
            continue
        for i in range(first, last):
            which.append(i)
            rows.append(row)
            lengths.append(length - last + 1 + i)
    of = [torch.tensor(values, dtype=torch.int32, device="cpu") for values in (which, rows, lengths)]
    at, slots, tables = (part.to(torch.int32).contiguous() for part in (plan.positions, plan.slots, plan.tables))
    known = _last = Singles(weakref.ref(plan), at, slots, tables, of[0], of[1], of[2], chunks)
    return known


def rope_cache(
    library: ctypes.CDLL, qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """See `reference_engine.rope_cache`."""
    dim, step = k_cache.shape[-1], singles(plan)
    q = torch.empty(qkv.shape[0], heads, dim, dtype=torch.float32, device="cpu")
    call(
        library.qwen3_rope_cache, qkv.contiguous(), qkv.shape[0], heads, kv_heads, dim, q_weight, k_weight,
        ctypes.c_float(eps), plan.cos_sin, step.positions, step.slots, k_cache, v_cache, is_half(k_cache), q,
        torch.get_num_threads(),
    )  # fmt: skip
    return q


def attention(library: ctypes.CDLL, q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """q [N, H, D] -> [N, H·D]."""
    step, (_, heads, dim), kv_heads, threads = singles(plan), q.shape, k_cache.shape[-2], torch.get_num_threads()
    out = torch.zeros_like(q) if len(step.which) + sum(c[2] for c in step.chunks) < len(q) else torch.empty_like(q)
    for row, first, count, length in step.chunks:
        call(
            library.qwen3_attend_chunk, q[first:], count, length, heads, kv_heads, dim, k_cache, v_cache,
            is_half(k_cache), step.tables[row], out[first:], threads,
        )  # fmt: skip
    call(
        library.qwen3_attend, q, step.which, step.rows, step.lengths, len(step.which), heads, kv_heads, dim,
        k_cache, v_cache, is_half(k_cache), step.tables, step.tables.shape[1], out, threads,
    )  # fmt: skip
    return out.view(len(q), -1)
