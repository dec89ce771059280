"""`qwen3 quantize`: a model in fewer bits. The work is in `qwen3.quantize`."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3 import family
from qwen3.checkpoint import Resolved, read_config, resolve
from qwen3.cli.console import colours, note, out, out_json, size, table, warn
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.quantize.checkpoint import meet, outlined, quantize_checkpoint
from qwen3.quantize.folder import check_target
from qwen3.quantize.outline import Outline
from qwen3.quantize.spec import METHODS, Rule, Spec
from qwen3.quantize.types import Float8, Grouped, Rounded

QUESTION = '"What is 27 * 14?"'
WORST = 5  # matrices that the summary names
_RULE: dict[str, Callable[[str], Any]] = {
    "bits": int, "group": int, "method": str, "symmetric": {"true": True, "false": False}.__getitem__,
}  # fmt: skip
_UNITS = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class Wish:
    """What the command line says; None: as usual."""

    model: str
    method: str
    out: Path | None = None
    bits: int | None = None
    group: int | None = None
    asym: bool = False
    sym: bool = False
    act_order: bool | None = None
    static_groups: bool | None = None
    fp8_scale: str | None = None
    format: str | None = None
    type: str | None = None
    imatrix: Path | None = None
    save_imatrix: Path | None = None
    strict: bool = False
    split_size: str | None = None
    calibration: str | None = None
    samples: int | None = None
    sequence_length: int | None = None
    rules: Sequence[str] = ()
    target_size: str | None = None
    target_bits: float | None = None
    seed: int | None = None
    device: str | None = None
    force: bool = False
    dry_run: bool = False
    as_json: bool = False

    def spec(self) -> Spec:
        """Raises UsageError for flags that contradict each other or do not belong to the method."""
        if self.method not in METHODS:
            raise UsageError(f"METHOD {self.method!r} is none of {', '.join((*METHODS, 'gguf'))}")
        if self.asym and self.sym:
            raise UsageError("--asym and --sym contradict each other; give one")
        whole = {"--bits": self.bits, "--group": self.group, "--asym": self.asym or None, "--sym": self.sym or None}
        others = {
            "--type": self.type, "--imatrix": self.imatrix, "--save-imatrix": self.save_imatrix,
            "--strict": self.strict or None, "--split-size": self.split_size,
        }  # fmt: skip
        for name, value in {**whole, **others}.items():
            if value is not None and (name not in whole or self.method in ("w8a8", "fp8")):
                raise UsageError(f"{name} does not go with {self.method}")
        given: dict[str, Any] = {
            "bits": self.bits, "group": self.group, "calibration": self.calibration, "samples": self.samples,
            "length": self.sequence_length, "seed": self.seed, "fp8_scale": self.fp8_scale,
            "symmetric": not self.asym if self.asym or self.sym else None,
            "act_order": self.act_order, "static_groups": self.static_groups,
        }  # fmt: skip
        rules = tuple(map(parse_rule, self.rules))
        methods = {self.method, *(rule.method for rule in rules)}
        for name, value, method in (
            ("--fp8-scale", self.fp8_scale, "fp8"), ("--act-order", self.act_order, "gptq"),
            ("--static-groups", self.static_groups, "gptq"),
        ):  # fmt: skip
            if value is not None and method not in methods:
                raise UsageError(f"{name} does not go with {self.method}")
        chosen = {name: value for name, value in given.items() if value is not None}
        if self.format == "mlx" and self.group is None:
            chosen["group"] = 64  # as its own converter has it
        spec = Spec(self.method, rules=rules, **chosen)
        if spec.calibration == "none" and {"samples", "length", "seed"} & chosen.keys():
            raise UsageError(f"--samples, --sequence-length and --seed are of --calibration, which {self.method} lacks")
        return spec


def parse_rule(text: str) -> Rule:
    """'PATTERN=bits:8,group:32' or 'PATTERN=keep'. Raises UsageError that shows the form."""
    pattern, equals, what = text.rpartition("=")
    if not equals or not pattern or not what:
        raise UsageError(f"--rule {text!r} must be PATTERN=keep or PATTERN=bits:8,group:32 (also method, symmetric)")
    if what == "keep":
        return Rule(pattern, skip=True)
    changes: dict[str, Any] = {}
    for part in what.split(","):
        name, _, value = part.partition(":")
        try:
            changes[name.strip()] = _RULE[name.strip()](value.strip())
        except (KeyError, ValueError):
            known = ", ".join(f"{name}:…" for name in _RULE)
            raise UsageError(f"--rule {text!r}: {part!r} is not understood; take keep, or {known}") from None
    return Rule(pattern, **changes)


def parse_size(text: str, flag: str = "--target-size") -> int:
    """'300MB', '1.5 GiB' → bytes."""
    hit = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text.strip().lower())
    try:
        return int(float(hit[1]) * _UNITS[hit[2]])  # type: ignore[index]
    except (TypeError, ValueError, KeyError):
        raise UsageError(f"{flag} {text!r} is no size; write it as 300MB or 1.5GB") from None


def quantize(wish: Wish) -> int:
    """Writes the checkpoint and prints what came of it, or the result object."""
    if wish.method == "gguf":
        from qwen3.cli import quantize_gguf

        return quantize_gguf.quantize(wish)
    spec = wish.spec()
    if wish.out is None and not wish.dry_run:
        raise UsageError("say where to write it: --out FOLDER (or --dry-run)")
    config, source = find(wish)
    if source is not None and wish.out is not None:
        check_target(wish.out, source, wish.force)
    todo, line = outlined(spec, config, wish.format), Line()
    if wish.target_size is not None or wish.target_bits is not None:
        with line:
            spec = _mixed(wish, spec, todo, source, line)
        todo = outlined(spec, config, todo.format.name)
    if wish.dry_run:
        return _show_plan(wish, spec, todo)
    assert source is not None
    assert wish.out is not None
    note(f"{source.describe()} to {wish.out}: {_label(spec)}, in the format {todo.format.name}")
    line.started = time.monotonic()
    with line:
        made = quantize_checkpoint(
            wish.model, wish.out, spec, format=todo.format.name, force=wish.force, device=wish.device,
            progress=line.show,
        )  # fmt: skip
    for warning in made.report.warnings:
        warn(warning)
    result = made.to_dict() | {"run": f"{shlex.join(['qwen3', 'run', str(wish.out)])} {QUESTION}"}
    if wish.as_json:
        out_json(result)
    else:
        _show(result)
    return 0


def find(wish: Wish) -> tuple[ModelConfig, Resolved | None]:
    """A published model need not be here to be planned."""
    member = family.find(wish.model) if wish.dry_run else None
    try:
        source = resolve(wish.model, offline=True if member else None)
    except ModelNotFoundError:
        if member is None:
            raise
        return member.config, None
    return read_config(source.path), source


def _mixed(wish: Wish, spec: Spec, todo: Outline, source: Resolved | None, line: Line) -> Spec:
    if source is None:
        raise UsageError(f"{wish.model} is not on this disk: its bits by module can only be planned with its weights")
    if wish.bits is not None or (wish.target_size is not None and wish.target_bits is not None):
        raise UsageError("give one of --bits, --target-size and --target-bits")
    nbytes = None if wish.target_size is None else parse_size(wish.target_size)
    note("measuring what each matrix loses with how many bits")
    return meet(wish.model, spec, todo, nbytes=nbytes, average=wish.target_bits, device=wish.device, progress=line.show)


class Line:
    """Progress on stderr: one line that is written over on a terminal, else one every ten seconds."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.live = sys.stderr.isatty() and colours(sys.stderr)
        self.every = 0.2 if self.live else 10.0

    def show(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last, passed = now, now - self.started
        left = f", {clock(passed / share - passed)} left" if share > 0.02 else ""
        text = f"{100 * share:.0f} %  {clock(passed)}{left}  {what}"
        if self.live:
            print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)
        else:
            note(text)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """0:07, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _label(spec: Spec) -> str:
    if spec.method == "fp8":
        return f"fp8, a scale per {spec.fp8_scale}"
    if spec.method == "w8a8":
        return "w8a8"
    group = "a row" if spec.group == -1 else spec.group
    return f"{spec.method}, {spec.bits} bits, groups of {group}{'' if spec.symmetric else ', with zero points'}"


def _kind(rounded: Rounded) -> str:
    if isinstance(rounded, Float8):
        return f"FP8, {rounded.scale.numel():,} scales"
    if not isinstance(rounded, Grouped):
        return "int8, a scale per row"
    zeros, order = "" if rounded.zero is None else ", zero points", "" if rounded.order is None else ", ordered"
    return f"{rounded.bits} bits, groups of {rounded.group}{zeros}{order}"


def _show_plan(wish: Wish, spec: Spec, todo: Outline) -> int:
    before = todo.config.weight_bytes()
    kinds = {module: _kind(rounded) for module, rounded in todo.planned.items()}
    if wish.as_json:
        modules = {module: {"kind": kinds[module], "bytes": todo.sizes[module]} for module in kinds}
        out_json({
            "model": wish.model, "spec": dataclasses.asdict(spec), "format": todo.format.name, "modules": modules,
            "kept": list(todo.kept), "bytes_before": before, "bytes_after": todo.nbytes,
            "bits_per_weight": todo.bits_per_weight,
        })  # fmt: skip
        return 0
    rows: dict[tuple[str, str], list[int]] = {}
    for module, kind in kinds.items():
        rows.setdefault((re.sub(r"\.\d+\.", ".*.", module), kind), []).append(todo.sizes[module])
    shown = [[f"{len(each):,}", name, kind, size(sum(each))] for (name, kind), each in rows.items()]
    kept: dict[str, int] = {}
    for module in todo.kept:
        name = re.sub(r"\.\d+\.", ".*.", module)
        kept[name] = kept.get(name, 0) + 1
    shown += [[f"{count:,}", name, f"kept in {todo.config.dtype}", ""] for name, count in kept.items()]
    out(table(shown, ["", "MODULE", "GETS", "SIZE"]))
    out(_sizes(before, todo.nbytes, todo.bits_per_weight) + f", in the format {todo.format.name}")
    return 0


def _sizes(before: int, after: int, bits: float) -> str:
    return f"{size(before)} → {size(after)} ({100 * after / before:.0f} %), {bits:.2f} bits per weight"


def agreement(found: dict[str, Any]) -> str:
    same = f"the same next token after {100 * found['top1']:.1f} % of {found['tokens']} tokens"
    return f"agreement  KL {found['kl']:.4f}, {same}"


def _show(result: dict[str, Any]) -> None:
    out(f"size       {_sizes(result['bytes_before'], result['bytes_after'], result['bits_per_weight'])}")
    out(agreement(result["agreement"]))
    if result["calibration"]:
        told = result["calibration"]
        out(f"calibrated {told['name']}: {told['tokens']:,} tokens of {told['documents']:,} documents")
    out(f"worst      {_worst(result['matrices'])}")
    for block, counts in list(result["experts"].items())[:1]:
        every = sorted(count for each in result["experts"].values() for count in each)
        layers = f"{len(result['experts'])} layers × {len(counts)}" if len(result["experts"]) > 1 else block
        out(f"experts    {layers}: {every[0]:,} to {every[-1]:,} tokens each, median {every[len(every) // 2]:,}")
    out(f"time       {clock(result['seconds'])}")
    out(f"Run it:    {result['run']}")


def _worst(matrices: list[dict[str, Any]]) -> str:
    def error(matrix: dict[str, Any]) -> float:
        return float(matrix["weight_error"] if matrix["error"] is None else matrix["error"])

    found = sorted(matrices, key=error, reverse=True)[:WORST]
    of = "outputs" if found and found[0]["error"] is not None else "weights"
    named = ", ".join(f"{m['module'].removeprefix('model.')} {100 * error(m):.1f} %" for m in found)
    return f"{named} (error of their {of})"
