"""Floor 2: the network in plain PyTorch."""

from qwen3.model.cache import KVCache
from qwen3.model.load import load_model
from qwen3.model.network import Qwen3, RouterOutput

__all__ = ["KVCache", "Qwen3", "RouterOutput", "load_model"]
