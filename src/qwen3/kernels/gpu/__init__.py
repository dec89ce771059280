"""Floor 1 on NVIDIA GPUs, in Triton. Importing this needs Triton; `kernels.dispatch` does so for the first CUDA tensor.

Each operation's plain twin is in `kernels.reference`, `kernels.reference_engine` or `kernels.fp8`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwen3.kernels.gpu.attention import attend, paged_attention, rope_cache
from qwen3.kernels.gpu.elementwise import rms_norm, silu_mul
from qwen3.kernels.gpu.fp8 import fp8_linear
from qwen3.kernels.gpu.inputs import decode_inputs
from qwen3.kernels.gpu.linear import fused_linear
from qwen3.kernels.gpu.moe import experts
from qwen3.kernels.gpu.routing import route, uniform_logits

OPERATIONS: dict[str, Callable[..., Any]] = {
    "attend": attend,
    "decode_inputs": decode_inputs,
    "experts": experts,
    "fp8_linear": fp8_linear,
    "fused_linear": fused_linear,
    "paged_attention": paged_attention,
    "rms_norm": rms_norm,
    "rope_cache": rope_cache,
    "route": route,
    "silu_mul": silu_mul,
    "uniform_logits": uniform_logits,
}
