"""What a model's weights take in each format: in files, and in memory on a CPU and on a GPU. Names and shapes alone are
asked, no torch, no file: so it is exact for models that are not on this disk.

A file's bytes are those of its tensors; headers, tokenizer and the like (some MB) come on top. Layouts: the modules of
`checkpoint.formats` and `checkpoint.gguf.types`; the mixes of GGUF's names (Q4_K_M …): llama.cpp's
`llama_tensor_get_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from qwen3.checkpoint.forms import FORMS, Form
from qwen3.checkpoint.gguf.types import TYPES, TensorType
from qwen3.config import DTYPE_BYTES, ModelConfig
from qwen3.errors import ConfigError

Device = Literal["cpu", "cuda"]
SMALL = 100_000_000  # parameters below which a CPU computes in float32, as model.load.SMALL_MODEL
_TYPES = {kind.name: kind for kind in TYPES.values()}
_SLAB = {4: 128, 8: 64}  # columns in 64 bytes, as kernels.grouped.SLAB


class Matrix(NamedTuple):
    """`times` official tensors of one shape in one layer (None: outside of them). name: without prefix and `.weight`;
    of experts "mlp.experts.up_proj"."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    times: int = 1

    @property
    def numbers(self) -> int:
        return self.times * math.prod(self.shape)


def matrices(config: ModelConfig) -> Iterator[Matrix]:
    """All weights, a tied head left out: `names.official_shapes`, experts counted."""
    h, d = config.hidden_size, config.head_dim
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    yield Matrix("embed_tokens", None, (config.vocab_size, h))
    for i in range(config.num_hidden_layers):
        yield from (Matrix(f"{side}_layernorm", i, (h,)) for side in ("input", "post_attention"))
        yield from (Matrix(f"self_attn.{side}_norm", i, (d,)) for side in "qk")
        yield from (Matrix(f"self_attn.{s}_proj", i, (rows, h)) for s, rows in (("q", q), ("k", k), ("v", k)))
        yield Matrix("self_attn.o_proj", i, (h, q))
        if config.is_sparse_layer(i):
            yield Matrix("mlp.gate", i, (config.num_experts, h))
            prefix, width, count = "mlp.experts.", config.moe_intermediate_size, config.num_experts
        else:
            prefix, width, count = "mlp.", config.intermediate_size, 1
        yield from (Matrix(f"{prefix}{side}_proj", i, (width, h), count) for side in ("gate", "up"))
        yield Matrix(f"{prefix}down_proj", i, (h, width), count)
    yield Matrix("norm", None, (h,))
    if not config.tie_word_embeddings:
        yield Matrix("lm_head", None, (config.vocab_size, h))


