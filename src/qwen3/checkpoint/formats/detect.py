"""Which format a folder's config.json says its weights have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3.checkpoint.formats.awq import Awq
from qwen3.checkpoint.formats.bitsandbytes import Bitsandbytes
from qwen3.checkpoint.formats.compressed import Compressed
from qwen3.checkpoint.formats.gptq import Gptq
from qwen3.checkpoint.formats.layout import Layout
from qwen3.checkpoint.formats.mlx import Mlx
from qwen3.checkpoint.header import read_json
from qwen3.checkpoint.names import fused_name, official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError

_METHODS: dict[Any, Callable[[str, Any], Layout]] = {
    "gptq": Gptq.parse,
    "awq": Awq.parse,
    "compressed-tensors": Compressed.parse,
    "bitsandbytes": Bitsandbytes.parse,
}


def find_layout(folder: Path) -> Layout | None:
    """None if the weights are not quantized, or FP8 as Qwen publishes it (see `folder.stored_format`).

    Raises ConfigError naming the method, key or value that is not read.
    """
    config = folder / "config.json"
    data = read_json(config) if config.exists() else None
    if not isinstance(data, dict):
        return None
    ours, theirs = data.get("quantization"), data.get("quantization_config")
    if ours:
        if theirs and theirs != ours:
            raise ConfigError(
                f"{config}: quantization and quantization_config contradict each other; keep the right one"
            )
        return Mlx.parse(f"{config}: quantization", ours)
    if not theirs:
        return None
    where = f"{config}: quantization_config"
    if not isinstance(theirs, dict):
        raise ConfigError(f"{where} must be an object")
    method = theirs.get("quant_method")
    if method == "fp8":
        return None
    if method is None and "bits" in theirs and "group_size" in theirs:
        return Mlx.parse(where, theirs)
    if not isinstance(method, str) or method not in _METHODS:
        known = ", ".join(("fp8", *_METHODS))
        raise ConfigError(
            f"{where} says {method or 'quantized'!r}; what is read is {known} and MLX: take the model in one of these, "
            "or with bfloat16 weights"
        )
    return _METHODS[method](where, theirs)


def fp8_rows(config: ModelConfig, folder: Path) -> set[str]:
    """Our parameters that a folder of compressed-tensors has in FP8 with scales by row or tensor, all parts of them."""
    layout = find_layout(folder)
    if not isinstance(layout, Compressed):
        return set()
    own: set[str] = set()
    others: set[str] = set()
    for name in official_shapes(config):
        scheme = layout.of(name.removesuffix(".weight"))
        held = name.endswith("_proj.weight") and scheme is not None and scheme.type == "float"
        (own if held and scheme is not None and scheme.strategy != "block" else others).add(fused_name(name))
    return own - others
