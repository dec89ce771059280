"""Matrices of small whole numbers: (q - zero) · scale of the group, or q · scale + minimum."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from qwen3.checkpoint.formats.layout import Piece, Quantized
from qwen3.checkpoint.forms import Form
from qwen3.errors import ConfigError
from qwen3.kernels.packed import FORMS, GROUPS

Marks = tuple[
    Tensor, Tensor | None, Tensor | None
]  # scales, zeros (int32), minima: [rows, groups]; one of the last two


class Affine(Quantized):
    """`bits`: of q, which is unsigned. `group`: columns that share a scale."""

    bits: int
    group: int
    _whole: Affine | None = None

    def q(self, first: int, last: int) -> Tensor:
        """uint8 [rows, K]."""
        raise TypeError(self.kind)

    def marks(self, first: int, last: int) -> Marks:
        raise TypeError(self.kind)

    def order(self) -> Tensor | None:
        """The group of each column, int64 [K]; None where groups are columns side by side."""
        return None

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        first, last = self.span(rows)
        q, (scale, zero, mins), order = self.q(first, last).float(), self.marks(first, last), self.order()

        def wide(marks: Tensor) -> Tensor:
            found = marks.float()
            return found.repeat_interleave(self.group, 1) if order is None else found[:, order]

        if zero is not None:
            return q.sub_(wide(zero)).mul_(wide(scale)).to(dtype)  # exact: 11 bits times 9
        assert mins is not None
        return q.mul_(wide(scale)).add_(wide(mins)).to(dtype)

    @cached_property
    def form(self) -> Form | None:
        """The fewest bits around whose zero all q fit: numbers with zeros of their own stay the same, though wider."""
        group = next((size for size in reversed(GROUPS) if self.group % size == 0), 0)
        if not group or self.order() is not None:
            return None
        scale, zero, mins = self.marks(0, self.shape[0])
        if not _is_half(scale) or (mins is not None and not _is_half(mins)):
            return None
        low, high = (0, 0) if zero is None else (int(zero.min()), int(zero.max()))
        for bits in sorted(bits for bits, *others in FORMS if others == [0, False, mins is not None]):
            middle = 0 if zero is None else 1 << bits - 1
            if high <= middle and (1 << self.bits) - low + middle <= 1 << bits:
                return Form(bits, group, mins is not None)
        return None

    def packed(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        form = self.form
        assert form is not None
        (q, (scale, zero, mins)), more = self._taken(rows), self.group // form.group
        if zero is not None:
            shift = ((1 << form.bits - 1) - zero).to(torch.uint8)  # modulo 256, as the sum is
            q = q + shift.repeat_interleave(self.group, 1)
        halves = (None if marks is None else marks.half().repeat_interleave(more, 1) for marks in (scale, mins))
        scale, mins = halves  # type: ignore[assignment]
        return q, scale, mins

    def _taken(self, rows: slice) -> tuple[Tensor, Marks]:
        first, last = self.span(rows)
        source = self._whole or (self.whole() if self.by_column else self)
        self._whole = source if self.by_column and last < self.shape[0] else None  # until the last rows were asked for
        return source.q(first, last), source.marks(first, last)

    @cached_property
    def group_form(self) -> Form | None:
        columns = self.shape[1]
        group = next((size for size in (128, 64, 32, 16) if self.group % size == 0), 0)
        if self.order() is not None or not (group or self.group == columns):
            return None
        zero = self.marks(0, self.shape[0])[1]
        middle = zero is not None and bool((zero == 1 << self.bits - 1).all())
        return Form(4 if self.bits <= 4 else 8, self.group if self.group % 128 == 0 else group or columns, not middle)

    def grouped(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        form = self.group_form
        assert form is not None
        (q, (scale, zero, mins)), more = self._taken(rows), self.group // form.group
        if not form.mins:
            q, mins = q + ((1 << form.bits - 1) - (1 << self.bits - 1)), None
        elif zero is not None:
            scale = scale.float()
            mins = scale * -zero
        return q, scale.repeat_interleave(more, 1), None if mins is None else mins.repeat_interleave(more, 1)


def _is_half(marks: Tensor) -> bool:
    return bool((marks.half().float() == marks.float()).all())


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """int32 [..., W], bit after bit from the lowest, each word little-endian -> uint8 [..., 32·W/bits]."""
    data = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # of views, too, the strides are usual
    if bits == 8:
        return data
    if bits == 4:
        return torch.stack((data & 15, data >> 4), -1).flatten(-2)
    size = math.lcm(bits, 8) // 8  # bytes that hold whole numbers
    whole = data.unflatten(-1, (data.shape[-1] // size, size)).long()
    whole = (whole << torch.arange(0, 8 * size, 8)).sum(-1, keepdim=True)
    return ((whole >> torch.arange(0, 8 * size, bits)) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def group_columns(where: str, module: str, columns: int, group: int) -> int:
    """The group's columns (-1: all); ConfigError if the matrix is no whole number of groups."""
    group = columns if group == -1 else group
    if columns % group:
        raise ConfigError(f"{where}: group_size {group} does not divide the {columns} columns of {module}")
    return group


def words(where: str, module: str, count: int, bits: int) -> int:
    """32-bit words for so many numbers; ConfigError if they are no whole number."""
    if count * bits % 32:
        raise ConfigError(f"{where}: {count} rows or columns of {module} in {bits} bits do not fill 32-bit words")
    return count * bits // 32


def column_groups(piece: Piece | None, columns: int, group: int) -> Tensor | None:
    """What `Affine.order` says, of a tensor int32 [K]; CorruptFileError for a group there is not."""
    if piece is None:
        return None
    found, groups = piece.read().long(), columns // group
    if torch.equal(found, torch.arange(columns) // group):
        return None
    if int(found.min()) < 0 or int(found.max()) >= groups:
        raise piece.refuse(f"names groups from {int(found.min())} to {int(found.max())}, but there are {groups}")
    return found
