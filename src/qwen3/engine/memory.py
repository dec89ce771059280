"""How many KV blocks a device has room for, once everything else a step needs is accounted for."""

from __future__ import annotations

import torch

from qwen3.checkpoint.memory import available_bytes, dtype_bytes, gigabytes
from qwen3.config import ModelConfig
from qwen3.engine.budget import CPU_TOKENS, beside_bytes, cache_room
from qwen3.errors import OutOfMemoryError
from qwen3.kernels import BLOCK, cpu_attend
from qwen3.kernels.packed import PackedWeight
from qwen3.model.network import Qwen3


def plan_blocks(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype, *, rows: int, max_len: int,
    tokens: int, beside: int = 0, grouped: bool = False,
) -> int:  # fmt: skip
    """Blocks of the KV pool, scratch block 0 included: what fits beside a step's scratch, at most what `rows` samples
    of `max_len` tokens can use. The weights must be on the device already. beside: bytes that each block takes
    elsewhere (in a draft model's cache). grouped: as of `beside_bytes`.

    Raises OutOfMemoryError, with the numbers, if not even one sample of 256 tokens fits.
    """
    bytes_of_block = BLOCK * config.kv_bytes_per_token(dtype_bytes(kv_dtype)) + beside
    most = 1 + rows * -(-max_len // BLOCK)
    free = available_bytes(device)
    if free is None:
        return min(most, 1 + rows * -(-4096 // BLOCK))
    scratch = beside_bytes(config, device.type, dtype_bytes(dtype), rows=rows, tokens=tokens, grouped=grouped)
    room = cache_room(device.type, free, scratch)
    if device.type != "cuda":
        most = min(most, 1 + max(max_len, CPU_TOKENS) // BLOCK)
    found = min(most, room // bytes_of_block)
    if found < 1 + min(256, max_len) // BLOCK:
        raise OutOfMemoryError(
            f"{device} has {free:,} bytes free ({gigabytes(free)}) beside the weights; a step over {tokens:,} tokens "
            f"takes {scratch:,} of them, and the KV cache needs {bytes_of_block:,} for each {BLOCK} tokens: "
            "take a smaller model, or free some memory"
        )
    return found


def usual_kv_dtype(model: Qwen3) -> torch.dtype:
    """Of the KV cache if nobody says: the model's, or float16 where a CPU's compiled kernels read that: there weights
    are in few bits and the cache is what is left to read."""
    packed = any(isinstance(module, PackedWeight) for module in model.modules())
    half = packed and cpu_attend.takes(model.config.head_dim) and cpu_attend.has_half()
    return torch.float16 if half else model.dtype
