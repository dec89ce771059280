"""What a step takes beside the weights, and what that leaves the KV cache. Numbers alone, no torch: `qwen3.plan` asks
about machines that are not here."""

from __future__ import annotations

from qwen3.config import ModelConfig

GRAPHS = 600 << 20  # bytes for captured graphs, library workspaces and split-KV partials, measured at 0.6B to 30B-A3B
SHARE = {"cuda": 0.92}  # of what a device has free: the allocator rounds and fragments
CPU_SHARE = 0.5
CPU_TOKENS = 65536  # on a CPU, unless one sample may be longer: enough for many, and not all the memory of a laptop
_PREFILL_CHUNK = {"cuda": (32768, 16384, 8192)}
_SCRATCH_SHARE = 0.05  # of a device's memory that a step may take, where a smaller chunk can avoid it


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


def usual_chunk(config: ModelConfig, kind: str, size: int, memory: int) -> int:
    """Prompt tokens of a step, unless told. Long chunks suit long prompts; but a step's memory is the KV cache's loss.

    kind: "cuda" or "cpu". memory: bytes of the whole device.
    """
    chunks = _PREFILL_CHUNK.get(kind, (2048,))
    fits = (chunk for chunk in chunks if scratch_bytes(config, chunk, 1, size) < _SCRATCH_SHARE * memory)
    return next(fits, chunks[-1])


def beside_bytes(
    config: ModelConfig, kind: str, size: int, *, rows: int, tokens: int, grouped: bool = False
) -> int:  # fmt: skip
    """What a step over `tokens` tokens and `rows` logits rows takes beside weights and cache.

    grouped: weights are held in `kernels.grouped`, which for long prompts writes one matrix out at a time."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widest = max(heads * config.head_dim, 0 if config.is_moe else 2 * config.intermediate_size) * config.hidden_size
    found = scratch_bytes(config, tokens, rows, size) + (size * widest if grouped else 0)
    return found + (GRAPHS if kind == "cuda" else 0)


def cache_room(kind: str, free: int, beside: int) -> int:
    """Bytes for the KV cache on a device that has `free` beside the weights; negative where a step finds no room."""
    return int(free * SHARE.get(kind, CPU_SHARE)) - beside
