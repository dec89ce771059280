"""FP8 in blocks of 128 × 128, as Qwen publishes it; the layout is described in `checkpoint.fp8`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qwen3.checkpoint.fp8 import SCALE
from qwen3.errors import UsageError
from qwen3.quantize.formats.layout import Format
from qwen3.quantize.types import Float8, Rounded


class Fp8(Format):
    name = "fp8"

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        if not module.endswith("_proj"):
            raise UsageError(f"{module}: fp8 leaves embedding and head as they are; drop the rule")
        if not isinstance(rounded, Float8) or rounded.scale.shape != tuple(-(-n // 128) for n in rounded.data.shape):
            raise UsageError(f"{module}: fp8 has a scale for each 128 × 128 block; take --format compressed-tensors")
        return {".weight": rounded.data, f".weight{SCALE}": rounded.scale}

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        skipped = ["lm_head", *(module for module in kept if "model.layers." in module)]
        return {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": skipped,
        }  # fmt: skip
