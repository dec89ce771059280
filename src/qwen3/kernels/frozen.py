"""Products with weights that are held compressed and never trained, and grouped products: what adapters stand beside.

A compressed weight (`Fp8Weight`, the trainer's `Nf4Weight`) is written out for a product and forgotten again, on the
way back once more. PyTorch alone would keep what was written out, which is the whole network; so would its compiler,
which sees that the two are the same. Hence an operator of our own, into which it does not look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Held = tuple[str, list[Tensor], list[int]]
"""A compressed weight's `held`: its kind, its tensors, and numbers that end in the rows and columns it stands for."""

_decoders: dict[str, Callable[[list[Tensor], list[int], torch.dtype], Tensor]] = {}


def register_frozen(kind: str, decode: Callable[[list[Tensor], list[int], torch.dtype], Tensor]) -> None:
    """decode: (tensors, numbers, dtype) of a weight of this kind -> the weight itself."""
    _decoders[kind] = decode


def frozen_linear(x: Tensor, weight: Any) -> Tensor:
    """x [..., in] by a compressed weight [out, in] -> [..., out]; gradients flow to x."""
    return _frozen(x, *weight.held, None)


def grouped_linear(x: Tensor, weight: Any, ends: Tensor) -> Tensor:
    """Rows ends[e-1] … ends[e]-1 of x [N, in] by weight[e]ᵀ -> [N, out]; differentiable. weight [E, out, in], a tensor
    or compressed; ends int32 [E]. No number leaves the device for bfloat16 on a Hopper or later GPU."""
    if not isinstance(weight, Tensor):
        return _frozen(x, *weight.held, ends)
    return _grouped(x, weight.mT, ends)


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [N, i], weight [E, i, o] -> [N, o]."""
    # get_device_capability would break the graph of a compiled layer; the properties are a constant to it
    if x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major >= 9:
        out: Tensor = torch._grouped_mm(x, weight, offs=ends)
        return out
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = [part @ weight[e] for e, part in enumerate(x.split(sizes)) if len(part)]
    return torch.cat(parts) if parts else x.new_zeros(0, weight.shape[2])


@torch.library.custom_op("qwen3::frozen", mutates_args=())
def _frozen(x: Tensor, kind: str, tensors: list[Tensor], numbers: list[int], ends: Tensor | None) -> Tensor:
    weight = _decoders[kind](tensors, numbers, x.dtype)
    return F.linear(x, weight) if ends is None else _grouped(x, weight.mT, ends)


@torch.library.custom_op("qwen3::frozen_back", mutates_args=())
def _frozen_back(outer: Tensor, kind: str, tensors: list[Tensor], numbers: list[int], ends: Tensor | None) -> Tensor:
    weight = _decoders[kind](tensors, numbers, outer.dtype)
    return outer @ weight if ends is None else _grouped(outer.contiguous(), weight, ends)


@_frozen.register_fake
def _(x: Tensor, kind: str, tensors: list[Tensor], numbers: list[int], ends: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], numbers[-2])


@_frozen_back.register_fake
def _(outer: Tensor, kind: str, tensors: list[Tensor], numbers: list[int], ends: Tensor | None) -> Tensor:
    return outer.new_empty(*outer.shape[:-1], numbers[-1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.kind, tensors, ctx.numbers, ends = inputs
    ctx.save_for_backward(ends, *tensors)


def _back(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
    ends, *tensors = ctx.saved_tensors
    return _frozen_back(outer, ctx.kind, tensors, ctx.numbers, ends), None, [None] * len(tensors), None, None


_frozen.register_autograd(_back, setup_context=_remember)
