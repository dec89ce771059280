"""All layers of a dense network that is held in few bits, in one call, for steps whose tokens are single queries.

A decode step of a small model is some two hundred short calls; one by one from Python they take as long as a quarter of
the work itself. The numbers are those of the single calls, bit for bit: the compiled code calls the same kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3.kernels import cpu_attend, native
from qwen3.kernels.native.calling import call
from qwen3.kernels.packed import LANES, SPAN, PackedWeight
from qwen3.kernels.plan import StepPlan


class PackedLayers:
    """layers: with the fields of `model.step`'s weights. Their tensors must live, where they are, as long as this."""

    def __init__(self, layers: Sequence[Any], heads: int, kv_heads: int, eps: float) -> None:
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.hidden, self.inner = layers[0].qkv.shape[-1], layers[0].down.shape[-1]
        self._norms = [[w.norm1, w.q_norm, w.k_norm, w.norm2] for w in layers]
        parts: list[list[int]] = []
        self._bounds: list[list[int]] = []
        for w in layers:
            bounds = [len(parts)]
            for weight in (w.qkv, w.out, w.up, w.down):
                parts += [_part(part, silu=weight is w.up) for part in weight.parts]
                bounds.append(len(parts))
            self._bounds.append(bounds)
        self._parts = torch.tensor(parts, dtype=torch.int64)
        self._layers: tuple[tuple[int, ...], Tensor] = ((), self._parts)

    @classmethod
    def of(cls, layers: Sequence[Any], heads: int, kv_heads: int, eps: float) -> PackedLayers | None:
        """None for layers that it cannot run: with experts, with matrices of other kinds, norms that are not float32,
        gate and up of different forms."""
        for w in layers:
            matrices = (w.qkv, w.out, w.up, w.down)
            if w.router is not None or not all(
                isinstance(m, PackedWeight) and m.device.type == "cpu" for m in matrices
            ):
                return None
            if len(w.up.parts) > 1 or w.up.rows % (2 * LANES):
                return None
            if any(n.dtype != torch.float32 or not n.is_contiguous() for n in (w.norm1, w.q_norm, w.k_norm, w.norm2)):
                return None
        return cls(layers, heads, kv_heads, eps)

    def run(self, x: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor | None:
        """x float32 [N, h], which may be overwritten, caches [L, blocks, 16, KV, D] -> states [N, h] before the last
        norm. None if this step is not one for it: with a prompt's chunk, or a cache that `cpu_attend.fits` does not
        take."""
        library, rows = native.library(), x.shape[0]
        if library is None or x.dtype != torch.float32 or not cpu_attend.fits(x, self.heads, self.kv_heads, k_cache):
            return None
        step, dim = cpu_attend.singles(plan), k_cache.shape[-1]
        if step.chunks or len(step.which) != rows:
            return None
        widest = max(self.hidden, self.heads * dim, self.inner)
        floats = rows * ((2 * self.heads + 2 * self.kv_heads) * dim + self.inner + widest // SPAN)
        x = x.contiguous()
        call(
            library.qwen3_layers, self._table(k_cache, v_cache), len(self._bounds), self._parts, x, rows, self.hidden,
            self.inner, self.heads, self.kv_heads, dim, cpu_attend.is_half(k_cache), ctypes.c_float(self.eps),
            plan.cos_sin, step.positions, step.slots, step.which, step.rows, step.lengths, step.tables,
            step.tables.shape[1], torch.empty(floats, dtype=torch.float32),
            torch.empty(rows * widest, dtype=torch.int8), torch.empty(2 * rows * widest // SPAN, dtype=torch.int32),
            torch.get_num_threads(),
        )  # fmt: skip
        return x

    def _table(self, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """`Layer` of layers.c, one a row, made anew when the caches are others."""
        key = (k_cache.data_ptr(), v_cache.data_ptr(), *k_cache.shape)
        if self._layers[0] != key:
            found = [
                [*(n.data_ptr() for n in norms), k_cache[i].data_ptr(), v_cache[i].data_ptr(), *bounds]
                for i, (norms, bounds) in enumerate(zip(self._norms, self._bounds, strict=True))
            ]
            self._layers = (key, torch.tensor(found, dtype=torch.int64))
        return self._layers[1]


def _part(part: PackedWeight, silu: bool) -> list[int]:
    """`Part` of layers.c."""
    where = [0 if t is None else t.data_ptr() for t in part.tensors]
    n, width = -(-part.rows // LANES) * LANES, part.rows // 2 if silu else part.rows
    return [*where, n, width, part.bits, part.group, part.fine, int(part.table)]
