"""A checkpoint folder becomes a model."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, UsageError
from qwen3.model.network import Qwen3

SMALL_MODEL = 100_000_000  # parameters; below, float32 costs little memory and decodes faster on a CPU
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def best_device() -> torch.device:
    """CUDA if there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512_BF16 or AMX on x86; ARM is taken not to)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def default_dtype(config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The dtype a model runs in unless told: the checkpoint's own, with one exception.

    On a CPU a 16-bit model becomes float32 if it has under 100 M parameters, is float16, or the CPU lacks native
    bfloat16.
    """
    stored = _DTYPES[config.dtype]
    if torch.device(device).type != "cpu" or stored == torch.float32:
        return stored
    small = config.num_parameters() < SMALL_MODEL
    return torch.float32 if small or stored == torch.float16 or not cpu_has_bfloat16() else stored


def load_model(
    path: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
) -> Qwen3:
    """Loads a Hugging Face folder (`config.json`, safetensors) for inference; no tokenizer files are needed.

    device None: CUDA if present, else CPU. dtype None: see `default_dtype`. Raises ModelNotFoundError, ConfigError,
    CorruptFileError, UnsafeFileError or OutOfMemoryError with one line that names the file, key or tensor.
    """
    from qwen3.checkpoint import load_weights

    folder = Path(path)
    config = ModelConfig.from_pretrained(folder)
    if config.quantization_config is not None:
        method = config.quantization_config.get("quant_method")
        raise ConfigError(f"{folder}: quant_method {method!r} is not supported yet; use the unquantized repository")
    target = best_device() if device is None else torch.device(device)
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise UsageError(f"dtype {dtype!r} is not supported (expected {', '.join(_DTYPES)})")
        dtype = _DTYPES[dtype]
    wanted = default_dtype(config, target) if dtype is None else dtype
    model = Qwen3(config, device="meta", dtype=wanted)
    load_weights(model, folder, device=target, dtype=wanted)
    model.rotary.to(target)
    return model.eval()
