"""A checkpoint folder becomes a model."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from qwen3.checkpoint import available_bytes, finish_interrupted_save, load_weights
from qwen3.checkpoint.folder import check_not_quantized
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.model.network import Qwen3

SMALL_MODEL = 100_000_000  # parameters; see `default_dtype`
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def best_device() -> torch.device:
    """CUDA if there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512_BF16 or AMX on x86; ARM is taken not to)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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


def load_model(
    path: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
) -> Qwen3:
    """Loads a Hugging Face folder (`config.json`, safetensors) for inference; no tokenizer files are needed.

    device None: CUDA if present, else CPU. dtype None: see `default_dtype`. Raises ModelNotFoundError, ConfigError,
    CorruptFileError, UnsafeFileError or OutOfMemoryError with one line that names the file, key or tensor.
    """
    folder = Path(path)
    finish_interrupted_save(folder)
    config = ModelConfig.from_pretrained(folder)
    check_not_quantized(folder)
    target = best_device() if device is None else torch.device(device)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r} is not supported (expected {', '.join(DTYPES)})")
        dtype = DTYPES[dtype]
    wanted = default_dtype(config, target) if dtype is None else dtype
    model = Qwen3(config, device="meta", dtype=wanted)
    load_weights(model, folder, device=target, dtype=wanted)
    model.rotary.to(target)
    return model.eval()
