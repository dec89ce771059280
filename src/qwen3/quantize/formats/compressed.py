"""compressed-tensors (llm-compressor, vLLM); the layout is described in `checkpoint.formats.compressed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.names import EMBED
from qwen3.errors import UsageError
from qwen3.quantize.formats.layout import Format, fill_words, group_size, grouped, most, pack_bits
from qwen3.quantize.types import Float8, Grouped, Int8, Rounded


class Compressed(Format):
    name = "compressed-tensors"
    bits = (2, 4, 8)  # others are packed differently by old and new versions of the library

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        if f"{module}.weight" == EMBED:
            raise UsageError(f"{module}: {self.name} leaves the embedding as it is; take mlx, or drop the rule")
        if not isinstance(rounded, Grouped):
            return {".weight": rounded.data, ".weight_scale": rounded.scale}
        found = grouped(module, rounded, self)  # an order of columns was dropped from the format
        rows, columns = found.q.shape
        tensors = {
            ".weight_packed": pack_bits(found.q, found.bits),
            ".weight_scale": found.scale,
            ".weight_shape": torch.tensor((rows, columns), device=found.q.device),
        }
        if found.zero is not None:
            fill_words(module, self.name, rows=rows * found.bits)
            tensors[".weight_zero_point"] = pack_bits(found.zero.t(), found.bits).t()
        return tensors

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        kinds = most(planned, _kind)
        formats = {kind[0] for kind, _ in kinds}
        groups = {}
        for i, ((format, *kind), modules) in enumerate(kinds):
            weights, inputs = (None if each is None else dict(each) for each in kind)
            targets = modules if i else ["Linear"]  # a name counts for more than a kind
            groups[f"group_{i}"] = {"targets": targets, "weights": weights, "input_activations": inputs}
            groups[f"group_{i}"] |= {"format": format} if len(formats) > 1 else {}
        ignored = ["lm_head"] if "lm_head" not in planned else []
        ignored += [module for module in kept if "model.layers." in module]
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ignored,
        }


def _kind(rounded: Rounded) -> tuple[Any, ...]:
    """(format, weights, input activations)."""
    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
    if isinstance(rounded, Int8):
        weights |= {"type": "int", "strategy": "channel"}
        return "int-quantized", _frozen(weights), _frozen(inputs | {"type": "int"})
    if isinstance(rounded, Float8):
        rows, shape = rounded.data.shape[0], rounded.scale.shape
        if shape == (1,):
            weights["strategy"] = "tensor"
        elif shape == (rows, 1):
            weights["strategy"] = "channel"
        else:
            weights |= {"strategy": "block", "block_structure": (128, 128)}
            inputs |= {"strategy": "group", "group_size": 128}
        return "float-quantized", _frozen(weights), _frozen(inputs)
    weights |= {"num_bits": rounded.bits, "type": "int", "symmetric": rounded.zero is None}
    group = group_size(rounded)
    weights |= {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
    return "pack-quantized", _frozen(weights), None


def _frozen(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())
