"""Random adapters, and the model that an adapter makes, computed in the plainest way."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from qwen3.checkpoint.adapter import Adapter, LowRank, module_shapes
from qwen3.checkpoint.names import official_views
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.model.lora import matching


def random_adapter(
    config: ModelConfig, rank: int = 4, targets: Iterable[str] = ("*_proj",), seed: int = 0, gain: float = 1.0
) -> Adapter:
    """Neither A nor B is zero; what is added is about `gain` times as large as the weights."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for module, (*experts, rows, inputs) in matching(targets, config).items():
        a = torch.randn(*experts, rank, inputs, generator=generator) * inputs**-0.5
        b = torch.randn(*experts, rows, rank, generator=generator) * rank**-0.5
        parts[module] = LowRank(a, b, gain)
    return Adapter(parts)


def merged_by_names(model: Qwen3, adapter: Adapter) -> Qwen3:
    """A copy with W + scale · B A in every official matrix, each expert apart, summed in float64."""
    model = copy.deepcopy(model)
    views = official_views(model.config, dict(model.named_parameters()))
    for module in module_shapes(model.config):
        part = adapter.parts.get(module)
        if part is None:
            continue
        pairs = [(module, part.a, part.b)]
        if part.a.dim() == 3:
            pairs = [(module.replace("experts", f"experts.{e}"), part.a[e], part.b[e]) for e in range(len(part.a))]
        for name, a, b in pairs:
            weight = views[f"{name}.weight"]
            weight.copy_(weight.double() + part.scale * (b.double() @ a.double()))
    return model
