"""A network whose matrices are held in 4 or 8 bits, for a CPU (`kernels.packed`)."""

from __future__ import annotations

from torch import Tensor, nn

from qwen3.errors import UsageError
from qwen3.kernels.packed import PackedWeight, quantize_rtn
from qwen3.model.network import Qwen3

BITS = {"int8": 8, "int4": 4}
GROUP = 128


def pack_model(model: Qwen3, kind: str) -> Qwen3:
    """Rounds all matrices of a model in memory to `kind`, "int4" or "int8", in groups of 128 columns; returns it.

    Embedding and head take 8 bits either way, norms and routers stay as they are; what is not packed becomes float32,
    and so do the activations. One matrix after the other: peak memory is the model's and a few float32 copies of one.
    Raises UsageError for a model that is not on a CPU, or a width that is no multiple of 32.
    """
    if model.device.type != "cpu":
        raise UsageError(f"weights={kind!r} are for a CPU, not for {model.device}; take weights='fp8' on a GPU")
    for path, module in list(model.named_modules()):
        for name, value in list(module.named_parameters(recurse=False)):
            if value.dim() == 1 or path.endswith("mlp.gate"):
                value.data = value.data.float()
                continue
            outer = value is model.embed_tokens.weight or path == "lm_head"
            hold(module, name, packed(value.detach(), 8 if outer else BITS[kind]))
    return model


def packed(weight: Tensor, bits: int) -> PackedWeight:
    """weight [N, K] or [E, N, K]; the group is 128, or the largest below it that divides K."""
    width = weight.shape[-1]
    group = next((size for size in (GROUP, 64, 32) if width % size == 0), 0)
    if not group:
        raise UsageError(f"a matrix of {width} columns cannot be held in {bits} bits: they are no multiple of 32")
    if weight.dim() == 2:
        return quantize_rtn(weight, bits, group)
    return PackedWeight.stack([quantize_rtn(part, bits, group) for part in weight])


def hold(module: nn.Module, name: str, weight: PackedWeight) -> None:
    """The packed weight in the parameter's place."""
    delattr(module, name)
    setattr(module, name, weight)


def is_packed(model: Qwen3) -> bool:
    return isinstance(model.embed_tokens.weight, PackedWeight)
