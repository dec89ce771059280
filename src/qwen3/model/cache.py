"""Keys and values of the tokens so far: one row per sequence, one slot per position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.config import ModelConfig
from qwen3.errors import UsageError


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
        self._index: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.written.shape[0] if self._index is None else self._index.shape[0]

    @property
    def max_len(self) -> int:
        return self.written.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values (of the whole storage, also for a selection)."""
        return self.k.nbytes + self.v.nbytes

    def select(self, rows: Sequence[int] | Tensor | slice) -> KVCache:
        """The given rows, in that order, sharing this cache's storage.

        Neighbouring ascending rows are a true view; any other choice is gathered at each layer's read.
        Raises UsageError on a row that does not exist or is named twice.
        """
        own = list(range(self.written.shape[0])) if self._index is None else self._index.tolist()
        if isinstance(rows, slice):
            wanted = list(range(len(own)))[rows]
        else:
            wanted = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
        if not wanted or len(set(wanted)) != len(wanted) or min(wanted) < 0 or max(wanted) >= len(own):
            raise UsageError(f"rows {wanted} are not distinct rows of a KV cache of {len(own)}")
        stored = [own[row] for row in wanted]
        view = object.__new__(KVCache)
        view.k, view.v, view.written, view._index = self.k, self.v, self.written, None
        if stored == list(range(stored[0], stored[0] + len(stored))):
            span = slice(stored[0], stored[0] + len(stored))
            view.k, view.v, view.written = self.k[:, span], self.v[:, span], self.written[span]
        else:
            view._index = torch.tensor(stored, device=self.k.device)
        return view

    def clear(self) -> None:
        """Forgets every token of these rows."""
        if self._index is None:
            self.written.zero_()
        else:
            self.written[self._index] = False

    def begin(self, positions: Tensor) -> Step:
        """Plans one forward over `positions` [B, T]: where it writes, what it sees. One copy from the device.

        Raises UsageError when the rows do not match or a position lies beyond `max_len`.
        """
        return Step(self, positions)


class Step:
    """One forward's plan, shared by all layers."""

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        batch, length = positions.shape
        if batch != cache.rows:
            raise UsageError(f"{batch} sequences for a KV cache of {cache.rows} rows; use cache.select(rows)")
        low, high = torch.stack(torch.aminmax(positions)).tolist()
        if high >= cache.max_len:
            raise UsageError(f"position {high} lies beyond the KV cache's {cache.max_len} slots")
        if low < -1:
            raise UsageError(f"position {low} is negative (only -1 is, for padding)")
        self.cache = cache
        self.context = max(high, 0) + 1
        self.causal = False
        self.mask: Tensor | None = None
        self._span: slice | None = None
        self._padded = low < 0
        index = cache._index
        if batch == 1 and index is None and not self._padded and high - low + 1 == length:
            ascending = length == 1 or bool((positions[0].diff() == 1).all())
            if ascending:
                self._span = slice(low, high + 1)
                cache.written[0, low : high + 1] = True
                self.causal = low == 0 and length > 1
                if self.causal or (length == 1 and bool(cache.written[0, : self.context].all())):
                    return
        if self._span is None:
            self._plan_scatter(positions)
        written = cache.written if index is None else cache.written[index]
        slots = torch.arange(self.context, device=positions.device)
        own = positions.unsqueeze(-1)
        # Padding sees everything: it must see something, or its NaN would reach the experts' router.
        allowed = (slots <= own) & written[:, None, : self.context] | (own < 0)
        blank = torch.zeros(allowed.shape, dtype=cache.k.dtype, device=positions.device)
        self.mask = blank.masked_fill_(~allowed, float("-inf")).unsqueeze(1)

    def _plan_scatter(self, positions: Tensor) -> None:
        index = self.cache._index
        if self._padded:
            self._rows, self._tokens = (positions >= 0).nonzero(as_tuple=True)
            self._slots = positions[self._rows, self._tokens]
            self._stored = self._rows if index is None else index[self._rows]
        else:
            own = torch.arange(positions.shape[0], device=positions.device) if index is None else index
            self._stored, self._slots = own.unsqueeze(1).expand_as(positions), positions
        self.cache.written[self._stored, self._slots] = True

    def _write(self, store: Tensor, new: Tensor) -> None:
        if self._span is not None:
            store[0, :, self._span] = new[0].transpose(0, 1)
        else:
            store[self._stored, :, self._slots] = new[self._rows, self._tokens] if self._padded else new

    def _read(self, store: Tensor) -> Tensor:
        index = self.cache._index
        return store[:, :, : self.context] if index is None else store[index, :, : self.context]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, D], new k and v [B, T, KV, D] -> [B, H, T, D], after writing k and v."""
        keys, values = self.cache.k[layer], self.cache.v[layer]
        self._write(keys, k)
        self._write(values, v)
        return kernels.attention(q.transpose(1, 2), self._read(keys), self._read(values), self.mask, self.causal)
