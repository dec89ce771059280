"""A checkpoint and a `Spec` → its tensors, rounded, one after the other; with a report on what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.awq import round_awq
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.collect import Moments, moments
from qwen3.quantize.fold import fold
from qwen3.quantize.fp8 import round_fp8
from qwen3.quantize.gptq import Factor, factor, round_gptq, row_losses
from qwen3.quantize.layers import OpenLayer, Stage, Walk
from qwen3.quantize.rtn import round_rtn
from qwen3.quantize.smooth import round_int8
from qwen3.quantize.spec import ENDS, GROUPED, Spec, plan
from qwen3.quantize.types import Float8, Grouped, Int8, Rounded

Progress = Callable[[int, int, str], None]
"""(matrices done, of how many, the module or step that comes now)"""


@dataclass(frozen=True)
class Matrix:
    """What became of one. bits: of a weight in memory, scales included. weight_error: ‖W - Ŵ‖ / ‖W‖. error, of the
    outputs, ‖(W - Ŵ) X‖ / ‖W X‖, and loss, ‖(W - Ŵ) X‖² / tokens, are None without calibration data, whose tokens that
    reached the matrix are counted. W, X: as they are when it is its turn, after rounding what comes before."""

    module: str
    method: str
    bits: float
    weight_error: float
    error: float | None
    loss: float | None
    tokens: int


@dataclass
class Report:
    """Filled while `quantize_tensors` runs. calibration: as `Calibration.to_dict`. experts: of each sparse layer's
    block, the tokens that reached each expert. warnings: one line each."""

    matrices: list[Matrix] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    experts: dict[str, list[int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantize_tensors(
    path: str | Path,
    spec: Spec,
    *,
    report: Report | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, Rounded | Tensor]]:
    """The checkpoint at `path` (a folder or GGUF file): (official tensor name, what it became), layer by layer.

    Embedding first, then each layer's matrices and norms, then last norm and head. What is kept is a Tensor in the
    config's dtype; AWQ and W8A8 change norms (see `fold`). All are on the CPU. Peak memory: embedding, one layer in
    float32, three times the activations (4 bytes · samples · length · hidden size), and the largest Hessian thrice.
    Arguments are checked when the first tensor is asked for. Raises UsageError for rules and groups that do not fit,
    and with the name of a matrix that cannot be rounded; CorruptFileError naming a tensor with NaN or Inf.
    """
    begun = time.monotonic()
    report = Report() if report is None else report
    data = None
    if spec.calibration != "none":
        data = load_calibration(path, spec.calibration, samples=spec.samples, length=spec.length, seed=spec.seed)
        report.calibration = data.to_dict()
        if len(data.ids) < spec.samples:
            sequences, length = data.ids.shape
            report.warnings.append(f"{data.name} has only {sequences} sequences of {length} tokens, not {spec.samples}")
    with Walk(path, data, device) as walk:
        wanted = plan(spec, walk.config)
        if walk.source.compressed:
            kinds = ", ".join(walk.source.compressed)
            report.warnings.append(f"{path} is quantized already ({kinds}): rounding twice costs quality twice")
        rounder = _Rounder(wanted, report, progress, spec.expert_tokens)
        ends = walk.ends()
        yield next(rounder.ends(ends))
        for opened in walk.layers():
            yield from rounder.layer(walk, opened)
        yield from rounder.ends(ends)
    report.seconds = time.monotonic() - begun


class _Rounder:
    def __init__(self, wanted: Mapping[str, Spec], report: Report, progress: Progress | None, least: int) -> None:
        self.wanted, self.report, self.progress, self.least = wanted, report, progress, least

    def ends(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Rounded | Tensor]]:
        """Embedding and head, where a rule names them: rounded to nearest whatever the method, since no Hessian of
        theirs is taken."""
        for name, tensor in tensors:
            module = name.removesuffix(".weight")
            if module in ENDS and module in self.wanted:
                yield name, self.matrix(module, tensor.float(), None, {})
            else:
                yield name, tensor

    def layer(self, walk: Walk, opened: OpenLayer) -> Iterator[tuple[str, Rounded | Tensor]]:
        """All its tensors, matrices first."""
        left = dict(opened.views)
        methods = {
            self.wanted[module].method for name in left if (module := name.removesuffix(".weight")) in self.wanted
        }
        if methods & {"awq", "w8a8"}:
            self._tell(f"factors of layer {opened.index}")
            fold(opened, list(walk.stages(opened, advance=False)), self.wanted, walk.config, walk.dtype)
        for stage in walk.stages(opened, advance=True):
            for module, made in self.stage(opened, stage):
                del left[f"{module}.weight"]
                yield f"{module}.weight", made
        self.coverage(opened)
        yield from ((name, view.to("cpu", walk.dtype, copy=True)) for name, view in left.items())

    def stage(self, opened: OpenLayer, stage: Stage) -> Iterator[tuple[str, Rounded]]:
        """Rounds the stage's matrices and writes them into the layer."""
        modules = [module for module in stage.modules if module in self.wanted]
        seen = moments(stage.inputs()) if stage.inputs and (modules or stage.expert is not None) else None
        if stage.expert is not None and stage.inputs and stage.modules[0].endswith("gate_proj"):
            self.report.experts.setdefault(f"{opened.prefix}mlp", []).append(seen.tokens if seen else 0)
        factors: dict[Any, Factor] = {}
        for module in modules:
            few = stage.expert is not None and (seen.tokens if seen else 0) < self.least
            weight = opened.weight(module)
            made = self.matrix(module, weight, seen, factors, few=few)
            weight.copy_(made.dequantize())
            yield module, _on_cpu(made)

    def matrix(
        self, module: str, weight: Tensor, seen: Moments | None, factors: dict[Any, Factor], *, few: bool = False
    ) -> Rounded:
        self._tell(module)
        spec = self.wanted[module]
        method = "rtn" if spec.method in GROUPED and (few or seen is None) else spec.method
        try:
            made = round_matrix(weight, seen, spec, method, factors)
        except UsageError as problem:
            raise UsageError(f"{module}: {problem}") from None
        delta = made.dequantize() - weight
        error = loss = None
        if seen is not None and seen.hessian is not None:
            loss, whole = (float(row_losses(each, seen.hessian).sum()) for each in (delta, weight))
            error = (max(loss, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
        size = float(weight.norm())
        relative = float(delta.norm()) / size if size > 0 else 0.0
        tokens = seen.tokens if seen else 0
        self.report.matrices.append(Matrix(module, method, stored_bits(made), relative, error, loss, tokens))
        return made

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(len(self.report.matrices), len(self.wanted), what)

    def coverage(self, opened: OpenLayer) -> None:
        """A warning for experts that few tokens reached."""
        least, block = self.least, f"{opened.prefix}mlp"
        counts = self.report.experts.get(block, [])
        few = [count for count in counts if count < least]
        if few:
            expert = counts.index(min(few))
            self.report.warnings.append(
                f"{block}: {len(few)} of {len(counts)} experts saw fewer than {least} calibration tokens (fewest: "
                f"expert {expert}, {min(few)}) and were rounded to nearest: take more samples, or other data"
            )


def round_matrix(weight: Tensor, seen: Moments | None, spec: Spec, method: str, factors: dict[Any, Factor]) -> Rounded:
    """weight [N, K], rounded as `spec` says, but by `method`. factors: of the Hessian in `seen`, filled as needed; one
    dict for the matrices that share it."""
    if method == "fp8":
        return round_fp8(weight, spec.fp8_scale)
    if method == "w8a8":
        return round_int8(weight)
    group, symmetric = spec.group_of(weight.shape[1]), bool(spec.symmetric)
    if method == "rtn" or seen is None or seen.hessian is None:
        return round_rtn(weight, spec.bits, group, symmetric, search=spec.search)
    if method == "awq":
        return round_awq(weight, seen.hessian, spec)
    how = group, spec.act_order, spec.static_groups, spec.damp
    if how not in factors:
        factors[how] = factor(
            seen.hessian, group, act_order=spec.act_order, static_groups=spec.static_groups, damp=spec.damp
        )
    return round_gptq(weight, factors[how], spec.bits, group, symmetric, search=spec.search)


def stored_bits(made: Rounded) -> float:
    """Bits of a weight, scales, zero points and order included."""
    if isinstance(made, Grouped):
        zeros = 0 if made.zero is None else made.zero.numel() * made.bits
        order = 0 if made.order is None else made.order.numel() * 32
        return made.bits + (made.scale.numel() * 16 + zeros + order) / made.q.numel()
    return 8 + made.scale.numel() * 32 / made.data.numel()


def _on_cpu(made: Rounded) -> Rounded:
    if made.scale.device.type == "cpu":
        return made
    if isinstance(made, Grouped):
        zero, order = (None if t is None else t.cpu() for t in (made.zero, made.order))
        return Grouped(made.q.cpu(), made.scale.cpu(), zero, made.bits, made.group, order)
    return (Float8 if isinstance(made, Float8) else Int8)(made.data.cpu(), made.scale.cpu())
