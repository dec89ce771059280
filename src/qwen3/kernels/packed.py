"""Weights of 4 or 8 bits that are multiplied as they lie, on a CPU.

A weight is (q - zero) · scale of its group of 32, 64, 128 or 256 columns, or q · scale + min where groups have a
minimum; q is an unsigned number of 4 or 8 bits, zero 8 or 128, scale and min float16. GGUF's Q4_0, Q4_1 and Q8_0 are
such weights with groups of 32; they are laid out anew, bit for bit the same numbers.

Activations are rounded to int8 with one float32 scale for every 32, as llama.cpp does for these types: then 32 products
are summed exactly in integers, and what is summed in float32 afterwards has one order. So a row gives the same bits
whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.errors import UsageError
from qwen3.kernels import native, reference, reference_engine
from qwen3.kernels.frozen import Held, frozen_linear, register_frozen

LANES = 16  # rows of the weight side by side
SPAN = 32  # activations that share a scale
GROUPS = (32, 64, 128, 256)


class PackedWeight(nn.Module):
    """Stands where a Linear or Experts has its parameter; a module, so that it moves and is counted with its model.

    data uint8 [E…, ⌈N/16⌉, 16·K·bits/8]: 64 bytes are 16 rows × 4 columns of 8 bits, or × 8 columns of 4 (the first
    four in the low halves). scale, mins float16 [E…, ⌈N/16⌉, K/group, 16]; mins may be None. Rows beyond N are zero.
    """

    data: Tensor
    scale: Tensor
    mins: Tensor | None

    def __init__(
        self, data: Tensor, scale: Tensor, mins: Tensor | None, *, rows: int, columns: int, bits: int, group: int
    ) -> None:
        super().__init__()
        self.register_buffer("data", data)
        self.register_buffer("scale", scale)
        self.register_buffer("mins", mins)
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group

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
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.data, self.scale, self.mins) if part is not None)

    operation = "packed_linear"  # of the dispatch table

    @property
    def held(self) -> Held:
        tensors = [self.data, self.scale] + ([] if self.mins is None else [self.mins])
        return "packed", tensors, [self.bits, self.group, *self.shape]

    @classmethod
    def stack(cls, parts: Sequence[PackedWeight]) -> PackedWeight:
        """Experts, alike in everything, become one weight [E, N, K]."""
        data, scale = (torch.stack([getattr(part, name) for part in parts]) for name in ("data", "scale"))
        mins = None if parts[0].mins is None else torch.stack([part.mins for part in parts if part.mins is not None])
        return parts[0]._like(data, scale, mins, parts[0].rows)

    @classmethod
    def cat(cls, parts: Sequence[PackedWeight]) -> PackedWeight:
        """Rows below each other; all parts but the last have a multiple of 16 of them."""
        if any(part.rows % LANES for part in parts[:-1]):
            raise UsageError(f"parts of {[part.rows for part in parts]} rows do not end where blocks of {LANES} do")
        if len(parts) == 1:
            return parts[0]
        data, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("data", "scale"))
        mins = None if parts[0].mins is None else torch.cat([part.mins for part in parts if part.mins is not None])
        return parts[0]._like(data, scale, mins, sum(part.rows for part in parts))

    def __getitem__(self, expert: int) -> PackedWeight:
        mins = None if self.mins is None else self.mins[expert]
        return self._like(self.data[expert], self.scale[expert], mins, self.rows)

    def _like(self, data: Tensor, scale: Tensor, mins: Tensor | None, rows: int) -> PackedWeight:
        return PackedWeight(data, scale, mins, rows=rows, columns=self.columns, bits=self.bits, group=self.group)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), how: dict[str, Any] | None = None
    ) -> Any:
        """In PyTorch's own functions it acts as the weight it stands for; an embedding unpacks the rows it takes."""
        if function is F.embedding:
            return args[1].take(args[0])
        if function is F.linear and isinstance(args[1], cls):
            if torch.is_grad_enabled():
                return frozen_linear(*args)
            from qwen3.kernels import dispatch  # which imports this file

            flat = dispatch.fused_linear(args[0].flatten(0, -2), args[1])
            return flat.view(*args[0].shape[:-1], flat.shape[-1])
        return function(*(a.dequantize(args[0].dtype) if isinstance(a, cls) else a for a in args), **(how or {}))

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `ids` [...] of a weight [N, K] -> [..., K]."""
        flat = ids.flatten().long()
        blocks, lanes = flat // LANES, flat % LANES
        part = self._like(
            self.data[blocks], self.scale[blocks], None if self.mins is None else self.mins[blocks], LANES * len(flat)
        )
        rows = part.dequantize(dtype).view(len(flat), LANES, self.columns)
        return rows[torch.arange(len(flat)), lanes].view(*ids.shape, self.columns)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight itself [E…, N, K], computed in float32 and rounded to `dtype`."""
        scale, mins = (None if part is None else _by_row(part).float() for part in (self.scale, self.mins))
        assert scale is not None
        grouped = unpack(self.data, self.bits).unflatten(-1, (-1, self.group)).float()
        if mins is None:
            grouped = (grouped - (1 << (self.bits - 1))) * scale.unsqueeze(-1)
        else:
            grouped = grouped * scale.unsqueeze(-1) + mins.unsqueeze(-1)
        return grouped.flatten(-2)[..., : self.rows, :].to(dtype)


