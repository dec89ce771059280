"""A checkpoint folder becomes a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwen3.checkpoint import available_bytes, finish_interrupted_save, load_weights, read_config
from qwen3.checkpoint.folder import stored_format
from qwen3.checkpoint.formats.detect import fp8_rows
from qwen3.checkpoint.fp8 import fp8_weights, hold_fp8, parameters_to_hold
from qwen3.checkpoint.packed import BITS
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.kernels import native
from qwen3.kernels.grouped import GroupWeight
from qwen3.model import cpu_probe
from qwen3.model.network import Qwen3
from qwen3.model.pack import check_groups, has_groups, pack_model

SMALL_MODEL = 100_000_000  # parameters; see `default_dtype`
QUANTIZATIONS = ("fp8", *BITS)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def best_device() -> torch.device:
    """CUDA if there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that is meant. Raises UsageError if no model can have it."""
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r} is not supported; use {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively, and it works (see `cpu_probe`)."""
    return cpu_probe.advertised() and cpu_probe.works()


def default_dtype(config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The dtype a model runs in unless told: the checkpoint's own, except on a CPU.

    There a 16-bit model becomes float32 if it has under 100 M parameters (it costs little, and results hardly depend on
    what else is in the batch), and also if the CPU lacks native bfloat16 or the model is float16, unless only 16 bits
    fit into memory.
    """
    stored = DTYPES[config.dtype]
    if torch.device(device).type != "cpu" or stored == torch.float32:
        return stored
    if config.num_parameters() < SMALL_MODEL:
        return torch.float32
    if stored == torch.bfloat16 and cpu_has_bfloat16():
        return stored
    free = available_bytes()
    return torch.float32 if free is None or config.weight_bytes("float32") <= free else torch.bfloat16


def has_fp8(device: torch.device | str) -> bool:
    """Whether this device multiplies FP8: NVIDIA GPUs from compute capability 8.9."""
    device = torch.device(device)
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def load_model(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    quantization: str | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Qwen3:
    """Loads a Hugging Face folder (`config.json`, safetensors) or a GGUF file for inference; no tokenizer is needed.

    device None: CUDA if present, else CPU. dtype None: see `default_dtype`. quantization "fp8": the projections (all
    but embedding, head and router) are kept in FP8, row by row quantized while they are read. "int8", "int4": all
    matrices are kept in so many bits, likewise (embedding and head in 8). None: as the checkpoint has them, except that
    FP8 weights become `dtype`, with a warning, on a device that cannot multiply FP8, and blocks that no kernel
    multiplies, too. meanwhile: called when all is checked and only reading is left, to start what can run beside it.

    Raises ModelNotFoundError, ConfigError, CorruptFileError, UnsafeFileError or OutOfMemoryError with one line that
    names the file, key or tensor; UsageError for a wrong argument.
    """
    folder = Path(path)
    finish_interrupted_save(folder)
    config = read_config(folder)
    stored = stored_format(folder)  # None for a GGUF file
    target = best_device() if device is None else torch.device(device)
    if quantization not in (None, *QUANTIZATIONS):
        raise UsageError(f"quantization {quantization!r} is not supported ({', '.join(QUANTIZATIONS)}, or None)")
    wanted = as_dtype(dtype) or default_dtype(config, target)
    if target.type == "cpu" and wanted == torch.bfloat16 and cpu_probe.advertised() and not cpu_probe.works():
        raise UsageError("dtype bfloat16 does not work on this processor, though it says so; take dtype float32")
    model = Qwen3(config, device="meta", dtype=wanted)
    if quantization == "fp8" or (stored is not None and has_fp8(target) and quantization not in BITS):
        names, uneven = parameters_to_hold(config, stored)
        hold_fp8(model, names, 0 if stored is None else stored.block)
        if uneven:
            more = f" and of {len(uneven) - 1} more" if len(uneven) > 1 else ""
            problem = f"the parts of {min(uneven)}{more} are no whole blocks of FP8; they become {wanted}"
            warnings.warn(f"{folder}: {problem}", stacklevel=2)
    elif quantization in BITS and target.type != "cpu":
        pass  # whatever they were
    elif has_fp8(target):
        hold_fp8(model, fp8_rows(config, folder), 0)
    elif stored is not None:
        problem = f"the weights are FP8, which {target} cannot multiply; they become {wanted}"
        warnings.warn(f"{folder}: {problem}", stacklevel=2)
    pack = _packing(quantization, dtype, wanted, target)
    load_weights(
        model, folder, device=target, dtype=wanted, pack=pack, grouped=target.type == "cuda", meanwhile=meanwhile
    )
    if any(isinstance(module, GroupWeight) for module in model.modules()):
        say = (
            f"{folder}: weights in few bits are for up to 32 requests at once; for more, {wanted} is faster if it fits"
        )
        warnings.warn(say, stacklevel=2)
    model.rotary.to(target)
    return model.eval()


def _packing(quantization: str | None, dtype: Any, wanted: torch.dtype, target: torch.device) -> str | None:
    """What `load_weights` is to hold in 4 and 8 bits."""
    if quantization in BITS:
        if target.type != "cpu":
            check_groups(str(quantization), target, wanted)
            return quantization
        if dtype is not None:
            raise UsageError(f"weights={quantization!r} are multiplied with float32 activations: leave dtype out")
        if native.library() is None:
            warnings.warn(f"weights={quantization!r} will be slow: {native.state()}", stacklevel=4)
        return quantization
    if dtype is not None:  # who names one wants weights of it: to train them, say
        return None
    return "kept" if target.type == "cpu" or (quantization is None and has_groups(target, wanted)) else None


def quantize_model(model: Qwen3, quantization: str = "fp8") -> Qwen3:
    """Quantizes a model in memory as `load_model(quantization=…)` does; returns it.

    One parameter after the other: peak memory is the model's and a few float32 copies of one matrix.
    """
    if quantization in BITS:
        return pack_model(model, quantization)
    if not fp8_weights(model):
        hold_fp8(model, parameters_to_hold(model.config, None)[0], 0)
    return model
