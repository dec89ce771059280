"""MLX; the layout is described in `checkpoint.formats.mlx`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.formats.layout import Format, fill_words, grouped, most, pack_bits
from qwen3.quantize.types import Grouped, Rounded

GROUPS = (32, 64, 128)
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Mlx(Format):
    """q · scale + bias, where others have (q - zero) · scale. dtype: of scales and biases; in another than the model's
    MLX would compute in float32. Under bfloat16 scales the numbers stay as they are to a few hundredths of a step in 4
    bits, but not in 8, where q is chosen anew."""

    dtype: torch.dtype = torch.float16
    name = "mlx"
    bits = (2, 3, 4, 5, 6, 8)
    key = "quantization"
    loss = 0.1  # 8 bits under bfloat16 scales are off by up to half a step; this is to find what is misplaced

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        found = grouped(module, rounded, self)
        if found.group not in GROUPS:
            raise UsageError(f"{module}: mlx has groups of 32, 64 or 128 columns, not {found.group}; give --group")
        fill_words(module, self.name, columns=found.q.shape[1] * found.bits)
        middle = 1 << found.bits - 1
        zero: Any = middle if found.zero is None else found.zero.float()
        scale = found.scale.to(self.dtype)
        bias = (found.scale.float() * -zero).to(self.dtype)
        # what was rounded in scale and bias is made up for where it comes to half a step
        wide = found.dequantize().unflatten(1, (-1, found.group))
        q = ((wide - bias.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round_().clamp_(0, 2 * middle - 1)
        words = pack_bits(q.to(torch.uint8).flatten(1), found.bits).view(torch.uint32)
        return {".weight": words, ".scales": scale, ".biases": bias}

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        (first, _), *others = most(planned, _settings)
        own: dict[str, Any] = {self._module(m): dict(settings) for settings, modules in others for m in modules}
        return {**dict(first), **own, **{self._module(module): False for module in kept}}

    def stacked(self, name: str) -> tuple[str, int] | None:
        hit = _EXPERT.fullmatch(name)
        return (f"{hit[1]}.switch_mlp.{hit[3]}", int(hit[2])) if hit else None

    def _module(self, module: str) -> str:
        found = self.stacked(module)
        return found[0] if found else module


def _settings(rounded: Grouped) -> tuple[tuple[str, Any], ...]:
    return tuple({"group_size": rounded.group, "bits": rounded.bits}.items())
