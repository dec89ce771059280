"""QLoRA's base (arXiv 2305.14314): weights in 4-bit NormalFloat, their scales in 8 bits, dequantized when used.

As bitsandbytes lays it out: a matrix is read row by row in blocks of 64; each block is divided by its largest magnitude
and rounded to the nearest of 16 numbers, quantiles of a normal distribution. The magnitudes, less their mean, are
quantized in turn, in blocks of 256, to the 256 numbers of a dynamic 8-bit format (arXiv 2110.02861: a sign, leading
zeros as a decimal exponent, the rest a linear fraction). That is 4.127 bits a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.checkpoint.adapter import sites
from qwen3.errors import UsageError
from qwen3.kernels import frozen_linear, register_frozen
from qwen3.kernels.frozen import Held
from qwen3.model import Qwen3
from qwen3.model.lora import base_weight, replace_weight

BLOCK, SCALES = 64, 256  # weights with one magnitude, magnitudes with one scale
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA, appendix E."""


@cache
def dynamic_code() -> Tensor:
    """The 256 numbers of the dynamic format, float32 ascending: ±(midpoints of 2^i even steps from 0.1 to 1) · 10^(i-6)
    for i = 0 … 6, and 0 and 1."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middle = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)).tolist()
        found += middle + [-value for value in middle]
    return torch.tensor(sorted(found), dtype=torch.float32)


class Nf4Weight(nn.Module):
    """Stands where a Linear or Experts has its parameter. codes uint8 [E, weights / 2]: two a byte, the first in the
    high half; sizes uint8 [E, blocks]: the blocks' magnitudes; scales float32 [E, ⌈blocks / 256⌉] and mean [E, 1], of
    these. E is 1 for a matrix. A cast of the model changes none of them."""

    codes: Tensor
    sizes: Tensor
    scales: Tensor
    mean: Tensor

    def __init__(self, shape: tuple[int, ...], codes: Tensor, sizes: Tensor, scales: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        for name, value in (("codes", codes), ("sizes", sizes), ("scales", scales), ("mean", mean)):
            self.register_buffer(name, value)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.buffers())

    def __getitem__(self, expert: int) -> Nf4Weight:
        one = (t[expert : expert + 1] for t in (self.codes, self.sizes, self.scales, self.mean))
        return Nf4Weight(tuple(self.shape[1:]), *one)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), how: dict[str, Any] | None = None
    ) -> Any:
        """In `F.linear` and the like it acts as the weight it stands for."""
        if function is F.linear:
            return frozen_linear(*args)
        return function(*(a.dequantize(args[0].dtype) if isinstance(a, cls) else a for a in args), **(how or {}))

    @property
    def held(self) -> Held:
        return "nf4", [self.codes, self.sizes, self.scales, self.mean], [*self.shape]

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weight itself, computed in float32 and rounded to `dtype`."""
        _, tensors, numbers = self.held
        return _dequantize(tensors, numbers, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Nf4Weight:
        self.codes, self.sizes = fn(self.codes), fn(self.sizes)
        for name in ("scales", "mean"):  # as integers, which no cast touches
            setattr(self, name, fn(getattr(self, name).view(torch.int32)).view(torch.float32))
        return self


def _dequantize(tensors: list[Tensor], numbers: list[int], dtype: torch.dtype) -> Tensor:
    codes, sizes, scales, mean = tensors
    return _decode(codes, sizes, scales, mean, _on(codes.device), dtype).view(numbers)


register_frozen("nf4", _dequantize)


@cache
def _on(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(NF4, device=device), dynamic_code().to(device)


def _decode(
    codes: Tensor, sizes: Tensor, scales: Tensor, mean: Tensor, tables: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    values, dynamic = tables
    blocks = sizes.shape[1]
    wide = scales.repeat_interleave(SCALES, 1)[:, :blocks] if scales.shape[1] > 1 else scales
    peak = dynamic[sizes.int()] * wide + mean
    pairs = torch.stack([codes >> 4, codes & 15], -1).view(-1, blocks, BLOCK)
    return (values[pairs.int()] * peak.unsqueeze(-1)).to(dtype)


if torch.cuda.is_available():  # one pass, instead of an index of four bytes for every weight in memory
    _decode = torch.compile(_decode, dynamic=False)


@torch.no_grad()
def quantize_nf4(weight: Tensor) -> Nf4Weight:
    """weight [out, in] or [E, out, in] -> the nearest codes. Raises UsageError where a matrix is no whole number of
    blocks."""
    count = weight.shape[0] if weight.dim() == 3 else 1
    size = weight.numel() // count
    if size % BLOCK:
        raise UsageError(f"a weight of {list(weight.shape)} cannot be kept in nf4: {size:,} is no multiple of {BLOCK}")
    made = [_encode(part) for part in weight.reshape(count, -1, BLOCK)]
    return Nf4Weight(tuple(weight.shape), *(torch.stack(parts) for parts in zip(*made, strict=True)))


def _encode(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One matrix [blocks, 64] -> codes, sizes, scales, mean."""
    values, dynamic = _on(rows.device)
    rows = rows.float()
    peak = rows.abs().amax(-1)
    codes = _nearest(rows / peak.clamp_min(1e-38).unsqueeze(-1), values).flatten()
    mean = peak.mean()
    rest = F.pad(peak - mean, (0, -len(peak) % SCALES)).view(-1, SCALES)
    scales = rest.abs().amax(-1)
    sizes = _nearest(rest / scales.clamp_min(1e-38).unsqueeze(-1), dynamic).flatten()[: len(peak)]
    return codes[::2] << 4 | codes[1::2], sizes, scales, mean.view(1)


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Which of the ascending `values` is nearest to each of x, uint8."""
    middle = (values[:-1] + values[1:]) / 2
    return torch.bucketize(x.contiguous(), middle).to(torch.uint8)


def hold_nf4(model: Qwen3) -> Qwen3:
    """Turns the projections of a model (all but embedding, head, norms and router) into nf4, one after the other;
    returns it. For training adapters beside them: a base in nf4 is neither trained nor saved."""
    for site in sites(model.config):
        weight = base_weight(model, site)
        if isinstance(weight, Tensor):
            replace_weight(model, site, quantize_nf4(weight.detach()))
    return model


def memory(model: Qwen3) -> str:
    """What the parameters of a model take, compressed and as they would be."""
    held = [module for module in model.modules() if isinstance(module, Nf4Weight)]
    small, count = sum(weight.nbytes for weight in held), sum(weight.shape.numel() for weight in held)
    rest = sum(p.numel() * p.element_size() for p in model.parameters())
    whole = count * torch.empty((), dtype=model.dtype).element_size()
    bits = 8 * small / count if count else 0.0
    return (
        f"{count:,} weights in nf4 take {small:,} bytes ({bits:.3f} bits each) instead of {whole:,}; "
        f"everything else {rest:,}"
    )