class Group(NamedTuple):
    """How a GPU holds a matrix (`kernels.grouped`): numbers of 4 or 8 bits in groups of so many columns (0: a row), for
    each of which scale, and minimum if there is one, take so many bytes."""

    bits: int
    group: int
    marks: int
    mins: bool = False

    def nbytes(self, rows: int, columns: int) -> int:
        slabs = -(-columns // _SLAB[self.bits])
        return rows * (64 * slabs + self.marks * (-(-columns // self.group) if self.group else 1))

    def beside(self, other: Group) -> Group:
        """What both become in one weight."""
        if self == other:
            return self
        mins = self.mins or other.mins
        marks = 8 if mins else max(self.marks, other.marks)
        return Group(max(self.bits, other.bits), min(self.group, other.group), marks, mins)


class Kind(NamedTuple):
    """How a matrix is stored. stored: (rows, columns) -> bytes in a file. cpu, gpu: how it is held there, None if
    widened; on a GPU that multiplies FP8 a function of rows and columns."""

    name: str
    stored: Callable[[int, int], int]
    cpu: Form | None = None
    gpu: Group | Callable[[int, int], int] | None = None


def _blocks(rows: int, columns: int) -> int:
    return -(-rows // 128) * -(-columns // 128)


def _grouped(bits: int, group: int, extra: Callable[[int, int], int], cpu: Form, gpu: Group) -> Kind:
    """Numbers, a float16 scale a group, and what else `extra` says."""
    return Kind(f"{bits}-bit", lambda n, k: n * k * bits // 8 + 2 * n * k // group + extra(n, k), cpu, gpu)


def _plain(name: str, size: int) -> Kind:
    return Kind(name, lambda n, k: n * k * size)


BF16, F32 = _plain("BF16", 2), _plain("F32", 4)
_FP8 = Kind("FP8", lambda n, k: n * k + 2 * _blocks(n, k), None, lambda n, k: n * k + 4 * _blocks(n, k))
_FP8_ROWS = Kind("FP8", BF16.stored, None, lambda n, k: n * k + 4 * n)


def _gptq(bits: int) -> Kind:  # beside it packed zeros, all the middle, and the group of each column
    extra = lambda n, k: n * k // 128 * bits // 8 + 4 * k  # noqa: E731
    return _grouped(bits, 128, extra, Form(bits, 128, False), Group(bits, 128, 2))


# zeros of its own: in 5 bits on a CPU, on a GPU as minima in float32
_AWQ = _grouped(4, 128, lambda n, k: n * k // 256, Form(5, 128, False), Group(4, 128, 8, True))
_PACKED = _grouped(4, 128, lambda n, k: 16, Form(4, 128, False), Group(4, 128, 2))  # weight_shape, two int64
_W8A8 = Kind("W8A8", lambda n, k: n * k + 2 * n, Form(8, 256, False), Group(8, 0, 2))
_MLX = {
    bits: _grouped(bits, 64, lambda n, k: n * k // 32, Form(bits, 64, True), Group(bits, 64, 4, True))
    for bits in (4, 8)
}
_LOADED = {bits: Kind(f"int{bits}", BF16.stored, Form(bits, 128, False), Group(bits, 128, 2)) for bits in (4, 8)}


def _gguf(kind: TensorType) -> Kind:
    form, gpu = FORMS.get(kind.name), None
    if form is not None:  # integer scales become float32
        marks = (4 if form.fine else 2) * (2 if form.mins else 1)
        gpu = Group(8 if form.bits > 4 or form.table else 4, form.fine or form.group, marks, form.mins)
    return Kind(kind.name, lambda n, k: n * k // kind.block * kind.size, form, gpu)


_GGUF = {name: _gguf(kind) for name, kind in _TYPES.items()}

Choice = Callable[[Matrix, ModelConfig], Kind]


@dataclass(frozen=True)
class Format:
    """name: as `--format` takes it. bits: about how many a weight of a layer takes. kind: of each matrix; vectors are
    BF16 (in a GGUF they and the router are F32). only: the one device that it is for."""

    name: str
    bits: float
    kind: Choice
    about: str
    gguf: bool = False
    only: Device | None = None

    def of(self, matrix: Matrix, config: ModelConfig) -> Kind:
        if len(matrix.shape) == 1 or (self.gguf and matrix.name == "mlp.gate"):
            return F32 if self.gguf else BF16
        return self.kind(matrix, config)


def _projections(kind: Kind, others: Kind = BF16) -> Choice:
    def choose(matrix: Matrix, config: ModelConfig) -> Kind:
        return kind if matrix.name.endswith("_proj") else others

    return choose


def _all(kind: Kind, router: Kind = BF16) -> Choice:
    return lambda matrix, config: router if matrix.name == "mlp.gate" else kind


def _loaded(kind: Kind) -> Choice:
    """`--weights`: of every matrix but the router; embedding and head in 8 bits."""

    def choose(matrix: Matrix, config: ModelConfig) -> Kind:
        if matrix.name == "mlp.gate":
            return BF16
        return kind if matrix.name.endswith("_proj") else _LOADED[8]

    return choose


def more_bits(layer: int, layers: int) -> bool:
    """The layers whose values and ways down get more bits: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def mixed(mix: str) -> Callable[[Matrix, ModelConfig], str]:
    """The type that llama.cpp's `mix` ("Q4_K_M") gives each matrix of a Qwen3, without an importance matrix."""
    base = mix.removesuffix("_S").removesuffix("_M").removesuffix("_L")

    def choose(matrix: Matrix, config: ModelConfig) -> str:
        layer, layers, name = matrix.layer or 0, config.num_hidden_layers, matrix.name.rpartition(".")[2]
        if name == "lm_head" or (name == "embed_tokens" and config.tie_word_embeddings):
            return "Q8_0" if base == "Q8_0" else "Q6_K"
        values, down, out = name == "v_proj", name == "down_proj", name == "o_proj"
        if mix in ("Q4_K_M", "Q5_K_M") and (values or down):
            return "Q6_K" if more_bits(layer, layers) else base
        if mix == "Q4_K_S" and ((values and layer < 4) or (down and layer < layers // 8)):
            return "Q5_K"
        if mix == "Q3_K_M" and (values or down or out):
            few = 2 if values else layers // 16
            return "Q5_K" if not out and layer < few else "Q4_K"
        if mix == "Q2_K" and (values or down or out):
            shared = config.num_attention_heads // config.num_key_value_heads
            return "Q4_K" if values and shared >= 4 else "Q3_K"
        return base

    return choose


def _mix(name: str) -> Choice:
    choose = mixed(name)
    return lambda matrix, config: _GGUF[choose(matrix, config)]


FORMATS = {
    found.name: found
    for found in (
        Format("bf16", 16, lambda matrix, config: BF16, "as published"),
        Format("fp8", 8, _projections(_FP8), "Qwen's FP8, blocks of 128 × 128"),
        Format("w8a8", 8, _projections(_W8A8), "compressed-tensors, int8 by row"),
        Format("gptq-int8", 8.2, _projections(_gptq(8)), "GPTQ, groups of 128"),
        Format("mlx-8bit", 8.5, _all(_MLX[8], _MLX[8]), "MLX, groups of 64"),
        Format("Q8_0", 8.5, _mix("Q8_0"), "GGUF", gguf=True),
        Format("Q6_K", 6.6, _mix("Q6_K"), "GGUF", gguf=True),
        Format("Q5_K_M", 5.7, _mix("Q5_K_M"), "GGUF", gguf=True),
        Format("Q4_K_M", 4.8, _mix("Q4_K_M"), "GGUF", gguf=True),
        Format("mlx-4bit", 4.5, _all(_MLX[4], _MLX[8]), "MLX, groups of 64"),
        Format("gptq-int4", 4.2, _projections(_gptq(4)), "GPTQ, groups of 128"),
        Format("awq", 4.2, _projections(_AWQ), "AWQ, groups of 128"),
        Format("w4a16", 4.1, _projections(_PACKED), "compressed-tensors, groups of 128"),
        Format("Q3_K_M", 3.9, _mix("Q3_K_M"), "GGUF", gguf=True),
        Format("Q2_K", 3.0, _mix("Q2_K"), "GGUF", gguf=True),
        Format("fp8-rows", 8, _projections(_FP8_ROWS), "bfloat16 with --weights fp8", only="cuda"),
        Format("int8", 8.1, _loaded(_LOADED[8]), "bfloat16 with --weights int8"),
        Format("int4", 4.1, _loaded(_LOADED[4]), "bfloat16 with --weights int4"),
    )
}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights: in files; in memory on a device. size: bytes of a number that is not held in few bits, and
    of activations. plain: numbers in matrices that are not, which a CPU may hold a second time (`model.threads`).
    grouped: some are held by `kernels.grouped`. cache: bytes of a number in the KV cache, if nobody says."""

    file: int
    memory: int
    size: int
    plain: int
    grouped: bool
    cache: int


@lru_cache(maxsize=4096)
def sizes(config: ModelConfig, format: Format, device: Device) -> Sizes:
    """Raises ConfigError where the format's blocks do not divide the model's matrices."""
    stored = memory = wide = plain = 0
    held = False
    for matrix in matrices(config):
        kind = format.of(matrix, config)
        rows, columns = matrix.shape if len(matrix.shape) == 2 else (1, matrix.shape[0])
        unit = kind.cpu.group if kind.cpu else _TYPES[kind.name].block if format.gguf else 1
        if columns % unit:
            raise ConfigError(f"{format.name} has groups of {unit}, which do not divide the {columns} of {matrix.name}")
        stored += matrix.times * kind.stored(rows, columns)
        gpu = _beside(matrix, kind.gpu, format, config) if isinstance(kind.gpu, Group) else kind.gpu
        if matrix.name == "mlp.gate":
            wide += matrix.numbers
        elif device == "cpu" and kind.cpu:
            memory, held = memory + matrix.times * kind.cpu.nbytes(rows, columns), True
        elif device == "cuda" and gpu:
            held = held or isinstance(gpu, Group)
            memory += matrix.times * (gpu.nbytes if isinstance(gpu, Group) else gpu)(rows, columns)
        else:
            wide += matrix.numbers
            plain += matrix.numbers if len(matrix.shape) == 2 and matrix.times == 1 else 0
    size = 4 if device == "cpu" and (held or config.num_parameters() < SMALL) else 2
    return Sizes(stored, memory + wide * size, size, plain, held and device == "cuda", 2 if held else size)


def _beside(matrix: Matrix, own: Group, format: Format, config: ModelConfig) -> Group:
    """Query, key and value are one weight on a GPU: what they become where their types differ."""
    if not matrix.name.startswith("self_attn.") or not matrix.name.endswith(("q_proj", "k_proj", "v_proj")):
        return own
    for side in "qkv":
        other = format.of(matrix._replace(name=f"self_attn.{side}_proj"), config).gpu
        own = own.beside(other) if isinstance(other, Group) else own
    return own


def formats(config: ModelConfig, device: Device) -> list[Format]:
    """Those that this device is for and the model's widths allow, the better first."""
    found = []
    for format in FORMATS.values():
        try:
            if format.only in (None, device):
                sizes(config, format, device)
                found.append(format)
        except ConfigError:
            continue
    return sorted(found, key=lambda format: -format.bits)


def stored_sizes(path: str | Path, config: ModelConfig, device: Device) -> Sizes:
    """Of a checkpoint that is there, folder or GGUF file, as `model.load.load_model` would hold it.

    Headers are read, on a CPU scales, too. Imports torch. Raises what `open_source` raises.
    """
    from contextlib import closing

    import torch

    from qwen3.checkpoint.folder import stored_format
    from qwen3.checkpoint.formats.detect import fp8_rows
    from qwen3.checkpoint.fp8 import parameters_to_hold
    from qwen3.checkpoint.names import fused_shapes
    from qwen3.checkpoint.packed import packings
    from qwen3.checkpoint.source import open_source

    path, size = Path(path), DTYPE_BYTES[config.dtype]
    with closing(open_source(path, config)) as source:
        place = None if device == "cpu" else torch.device("cuda")
        held = {name: packing.nbytes for name, packing in packings(source, config, None, place).items()}
        grouped = bool(held) and device == "cuda"
        if device == "cpu":
            size = 4 if held or config.num_parameters() < SMALL else size
        else:
            blocks = stored_format(path)
            names = parameters_to_hold(config, blocks)[0] if blocks else fp8_rows(config, path)
            for name, shape in fused_shapes(config).items():
                if name in names:
                    *experts, rows, columns = shape
                    scales = _blocks(rows, columns) if blocks else rows
                    held[name] = math.prod(experts) * (rows * columns + 4 * scales)
        shapes = {name: shape for name, shape in fused_shapes(config).items() if name not in held}
        plain = sum(math.prod(s) for n, s in shapes.items() if len(s) == 2 and not n.endswith("mlp.gate.weight"))
        rest = sum(math.prod(shape) for shape in shapes.values())
        cache = 2 if held and device == "cpu" else size
        return Sizes(source.nbytes, sum(held.values()) + rest * size, size, plain, grouped, cache)
