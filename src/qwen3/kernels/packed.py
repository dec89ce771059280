"""Weights of 2 to 8 bits that are multiplied as they lie, on a CPU.

A weight is (q - zero) · scale of its group of 32, 64, 128 or 256 columns, or q · scale + min where groups have a
minimum; q is an unsigned number of 2, 3, 4, 5, 6 or 8 bits, zero half of what it counts to, scale and min float16.
Where scales have two levels, scale is the group's times an integer of -128 … 127 for every 16 or 32 columns, min
likewise. Where there is a table, the 4 bits count in its sixteen values. Most of GGUF's types are such weights (Q4_0,
Q5_1, Q6_K, IQ4_XS, …); they are laid out anew, bit for bit the same numbers.

Activations are rounded to int8 with one float32 scale for every 32, as llama.cpp does for these types: then 32 products
are summed exactly in integers, and what is summed in float32 afterwards has one order. So a row gives the same bits
whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.errors import UsageError
from qwen3.kernels import native, reference, reference_engine
from qwen3.kernels.frozen import Held, frozen_linear, register_frozen
from qwen3.kernels.native.calling import call

LANES = 16  # rows of the weight side by side
SPAN = 32  # activations that share a scale
GROUPS = (32, 64, 128, 256)
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Bits → those of the parts that numbers are cut into, lowest first."""
TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""kvalues_iq4nl of ggml-common.h: the one table there is."""
FORMS = {(bits, 0, False, mins) for bits in (4, 5, 8) for mins in (False, True)} | {
    (4, 0, True, False), (4, 32, True, False), (2, 16, False, True), (3, 16, False, False), (4, 32, False, True),
    (5, 32, False, True), (6, 16, False, False),
}  # fmt: skip
"""Those that the kernel multiplies: bits, columns to an integer scale or 0, table, minima."""


def as_weight(
    kind: Any, look_up: Callable[[Any, Tensor], Tensor], function: Any, args: tuple[Any, ...],
    how: dict[str, Any] | None,
) -> Any:  # fmt: skip
    """`__torch_function__` of a weight in few bits, of class `kind`: in PyTorch's own functions it acts as the weight
    it stands for. look_up: (weight, ids) -> its rows, for an embedding."""
    if function is F.embedding:
        return look_up(args[1], args[0])
    if function is F.linear and isinstance(args[1], kind):
        if torch.is_grad_enabled():
            return frozen_linear(*args)
        from qwen3.kernels import dispatch  # which imports the files of these weights

        flat = dispatch.fused_linear(args[0].flatten(0, -2), args[1])
        return flat.view(*args[0].shape[:-1], flat.shape[-1])
    return function(*(a.dequantize(args[0].dtype) if isinstance(a, kind) else a for a in args), **(how or {}))


class PackedWeight(nn.Module):
    """Stands where a Linear or Experts has its parameter; a module, so that it moves and is counted with its model.

    data uint8 [E…, ⌈N/16⌉, 16·K·bits/8]: 16 rows × 32 columns after each other, of which the planes of `PLANES`, of
    which each 64 bytes are 16 rows × 4 columns (8 bits), × 4 in the low and 4 in the high halves (4 bits), and so on.
    scale, mins float16 [E…, ⌈N/16⌉, K/group, 16]; mins may be None. marks, the integer scales, int8 [E…, ⌈N/16⌉,
    K/fine, 16], with minima [E…, ⌈N/16⌉, 2·K/fine, 16]: those of the numbers first. Rows beyond N are zero.
    """

    data: Tensor
    scale: Tensor
    mins: Tensor | None
    marks: Tensor | None

    def __init__(
        self, data: Tensor, scale: Tensor, mins: Tensor | None, marks: Tensor | None = None, *,
        rows: int, columns: int, bits: int, group: int, table: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, tensor in zip(_TENSORS, (data, scale, mins, marks), strict=True):
            self.register_buffer(name, tensor)
        self.rows, self.columns, self.bits, self.group, self.table = rows, columns, bits, group, table
        # columns to an integer scale
        self.fine = 0 if marks is None else columns * (1 if mins is None else 2) // marks.shape[-2]

    @property
    def tensors(self) -> list[Tensor | None]:
        return list(self._buffers.values())  # a module's attributes take a microsecond

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.data.shape[:-2], self.rows, self.columns))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations it is multiplied with."""
        return torch.float32

    @property
    def parts(self) -> list[PackedWeight]:
        """Weights that stand below each other, each of one kind."""
        return [self]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for part in self.parts for t in part.tensors if t is not None)

    operation = "packed_linear"  # of the dispatch table

    @property
    def held(self) -> Held:
        tensors, numbers = [], [len(self.parts)]
        for part in self.parts:
            tensors += [t for t in part.tensors if t is not None]
            numbers += [part.bits, part.group, part.table, part.mins is not None, part.marks is not None, part.rows]
        return "packed", tensors, [*numbers, *self.shape]

    @classmethod
    def stack(cls, experts: Sequence[PackedWeight]) -> PackedWeight:
        """Experts, alike in everything, become one weight [E, N, K]."""
        return _below([each[0]._join(torch.stack, each) for each in zip(*(e.parts for e in experts), strict=True)])

    @classmethod
    def cat(cls, parts: Sequence[PackedWeight]) -> PackedWeight:
        """Rows below each other; those of one kind become one if blocks of 16 rows end where they do."""
        found: list[list[PackedWeight]] = []
        for part in parts:
            if found and found[-1][-1].rows % LANES == 0 and found[-1][-1].kind == part.kind:
                found[-1].append(part)
            else:
                found.append([part])
        return _below([same[0]._join(torch.cat, same, sum(p.rows for p in same)) for same in found])

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal where weights may be one."""
        return self.bits, self.group, self.table, self.fine, self.mins is None

    def _join(self, how: Callable[..., Tensor], parts: Sequence[PackedWeight], rows: int | None = None) -> PackedWeight:
        if len(parts) == 1 and how is torch.cat:
            return self
        tensors = zip(*(part.tensors for part in parts), strict=True)
        return self._like([None if each[0] is None else how(each) for each in tensors], rows or self.rows)

    def __getitem__(self, expert: int) -> PackedWeight:
        return self._like([None if t is None else t[expert] for t in self.tensors], self.rows)

    def _like(self, tensors: Sequence[Any], rows: int) -> PackedWeight:
        return PackedWeight(
            *tensors, rows=rows, columns=self.columns, bits=self.bits, group=self.group, table=self.table
        )

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), how: dict[str, Any] | None = None
    ) -> Any:
        return as_weight(cls, lambda weight, ids: weight.take(ids), function, args, how)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `ids` [...] of a weight [N, K] -> [..., K]."""
        flat = ids.flatten().long()
        blocks, lanes = flat // LANES, flat % LANES
        part = self._like([None if t is None else t[blocks] for t in self.tensors], LANES * len(flat))
        rows = part.dequantize(dtype).view(len(flat), LANES, self.columns)
        return rows[torch.arange(len(flat)), lanes].view(*ids.shape, self.columns)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight itself [E…, N, K], computed in float32 and rounded to `dtype`."""
        q, group = unpack(self.data, self.bits), self.fine or self.group
        scale, mins = (None if part is None else _by_row(part).float() for part in (self.scale, self.mins))
        assert scale is not None
        if self.marks is not None:
            times, *sunk = _by_row(self.marks).float().chunk(1 if mins is None else 2, dim=-1)
            scale = scale.repeat_interleave(self.group // self.fine, -1) * times
            mins = None if mins is None else mins.repeat_interleave(self.group // self.fine, -1) * sunk[0]
        if self.table:
            wide = torch.tensor(TABLE, dtype=torch.float32, device=q.device)[q.int()]
        else:
            wide = q.float() - (0 if mins is not None else 1 << (self.bits - 1))
        wide = wide.unflatten(-1, (-1, group)).mul_(scale.unsqueeze(-1))
        if mins is not None:
            wide.add_(mins.unsqueeze(-1))
        return wide.flatten(-2)[..., : self.rows, :].to(dtype)


class PackedParts(PackedWeight):
    """Weights of different kinds that stand below each other, as one."""

    def __init__(self, parts: Sequence[PackedWeight]) -> None:
        nn.Module.__init__(self)
        self.list = nn.ModuleList(parts)
        self.rows, self.columns = sum(part.rows for part in parts), parts[0].columns

    @property
    def parts(self) -> list[PackedWeight]:
        return list(self.list)  # type: ignore[arg-type]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.parts[0].shape[:-2], self.rows, self.columns))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def __getitem__(self, expert: int) -> PackedWeight:
        return PackedParts([part[expert] for part in self.parts])

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.dequantize(dtype)[ids.long()]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.cat([part.dequantize(dtype) for part in self.parts], dim=-2)


def _below(parts: list[PackedWeight]) -> PackedWeight:
    return parts[0] if len(parts) == 1 else PackedParts(parts)


_TENSORS = ("data", "scale", "mins", "marks")


def _by_row(marks: Tensor) -> Tensor:
    """[..., blocks, groups, 16] -> [..., rows, groups]."""
    return marks.mT.flatten(-3, -2)


def _by_block(marks: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., rows, groups] -> [..., blocks, groups, 16]."""
    return marks.to(dtype).unflatten(-2, (-1, LANES)).mT.contiguous()


