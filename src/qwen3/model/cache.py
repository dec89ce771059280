"""Keys and values of the tokens so far: one row per sequence, one slot per position. Plain, for the plain network: the
engine has pages instead (`engine/blocks.py`, `model/step.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.config import ModelConfig
from qwen3.errors import UsageError


class HasLayer(Protocol):
    """An attention module; `layer` counts from 0. The module is handed over, and not the number: a number that is read
    makes `torch.compile` compile every layer on its own."""

    layer: int


Attend = Callable[[HasLayer, Tensor, Tensor, Tensor], Tensor]
"""(module, q [B, T, H, D], k [B, T, KV, D], v [B, T, KV, D]) -> [B, H, T, D]"""


class KVCache:
    """`k`, `v`: [layers, rows, kv_heads, max_len, head_dim] of `dtype`; `written`: bool [rows, max_len].

    The token at `positions[b, t]` is written to slot `positions[b, t]` of row b and attends to the slots up to its own
    that were written. Position -1 is padding: written nowhere. A row is used again by starting at position 0 again
    (slots above the position are never seen) or after `clear`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        max_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if rows < 1 or max_len < 1:
            raise UsageError(f"a KV cache needs rows and max_len of at least 1, not {rows} and {max_len}")
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, max_len, config.head_dim)
        # Zeros, not empty: a masked slot has weight 0, and 0 × garbage may be NaN. The kernel gives zero pages lazily.
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.written = torch.zeros(rows, max_len, dtype=torch.bool, device=device)
        self._index = torch.arange(rows, device=device)  # of the rows in the storage

    @property
    def rows(self) -> int:
        return len(self._index)

    @property
    def max_len(self) -> int:
        return self.written.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values (of the whole storage, also for a selection)."""
        return self.k.nbytes + self.v.nbytes

    def select(self, rows: Sequence[int] | Tensor | slice) -> KVCache:
        """The given rows, in that order, sharing this cache's storage.

        Raises UsageError on a row that does not exist or is named twice.
        """
        if isinstance(rows, slice):
            rows = range(self.rows)[rows]
        wanted = [int(row) for row in rows]
        if not wanted or len(set(wanted)) != len(wanted) or min(wanted) < 0 or max(wanted) >= self.rows:
            raise UsageError(f"rows {wanted} are not distinct rows of a KV cache of {self.rows}")
        view = copy(self)
        view._index = self._index[wanted]
        return view

    def clear(self) -> None:
        """Forgets every token of these rows."""
        self.written[self._index] = False

    def begin(self, positions: Tensor) -> Attend:
        """Plans one forward over `positions` [B, T]: where it writes, what it sees. Returns what every layer attends
        by, after writing its keys and values. One copy from the device.

        Raises UsageError when the rows do not match or a position lies beyond `max_len`.
        """
        if len(positions) != self.rows:
            raise UsageError(f"{len(positions)} sequences for a KV cache of {self.rows} rows; use cache.select(rows)")
        low, high = torch.stack(torch.aminmax(positions)).tolist()
        if high >= self.max_len:
            raise UsageError(f"position {high} lies beyond the KV cache's {self.max_len} slots")
        if low < -1:
            raise UsageError(f"position {low} is negative (only -1 is, for padding)")
        rows, tokens = (positions >= 0).nonzero(as_tuple=True)
        stored, slots = self._index[rows], positions[rows, tokens]
        self.written[stored, slots] = True
        context = max(high, 0) + 1
        own = positions.unsqueeze(-1)
        seen = torch.arange(context, device=positions.device) <= own
        # Padding sees everything: it must see something, or its NaN would reach the experts' router.
        allowed = seen & self.written[self._index, None, :context] | (own < 0)
        blank = torch.zeros(allowed.shape, dtype=self.k.dtype, device=positions.device)
        mask = blank.masked_fill_(~allowed, float("-inf")).unsqueeze(1)

        def attend(where: HasLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            stores = self.k[where.layer], self.v[where.layer]
            for store, new in zip(stores, (k, v), strict=True):
                store[stored, :, slots] = new[rows, tokens]
            keys, values = (store[self._index, :, :context] for store in stores)
            return kernels.attention(q.transpose(1, 2), keys, values, mask)

        return attend
