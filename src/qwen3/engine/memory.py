"""How many KV blocks a device has room for, once everything else a step needs is accounted for."""

from __future__ import annotations

import torch

from qwen3.checkpoint.memory import available_bytes, dtype_bytes, gigabytes
from qwen3.config import ModelConfig
from qwen3.errors import OutOfMemoryError
from qwen3.kernels import BLOCK

_GRAPHS = 600 << 20  # bytes for captured graphs, library workspaces and split-KV partials, measured at 0.6B to 30B-A3B
_SHARE = 0.92  # of what a CUDA device has free: the allocator rounds and fragments
_CPU_SHARE = 0.5
_CPU_TOKENS = 65536  # on a CPU, unless one sample may be longer: enough for many, and not all the memory of a laptop


def scratch_bytes(config: ModelConfig, tokens: int, rows: int, size: int) -> int:
    """Bytes a step over `tokens` tokens and `rows` logits rows holds at its worst moment; `size`: bytes a number."""
    heads, dim = config.num_attention_heads, config.head_dim
    qkv = (heads + 2 * config.num_key_value_heads) * dim
    if config.is_moe:
        width = config.num_experts_per_tok * (3 * config.moe_intermediate_size + config.hidden_size)
    else:
        width = 3 * config.intermediate_size
    keys = config.num_key_value_heads * dim  # of whole prompts, beside the cache
    per_token = 4 * config.hidden_size + max(qkv + keys + 2 * heads * dim, width)
    return tokens * per_token * size + rows * config.vocab_size * (size + 4)


def plan_blocks(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype, *, rows: int, max_len: int,
    tokens: int, beside: int = 0,
) -> int:  # fmt: skip
    """Blocks of the KV pool, scratch block 0 included: what fits beside a step's scratch, at most what `rows` samples
    of `max_len` tokens can use. The weights must be on the device already. beside: bytes that each block takes
    elsewhere (in a draft model's cache).

    Raises OutOfMemoryError, with the numbers, if not even one sample of 256 tokens fits.
    """
    bytes_of_block = BLOCK * config.kv_bytes_per_token(dtype_bytes(kv_dtype)) + beside
    most = 1 + rows * -(-max_len // BLOCK)
    free = available_bytes(device)
    if free is None:
        return min(most, 1 + rows * -(-4096 // BLOCK))
    scratch = scratch_bytes(config, tokens, rows, dtype_bytes(dtype))
    if device.type == "cuda":
        room = int(free * _SHARE) - scratch - _GRAPHS
    else:
        most = min(most, 1 + max(max_len, _CPU_TOKENS) // BLOCK)
        room = int(free * _CPU_SHARE) - scratch
    found = min(most, room // bytes_of_block)
    if found < 1 + min(256, max_len) // BLOCK:
        raise OutOfMemoryError(
            f"{device} has {free:,} bytes free ({gigabytes(free)}) beside the weights; a step over {tokens:,} tokens "
            f"takes {scratch:,} of them, and the KV cache needs {bytes_of_block:,} for each {BLOCK} tokens: "
            "take a smaller model, or free some memory"
        )
    return found