def unpack(data: Tensor, bits: int) -> Tensor:
    """PackedWeight.data -> uint8 [..., rows, columns], rows a multiple of 16."""
    cells = data.unflatten(-1, (-1, bits, LANES, 4))  # [..., blocks, spans, 64 bytes of a plane, 16, 4]
    whole, at = None, 0
    for width, plane in zip(PLANES[bits], cells.split(PLANES[bits], dim=-3), strict=True):
        cut = [(plane >> low) & ((1 << width) - 1) for low in range(0, 8, width)]
        quads = torch.stack(cut, dim=-3).flatten(-4, -3) << at  # [..., spans, 8, 16, 4]
        whole, at = quads if whole is None else whole | quads, at + width
    assert whole is not None
    return whole.movedim(-2, -4).flatten(-3).flatten(-3, -2)


def pack(
    q: Tensor, scale: Tensor, mins: Tensor | None, bits: int, marks: Tensor | None = None, *, table: bool = False
) -> PackedWeight:
    """q uint8 [E…, N, K]; scale, mins [E…, N, K/group] in float16 or what float16 holds; marks int8 [E…, N, K/fine]
    ([E…, N, 2·K/fine] with minima) -> the weight.

    Raises UsageError for widths and groups that no kernel takes.
    """
    rows, columns = q.shape[-2:]
    group = columns // scale.shape[-1]
    fine = 0 if marks is None else columns * (1 if mins is None else 2) // marks.shape[-1]
    if (bits, fine, table, mins is not None) not in FORMS or group not in GROUPS or columns % group:
        how = f"{bits} bits in groups of {group} ({fine or 'no'} columns to an integer scale) for {columns} columns"
        raise UsageError(f"{how}: take 4 or 8 bits in groups of 32, 64, 128 or 256")
    more = -rows % LANES
    if more:
        q, scale = (F.pad(t, (0, 0, 0, more)) for t in (q, scale))
        mins, marks = (t if t is None else F.pad(t, (0, 0, 0, more)) for t in (mins, marks))
    data = _data(q, bits)
    return PackedWeight(
        data, _by_block(scale, torch.float16), None if mins is None else _by_block(mins, torch.float16),
        None if marks is None else _by_block(marks, torch.int8),
        rows=rows, columns=columns, bits=bits, group=group, table=table,
    )  # fmt: skip


