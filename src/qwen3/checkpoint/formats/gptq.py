"""GPTQ (AutoGPTQ, GPTQModel), `quant_method: gptq`.

`qweight` int32 [K·b/32, N] and `qzeros` int32 [K/g, N·b/32] hold numbers bit after bit along K and N, `scales` [K/g,
N], `g_idx` int32 [K] the group of each column (`desc_act`: in any order). Version 1 stores zero - 1, version 2 zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qwen3.checkpoint.formats.affine import Affine, Marks, column_groups, group_columns, unpack_bits, words
from qwen3.checkpoint.formats.layout import FLOATS, Piece, Want
from qwen3.checkpoint.formats.settings import Settings, pattern
from qwen3.checkpoint.header import TensorEntry
from qwen3.errors import ConfigError

_BITS, _GROUPS = (2, 3, 4, 8), (-1, 16, 32, 64, 128, 256, 512, 1024)
_IGNORED = """quant_method sym damp_percent damp_auto_increment static_groups true_sequential model_name_or_path meta
model_file_base_name dataset tokenizer batch_size block_name_to_quantize module_name_preceding_first_block backend
use_cuda_fp16 model_seqlen pad_token_id disable_exllama use_exllama exllama_config max_input_length lm_head
cache_block_outputs modules_in_block_to_quantize act_group_aware mse"""


@dataclass(frozen=True)
class Gptq:
    """See `Layout`. rules: (pattern, its bits and group, or None for modules that are not quantized)."""

    where: str
    bits: int
    group: int
    offset: int  # 1 for version 1
    ordered: bool
    rules: tuple[tuple[Any, Any], ...] = ()

    @classmethod
    def parse(cls, where: str, data: Any) -> Gptq:
        keys = Settings(where, data)
        bits = keys.one_of("bits", _BITS)
        group = keys.one_of("group_size", _GROUPS)
        ordered = keys.one_of("desc_act", (False, True), False)
        version = keys.one_of("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        if keys.one_of("format", ("gptq", "gptq_v2"), version) != version and "checkpoint_format" in data:
            raise ConfigError(f"{where}.format and checkpoint_format contradict each other; keep the right one")
        version = data.get("format") or version
        keys.one_of("pack_dtype", ("int32",), "int32")
        keys.one_of("method", ("gptq",), "gptq")
        keys.one_of("is_marlin_format", (False,), False)
        found = cls(where, bits, group, 1 if version == "gptq" else 0, ordered)
        rules = [found._rule(*item) for item in Settings(f"{where}.dynamic", keys.take("dynamic", {})).left.items()]
        keys.finish(_IGNORED)
        return replace(found, rules=tuple(rules))

    def _rule(self, text: str, data: Any) -> tuple[Any, Any]:
        where = f"{self.where}.dynamic"
        match = pattern(where, text.removeprefix("+:").removeprefix("-:"))
        if text.startswith("-:"):
            return match, None
        keys = Settings(f"{where}[{text[:40]!r}]", data)
        bits, group = keys.one_of("bits", _BITS, self.bits), keys.one_of("group_size", _GROUPS, self.group)
        ordered = keys.one_of("desc_act", (False, True), self.ordered)
        keys.finish(_IGNORED)
        return match, replace(self, bits=bits, group=group, ordered=ordered)

    def of(self, module: str) -> Gptq | None:
        """The settings of one module; the first rule that fits counts."""
        return next((rule for match, rule in self.rules if match.match(module)), self)

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        own, (rows, columns) = self.of(module), shape
        if own is None or (f"{module}.weight" in entries and f"{module}.qweight" not in entries):
            return None
        if "embed_tokens" in module or (module == "lm_head" and "lm_head.qweight" not in entries):
            return None
        groups = columns // group_columns(self.where, module, columns, own.group)
        return {
            ".qweight": Want((words(self.where, module, columns, own.bits), rows), ("I32",)),
            ".qzeros": Want((groups, words(self.where, module, rows, own.bits)), ("I32",)),
            ".scales": Want((groups, rows), FLOATS),
            ".g_idx": Want((columns,), ("I32",), own.ordered),
            ".bias": Want((rows,), FLOATS, False),
        }

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Affine:
        own = self.of(module)
        assert own is not None
        no_bias(pieces)
        return GptqTensor(shape, own, pieces)


def no_bias(pieces: Mapping[str, Piece]) -> None:
    """Some writers add a bias of zeros; Qwen3's projections have none."""
    bias = pieces.get(".bias")
    if bias is not None and bias.read().any():
        raise bias.refuse("is not zero, but Qwen3's projections have no bias: this is another model")


class GptqTensor(Affine):
    by_column = True

    def __init__(self, shape: tuple[int, ...], how: Gptq, pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, f"GPTQ {how.bits}-bit", pieces)
        self.bits, self.offset = how.bits, how.offset
        self.group = shape[1] if how.group == -1 else how.group

    def q(self, first: int, last: int) -> Tensor:
        return unpack_bits(self.pieces[".qweight"].read()[:, first:last].t(), self.bits)

    def marks(self, first: int, last: int) -> Marks:
        zeros = unpack_bits(self.pieces[".qzeros"].read(), self.bits)[:, first:last].t().int()
        zeros = (zeros + self.offset) & ((1 << self.bits) - 1)
        return self.pieces[".scales"].read()[:, first:last].t(), zeros, None

    def order(self) -> Tensor | None:
        return column_groups(self.pieces.get(".g_idx"), self.shape[1], self.group)
