"""Floor 1: the operations the network is made of, one table, several backends. See `dispatch`."""

from qwen3.kernels.dispatch import (
    attention,
    available,
    chosen,
    experts,
    linear,
    qk_norm_rope,
    register,
    rms_norm,
    route,
    silu_mul,
    use,
)

__all__ = [
    "attention",
    "available",
    "chosen",
    "experts",
    "linear",
    "qk_norm_rope",
    "register",
    "rms_norm",
    "route",
    "silu_mul",
    "use",
]
