"""GPTQ (AutoGPTQ, GPTQModel); the layout is described in `checkpoint.formats.gptq`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qwen3.checkpoint.names import EMBED
from qwen3.errors import UsageError
from qwen3.quantize.formats.layout import (
    Format,
    columns_groups,
    exactly,
    fill_words,
    group_size,
    grouped,
    most,
    pack_bits,
    zeros,
)
from qwen3.quantize.types import Grouped, Rounded


@dataclass(frozen=True)
class Gptq(Format):
    """version 1 stores zero - 1, which every tool reads, 2 the zero itself."""

    version: int = 1
    bits = (2, 3, 4, 8)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "gptq" if self.version == 1 else "gptq_v2"

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        if f"{module}.weight" == EMBED:
            raise UsageError(f"{module}: {self.name} leaves the embedding as it is; take mlx, or drop the rule")
        found = grouped(module, rounded, self, order=True)
        rows, columns = found.q.shape
        fill_words(module, self.name, columns=columns * found.bits, rows=rows * found.bits)
        zero = zeros(found)
        if self.version == 1:
            if found.zero is not None and not zero.is_meta and not zero.all():
                raise UsageError(f"{module}: version 1 of GPTQ cannot store a zero point of 0; take --format gptq_v2")
            zero = zero - 1
        return {
            ".qweight": pack_bits(found.q, found.bits).t(),
            ".qzeros": pack_bits(zero.t(), found.bits),
            ".scales": found.scale.t(),
            ".g_idx": columns_groups(found),
        }

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        (first, _), *others = most(planned, _settings)
        rules: dict[str, Any] = {
            "+:" + exactly(module): dict(settings) for settings, modules in others for module in modules
        }
        rules |= {"-:" + exactly(module): {} for module in kept if module.endswith("_proj")}
        if any(module.endswith(".mlp.gate") for module in kept):
            rules[r"-:.*\.mlp\.gate$"] = {}  # routers
        found = {"quant_method": "gptq", "checkpoint_format": self.name, "pack_dtype": "int32", **dict(first)}
        return found | {"lm_head": "lm_head" in planned} | ({"dynamic": rules} if rules else {})


def _settings(rounded: Grouped) -> tuple[tuple[str, Any], ...]:
    told = {"bits": rounded.bits, "group_size": group_size(rounded)}
    told |= {"sym": rounded.zero is None, "desc_act": rounded.order is not None}
    return tuple(told.items())
