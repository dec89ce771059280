"""Weights of 4 or 8 bits for a GPU, and their plain twin: a weight is q · scale + min of its group of columns.

q is an unsigned number, scale and min one for each row and 16, 32, 64 or a multiple of 128 columns; without minima it
is (q - half of what the bits count to) · scale. Activations keep their 16 bits, so all that is rounded is the weight.

The order in memory is that of the matrix units' registers (`columns_of`): 4 threads that share a row load 16 bytes
each, and find in each 32 bits what one multiplication wants of them, no matter that columns lie elsewhere; the kernels
take activations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.errors import UsageError
from qwen3.kernels import reference_engine
from qwen3.kernels.frozen import Held, register_frozen
from qwen3.kernels.packed import as_weight, rounded

SLAB = {4: 128, 8: 64}
"""Bits → columns that lie in 64 bytes; what a row lacks to whole slabs is filled up."""
SMALLEST = 16
_AT_ONCE = 1 << 22  # numbers that are rounded together


class GroupWeight(nn.Module):
    """Stands where a Linear or Experts has its parameter; a module, so that it moves and is counted with its model.

    data int32 [E…, N, ⌈K/slab⌉·16]. scale, mins bfloat16, float16 or float32 [E…, K/group, N]; mins may be None. Only
    devices change them: a cast of the model leaves them as they are.
    """

    data: Tensor
    scale: Tensor
    mins: Tensor | None

    def __init__(
        self, data: Tensor, scale: Tensor, mins: Tensor | None, *, columns: int, bits: int, group: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, tensor in (("data", data), ("scale", scale), ("mins", mins)):
            self.register_buffer(name, tensor)
        self.columns, self.bits, self.group = columns, bits, group
        self.dtype = dtype  # of the activations it is multiplied with

    @property
    def tensors(self) -> list[Tensor | None]:
        return list(self._buffers.values())

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.data.shape[:-1], self.columns))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors if t is not None)

    operation = "group_linear"  # of the dispatch table

    @property
    def held(self) -> Held:
        numbers = [self.bits, self.group, self.mins is not None, *self.shape]
        return "group", [t for t in self.tensors if t is not None], numbers

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal where weights may be one."""
        return self.bits, self.group, self.mins is None, self.scale.dtype

    def _like(self, tensors: Sequence[Any]) -> GroupWeight:
        return GroupWeight(*tensors, columns=self.columns, bits=self.bits, group=self.group, dtype=self.dtype)

    def __getitem__(self, expert: int) -> GroupWeight:
        return self._like([None if t is None else t[expert] for t in self.tensors])

    @classmethod
    def stack(cls, experts: Sequence[GroupWeight]) -> GroupWeight:
        """Experts become one weight [E, N, K]."""
        return _joined(experts, lambda tensors, _: torch.stack(tensors))

    @classmethod
    def cat(cls, parts: Sequence[GroupWeight]) -> GroupWeight:
        """Rows below each other."""
        return _joined(parts, torch.cat)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), how: dict[str, Any] | None = None
    ) -> Any:
        from qwen3.kernels import dispatch  # which imports this file

        return as_weight(cls, dispatch.group_rows, function, args, how)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight itself [E…, N, K], computed in float32 and rounded to `dtype`."""
        q, scale, mins = self.parts()
        wide = q.float() - (0 if mins is not None else 1 << (self.bits - 1))

        def spread(marks: Tensor) -> Tensor:
            return marks.float().repeat_interleave(self.group, -1)[..., : self.columns]

        wide.mul_(spread(scale))
        return (wide if mins is None else wide.add_(spread(mins))).to(dtype or self.dtype)

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(q uint8 [E…, N, K], scale, minima [E…, N, K/group]), as `pack` takes them."""
        order = columns_of(self.bits, self.group, self.device)
        data = self.data.view(torch.uint8)
        q = torch.stack((data & 15, data >> 4), -1).flatten(-2) if self.bits == 4 else data
        slabs = q.unflatten(-1, (-1, len(order)))[..., order.argsort()]
        mins = None if self.mins is None else self.mins.mT
        return slabs.flatten(-2)[..., : self.columns], self.scale.mT, mins

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupWeight:
        # as integers, which no cast of a module's floating-point tensors touches
        for name, tensor in self._buffers.items():
            if tensor is not None:
                as_whole = torch.int16 if tensor.itemsize == 2 else torch.int32
                self._buffers[name] = fn(tensor.view(as_whole)).view(tensor.dtype)
        return self


