"""The formats by name, and which one a method's results go into unless told."""

from __future__ import annotations

import torch

from qwen3.errors import UsageError
from qwen3.quantize.formats.awq import Awq
from qwen3.quantize.formats.compressed import Compressed
from qwen3.quantize.formats.fp8 import Fp8
from qwen3.quantize.formats.gptq import Gptq
from qwen3.quantize.formats.layout import Format
from qwen3.quantize.formats.mlx import Mlx
from qwen3.quantize.spec import Spec

FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "fp8", "mlx")


def usual(spec: Spec) -> str:
    """The format that most programs run such a quantization from."""
    if spec.method == "fp8":
        return "fp8" if spec.fp8_scale == "block" else "compressed-tensors"
    if spec.method == "w8a8":
        return "compressed-tensors"
    widths = {spec.bits, *(rule.bits for rule in spec.rules if rule.bits is not None)}
    if not widths <= {*Gptq.bits}:
        return "mlx"
    if spec.method == "awq" and not spec.symmetric and widths == {4}:
        return "awq"
    if spec.method == "gptq" or not widths <= {*Compressed.bits}:
        return "gptq" if spec.symmetric else "gptq_v2"
    return "compressed-tensors"


def choose(name: str, dtype: torch.dtype) -> Format:
    """dtype: of the model. Raises UsageError for a name that is none."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: there is no such format; take {', '.join(FORMATS)}")
    made: dict[str, Format] = {
        "gptq": Gptq(1), "gptq_v2": Gptq(2), "awq": Awq(), "compressed-tensors": Compressed(), "fp8": Fp8(),
        "mlx": Mlx(torch.float16 if dtype == torch.float32 else dtype),
    }  # fmt: skip
    return made[name]
