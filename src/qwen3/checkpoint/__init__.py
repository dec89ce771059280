"""Floor 2: resolving model names, reading and writing weights. What needs torch is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwen3.checkpoint.cache import CachedModel, list_cached
from qwen3.checkpoint.gguf.config import read_config
from qwen3.checkpoint.journal import finish_interrupted_save
from qwen3.checkpoint.resolve import looks_like_model, resolve
from qwen3.checkpoint.resolved import Resolved
from qwen3.checkpoint.verify import Finding, Report, verify

_HOME = {
    "LoadReport": "loading",
    "SaveReport": "save",
    "available_bytes": "memory",
    "check_fits": "memory",
    "load_weights": "loading",
    "official_shapes": "names",
    "official_views": "names",
    "required_bytes": "memory",
    "save_checkpoint": "save",
}
__all__ = [
    "CachedModel",
    "Finding",
    "LoadReport",
    "Report",
    "Resolved",
    "SaveReport",
    "available_bytes",
    "check_fits",
    "finish_interrupted_save",
    "list_cached",
    "load_weights",
    "looks_like_model",
    "official_shapes",
    "official_views",
    "read_config",
    "required_bytes",
    "resolve",
    "save_checkpoint",
    "verify",
]

if TYPE_CHECKING:
    from qwen3.checkpoint.loading import LoadReport, load_weights
    from qwen3.checkpoint.memory import available_bytes, check_fits, required_bytes
    from qwen3.checkpoint.names import official_shapes, official_views
    from qwen3.checkpoint.save import SaveReport, save_checkpoint


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"qwen3.checkpoint.{_HOME[name]}"), name)
    raise AttributeError(f"module 'qwen3.checkpoint' has no attribute {name!r}")
