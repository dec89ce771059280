"""Builds the tiny mixture-of-experts checkpoint that tests use: random weights, a real tokenizer, every official file.

    python tools/make_tiny_moe.py FOLDER [--seed N]

2 layers of 8 experts (2 active) on 256 dimensions, 2 query heads and 1 KV head of 128, the first 2,048 ranks of the
official vocabulary: 4.1 M parameters, 1.7 M active, 8 MB in bfloat16. Every linear's input is a multiple of 256, so
that every quantization format applies. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from qwen3.checkpoint import save_checkpoint
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer

RANKS = 2048
UNUSED_ROWS = 38  # rows no token has, as in the official models: 2,112 = 2,048 + 26 control tokens + 38


def tiny_moe_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=RANKS + 26 + UNUSED_ROWS,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=512,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=RANKS,
        eos_token_id=RANKS + 2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
    )


def build(seed: int) -> Qwen3:
    """Matrices ~ N(0, 1/inputs), so that activations stay near 1; norm weights between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3(tiny_moe_config(), device="cpu", dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                value = 0.5 + torch.rand(parameter.shape, generator=generator)
            else:
                value = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
            parameter.copy_(value)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = build(options.seed)
    save_checkpoint(options.folder, model, tokenizer=Tokenizer.from_pretrained().prefix(RANKS))
    config = model.config
    print(f"{options.folder}: {config.num_parameters():,} parameters, {config.num_parameters(active=True):,} active")


if __name__ == "__main__":
    main()
