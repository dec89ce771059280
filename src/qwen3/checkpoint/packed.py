"""Which matrices of a checkpoint a network on a CPU holds in few bits (`kernels.packed`), and how they get there.

Asked for ("int4", "int8"), all but norms and routers are, rounded while they are read; embedding and head take 8 bits
either way. Otherwise those are whose file has them in groups that the kernel multiplies (`Stored.form`), laid out anew,
number for number the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from qwen3.checkpoint.forms import Form
from qwen3.checkpoint.names import fused_name, fused_shapes, official_views
from qwen3.checkpoint.source import Source, Stored
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.kernels.packed import LANES, PackedWeight, pack, quantize_rtn

BITS = {"int8": 8, "int4": 4}
_AT_ONCE = 1 << 20  # numbers: more are slower, since their copies leave the caches and ask the system for memory


class HasParts(Protocol):
    def get_submodule(self, target: str) -> nn.Module: ...


@dataclass(frozen=True)
class Packing:
    """One parameter. parts: its official tensors, by expert (one row of them if there are none). form: what they are
    rounded to; None: as the file has them, each in its own form."""

    shape: tuple[int, ...]
    parts: tuple[tuple[Stored, ...], ...]
    form: Form | None = None

    @property
    def nbytes(self) -> int:
        forms = ((self.form or part.form, part.shape) for row in self.parts for part in row)
        return sum(form.nbytes(*shape) for form, shape in forms if form is not None)

    def build(self) -> PackedWeight:
        made = [PackedWeight.cat([self._part(part) for part in parts]) for parts in self.parts]
        return made[0] if len(self.shape) == 2 else PackedWeight.stack(made)

    def _part(self, part: Stored) -> PackedWeight:
        found, step = [], max(1, _AT_ONCE // part.shape[1] // LANES) * LANES
        for first in range(0, part.shape[0], step):
            rows = slice(first, min(first + step, part.shape[0]))
            if self.form is not None:
                found.append(quantize_rtn(part.read(rows, torch.float32), self.form.bits, self.form.group))
            elif part.form is not None:
                q, scale, mins, *marks = part.packed(rows)
                found.append(pack(q, scale, mins, part.form.bits, *marks, table=part.form.table))
        return PackedWeight.cat(found)


def packings(source: Source, config: ModelConfig, kind: str | None) -> dict[str, Packing]:
    """Our names → what is held so. kind: "int4", "int8", or None: what the file has so.

    Raises UsageError for a matrix whose width is no multiple of 32, if `kind` asks for it.
    """
    shapes, parts = fused_shapes(config), _parts(source, config)
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or name.endswith("mlp.gate.weight"):
            continue
        if kind is not None:
            found[name] = Packing(shape, parts[name], Form(*fitting(name, shape[-1], kind), False))
            continue
        forms, *others = {tuple(part.form for part in row) for row in parts[name]}
        if None not in forms and not others:  # experts are alike
            found[name] = Packing(shape, parts[name])
    return found


def fitting(name: str, columns: int, kind: str) -> tuple[int, int]:
    """(bits, group) of our parameter `name` in a network held in `kind`: the largest group up to 128 that divides it.

    Raises UsageError where none does.
    """
    group = next((size for size in (128, 64, 32) if columns % size == 0), 0)
    if not group:
        raise UsageError(f"{name} has {columns} columns, no multiple of 32: it cannot be held in {kind}")
    return 8 if name in ("embed_tokens.weight", "lm_head.weight") else BITS[kind], group


def _parts(source: Source, config: ModelConfig) -> dict[str, tuple[tuple[Stored, ...], ...]]:
    """Our names → their official tensors in the order of the rows, by expert."""
    shapes = fused_shapes(config)
    views = official_views(config, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    ordered: dict[str, list[str]] = {}
    for name in sorted(views, key=lambda name: views[name].storage_offset()):
        ordered.setdefault(fused_name(name), []).append(name)
    found = {}
    for name, own in ordered.items():
        each = len(own) // (shapes[name][0] if len(shapes[name]) == 3 else 1)
        rows = (own[i : i + each] for i in range(0, len(own), each))
        found[name] = tuple(tuple(source.stored[part] for part in row) for row in rows)
    return found


def hold(model: HasParts, name: str, weight: PackedWeight) -> None:
    """The packed weight in the place of the parameter `name`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    delattr(module, leaf)
    setattr(module, leaf, weight)
