"""AWQ (AutoAWQ), version "gemm"; the layout is described in `checkpoint.formats.awq`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qwen3.checkpoint.names import EMBED, HEAD
from qwen3.errors import UsageError
from qwen3.quantize.formats.layout import Format, fill_words, group_size, grouped, most, pack_bits, zeros
from qwen3.quantize.types import Rounded

_ROWS = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight, from the lowest four bits of a word on


class Awq(Format):
    name = "awq"
    bits = (4,)

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        if f"{module}.weight" in (EMBED, HEAD):
            raise UsageError(f"{module}: awq leaves embedding and head as they are; take mlx, or drop the rule")
        found = grouped(module, rounded, self)
        fill_words(module, self.name, rows=4 * found.q.shape[0])

        def pack(part: Tensor) -> Tensor:
            return pack_bits(part.t().unflatten(1, (-1, 8))[..., _ROWS].flatten(1), 4)

        return {".qweight": pack(found.q), ".qzeros": pack(zeros(found)), ".scales": found.scale.t()}

    def config(self, planned: Mapping[str, Rounded], kept: Sequence[str]) -> dict[str, Any]:
        (group, _), *others = most(planned, group_size)
        if others and any(rounded.scale.shape[1] > 1 for rounded in planned.values()):
            raise UsageError(f"{others[0][1][0]}: awq has one group size for all; take gptq or compressed-tensors")
        skipped = [module for module in kept if f"{module}.weight" != EMBED]
        return {
            "quant_method": "awq", "bits": 4, "group_size": -1 if others else group, "zero_point": True,
            "version": "gemm", "modules_to_not_convert": skipped or None,
        }  # fmt: skip
