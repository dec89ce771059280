"""The Qwen3 system in one package: family, network, engine, training. Independent of Alibaba.

Names are imported on first use, so that `import qwen3` costs nothing and floor 0 works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "LLM": "qwen3.llm",
    "SamplingParams": "qwen3.engine.params",
    "ThinkingPolicy": "qwen3.chat.policy",
    "ModelConfig": "qwen3.config",
    "Tokenizer": "qwen3.tokenizer",
    "load_model": "qwen3.model",
}
__all__ = ["LLM", "ModelConfig", "SamplingParams", "ThinkingPolicy", "Tokenizer", "__version__", "family", "load_model"]

if TYPE_CHECKING:
    from qwen3 import family
    from qwen3.chat.policy import ThinkingPolicy
    from qwen3.config import ModelConfig
    from qwen3.engine.params import SamplingParams
    from qwen3.llm import LLM
    from qwen3.model import load_model
    from qwen3.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    if name == "family":
        return import_module("qwen3.family")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qwen3' has no attribute {name!r}")
