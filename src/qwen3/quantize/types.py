"""What a method hands to a writer, whatever format that writes: one matrix, rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grouped:
    """Row n, column k is (q - zero) · scale of their group.

    q uint8 [N, K], each below 2^bits. scale float16 [N, K/group], above zero. zero uint8 [N, K/group]; None: half of
    what the bits count to (symmetric). order int32 [K]: the group of each column, where columns of one group do not lie
    side by side (GPTQ's act-order); None: k // group.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int
    order: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        columns = self.q.shape[1]
        groups = torch.arange(columns, device=self.q.device) // self.group if self.order is None else self.order.long()
        zero = torch.full_like(self.scale, 1 << (self.bits - 1)) if self.zero is None else self.zero
        return (self.q.float() - zero.float()[:, groups]) * self.scale.float()[:, groups]


@dataclass(frozen=True)
class Float8:
    """data float8_e4m3fn [N, K] times scale float32: [1] for all, [N, 1] per row, or [⌈N/128⌉, ⌈K/128⌉] per block."""

    data: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        rows, columns = self.data.shape
        scale = self.scale
        if scale.dim() == 2 and scale.shape != (rows, 1):
            scale = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        return self.data.float() * scale


@dataclass(frozen=True)
class Int8:
    """data int8 [N, K] times scale float32 [N, 1]; activations are rounded to int8 per token when it runs (W8A8)."""

    data: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        return self.data.float() * self.scale


Rounded = Grouped | Float8 | Int8
