"""What a format answers that matrices are written in: the tensors of one, and what config.json says of all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen3.errors import UsageError
from qwen3.quantize.types import Grouped, Rounded


class Format(Protocol):
    """bits: widths of whole numbers that it has. key: of config.json, which says how weights are stored. loss: how far
    what is read may be from what was rounded, as a share of it, where scales are stored otherwise."""

    name: str
    bits: tuple[int, ...] = ()
    key: str = "quantization_config"
    loss: float = 1e-6

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        """Suffix → tensor, all that stands for the matrix of this module. Tensors without values (on "meta") give the
        shapes and dtypes. Raises UsageError, naming the module, for what the format cannot hold."""

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        """planned: module → what is written of it, perhaps without values. kept: matrices that stay as they are."""

    def stacked(self, name: str) -> tuple[str, int] | None:
        """(tensor, row) for an expert's tensor that is a row of one for all experts; None: it is one of its own."""
        return None


def pack_bits(q: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] -> int32 [..., ⌈n·bits/32⌉], bit after bit from the lowest; the inverse of `unpack_bits`."""
    q = F.pad(q, (0, -q.shape[-1] % (32 // math.gcd(bits, 32))))
    if bits == 4:
        q = q[..., ::2] | q[..., 1::2] << 4
    elif bits != 8:
        size = math.lcm(bits, 8) // 8  # bytes that hold whole numbers
        whole = q.unflatten(-1, (-1, 8 * size // bits)).long()
        whole = (whole << torch.arange(0, 8 * size, bits, device=q.device)).sum(-1, keepdim=True)
        q = (whole >> torch.arange(0, 8 * size, 8, device=q.device) & 255).to(torch.uint8).flatten(-2)
    # a copy: of a view with a dimension of 1 the strides may be any
    return q.clone(memory_format=torch.contiguous_format).view(torch.int32)


def grouped(module: str, rounded: Rounded, format: Format, *, order: bool = False) -> Grouped:
    """The same, if a format of whole numbers in groups can hold it; order: that of GPTQ's columns, too."""
    if not isinstance(rounded, Grouped):
        other = "fp8 or compressed-tensors" if rounded.data.dtype.is_floating_point else "compressed-tensors"
        raise UsageError(f"{module}: {format.name} holds whole numbers in groups, not {_kind(rounded)}; take {other}")
    if rounded.bits not in format.bits:
        listed = ", ".join(map(str, format.bits))
        raise UsageError(
            f"{module}: {format.name} has no {rounded.bits}-bit numbers, only {listed}; take another format"
        )
    if rounded.order is not None and not order:
        raise UsageError(f"{module}: {format.name} cannot store the order of columns; take static groups, or gptq")
    return rounded


def _kind(rounded: Rounded) -> str:
    return "int8" if rounded.data.dtype == torch.int8 else "FP8"  # type: ignore[union-attr]


def fill_words(module: str, format: str, **counts: int) -> None:
    """UsageError unless each count of bits is a whole number of 32-bit words."""
    for what, count in counts.items():
        if count % 32:
            raise UsageError(f"{module}: {format} packs {what} in 32-bit words, but they have {count} bits; keep it")


def zeros(rounded: Grouped) -> Tensor:
    """uint8 [N, K/group], also of a symmetric matrix."""
    middle = 1 << rounded.bits - 1
    return torch.full_like(rounded.scale, middle, dtype=torch.uint8) if rounded.zero is None else rounded.zero


def columns_groups(rounded: Grouped) -> Tensor:
    """int32 [K]: the group of each column."""
    if rounded.order is not None:
        return rounded.order.int()
    return (torch.arange(rounded.q.shape[1], device=rounded.q.device) // rounded.group).int()


def most(planned: Mapping[str, Rounded], of: Callable[[Any], Hashable]) -> list[tuple[Any, list[str]]]:
    """(what `of` says, its modules), the commonest first."""
    kinds: dict[Any, list[str]] = {}
    for module, rounded in planned.items():
        kinds.setdefault(of(rounded), []).append(module)
    return sorted(kinds.items(), key=lambda item: -len(item[1]))


def group_size(rounded: Grouped) -> int:
    """As settings say it: -1 for a row."""
    return rounded.group if rounded.group in (32, 64, 128) else -1


def exactly(module: str) -> str:
    """A regular expression for one module."""
    return re.escape(module) + "$"
