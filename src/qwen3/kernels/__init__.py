"""Floor 1: the operations the network is made of, one table, several backends. See `dispatch`."""

from qwen3.kernels.dispatch import (
    attend,
    attention,
    available,
    chosen,
    decode_inputs,
    experts,
    fused_linear,
    linear,
    packed_layers,
    qk_norm_rope,
    register,
    rms_norm,
    route,
    silu_mul,
    uniform_logits,
    use,
)  # fmt: skip
from qwen3.kernels.frozen import frozen_linear, grouped_linear, register_frozen
from qwen3.kernels.plan import BLOCK, StepPlan

__all__ = [
    "BLOCK", "StepPlan", "attend", "attention", "available", "chosen", "decode_inputs", "experts", "frozen_linear",
    "fused_linear", "grouped_linear", "linear", "packed_layers", "qk_norm_rope", "register", "register_frozen",
    "rms_norm", "route", "silu_mul", "uniform_logits", "use",
]  # fmt: skip
