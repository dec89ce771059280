"""Which matrices of a checkpoint a network holds in few bits, and how they get there: on a CPU by `kernels.packed`, on
a GPU by `kernels.grouped`.

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
from qwen3.kernels import grouped
from qwen3.kernels.grouped import GroupWeight
from qwen3.kernels.packed import LANES, PackedWeight, pack, quantize_rtn, rounded

BITS = {"int8": 8, "int4": 4}
_AT_ONCE = 1 << 20  # numbers: more are slower, since their copies leave the caches and ask the system for memory
_AT_ONCE_ON_GPU = 1 << 22
_SHORT = {"BF16": torch.bfloat16, "F16": torch.float16}  # kinds that go to the GPU as they are


class HasParts(Protocol):
    def get_submodule(self, target: str) -> nn.Module: ...


@dataclass(frozen=True)
class Packing:
    """One parameter. parts: its official tensors, by expert (one row of them if there are none). form: what they are
    rounded to; None: as the file has them, each in its own form. place: of a GroupWeight, for activations of `dtype`;
    None: a PackedWeight."""

    shape: tuple[int, ...]
    parts: tuple[tuple[Stored, ...], ...]
    form: Form | None = None
    place: torch.device | None = None
    dtype: torch.dtype = torch.bfloat16

    @property
    def nbytes(self) -> int:
        if self.place is not None:
            return sum(_group_bytes(self.form or part.group_form, part) for row in self.parts for part in row)
        forms = ((self.form or part.form, part.shape) for row in self.parts for part in row)
        return sum(form.nbytes(*shape) for form, shape in forms if form is not None)

    def build(self) -> PackedWeight | GroupWeight:
        if self.place is not None:
            whole = [GroupWeight.cat([self._grouped(part) for part in parts]) for parts in self.parts]
            return whole[0] if len(self.shape) == 2 else GroupWeight.stack(whole)
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

    def _grouped(self, part: Stored) -> GroupWeight:
        found, step = [], max(1, _AT_ONCE_ON_GPU // part.shape[1])
        for first in range(0, part.shape[0], step):
            rows = slice(first, min(first + step, part.shape[0]))
            if self.form is not None:
                q, scale = rounded(
                    part.read(rows, _SHORT.get(part.kind, torch.float32)).to(self.place),
                    self.form.bits,
                    self.form.group,
                )
                found.append(grouped.pack(q, scale.half(), None, self.form.bits, self.dtype))
            elif part.group_form is not None:
                given = part.grouped(rows)
                q, scale, mins = given[0].to(self.place), given[1].to(self.place), given[2]
                mins = None if mins is None else mins.to(self.place)
                found.append(grouped.pack(q, scale, mins, part.group_form.bits, self.dtype))
        return GroupWeight.cat(found)


def _group_bytes(form: Form | None, part: Stored) -> int:
    if form is None:
        return 0
    rows, columns = part.shape
    slab, mark = grouped.SLAB[form.bits], 8 if form.mins else 4 if part.form and part.form.fine else 2
    return rows * (-(-columns // slab) * 64 + -(-columns // form.group) * mark)


def packings(
    source: Source, config: ModelConfig, kind: str | None, place: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Packing]:  # fmt: skip
    """Our names → what is held so. kind: "int4", "int8", or None: what the file has so. place, dtype: as of `Packing`.

    Raises UsageError for a matrix whose width is no multiple of 32, if `kind` asks for it.
    """
    shapes, parts = fused_shapes(config), _parts(source, config)
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or name.endswith("mlp.gate.weight"):
            continue
        if kind is not None:
            found[name] = Packing(shape, parts[name], Form(*fitting(name, shape[-1], kind), False), place, dtype)
            continue
        if place is not None:
            if all(part.group_form is not None for row in parts[name] for part in row):
                found[name] = Packing(shape, parts[name], None, place, dtype)
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


def hold(model: HasParts, name: str, weight: PackedWeight | GroupWeight) -> None:
    """The weight in the place of the parameter `name`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    delattr(module, leaf)
    setattr(module, leaf, weight)
