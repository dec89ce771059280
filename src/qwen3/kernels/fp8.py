"""Weights in float8_e4m3fn (4 exponent bits, 3 of mantissa, largest 448) with float32 scales, and their plain twins.

One scale per output row (ours), or per 128 × 128 block (Qwen's FP8 checkpoints: `weight_scale_inv`); a weight is its
FP8 value times its scale. Activations are quantized on the fly: per token, with blocks per token and 128 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.kernels import reference, reference_engine
from qwen3.kernels.frozen import Held, frozen_linear, register_frozen

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
_SMALLEST_PEAK = 1e-12  # of a row of zeros: any scale will do


class Fp8Weight(nn.Module):
    """Stands where a Linear or Experts has its parameter; a module, so that it moves and is counted with its model.

    data float8_e4m3fn [N, K] or [E, N, K]; scale float32 [N, 1] (block 0) or [⌈N/128⌉, ⌈K/128⌉] (block 128), experts
    first. Only devices change it: a cast of the model leaves both tensors as they are.
    """

    data: Tensor
    scale: Tensor

    def __init__(self, data: Tensor, scale: Tensor, block: int = 0) -> None:
        super().__init__()
        self.register_buffer("data", data)
        self.register_buffer("scale", scale)
        self.block = block

    @classmethod
    def empty(cls, shape: tuple[int, ...], block: int = 0, device: torch.device | str | None = None) -> Fp8Weight:
        """Uninitialised."""
        *experts, rows, width = shape
        grid = (rows, 1) if block == 0 else (-(-rows // block), -(-width // block))
        data = torch.empty(shape, dtype=torch.uint8, device=device).view(FP8)
        return cls(data, torch.empty(*experts, *grid, dtype=torch.float32, device=device), block)

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    operation = "fp8_linear"  # of the dispatch table

    @property
    def held(self) -> Held:
        return "fp8", [self.data, self.scale], [self.block, *self.shape]

    def __getitem__(self, expert: int) -> Fp8Weight:
        return Fp8Weight(self.data[expert], self.scale[expert], self.block)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), how: dict[str, Any] | None = None
    ) -> Any:
        """In PyTorch's own functions (`F.linear`, say) it acts as the weight it stands for, in the input's dtype."""
        if function is F.linear and torch.is_grad_enabled():
            return frozen_linear(*args)
        return function(*(a.dequantize(args[0].dtype) if isinstance(a, cls) else a for a in args), **(how or {}))

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weight itself, computed in float32 and rounded to `dtype`."""
        scale = self.scale
        if self.block:
            rows, width = self.shape[-2:]
            scale = scale.repeat_interleave(self.block, -2)[..., :rows, :]
            scale = scale.repeat_interleave(self.block, -1)[..., :width]
        return (self.data.float() * scale).to(dtype)

    def assign(self, weight: Tensor) -> None:
        """Quantize `weight` into these tensors, expert by expert: addresses stay, so captured graphs do."""
        if weight.dim() == 3:
            for expert, part in enumerate(weight):
                self[expert].assign(part)
            return
        new = quantize_fp8(weight, self.block)
        self.data.copy_(new.data)
        self.scale.copy_(new.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Weight:
        # as integers, which no cast of a module's floating-point tensors touches
        self.data = fn(self.data.view(torch.uint8)).view(FP8)
        self.scale = fn(self.scale.view(torch.int32)).view(torch.float32)
        return self


register_frozen("fp8", lambda tensors, how, dtype: Fp8Weight(tensors[0], tensors[1], how[0]).dequantize(dtype))


def quantize_fp8(weight: Tensor, block: int = 0) -> Fp8Weight:
    """weight [..., N, K] -> the nearest FP8 values under scales that map each row's (or block's) largest to 448."""
    if block == 0:
        data, scale = _scaled(weight.float())
        return Fp8Weight(data, scale, 0)
    rows, width = weight.shape[-2:]
    padded = F.pad(weight.float(), (0, -width % block, 0, -rows % block))
    tiles = padded.unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).transpose(-3, -2)  # [..., N/b, K/b, b, b]
    data, scale = _scaled(tiles.flatten(-2))
    whole = data.view(torch.uint8).view(tiles.shape).transpose(-3, -2).reshape(padded.shape)
    return Fp8Weight(whole[..., :rows, :width].contiguous().view(FP8), scale.squeeze(-1), block)


def quantize_rows(x: Tensor, norm: Tensor | None = None, eps: float = 0.0, *, group: int = 0) -> tuple[Tensor, Tensor]:
    """x [M, K], first through rms_norm if `norm` is given -> (FP8 [M, K], float32 [M, 1], or [M, ⌈K/group⌉])."""
    if norm is not None:
        x = reference.rms_norm(x, norm, eps)
    if group == 0:
        return _scaled(x.float())
    width = x.shape[1]
    data, scale = _scaled(F.pad(x.float(), (0, -width % group)).unflatten(1, (-1, group)))
    return data.flatten(1)[:, :width], scale.squeeze(-1)


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(FP8 values, scale [..., 1]) along the last dimension of float32 `values`."""
    peak = values.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST_PEAK)
    factor = torch.full_like(peak, LARGEST) / peak  # a number divided by a tensor would be rounded twice
    return (values * factor).clamp(-LARGEST, LARGEST).to(FP8), peak / LARGEST


def fp8_linear(x: Tensor, weight: Fp8Weight, **how: Any) -> Tensor:
    """`reference_engine.fused_linear` with the weight dequantized to x's dtype; x is not quantized."""
    return reference_engine.fused_linear(x, weight.dequantize(x.dtype), **how)