@lru_cache
def columns_of(bits: int, group: int, device: torch.device) -> Tensor:
    """The column of a slab that each of its numbers stands for, from the lowest bits of its bytes on, int64 [slab].

    Thread t of 4 has 16 bytes after each other: for every 32 columns its 8 neighbours (of groups of 16 its 4 in each),
    4-bit ones such that a register's two halves, at any shift, hold neighbours."""
    thread, span, number = torch.meshgrid(*(torch.arange(n) for n in (4, SLAB[bits] // 32, 8)), indexing="ij")
    if bits == 4:
        number = number % 4 * 2 + number // 4  # the low half of a word has the even columns, the high half the odd
    own = number // 4 * 16 + thread * 4 + number % 4 if group == SMALLEST else thread * 8 + number
    return (span * 32 + own).flatten().to(device)


def pack(q: Tensor, scale: Tensor, mins: Tensor | None, bits: int, dtype: torch.dtype = torch.bfloat16) -> GroupWeight:
    """q uint8 [E…, N, K], each below 2^bits; scale, mins [E…, N, K/group] in 16 or 32 bits -> the weight.

    Raises UsageError for widths and groups that no kernel takes.
    """
    columns, groups = q.shape[-1], scale.shape[-1]
    slab = SLAB.get(bits, 0)
    whole = -(-columns // slab) * slab if slab else 0
    group = whole if groups == 1 else columns // groups
    if not slab or (groups > 1 and (columns % groups or (group not in (16, 32, 64) and group % 128))):
        raise UsageError(
            f"{bits} bits, {groups} groups of {columns} columns: take 4 or 8 bits, groups of 16, 32, 64 or 128·n"
        )
    order = columns_of(bits, group, q.device)
    data = F.pad(q, (0, whole - columns)).unflatten(-1, (-1, slab))[..., order]
    if bits == 4:
        data = data[..., 0::2] | data[..., 1::2] << 4
    return GroupWeight(
        data.flatten(-2).contiguous().view(torch.int32), scale.mT.contiguous(),
        None if mins is None else mins.to(scale.dtype).mT.contiguous(), columns=columns, bits=bits, group=group,
        dtype=dtype,
    )  # fmt: skip


def quantize_rtn(weight: Tensor, bits: int, group: int = 128) -> GroupWeight:
    """weight [E…, N, K] by `packed.rounded`, some rows at a time: 4 GB of float32 copies would be too many."""
    found, rows = [], weight.flatten(0, -2)
    for some in rows.split(max(1, _AT_ONCE // rows.shape[1])):
        q, scale = rounded(some, bits, group)
        found.append(pack(q, scale.half(), None, bits, weight.dtype))
    whole = GroupWeight.cat(found)
    if weight.dim() == 2:
        return whole
    scale = whole.scale.unflatten(-1, weight.shape[:-1]).movedim(0, -2)
    return whole._like([whole.data.unflatten(0, weight.shape[:-1]), scale.contiguous(), None])


def _joined(parts: Sequence[GroupWeight], how: Callable[[Any, int], Tensor]) -> GroupWeight:
    """Of different kinds: in that which holds all of them, but for the last bits of float32."""
    if len({part.kind for part in parts}) > 1:
        bits, group = max(part.bits for part in parts), min(part.group for part in parts)
        least = any(part.mins is not None for part in parts)
        dtype = torch.float32 if least else parts[0].scale.dtype
        if any(part.scale.dtype != dtype for part in parts):
            dtype = torch.float32
        parts = [_widened(part, bits, group, least, dtype) for part in parts]
    data, scale, mins = zip(*(part.tensors for part in parts), strict=True)
    return parts[0]._like([how(data, -2), how(scale, -1), None if mins[0] is None else how(mins, -1)])


def _widened(part: GroupWeight, bits: int, group: int, least: bool, dtype: torch.dtype) -> GroupWeight:
    q, scale, mins = part.parts()
    half, more = 1 << (part.bits - 1), -(-part.columns // group) // scale.shape[-1]
    if mins is None and not least:
        q = q + ((1 << (bits - 1)) - half)
    scale = scale.to(dtype)
    mins = (scale * -half if mins is None else mins.to(dtype)) if least else None
    least_of = None if mins is None else mins.repeat_interleave(more, -1)
    return pack(q, scale.repeat_interleave(more, -1), least_of, bits, part.dtype)


def _dequantize(tensors: list[Tensor], numbers: list[int], dtype: torch.dtype) -> Tensor:
    """Of a weight's `held`."""
    bits, group, least = numbers[:3]
    data, scale, *mins = tensors
    weight = GroupWeight(data, scale, mins[0] if least else None, columns=numbers[-1], bits=bits, group=group)
    if data.dim() == 3:
        return torch.stack([_dequantize([t[e] for t in tensors], [*numbers[:3], *numbers[-2:]], dtype)
                            for e in range(len(data))])  # fmt: skip
    from qwen3.kernels import dispatch  # which imports this file

    return dispatch.group_rows(weight, None, dtype)


register_frozen("group", _dequantize)


def group_linear(x: Tensor, weight: GroupWeight, **how: Any) -> Tensor:
    """`reference_engine.fused_linear` with the weight dequantized to x's dtype."""
    return reference_engine.fused_linear(x, weight.dequantize(x.dtype), **how)


def group_rows(weight: GroupWeight, ids: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """Rows `ids` [...] of a weight [N, K] (None: all of them) -> [..., K]."""
    if ids is None:
        return weight.dequantize(dtype)
    flat = ids.flatten().long()
    some = weight._like([weight.data[flat], *(t if t is None else t[:, flat] for t in weight.tensors[1:])])
    return some.dequantize(dtype).view(*ids.shape, weight.columns)
