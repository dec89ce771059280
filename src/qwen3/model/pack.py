"""A network whose matrices are held in 4 or 8 bits (`kernels.packed` on a CPU, `kernels.grouped` on a GPU)."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from qwen3.checkpoint.packed import fitting, hold
from qwen3.errors import UsageError
from qwen3.kernels import grouped
from qwen3.kernels.packed import PackedWeight, quantize_rtn
from qwen3.model.network import Qwen3


def has_groups(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for weights of few bits: NVIDIA GPUs from compute capability 8.0, 16-bit activations"""
    nvidia = device.type == "cuda" and torch.version.hip is None and find_spec("triton") is not None
    return nvidia and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)


def check_groups(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UsageError that says what weights of `kind` want, where there is nothing that multiplies them."""
    if not has_groups(device, dtype):
        need = "a CPU, or an NVIDIA GPU of compute capability 8.0 with Triton and dtype bfloat16 or float16"
        raise UsageError(f"weights={kind!r} are for {need}, not for {device} and {str(dtype).removeprefix('torch.')}")


def pack_model(model: Qwen3, kind: str) -> Qwen3:
    """Rounds all matrices of a model in memory to `kind`, "int4" or "int8", in groups of 128 columns; returns it.

    Embedding and head take 8 bits either way, norms and routers stay as they are; on a CPU what is not packed becomes
    float32, and so do the activations. One matrix after the other: peak memory is the model's and a few float32 copies
    of one. Raises UsageError for a width that is no multiple of 32, or a GPU that has no kernels for it.
    """
    on_gpu = model.device.type != "cpu"
    if on_gpu:
        check_groups(kind, model.device, model.dtype)
    for name in [name for name, _ in model.named_parameters()]:
        value = model.get_parameter(name)
        if value.dim() == 1 or name.endswith("mlp.gate.weight"):
            value.data = value.data if on_gpu else value.data.float()
            continue
        how = fitting(name, value.shape[-1], kind)
        if on_gpu:
            hold(model, name, grouped.quantize_rtn(value.detach(), *how))
            continue
        parts = [quantize_rtn(part, *how) for part in (value.detach() if value.dim() == 3 else [value.detach()])]
        hold(model, name, parts[0] if value.dim() == 2 else PackedWeight.stack(parts))
    return model
