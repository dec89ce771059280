"""The weights that training from nothing begins with."""

from __future__ import annotations

import torch

from qwen3.model import Qwen3


def init_weights(model: Qwen3, seed: int) -> None:
    """Normal(0, 1/sqrt(inputs)) matrices, zero output projections (so that every layer starts as the identity),
    embedding of `initializer_range`, norms at one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                p.zero_()
            else:
                std = model.config.initializer_range if "embed" in name else p.shape[-1] ** -0.5
                p.copy_(torch.randn(p.shape, generator=generator) * std)
