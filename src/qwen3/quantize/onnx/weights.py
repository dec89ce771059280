"""Which numbers an exported model holds: each official tensor as floats, or in groups of 4 or 8 bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3.checkpoint.names import EMBED, HEAD
from qwen3.checkpoint.source import Source
from qwen3.checkpoint.values import count_nan_inf
from qwen3.errors import CorruptFileError, UsageError
from qwen3.quantize.rtn import round_rtn
from qwen3.quantize.types import Grouped

BITS = {"int4": 4, "int8": 8}
KINDS = {torch.float32: "FLOAT", torch.float16: "FLOAT16"}
_AT_ONCE = 8 << 20  # bytes of float32 that are converted at a time


class Layout(NamedTuple):
    """How a matrix is held. zeros: groups have zero points of their own. kept: the numbers are those of the file."""

    bits: int
    group: int
    zeros: bool
    kept: bool


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint as they are exported.

    bits: of the projections; None: they are floats. ends: of embedding and head, likewise. group: columns to a scale of
    what is rounded here; a matrix that the file has in groups of as many bits keeps its numbers and its groups. dtype:
    of floats and scales.
    """

    source: Source
    bits: int | None
    ends: int | None
    group: int
    symmetric: bool
    dtype: torch.dtype
    layouts: dict[str, Layout | None] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.stored[name].shape

    def floats(self, name: str) -> Iterator[Tensor]:
        """The tensor in `dtype`, some rows at a time. Raises CorruptFileError naming it for values not finite."""
        for wide in self._wide(name):
            narrow = wide.to(self.dtype)
            if any(count_nan_inf(narrow)):
                raise UsageError(f"{name} holds values beyond float16's 65504: export it with fp32 activations")
            yield narrow

    def tensor(self, name: str) -> Tensor:
        """All of it."""
        return torch.cat(list(self.floats(name)))

    def layout(self, name: str) -> Layout | None:
        """None: floats, as norms and routers always are. Experts of a layer are laid out alike.

        Raises UsageError where groups do not come out.
        """
        bits = self.ends if name in (EMBED, HEAD) else self.bits if name.endswith("_proj.weight") else None
        if bits is None:
            return None
        family = _family(name)
        if family not in self.layouts:
            self.layouts[family] = self._find_layout(family, bits)
        return self.layouts[family]

    def grouped(self, name: str) -> Grouped:
        """A matrix that is held in groups: as the file has it, or rounded to the nearest."""
        layout = self.layout(name)
        assert layout is not None
        if layout.kept:
            found = self._stored(name, layout.bits)
            assert found is not None
        else:
            found = self._rounded(name, layout)
        if layout.zeros and found.zero is None:
            return replace(found, zero=torch.full(found.scale.shape, 1 << (layout.bits - 1), dtype=torch.uint8))
        return found

    def exported(self, name: str) -> Tensor:
        """What the exported model multiplies by: float32, rounded as it is there."""
        return self.tensor(name).float() if self.layout(name) is None else self.grouped(name).dequantize()

    def _find_layout(self, family: str, bits: int) -> Layout:
        stored = self.source.stored
        names = [name for name in stored if _family(name) == family]
        if len({stored[name].form for name in names}) == 1:
            zeros = []  # read now, since all are laid out before the first is written
            for found in (self._stored(name, bits) for name in names):
                if found is None:
                    break
                zeros.append(found.zero is not None)
            if len(zeros) == len(names):
                form = stored[names[0]].form
                assert form is not None
                return Layout(bits, form.group, any(zeros), True)
        columns = stored[names[0]].shape[1]
        if columns % self.group:
            raise UsageError(f"{names[0]} has {columns} columns, no multiple of block size {self.group}")
        return Layout(bits, self.group, not self.symmetric and family not in (EMBED, HEAD), False)

    def _stored(self, name: str, bits: int) -> Grouped | None:
        """The file's numbers around zeros of `bits`; None if it has none that can be held so."""
        stored = self.source.stored[name]
        form = stored.form
        if form is None or form.mins or form.fine or form.table or form.bits > bits + 1:
            return None
        q, scale, *_ = stored.packed(slice(None))
        signed = q.unflatten(1, (-1, form.group)).short() - (1 << (form.bits - 1))
        half, top = 1 << (bits - 1), (1 << bits) - 1
        low, high = signed.amin(-1), signed.amax(-1)
        centred = bool((low >= -half).all() and (high < half).all())
        zero = torch.full_like(low, half) if centred else (-low).clamp(0, top)
        signed += zero.unsqueeze(-1)
        if int(signed.min()) < 0 or int(signed.max()) > top or (name in (EMBED, HEAD) and not centred):
            return None
        own = None if centred else zero.to(torch.uint8)
        return Grouped(signed.to(torch.uint8).flatten(1), scale, own, bits, form.group)

    def _rounded(self, name: str, layout: Layout) -> Grouped:
        try:
            parts = [round_rtn(wide, layout.bits, layout.group, not layout.zeros) for wide in self._wide(name)]
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        zeros = [part.zero for part in parts if part.zero is not None]
        q, scale = (torch.cat(tensors) for tensors in zip(*((part.q, part.scale) for part in parts), strict=True))
        return Grouped(q, scale, torch.cat(zeros) if zeros else None, layout.bits, layout.group)

    def _wide(self, name: str) -> Iterator[Tensor]:
        """float32, some rows at a time."""
        stored = self.source.stored[name]
        step = _AT_ONCE // (4 * stored.shape[1]) or 1 if len(stored.shape) == 2 else stored.shape[0]
        for first in range(0, stored.shape[0], step):
            wide = stored.read(slice(first, min(first + step, stored.shape[0])), torch.float32)
            nan, infinite = count_nan_inf(wide)
            if nan or infinite:
                found = f"{nan} NaN and {infinite} infinite values"
                raise CorruptFileError(f"{self.source.path}: tensor {name} holds {found}; nothing was exported")
            yield wide


def _family(name: str) -> str:
    """What is laid out alike: a matrix; all experts' gates and ups of a layer; all their downs."""
    return re.sub(r"\.experts\.\d+\.((gate|up)(?=_))?", ".experts.", name)


def pack(q: Tensor, bits: int) -> Tensor:
    """uint8 [..., K] -> its bytes; of 4 bits two in a byte, the first in the low half, an odd one beside zero."""
    if bits == 8:
        return q
    if q.shape[-1] % 2:
        q = torch.nn.functional.pad(q, (0, 1))
    return q[..., ::2] | (q[..., 1::2] << 4)
