"""Floor 1 on NVIDIA GPUs, in Triton. Importing this needs Triton; `kernels.dispatch` does so for the first CUDA tensor.

Each operation's plain twin is in `kernels.reference`, `kernels.reference_engine`, `kernels.fp8` or
`kernels.grouped`.
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
from qwen3.kernels.gpu.weight_only import group_linear, group_rows

OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        attend, decode_inputs, experts, fp8_linear, fused_linear, group_linear, group_rows, rms_norm, route, silu_mul,
        uniform_logits,
    )
}  # fmt: skip
