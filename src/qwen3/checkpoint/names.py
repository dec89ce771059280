"""Official tensor names as views of the fused parameters.

Parameters live once, in the fused layout (see `docs/design.md`); the published checkpoints store q, k, v, gate, up and
every expert apart. Since the parts are rows of the fused matrices, each official tensor is a contiguous view: reading
a file into the views fills the parameters, and writing the views out gives the published layout back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from qwen3.config import ModelConfig

EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def fused_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter names and shapes, in the order in which a forward pass meets them."""
    h, d = config.hidden_size, config.head_dim
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    out: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, h)}
    for i in range(config.num_hidden_layers):
        p = f"layers.{i}."
        out[p + "input_layernorm.weight"] = (h,)
        out[p + "self_attn.qkv_proj.weight"] = (q + 2 * k, h)
        out[p + "self_attn.q_norm.weight"] = (d,)
        out[p + "self_attn.k_norm.weight"] = (d,)
        out[p + "self_attn.o_proj.weight"] = (h, q)
        out[p + "post_attention_layernorm.weight"] = (h,)
        if config.is_sparse_layer(i):
            e, m = config.num_experts, config.moe_intermediate_size
            out[p + "mlp.gate.weight"] = (e, h)
            out[p + "mlp.experts.gate_up_proj"] = (e, 2 * m, h)
            out[p + "mlp.experts.down_proj"] = (e, h, m)
        else:
            out[p + "mlp.gate_up_proj.weight"] = (2 * config.intermediate_size, h)
            out[p + "mlp.down_proj.weight"] = (h, config.intermediate_size)
    out["norm.weight"] = (h,)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, h)
    return out


def official_views(config: ModelConfig, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensor name → contiguous view into the fused parameter of `params` (no copy), sorted by name.

    `params` maps our names (`fused_shapes`) to tensors on any device, meta included. Writing a view writes the
    parameter. `lm_head.weight` is absent when the embeddings are tied. Names as in the published Qwen3 checkpoints.
    Raises KeyError naming a parameter that `params` lacks.
    """
    out: dict[str, Tensor] = {EMBED: params["embed_tokens.weight"].detach()}
    for i in range(config.num_hidden_layers):
        out.update(layer_views(config, i, params))
    out["model.norm.weight"] = params["norm.weight"].detach()
    if not config.tie_word_embeddings:
        out[HEAD] = params["lm_head.weight"].detach()
    return dict(sorted(out.items()))


def layer_views(config: ModelConfig, layer: int, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`official_views` of one layer, whose parameters alone need be in `params`; not sorted."""
    d, m, f = config.head_dim, config.moe_intermediate_size, config.intermediate_size
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    sparse = config.is_sparse_layer(layer)
    ours = {n.removeprefix(f"layers.{layer}."): params[n].detach() for n in _layer_names(layer, sparse)}
    p = f"model.layers.{layer}."
    qkv = ours.pop("self_attn.qkv_proj.weight")
    out = {f"{p}self_attn.{n}_proj.weight": part for n, part in zip("qkv", qkv.split((q, k, k)), strict=True)}
    if sparse:
        gate_up, down = ours.pop("mlp.experts.gate_up_proj"), ours.pop("mlp.experts.down_proj")
        for e in range(config.num_experts):
            gate, up = gate_up[e].split((m, m))
            out[f"{p}mlp.experts.{e}.gate_proj.weight"] = gate
            out[f"{p}mlp.experts.{e}.up_proj.weight"] = up
            out[f"{p}mlp.experts.{e}.down_proj.weight"] = down[e]
    else:
        gate, up = ours.pop("mlp.gate_up_proj.weight").split((f, f))
        out[f"{p}mlp.gate_proj.weight"] = gate
        out[f"{p}mlp.up_proj.weight"] = up
    return out | {p + name: tensor for name, tensor in ours.items()}


def fused_name(official: str) -> str:
    """Our parameter that holds the official tensor of this name."""
    name = official.removeprefix("model.")
    name = re.sub(r"\.self_attn\.[qkv]_proj\.", ".self_attn.qkv_proj.", name)
    name = re.sub(r"\.(gate|up)_proj\.weight$", ".gate_up_proj.weight", name)
    return re.sub(r"\.experts\.\d+\.(\w+)\.weight$", r".experts.\1", name)


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Official tensor name → shape, sorted by name, without allocating anything."""
    params = {name: torch.empty(shape, device="meta") for name, shape in fused_shapes(config).items()}
    return {name: tuple(view.shape) for name, view in official_views(config, params).items()}


def _layer_names(layer: int, sparse: bool) -> list[str]:
    names = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.qkv_proj.weight"]
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight", "self_attn.o_proj.weight"]
    if sparse:
        names += ["mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    else:
        names += ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]
    return [f"layers.{layer}.{name}" for name in names]
