"""compressed-tensors (llm-compressor, vLLM), `quant_method: compressed-tensors`.

Whole numbers (pack-quantized): `weight_packed` int32 [N, ⌈K·b/32⌉], numbers + 2^(b-1), bit after bit along K;
`weight_scale` [N, K/g] (or [N, 1], [1]); `weight_zero_point`, packed along N or int8, if not symmetric; `weight_g_idx`
int32 [K]; `weight_shape` [2]. int-quantized: `weight` int8 [N, K]. float-quantized: `weight` float8_e4m3fn [N, K] with
`weight_scale` per tensor, row or 128 × 128 block. Activations are not rounded here as such a file may ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.formats.affine import Affine, Marks, column_groups, group_columns, unpack_bits
from qwen3.checkpoint.formats.layout import FLOATS, Piece, Quantized, Want
from qwen3.checkpoint.formats.settings import Settings, pattern
from qwen3.checkpoint.fp8 import scales_of
from qwen3.checkpoint.header import TensorEntry
from qwen3.checkpoint.source import CHUNK_BYTES
from qwen3.errors import ConfigError
from qwen3.kernels.fp8 import Fp8Weight

# how closely it names modules (0: by name, 1: by pattern, 2: by kind), and which
Target = tuple[int, Callable[[str], bool]]
_PACKED = "pack-quantized"
_INT, _FLOAT = (_PACKED, "int-quantized", "naive-quantized"), ("float-quantized", "naive-quantized")
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")


@dataclass(frozen=True)
class Scheme:
    """One of the `config_groups`. strategy: "tensor", "channel", "group" or "block"; group: -1 without groups."""

    where: str
    targets: tuple[Target, ...]
    format: str
    bits: int
    type: str
    symmetric: bool
    strategy: str
    group: int
    ordered: bool

    def groups(self, module: str, columns: int) -> int:
        return columns // group_columns(self.where, module, columns, self.group)

    def scales(self, module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = shape
        if self.strategy == "tensor":
            return (1,)
        if self.strategy == "block":
            return -(-rows // 128), -(-columns // 128)
        return rows, self.groups(module, columns)


@dataclass(frozen=True)
class Compressed:
    """See `Layout`."""

    where: str
    schemes: tuple[Scheme, ...]
    ignore: tuple[Target, ...]

    @classmethod
    def parse(cls, where: str, data: Any) -> Compressed:
        keys = Settings(where, data)
        format = keys.one_of("format", _FORMATS)
        keys.one_of("quantization_status", ("compressed", "frozen"), "compressed")
        for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
            found = keys.take(name, None)
            if found and found != {"format": "dense"}:
                raise ConfigError(f"{where}.{name} is not supported; take a checkpoint without it")
        ignore = tuple(_matcher(where, name) for name in keys.names("ignore"))
        groups = Settings(f"{where}.config_groups", keys.take("config_groups")).left
        schemes = tuple(_scheme(f"{where}.config_groups.{name[:40]}", group, format) for name, group in groups.items())
        keys.finish("quant_method global_compression_ratio version run_compressed")
        return cls(where, schemes, ignore)

    def of(self, module: str) -> Scheme | None:
        """The scheme that names the module most closely; of several, the first."""
        if any(match(module) for _, match in self.ignore):
            return None
        found = [(rank, i) for i, s in enumerate(self.schemes) for rank, match in s.targets if match(module)]
        return self.schemes[min(found)[1]] if found else None

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        scheme, (rows, columns) = self.of(module), shape
        router = module.endswith("mlp.gate") and f"{module}.weight_scale" not in entries  # to some versions no Linear
        if scheme is None or router:
            return None
        scale = entries.get(f"{module}.weight_scale")
        scales = scheme.scales(module, shape)
        if scale is not None and scale.shape == () and scales == (1,):
            scales = ()
        found = {".weight_scale": Want(scales, FLOATS)}
        if scheme.format == _PACKED:
            found[".weight_packed"] = Want((rows, -(-columns * scheme.bits // 32)), ("I32",))
            found[".weight_shape"] = Want((2,), ("I64", "I32"))
            found[".weight_g_idx"] = Want((columns,), ("I32",), scheme.ordered)
        else:
            found[".weight"] = Want(shape, ("I8",) if scheme.type == "int" else ("F8_E4M3",))
        zero = entries.get(f"{module}.weight_zero_point")
        if zero is not None and zero.dtype == "I32" and scheme.format == _PACKED:
            found[".weight_zero_point"] = Want((-(-rows * scheme.bits // 32), scheme.groups(module, columns)), ("I32",))
        elif scheme.type == "int":
            found[".weight_zero_point"] = Want(scales, ("I8",), not scheme.symmetric)
        for name in (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point"):
            found[name] = Want(None, (*FLOATS, "I8", "I32", "F8_E4M3"), False)  # of activations
        return found

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Quantized:
        scheme = self.of(module)
        assert scheme is not None
        told = pieces.get(".weight_shape")
        if told is not None and tuple(told.read().tolist()) != shape:
            raise told.refuse(f"is {told.read().tolist()}, but the matrix has shape {list(shape)}")
        return FloatTensor(shape, pieces) if scheme.type == "float" else IntTensor(module, shape, scheme, pieces)


def _matcher(where: str, target: str) -> Target:
    if target.startswith("re:"):
        found = pattern(where, target.removeprefix("re:"))
        return 1, lambda module: found.match(module) is not None
    if target in ("Linear", "Embedding"):
        return 2, lambda module: ("embed_tokens" in module) == (target == "Embedding")
    return 0, lambda module: module == target


def _scheme(where: str, data: Any, format: str) -> Scheme:
    keys = Settings(where, data)
    targets = tuple(_matcher(where, name) for name in keys.names("targets"))
    format = keys.one_of("format", _FORMATS[:-1], None if format == "mixed-precision" else format)
    for name in ("input_activations", "output_activations"):
        acts = keys.take(name, None)
        if acts is not None:
            Settings(f"{where}.{name}", acts).one_of("num_bits", (8,))
    weights = Settings(f"{where}.weights", keys.take("weights"))
    keys.finish()
    kind = weights.one_of("type", ("int", "float"), "int")
    allowed = (2, 4, 8) if format == _PACKED else (8,)
    if format not in (_INT if kind == "int" else _FLOAT):
        raise ConfigError(f"{where}.weights.type {kind!r} and format {format!r} do not go together")
    bits = weights.one_of("num_bits", allowed)
    symmetric = weights.one_of("symmetric", (True, False) if kind == "int" else (True,), True)
    strategies = ("group", "channel", "tensor") if kind == "int" else ("tensor", "channel", "block")
    group = weights.take("group_size", -1)
    strategy = weights.one_of("strategy", strategies, "group" if group != -1 else None)
    if strategy == "group" and (type(group) is not int or group < 1):
        raise ConfigError(f"{where}.weights.group_size is {str(group)[:40]!r}, but the strategy is 'group'")
    weights.one_of("block_structure", ([128, 128],), [128, 128])
    weights.one_of("dynamic", (False,), False)
    order = weights.one_of("actorder", ("group", "dynamic", "weight", "static", False, True), False)
    weights.finish("observer observer_kwargs scale_dtype zp_dtype")
    return Scheme(
        f"{where}.weights", targets, format, bits, kind, symmetric, strategy, group if strategy == "group" else -1,
        order in ("group", "dynamic", True),
    )  # fmt: skip


class IntTensor(Affine):
    def __init__(self, module: str, shape: tuple[int, ...], how: Scheme, pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, f"compressed-tensors int{how.bits}", pieces)
        self.bits = how.bits
        self.group = group_columns(how.where, module, shape[1], how.group)

    def q(self, first: int, last: int) -> Tensor:
        if ".weight" in self.pieces:
            return self.pieces[".weight"].read(first, last).view(torch.uint8) ^ 128
        return unpack_bits(self.pieces[".weight_packed"].read(first, last), self.bits)[:, : self.shape[1]]

    def marks(self, first: int, last: int) -> Marks:
        scale = self._rows(self.pieces[".weight_scale"], first, last)
        piece, middle = self.pieces.get(".weight_zero_point"), 1 << self.bits - 1
        if piece is None:
            zero = torch.full(scale.shape, middle, dtype=torch.int32)
        elif piece.entry.dtype == "I32":
            zero = unpack_bits(piece.read().t(), self.bits)[:, first:last].t().int()
        else:
            zero = self._rows(piece, first, last).int() + middle
        return scale, zero, None

    def _rows(self, piece: Piece, first: int, last: int) -> Tensor:
        return piece.read(first, last) if len(piece.shape) == 2 else piece.read().view(1, 1).expand(last - first, 1)

    def order(self) -> Tensor | None:
        return column_groups(self.pieces.get(".weight_g_idx"), self.shape[1], self.group)


class FloatTensor(Quantized):
    def __init__(self, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, "compressed-tensors FP8", pieces)
        scale = pieces[".weight_scale"].shape
        self.fp8_rows = scale in ((), (1,), (shape[0], 1))

    def fill(self, place: Tensor, weight: Fp8Weight | None = None) -> None:
        if weight is None or weight.block or not self.fp8_rows:
            return super().fill(place, weight)
        step = max(1, CHUNK_BYTES // self.shape[1])
        for first in range(0, self.shape[0], step):
            rows = self.pieces[".weight"].read(first, min(first + step, self.shape[0]))
            place[first : first + step].copy_(rows)
        scales_of(weight, place).copy_(self.pieces[".weight_scale"].read().float().view(-1, 1))
        return None

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        first, last = self.span(rows)
        scale = self.pieces[".weight_scale"].read().float()
        if scale.dim() < 2:
            scale = scale.view(1, 1)
        elif scale.shape == (self.shape[0], 1):
            scale = scale[first:last]
        else:
            scale = scale[torch.arange(first, last) // 128].repeat_interleave(128, 1)[:, : self.shape[1]]
        return (self.pieces[".weight"].read(first, last).float() * scale).to(dtype)
