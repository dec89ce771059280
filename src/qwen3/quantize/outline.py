"""What a quantized checkpoint will hold, before anything is computed: every tensor's name, shape and dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.names import official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.kernels.fp8 import FP8
from qwen3.quantize.formats.layout import Format
from qwen3.quantize.spec import GROUPED, Spec, plan
from qwen3.quantize.types import Float8, Grouped, Int8, Rounded


@dataclass(frozen=True)
class Outline:
    """planned: module → what is written of it; tensors: of the files; both without values. places: name as the format
    gives it → (tensor of the files, row of it; None: all of it). kept: matrices that stay as they are. sizes: bytes of
    each quantized module. settings: what config.json says."""

    config: ModelConfig
    format: Format
    planned: Mapping[str, Rounded]
    kept: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    places: Mapping[str, tuple[str, int | None]]
    sizes: Mapping[str, int]
    settings: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / sum(math.prod(shape) for shape in official_shapes(self.config).values())

    def config_json(self) -> dict[str, Any]:
        plain = replace(self.config, quantization_config=None).to_dict()
        return plain | {self.format.key: dict(self.settings)}


def outline(spec: Spec, config: ModelConfig, format: Format) -> Outline:
    """Raises UsageError, naming the module, for what the format cannot hold, and as `plan`."""
    todo = plan(spec, config)
    if not todo:
        raise UsageError("nothing is quantized: the rules skip every module")
    dtype: torch.dtype = getattr(torch, config.dtype)
    planned: dict[str, Rounded] = {}
    tensors: dict[str, Tensor] = {}
    places: dict[str, tuple[str, int | None]] = {}
    rows: dict[str, dict[int, Tensor]] = {}
    sizes: dict[str, int] = {}
    known: dict[Any, tuple[Rounded, dict[str, Tensor]]] = {}  # experts are many and alike
    shapes = official_shapes(config)
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        parts = {".weight": torch.empty(shape, dtype=dtype, device="meta")}
        if module in todo:
            key = (todo[module], shape, module.endswith("_proj") or module)
            if key not in known:
                made = blank(todo[module], module, shape)
                known[key] = made, format.tensors(module, made)
            planned[module], parts = known[key]
            sizes[module] = sum(part.nbytes for part in parts.values())
        for suffix, part in parts.items():
            stack = format.stacked(module + suffix)
            if stack is None:
                tensors[module + suffix], places[module + suffix] = part, (module + suffix, None)
            else:
                rows.setdefault(stack[0], {})[stack[1]] = part
                places[module + suffix] = stack
    for name, found in rows.items():
        if len({(part.shape, part.dtype) for part in found.values()}) > 1 or len(found) != config.num_experts:
            raise UsageError(f"{name}: {format.name} has all experts of a layer in one tensor: give them the same rule")
        tensors[name] = torch.stack([found[i] for i in range(len(found))])
    kept = tuple(n.removesuffix(".weight") for n, s in shapes.items() if len(s) == 2 and n[:-7] not in todo)
    settings = format.config(planned, kept)
    return Outline(config, format, planned, kept, dict(sorted(tensors.items())), places, sizes, settings)


def blank(spec: Spec, module: str, shape: tuple[int, ...]) -> Rounded:
    """What a method makes of a matrix, without values."""
    rows, columns = shape

    def of(dtype: torch.dtype, *sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    if spec.method == "w8a8":
        return Int8(of(torch.int8, *shape), of(torch.float32, rows, 1))
    if spec.method == "fp8":
        sizes = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // 128), -(-columns // 128))}
        return Float8(of(FP8, *shape), of(torch.float32, *sizes[spec.fp8_scale]))
    assert spec.method in GROUPED
    group = spec.columns(module, columns)
    ordered = spec.method == "gptq" and spec.act_order and not spec.static_groups and group < columns
    return Grouped(
        of(torch.uint8, *shape), of(torch.float16, rows, columns // group),
        None if spec.symmetric else of(torch.uint8, rows, columns // group), spec.bits, group,
        of(torch.int32, columns) if ordered else None,
    )  # fmt: skip


def fitted(rounded: Rounded, planned: Rounded, module: str) -> Rounded:
    """What a method made, as it was planned: a fallback may have left out zeros or the order, which then are the
    usual ones. Raises UsageError for anything else that differs."""
    if isinstance(rounded, Grouped) and isinstance(planned, Grouped):
        zero, order = rounded.zero, rounded.order
        if planned.zero is not None and zero is None:
            zero = torch.full_like(rounded.scale, 1 << rounded.bits - 1, dtype=torch.uint8)
        if planned.order is not None and order is None:
            order = (torch.arange(rounded.q.shape[1]) // rounded.group).int()
        rounded = replace(rounded, zero=zero, order=order)
        alike = (rounded.bits, rounded.group) == (planned.bits, planned.group)
        alike &= (zero is None) == (planned.zero is None) and (order is None) == (planned.order is None)
    else:
        alike = type(rounded) is type(planned) and rounded.scale.shape == planned.scale.shape
    if not alike:
        raise UsageError(f"{module}: the method made something else than was planned")
    return rounded
