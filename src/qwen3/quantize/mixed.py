"""Bits where they count: each module's loss at a few widths is measured, then the bits go where they save the most.

What is chosen for is a unit: matrices that inference keeps as one (q, k and v; gate and up; all experts of a layer),
so that they must be alike. Of each unit's (bytes, loss) the lower convex hull is kept; its steps, over all units, are
taken by loss saved per byte. That is what bisecting a Lagrangian finds (Shoham and Gersho 1988): no other choice of as
many bytes has a smaller sum of losses, but for what one step's bytes would buy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.names import fused_name
from qwen3.errors import UsageError
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.collect import Moments, moments
from qwen3.quantize.gptq import Factor, row_losses
from qwen3.quantize.layers import Walk
from qwen3.quantize.run import Progress, round_matrix, stored_bits
from qwen3.quantize.spec import BITS, Rule, Spec, plan


@dataclass(frozen=True)
class Candidate:
    """A module at some width: its bytes, scales included, its weights, and what it loses: any measure that may be
    summed over modules."""

    bits: int
    nbytes: float
    weights: int
    loss: float


@dataclass(frozen=True)
class Mix:
    """bits of each module; rules that say so, to stand behind a spec's own; sums of bytes and losses; bits of a weight
    on average, scales included."""

    bits: dict[str, int]
    rules: tuple[Rule, ...]
    nbytes: float
    loss: float
    average: float

    def applied(self, spec: Spec) -> Spec:
        return replace(spec, rules=(*spec.rules, *self.rules))


def measure(
    path: str | Path,
    spec: Spec,
    widths: Sequence[int] = BITS,
    *,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[Candidate]]:
    """Official module name → its candidates, for all that `spec` (rtn or gptq, with calibration data) quantizes.

    loss: tr((W - Ŵ) H (W - Ŵ)ᵀ) / tr(W H Wᵀ), the share of the output's square that is wrong, with H of the unrounded
    model's activations; of an expert, times the share of tokens that reach it. That times the block's share in the
    state that it adds to, since what the first layers write is most of what there is then. Raises UsageError as
    `quantize_tensors`, and for rules that do anything but skip.
    """
    if spec.method not in ("rtn", "gptq") or not all(rule.skip for rule in spec.rules):
        raise UsageError("losses at several widths are measured for rtn or gptq, with no rules but those that skip")
    if spec.calibration == "none":
        raise UsageError("losses need calibration data: give calibration 'qwen3' (built in), or a .txt or .jsonl file")
    tried = [replace(spec, rules=(), bits=bits) for bits in sorted(widths)]
    data = load_calibration(path, spec.calibration, samples=spec.samples, length=spec.length, seed=spec.seed)
    found: dict[str, list[Candidate]] = {}
    with Walk(path, data, device) as walk:
        wanted = plan(spec, walk.config)
        next(walk.ends())  # activations begin at the embedding
        for opened in walk.layers():
            own: dict[str, list[Candidate]] = {}
            for stage in walk.stages(opened, advance=True):
                seen = moments(stage.inputs()) if stage.inputs else None
                factors: dict[Any, Factor] = {}
                for module in (module for module in stage.modules if module in wanted):
                    if progress is not None:
                        progress(len(found) + len(own), len(wanted), module)
                    weight = opened.weight(module)
                    own[module] = [_candidate(weight, seen, each, factors, data.ids.numel()) for each in tried]
            for module, candidates in own.items():
                share = opened.shares[module.split(".")[3]]
                found[module] = [replace(each, loss=each.loss * share) for each in candidates]
    return found


def _candidate(weight: Tensor, seen: Moments | None, spec: Spec, factors: dict[Any, Factor], tokens: int) -> Candidate:
    made = round_matrix(weight, seen, spec, spec.method, factors)
    loss = 0.0
    if seen is not None and seen.hessian is not None:
        wrong, whole = (row_losses(each, seen.hessian).sum() for each in (made.dequantize() - weight, weight))
        loss = float(wrong / whole.clamp_min(1e-30)) * seen.tokens / tokens
    return Candidate(spec.bits, stored_bits(made) * weight.numel() / 8, weight.numel(), max(loss, 0.0))


def choose(
    candidates: Mapping[str, Sequence[Candidate]],
    *,
    nbytes: float | None = None,
    average: float | None = None,
    loss: float | None = None,
) -> Mix:
    """Bits for each module: the least loss within so many bytes, or bits of a weight on average (scales included), or
    the fewest bytes with at most this loss. Raises UsageError for none or several targets, one that no choice meets,
    and modules of one unit that were not measured at the same widths."""
    if sum(target is not None for target in (nbytes, average, loss)) != 1:
        raise UsageError("give one target: nbytes, average (bits of a weight), or loss")
    units = _units(candidates)
    weights = sum(unit[0].weights for unit in units.values())
    if average is not None:
        nbytes = average * weights / 8
    hulls = {name: _hull(unit) for name, unit in units.items()}
    place = dict.fromkeys(hulls, 0)
    size, lost = (sum(getattr(hull[0], field) for hull in hulls.values()) for field in ("nbytes", "loss"))
    if nbytes is not None and size > nbytes:
        least = f"{size:,.0f} bytes ({size * 8 / weights:.3f} bits of a weight)"
        raise UsageError(f"the widths that were measured take {least} at least, more than the target")
    steps = [(_gain(a, b), name, i + 1) for name, hull in hulls.items() for i, (a, b) in enumerate(pairwise(hull))]
    closed = set()
    for _, name, step in sorted(steps, key=lambda each: (-each[0], each[1], each[2])):
        if loss is not None and lost <= loss:
            break
        before, after = hulls[name][step - 1], hulls[name][step]
        if name in closed or (nbytes is not None and size + after.nbytes - before.nbytes > nbytes):
            closed.add(name)  # its later steps stand on this one
            continue
        place[name] = step
        size, lost = size + after.nbytes - before.nbytes, lost + after.loss - before.loss
    if loss is not None and lost > loss:
        raise UsageError(f"the widths that were measured lose {lost:.3g} at least, more than the target of {loss:.3g}")
    bits = {name: hulls[name][step].bits for name, step in place.items()}
    by_module = {module: bits[fused_name(f"{module}.weight")] for module in candidates}
    return Mix(by_module, _rules(bits), size, lost, size * 8 / weights)


def _units(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Candidate]]:
    """By our names of the parameters, each width's sums."""
    members: dict[str, list[Sequence[Candidate]]] = {}
    for module, own in candidates.items():
        members.setdefault(fused_name(f"{module}.weight"), []).append(sorted(own, key=lambda each: each.bits))
    units = {}
    for name, modules in members.items():
        if not modules[0] or len({tuple(each.bits for each in own) for own in modules}) != 1:
            raise UsageError(f"{name}: its parts were not measured at the same widths")
        units[name] = [
            Candidate(
                same[0].bits,
                sum(each.nbytes for each in same),
                sum(each.weights for each in same),
                sum(each.loss for each in same),
            )
            for same in zip(*modules, strict=True)
        ]
    return units


