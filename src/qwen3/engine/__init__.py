"""Floor 3: requests in, tokens out. Names load on first use: `SamplingParams` needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3.engine.engine import Engine
    from qwen3.engine.params import SamplingParams
    from qwen3.engine.request import Clock, Request
    from qwen3.engine.sampler import TokenLogprob

_HOME = {
    "Engine": "qwen3.engine.engine",
    "Request": "qwen3.engine.request",
    "SamplingParams": "qwen3.engine.params",
    "Clock": "qwen3.engine.request",
    "TokenLogprob": "qwen3.engine.sampler",
}
__all__ = ["Clock", "Engine", "Request", "SamplingParams", "TokenLogprob"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qwen3.engine' has no attribute {name!r}")
