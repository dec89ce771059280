"""`qwen3 quantize MODEL gguf`."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from qwen3.checkpoint import Resolved, read_config
from qwen3.cli.console import note, out, out_json, size, warn
from qwen3.cli.quantize import QUESTION, WORST, Line, Wish, agreement, clock, find, parse_size
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.gguf.recipe import RECIPES
from qwen3.quantize.gguf.write import plan_gguf, write_gguf
from qwen3.quantize.imatrix import Imatrix, collect_imatrix, read_imatrix

_OWN = (
    "model", "method", "out", "type", "imatrix", "save_imatrix", "calibration", "samples", "sequence_length", "seed",
    "rules", "strict", "split_size", "force", "dry_run", "as_json",
)  # fmt: skip


def quantize(wish: Wish) -> int:
    """Raises UsageError for flags of other methods, which would change nothing."""
    for field in dataclasses.fields(wish):
        if field.name not in _OWN and getattr(wish, field.name) != field.default:
            raise UsageError(
                f"--{field.name.replace('_', '-')} does not go with gguf: --type says all, --rule the rest"
            )
    if wish.type is None:
        raise UsageError(f"say which type: --type q4_k_m (or {', '.join(RECIPES)})")
    if wish.out is None and not wish.dry_run:
        raise UsageError("say where to write it: --out FILE.gguf")
    if wish.imatrix is not None and wish.calibration is not None:
        raise UsageError("--imatrix and --calibration contradict each other; give one")
    if wish.save_imatrix is not None and wish.calibration is None:
        raise UsageError("--save-imatrix keeps what --calibration collects; give that too (--calibration qwen3)")
    if wish.save_imatrix is not None and not wish.save_imatrix.resolve().parent.is_dir():
        raise UsageError(f"--save-imatrix {wish.save_imatrix}: there is no such folder to put it in")
    limit = None
    if wish.split_size is not None:
        limit = parse_size(wish.split_size, "--split-size")
    config, source = find(wish)
    if wish.dry_run:
        return _show_plan(wish, config)
    assert wish.out is not None
    assert source is not None
    line = Line()
    note(f"{source.describe()} to {wish.out}: {wish.type}")
    with line:
        importance = _importance(wish, source, line)
        line.started = line.last
        report = write_gguf(
            source.path, wish.out, wish.type, imatrix=importance, rules=tuple(wish.rules), strict=wish.strict,
            split_size=limit, force=wish.force, progress=line.show,
        )  # fmt: skip
    result = {"model": wish.model, **report.to_dict()}
    for warning in report.warnings:
        warn(warning)
    if wish.as_json:
        out_json(result)
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in result["kinds"].items())
    out(f"size       {size(report.nbytes)}, {report.bits_per_weight:.2f} bits per weight: {kinds}")
    out(agreement(result["agreement"]))
    _show_fallbacks(result["fallbacks"])
    out(f"time       {clock(report.seconds)}")
    out(f"Run it:    {shlex.join(['qwen3', 'run', str(report.files[0])])} {QUESTION}")
    return 0


def _importance(wish: Wish, source: Resolved, line: Line) -> Imatrix | None:
    if wish.imatrix is not None:
        return read_imatrix(wish.imatrix, read_config(source.path))
    if wish.calibration is None:
        if wish.samples is not None or wish.sequence_length is not None or wish.seed is not None:
            raise UsageError("--samples, --sequence-length and --seed are of --calibration, which is not given")
        return None
    data = load_calibration(
        source.path, wish.calibration, samples=wish.samples or 128, length=wish.sequence_length or 512,
        seed=wish.seed or 0,
    )  # fmt: skip
    note(f"importance from {data}")
    found = collect_imatrix(source.path, data, lambda done, of: line.show("collecting importance", done / of))
    if wish.save_imatrix is not None:
        found.save(wish.save_imatrix)
    return found


def _show_plan(wish: Wish, config: ModelConfig) -> int:
    guided = wish.imatrix is not None or wish.calibration is not None
    plan = plan_gguf(config, str(wish.type), rules=tuple(wish.rules), strict=wish.strict, guided=guided)
    nbytes = sum(tensor.nbytes for tensor in plan)
    kinds = {kind: sum(tensor.kind == kind for tensor in plan) for kind in sorted({tensor.kind for tensor in plan})}
    fallbacks = {tensor.name: f"{tensor.wanted} -> {tensor.kind}" for tensor in plan if tensor.wanted}
    if wish.as_json:
        tensors: dict[str, Any] = {t.name: {"type": t.kind, "shape": t.shape, "bytes": t.nbytes} for t in plan}
        out_json({"model": wish.model, "type": wish.type, "bytes": nbytes, "kinds": kinds, "fallbacks": fallbacks,
                  "tensors": tensors})  # fmt: skip
        return 0
    for tensor in plan:
        out(f"{tensor.kind:8} {tensor.name}  {' x '.join(map(str, tensor.shape))}")
    _show_fallbacks(fallbacks)
    out(f"size       {size(nbytes)}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    return 0


def _show_fallbacks(fallbacks: dict[str, str]) -> None:
    for name, change in list(fallbacks.items())[:WORST]:
        out(f"fallback   {name}: {change}, since its width is no multiple of 256")
    if len(fallbacks) > WORST:
        out(f"           and {len(fallbacks) - WORST} more (all with --json); --strict refuses them")
