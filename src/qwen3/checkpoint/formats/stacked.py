"""Experts that a file holds in one tensor, as tensors of their own: what lies there stays where it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qwen3.checkpoint.header import TensorEntry

# MLX: one tensor a projection, with its scales and the like. transformers 5 in memory: gate and up in one.
_STACKED = re.compile(r"(.*\.mlp)\.switch_mlp\.(gate|up|down)_proj(\.\w+)")
_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)_proj")


def unstack(entries: Mapping[str, TensorEntry], experts: int) -> dict[str, TensorEntry]:
    """Official names for what is stacked over `experts`; everything else, what does not fit too, as it is."""
    out: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        stacked, fused = _STACKED.fullmatch(name), _FUSED.fullmatch(name)
        halves = 2 if fused and fused[2] == "gate_up" else 1
        fits = len(entry.shape) == 3 and entry.shape[0] == experts and entry.shape[1] % halves == 0
        if not (stacked or fused) or not fits or (entry.end - entry.begin) % (experts * halves):
            out[name] = entry
            continue
        for i in range(experts):
            if stacked:
                out[f"{stacked[1]}.experts.{i}.{stacked[2]}_proj{stacked[3]}"] = _part(
                    entry, i, experts, entry.shape[1]
                )
            elif fused and halves == 2:
                for j, side in enumerate(("gate", "up")):
                    part = _part(entry, 2 * i + j, 2 * experts, entry.shape[1] // 2)
                    out[f"{fused[1]}.{i}.{side}_proj.weight"] = part
            elif fused:
                out[f"{fused[1]}.{i}.down_proj.weight"] = _part(entry, i, experts, entry.shape[1])
    return out


def _part(entry: TensorEntry, number: int, of: int, rows: int) -> TensorEntry:
    size = (entry.end - entry.begin) // of
    begin = entry.begin + number * size
    return replace(entry, shape=(rows, *entry.shape[2:]), begin=begin, end=begin + size)
