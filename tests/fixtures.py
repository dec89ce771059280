"""Small random models and checkpoint folders, made without `qwen3.checkpoint`, so that they can check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen3.config import ModelConfig
from qwen3.model import Qwen3

UNUSED_ROWS = 6  # vocabulary rows that no token of `tiny_tokenizer` has, as in the official models


def tiny_config(moe: bool = False, **changes: Any) -> ModelConfig:
    """Two layers, hidden 64, vocabulary 640 = 608 ranks + 26 control tokens + 6 unused rows; a field by keyword."""
    vocab = changes.get("vocab_size", 640)
    ranks = vocab - 26 - UNUSED_ROWS
    values: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 128,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": not moe,
        "bos_token_id": ranks,
        "eos_token_id": ranks + 2,
        "dtype": "float32",
    }
    if moe:
        values |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return ModelConfig(**(values | changes))


def official_tensors(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under their names on disk (a tied head is not stored).

    Scaled so that activations stay near 1 and logits spread by about 3; norm weights vary around 1.
    """
    generator = torch.Generator().manual_seed(seed)
    h, d = config.hidden_size, config.head_dim

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * gain * columns**-0.5).to(dtype)

    def norm(size: int) -> Tensor:
        return (0.5 + torch.rand(size, generator=generator)).to(dtype)

    def mlp(prefix: str, width: int) -> dict[str, Tensor]:
        return {
            f"{prefix}.gate_proj.weight": matrix(width, h),
            f"{prefix}.up_proj.weight": matrix(width, h),
            f"{prefix}.down_proj.weight": matrix(h, width),
        }

    out = {"model.embed_tokens.weight": matrix(config.vocab_size, h, 3.0)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        out[f"{layer}.input_layernorm.weight"] = norm(h)
        out[f"{layer}.self_attn.q_proj.weight"] = matrix(config.num_attention_heads * d, h)
        out[f"{layer}.self_attn.k_proj.weight"] = matrix(config.num_key_value_heads * d, h)
        out[f"{layer}.self_attn.v_proj.weight"] = matrix(config.num_key_value_heads * d, h)
        out[f"{layer}.self_attn.q_norm.weight"] = norm(d)
        out[f"{layer}.self_attn.k_norm.weight"] = norm(d)
        out[f"{layer}.self_attn.o_proj.weight"] = matrix(h, config.num_attention_heads * d)
        out[f"{layer}.post_attention_layernorm.weight"] = norm(h)
        if config.is_sparse_layer(i):
            out[f"{layer}.mlp.gate.weight"] = matrix(config.num_experts, h, 2.0)
            for e in range(config.num_experts):
                out |= mlp(f"{layer}.mlp.experts.{e}", config.moe_intermediate_size)
        else:
            out |= mlp(f"{layer}.mlp", config.intermediate_size)
    out["model.norm.weight"] = norm(h)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = matrix(config.vocab_size, h, 3.0)
    return out


def fused_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under our names (`docs/design.md`): qkv, gate and up, and experts each in one tensor."""
    out: dict[str, Tensor] = {}
    left = dict(tensors)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        parts = [left.pop(f"{layer}.self_attn.{x}_proj.weight") for x in "qkv"]
        out[f"layers.{i}.self_attn.qkv_proj.weight"] = torch.cat(parts)
        mlp = f"{layer}.mlp"
        if config.is_sparse_layer(i):
            names = [f"{mlp}.experts.{e}" for e in range(config.num_experts)]
            pairs = [torch.cat((left.pop(f"{n}.gate_proj.weight"), left.pop(f"{n}.up_proj.weight"))) for n in names]
            out[f"layers.{i}.mlp.experts.gate_up_proj"] = torch.stack(pairs)
            downs = [left.pop(f"{n}.down_proj.weight") for n in names]
            out[f"layers.{i}.mlp.experts.down_proj"] = torch.stack(downs)
        else:
            pair = left.pop(f"{mlp}.gate_proj.weight"), left.pop(f"{mlp}.up_proj.weight")
            out[f"layers.{i}.mlp.gate_up_proj.weight"] = torch.cat(pair)
    return out | {name.removeprefix("model."): tensor for name, tensor in left.items()}


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen3:
    """A model on the CPU with the weights of `official_tensors(config, seed)`, rounded to `dtype`."""
    model = Qwen3(config, device="cpu", dtype=dtype)
    model.load_state_dict(fused_tensors(config, official_tensors(config, seed)))
    return model.eval()


def tiny_tokenizer(config: ModelConfig) -> Any:
    """The prefix of the official tokenizer that fits `config`, `UNUSED_ROWS` rows of the vocabulary left over."""
    from qwen3.tokenizer import Tokenizer

    return Tokenizer.from_pretrained().prefix(config.vocab_size - 26 - UNUSED_ROWS)


def random_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    tokenizer: bool = False,
    seed: int = 0,
    *,
    shards: int = 1,
    store_tied_head: bool = False,
) -> Path:
    """Writes config.json and safetensors with the official names into `folder`, which is made; returns it.

    Weights are those of `random_model(config, seed)` in the config's dtype. `shards` above 1 writes as many files and
    an index. `store_tied_head` also stores `lm_head.weight`, as the official 0.6B does. `tokenizer` adds the files of
    `tiny_tokenizer`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = official_tensors(config, seed, getattr(torch, config.dtype))
    if store_tied_head and config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(tensors)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if tokenizer:
        tiny_tokenizer(config).save(folder)
    return folder