def _by_row(marks: Tensor) -> Tensor:
    """[..., blocks, groups, 16] -> [..., rows, groups]."""
    return marks.mT.flatten(-3, -2)


def _by_block(marks: Tensor) -> Tensor:
    """[..., rows, groups] -> float16 [..., blocks, groups, 16]."""
    return marks.to(torch.float16).unflatten(-2, (-1, LANES)).mT.contiguous()


def unpack(data: Tensor, bits: int) -> Tensor:
    """PackedWeight.data -> uint8 [..., rows, columns], rows a multiple of 16."""
    cells = data.unflatten(-1, (-1, LANES, 4))  # [..., blocks, columns / 4 or / 8, 16, 4]
    if bits == 4:
        cells = torch.stack((cells & 15, cells >> 4), dim=-2).flatten(-2)  # [..., blocks, columns / 8, 16, 8]
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def pack(q: Tensor, scale: Tensor, mins: Tensor | None, bits: int) -> PackedWeight:
    """q uint8 [E…, N, K]; scale, mins [E…, N, K/group] in float16 or what float16 holds -> the weight.

    Raises UsageError for widths and groups that no kernel takes.
    """
    rows, columns = q.shape[-2:]
    group = columns // scale.shape[-1]
    if bits not in (4, 8) or group not in GROUPS or columns % group:
        raise UsageError(f"{bits} bits in groups of {group} for {columns} columns: take 4 or 8, and 32, 64, 128 or 256")
    more = -rows % LANES
    if more:
        q, scale = F.pad(q, (0, 0, 0, more)), F.pad(scale, (0, 0, 0, more))
        mins = None if mins is None else F.pad(mins, (0, 0, 0, more))
    cells = q.unflatten(-2, (-1, LANES)).unflatten(-1, (-1, 4 if bits == 8 else 8)).transpose(-3, -2)
    if bits == 4:
        low, high = cells.unflatten(-1, (2, 4)).unbind(-2)
        cells = low | (high << 4)
    data = cells.flatten(-3).contiguous()
    return PackedWeight(
        data, _by_block(scale), None if mins is None else _by_block(mins),
        rows=rows, columns=columns, bits=bits, group=group,
    )  # fmt: skip


def quantize_rtn(weight: Tensor, bits: int, group: int = 128) -> PackedWeight:
    """weight [E…, N, K] rounded to the nearest of its group's values. 4 bits: the scale is the one, of a few between
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
    return pack(q.to(torch.uint8).flatten(-2), scale.squeeze(-1), None, bits)


register_frozen(
    "packed",
    lambda tensors, how, dtype: PackedWeight(
        tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None,
        rows=how[-2], columns=how[-1], bits=how[0], group=how[1],
    ).dequantize(dtype),
)  # fmt: skip


def quantize_rows(x: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """float32 x [M, K], first through rms_norm if `norm` is given -> (int8 [M, K], float32 scales [M, K/32])."""
    if norm is not None:
        x = reference.rms_norm(x, norm, eps)
    spans = x.float().unflatten(-1, (-1, SPAN))
    peak = spans.abs().amax(-1, keepdim=True)
    q = (spans * torch.where(peak > 0, 127 / peak.clamp_min(1e-38), 0)).round().clamp(-127, 127)
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
    if columns != weight.columns or weight.data.dim() != 2:
        raise UsageError(f"x has {columns} columns, the weight {list(weight.shape)}")
    if silu and weight.rows % (2 * LANES):
        y = reference.silu_mul(run(library, x, weight, norm=norm, eps=eps))
        return y if residual is None else residual + y
    x = x.float().contiguous()
    norm = None if norm is None else norm.float().contiguous()
    residual = None if residual is None else residual.float().contiguous()
    width = weight.rows // 2 if silu else weight.rows
    spans, threads = columns // SPAN, torch.get_num_threads()
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, spans, dtype=torch.float32)
    sums = torch.empty(rows, spans, dtype=torch.int32)
    y = torch.empty(rows, width, dtype=torch.float32)
    _call(library.qwen3_quantize, x, norm, ctypes.c_float(eps), rows, columns, values, scales, sums, threads)
    _call(
        library.qwen3_packed_linear, values, scales, sums, rows, columns, weight.data, weight.scale, weight.mins,
        weight.data.shape[0] * LANES, weight.bits, weight.group, residual, int(silu), y, width, threads,
    )  # fmt: skip
    return y


def _call(function: Callable[..., Any], *arguments: Any) -> None:
    function(
        *(
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
            for a in arguments
        )
    )
