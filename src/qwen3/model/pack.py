"""A network whose matrices are held in 4 or 8 bits, for a CPU (`kernels.packed`)."""

from __future__ import annotations

from qwen3.checkpoint.packed import fitting, hold
from qwen3.errors import UsageError
from qwen3.kernels.packed import PackedWeight, quantize_rtn
from qwen3.model.network import Qwen3


def pack_model(model: Qwen3, kind: str) -> Qwen3:
    """Rounds all matrices of a model in memory to `kind`, "int4" or "int8", in groups of 128 columns; returns it.

    Embedding and head take 8 bits either way, norms and routers stay as they are; what is not packed becomes float32,
    and so do the activations. One matrix after the other: peak memory is the model's and a few float32 copies of one.
    Raises UsageError for a model that is not on a CPU, or a width that is no multiple of 32.
    """
    if model.device.type != "cpu":
        raise UsageError(f"weights={kind!r} are for a CPU, not for {model.device}; take weights='fp8' on a GPU")
    for name, value in list(model.named_parameters()):
        if value.dim() == 1 or name.endswith("mlp.gate.weight"):
            value.data = value.data.float()
            continue
        how = fitting(name, value.shape[-1], kind)
        parts = [quantize_rtn(part, *how) for part in (value.detach() if value.dim() == 3 else [value.detach()])]
        hold(model, name, parts[0] if value.dim() == 2 else PackedWeight.stack(parts))
    return model
