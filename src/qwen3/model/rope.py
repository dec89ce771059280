"""Rotary positions: frequencies (plain and YaRN) and the cos/sin of given positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qwen3.config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each of the head_dim/2 pairs: float32 [head_dim/2] on the CPU.

    θ^(−2j/d), and with `rope_scaling` static YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than
    `beta_fast` times over the original context stay, those that turn less than `beta_slow` times are slowed by
    `factor`, linear between.
    """
    dim, base = config.head_dim, config.rope_theta
    steps = base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    plain = 1.0 / steps
    scaling = config.rope_scaling
    if scaling is None:
        return plain

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_position_embeddings
        return dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * steps) * (1 - keep) + plain * keep


class Rotary(nn.Module):
    """Holds the frequencies in float32 whatever dtype the model is moved to: in bfloat16 positions beyond 256 blur."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.scale = 1.0 if config.rope_scaling is None else config.rope_scaling.mscale
        freq = frequencies(config)
        # On the meta device there would be nothing to fill it with later: it is no weight.
        self.inv_freq = freq if device is None or torch.device(device).type == "meta" else freq.to(device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Rotary:
        device = fn(self.inv_freq).device
        if device.type != "meta":
            self.inv_freq = frequencies(self.config).to(device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions int64 [B, T] -> (cos, sin), each [B, T, head_dim/2], computed in float32, rounded to `dtype`."""
        inv_freq = self.inv_freq
        if inv_freq.device != positions.device:
            self.inv_freq = inv_freq = inv_freq.to(positions.device)
        angles = positions.unsqueeze(-1).float() * inv_freq
        if self.scale == 1.0:
            return angles.cos().to(dtype), angles.sin().to(dtype)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)
