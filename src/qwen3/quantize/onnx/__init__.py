"""Export to ONNX: see `export`."""

from qwen3.quantize.onnx.export import Report, export

__all__ = ["Report", "export"]
