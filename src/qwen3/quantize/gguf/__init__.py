"""Writing GGUF files."""

from qwen3.quantize.gguf.write import Report, Tensored, write_gguf

__all__ = ["Report", "Tensored", "write_gguf"]
