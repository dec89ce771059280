"""transformers with the same weights, as the independent implementation to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qwen3.config import ModelConfig
from tests.fixtures import fused_tensors, official_tensors


def oracle(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' network holding `official_tensors(config, seed)`, plain attention and plain experts."""
    import transformers

    moe = config.is_moe
    config_class: Any = transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config
    network: Any = transformers.Qwen3MoeForCausalLM if moe else transformers.Qwen3ForCausalLM
    theirs = config_class.from_dict(config.to_dict())
    theirs._attn_implementation = "eager"
    if moe:
        theirs._experts_implementation = "eager"
    model = network(theirs).to(dtype).eval()
    weights = official_tensors(config, seed)
    if config.is_moe:
        fused = fused_tensors(config, weights)
        weights = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
        weights |= {f"model.{name}": tensor for name, tensor in fused.items() if ".experts." in name}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model


def oracle_logits(model: Any, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Logits [B, T, V] float32 without a cache."""
    with torch.no_grad():
        return model(ids, position_ids=positions, use_cache=False).logits.float()


def distance(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ over all elements, in float64."""
    wanted = reference.double()
    return ((out.double() - wanted).norm() / wanted.norm()).item()