def _gain(before: Candidate, after: Candidate) -> float:
    """Loss saved per byte."""
    return (before.loss - after.loss) / (after.nbytes - before.nbytes)


def _hull(unit: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are best for some price of a byte, smallest first."""
    hull: list[Candidate] = []
    for each in sorted(unit, key=lambda each: (each.nbytes, each.loss)):
        if hull and each.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull


_PARTS = {
    "self_attn.qkv_proj.weight": r"self_attn\.[qkv]_proj",
    "mlp.gate_up_proj.weight": r"mlp\.(gate|up)_proj",
    "mlp.experts.gate_up_proj": r"mlp\.experts\.\d+\.(gate|up)_proj",
    "mlp.experts.down_proj": r"mlp\.experts\.\d+\.down_proj",
}
"""Our parameter of a layer → its official modules."""


def _rules(bits: Mapping[str, int]) -> tuple[Rule, ...]:
    """One for each kind of matrix and width."""
    layers: dict[tuple[str, int], list[str]] = {}
    for name, width in bits.items():
        _, layer, kind = name.split(".", 2)
        layers.setdefault((kind, width), []).append(layer)
    return tuple(
        Rule(rf"re:model\.layers\.({'|'.join(own)})\.{_PARTS.get(kind) or re.escape(kind[:-7])}", bits=width)
        for (kind, width), own in sorted(layers.items())
    )