def _data(q: Tensor, bits: int) -> Tensor:
    """uint8 [E…, N, K], N a multiple of 16 -> PackedWeight.data; the compiled code does the same."""
    library = native.library() if q.device.type == "cpu" else None
    if library is not None:
        *more, rows, columns = q.shape
        data = torch.empty(*more, rows // LANES, LANES * columns * bits // 8, dtype=torch.uint8)
        call(library.qwen3_pack, q.contiguous(), q.numel() // columns, columns, bits, data)
        return data
    cells = q.unflatten(-2, (-1, LANES)).unflatten(-1, (-1, 8, 4)).movedim(-4, -2)  # [..., blocks, spans, 8, 16, 4]
    planes, at = [], 0
    for width in PLANES[bits]:
        cut = (cells >> at if at else cells).unflatten(-3, (width, 8 // width)).unbind(-3)
        cut = [(part & ((1 << width) - 1)) << width * i for i, part in enumerate(cut)]
        planes.append(functools.reduce(torch.bitwise_or, cut))
        at += width
    return torch.cat(planes, dim=-3).flatten(-4)


def sample(form: tuple[int, int, bool, bool], shape: tuple[int, ...], group: int = 32) -> PackedWeight:
    """Random numbers in one of `FORMS`, shape [E…, N, K], to try a kernel with."""
    bits, fine, table, least = form
    *rows, columns = shape
    scale = (torch.rand(*rows, columns // group) * 0.1 - 0.02).half()
    mins = (torch.randn(*rows, columns // group) * 0.3).half() if least else None
    levels = 2 if least else 1
    marks = torch.randint(-128, 128, (*rows, levels * columns // fine), dtype=torch.int8) if fine else None
    q = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    return pack(q, scale, mins, bits, marks, table=table)


def quantize_rtn(weight: Tensor, bits: int, group: int = 128) -> PackedWeight:
    """`rounded`, packed."""
    return pack(*rounded(weight, bits, group), None, bits)


def rounded(weight: Tensor, bits: int, group: int = 128) -> tuple[Tensor, Tensor]:
    """weight [E…, N, K] to the nearest of its group's values (q - half of what the bits count to) · scale -> (q uint8
    [E…, N, K], scale, of float16's numbers, float32 [E…, N, K/group]). 4 bits: the scale is the one, of a few between
    the largest value's and 0.8 of it, with the smallest squared error. Raises UsageError for a value not finite."""
    grouped = weight.float().unflatten(-1, (-1, group))
    peak, at = grouped.abs().max(-1, keepdim=True)
    if not torch.isfinite(peak).all():
        raise UsageError("a weight is NaN or infinite: it cannot be quantized")
    zero = 1 << (bits - 1)
    if bits == 8:
        scale = (peak / 127).half().float()
    else:
        # -8 has no opposite, so the largest value, of either sign, may sit there
        largest = grouped.gather(-1, at)
        scale, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
        for step in range(9):
            tried = (largest / -(8 - 0.2 * step)).half().float()
            found = (grouped / tried.where(tried != 0, 1.0)).round().clamp(-8, 7) * tried
            error = (found - grouped).square().sum(-1, keepdim=True)
            scale, least = torch.where(error < least, tried, scale), torch.minimum(error, least)
    q = (grouped / scale.where(scale != 0, 1.0)).round().clamp(1 - zero if bits == 8 else -zero, zero - 1) + zero
    return q.to(torch.uint8).flatten(-2), scale.squeeze(-1)


def _dequantize(tensors: list[Tensor], numbers: list[int], dtype: torch.dtype) -> Tensor:
    """Of a weight's `held`."""
    left, found = iter(tensors), []
    for i in range(numbers[0]):
        bits, group, table, mins, marks, rows = numbers[1 + 6 * i : 7 + 6 * i]
        own = [next(left) if there else None for there in (1, 1, mins, marks)]
        found.append(PackedWeight(*own, rows=rows, columns=numbers[-1], bits=bits, group=group, table=bool(table)))  # type: ignore[arg-type]
    return _below(found).dequantize(dtype)


register_frozen("packed", _dequantize)


def quantize_rows(x: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """float32 x [M, K], first through rms_norm if `norm` is given -> (int8 [M, K], float32 scales [M, K/32])."""
    if norm is not None:
        x = reference.rms_norm(x, norm, eps)
    spans = x.float().unflatten(-1, (-1, SPAN))
    peak = spans.abs().amax(-1, keepdim=True)
    # a number over a tensor is a product with the reciprocal in PyTorch, which rounds twice
    inverse = torch.full_like(peak, 127).div_(peak.clamp_min(1e-38))
    q = (spans * torch.where(peak > 0, inverse, 0)).round().clamp(-127, 127)
    return q.to(torch.int8).flatten(-2), (peak / 127).squeeze(-1)


def linear(
    x: Tensor, weight: PackedWeight, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """`reference_engine.fused_linear` with activations rounded as above. The plain twin of the compiled kernel."""
    q, scale = quantize_rows(x, norm, eps)
    seen = (q.float().unflatten(-1, (-1, SPAN)) * scale.unsqueeze(-1)).flatten(-2)
    return reference_engine.fused_linear(
        seen, weight.dequantize(), residual=residual, silu=silu, invariant=invariant
    ).to(x.dtype)


def compiled_linear(x: Tensor, weight: PackedWeight, **how: Any) -> Tensor:
    """`linear` by the compiled kernel, where there is one."""
    library = native.library()
    if library is None or x.device.type != "cpu":
        return linear(x, weight, **how)
    return run(library, x, weight, **how)


def run(
    library: ctypes.CDLL, x: Tensor, weight: PackedWeight, *, norm: Tensor | None = None, eps: float = 0.0,
    residual: Tensor | None = None, silu: bool = False, invariant: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """x float32 [M, K]. invariant: every row's numbers are those it would have alone in any case."""
    rows, columns = x.shape
    parts = weight.parts
    if columns != weight.columns or parts[0].tensors[0].dim() != 2:  # type: ignore[union-attr]
        raise UsageError(f"x has {columns} columns, the weight {list(weight.shape)}")
    if silu and (len(parts) > 1 or weight.rows % (2 * LANES)):
        y = reference.silu_mul(run(library, x, weight, norm=norm, eps=eps))
        return y if residual is None else residual + y
    x = x.float().contiguous()
    norm = None if norm is None else norm.float().contiguous()
    residual = None if residual is None else residual.float().contiguous()
    width = weight.rows // 2 if silu else weight.rows
    spans, threads = columns // SPAN, torch.get_num_threads()
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, spans, dtype=torch.float32)
    sums = torch.empty(2, rows, spans, dtype=torch.int32)
    y = torch.empty(rows, width, dtype=torch.float32)
    call(library.qwen3_quantize, x, norm, ctypes.c_float(eps), rows, columns, values, scales, sums, threads)
    first = 0
    for part in parts:
        call(
            library.qwen3_packed_linear, values, scales, sums, rows, columns, *part.tensors,
            -(-part.rows // LANES) * LANES, part.bits, part.group, part.fine, int(part.table),
            None if residual is None else residual[:, first:], int(silu),
            y[:, first:] if first else y, width if len(parts) == 1 else part.rows, width, threads,
        )  # fmt: skip
        first += part.rows
    return y
