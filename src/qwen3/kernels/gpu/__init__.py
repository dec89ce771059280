"""Floor 1 on NVIDIA GPUs, in Triton. Importing this needs Triton; `kernels.dispatch` does so for the first CUDA tensor.

Each operation's plain twin is in `kernels.reference`, `kernels.reference_engine` or `kernels.fp8`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwen3.kernels.gpu.attention import attend
from qwen3.kernels.gpu.elementwise import rms_norm, silu_mul
from qwen3.kernels.gpu.fp8 import fp8_linear
from qwen3.kernels.gpu.inputs import decode_inputs
from qwen3.kernels.gpu.linear import fused_linear
from qwen3.kernels.gpu.moe import experts
from qwen3.kernels.gpu.routing import route, uniform_logits

OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        attend, decode_inputs, experts, fp8_linear, fused_linear, rms_norm, route, silu_mul, uniform_logits,
    )
}  # fmt: skip
