"""Tiny models and hand-made safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from qwen3.config import ModelConfig
from qwen3.model import Qwen3

DENSE = ModelConfig(
    vocab_size=320,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=80,
    head_dim=16,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=1,
)
MOE = ModelConfig(
    vocab_size=320,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=80,
    head_dim=16,
    bos_token_id=None,
    eos_token_id=1,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    mlp_only_layers=(1,),
)


def random_model(kind: str = "dense", dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Qwen3:
    """A model on the CPU with normal weights; kind "dense" (tied) or "moe" (untied, one dense layer)."""
    model = Qwen3({"dense": DENSE, "moe": MOE}[kind], "cpu", dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def meta_model(kind: str = "dense", dtype: torch.dtype = torch.bfloat16) -> Qwen3:
    return Qwen3({"dense": DENSE, "moe": MOE}[kind], "meta", dtype)


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header (parsed) and data."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(file: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """Writes a safetensors file, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rewrite(file: Path, **tensors: torch.Tensor | None) -> None:
    """Adds, replaces or (None) drops tensors of a file, official names with `__` for dots."""
    from safetensors.torch import load_file, save_file

    content = load_file(file)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del content[name]
        else:
            content[name] = tensor
    save_file(content, file, metadata={"format": "pt"})
