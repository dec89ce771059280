"""`qwen3 convert`: a model in another container."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3.checkpoint import resolve
from qwen3.cli.console import note, out_json, size, warn
from qwen3.cli.console import out as say
from qwen3.cli.quantize import Line, parse_size
from qwen3.errors import UsageError

TARGETS = ("gguf", "hf", "onnx")
_LONG = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_ONNX = {"f32": "fp32", "f16": "fp16", "int8": "int8", "int4": "int4"}
_TYPES = {"gguf": tuple(_LONG), "hf": tuple(_LONG), "onnx": tuple(_ONNX)}


def convert(
    model: str, to: str, out: Path, type: str | None, split_size: str | None, force: bool, as_json: bool,
    onnx: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """onnx: keywords of its export that were given, None for the others."""
    given = {name: value for name, value in (onnx or {}).items() if value is not None}
    if to not in TARGETS:
        raise UsageError(f"--to {to} is none of {', '.join(TARGETS)}")
    kind = None if type is None else type.lower()
    if kind is not None and kind not in _TYPES[to]:
        fewer = "" if to == "onnx" else f"; for fewer bits: qwen3 quantize {model} …"
        raise UsageError(f"--type {type} is none of {', '.join(_TYPES[to])}{fewer}")
    if given and to != "onnx":
        raise UsageError(f"{next(iter(given)).replace('_', '-')}: an option of --to onnx, not of {to}; leave it out")
    limit = None if split_size is None else parse_size(split_size, "--split-size")
    source = resolve(model)
    note(f"{source.describe()} to {out}")
    with Line() as line:
        if to == "onnx":
            result = _onnx(source.path, out, kind, limit, force, line, given)
        else:
            result = {"gguf": _gguf, "hf": _hf}[to](source.path, out, kind, limit, force, line)
    result = {"model": model, "to": to, **result}
    for warning in result["warnings"]:
        warn(warning)
    if as_json:
        out_json(result)
        return 0
    say(f"size       {size(result['bytes'])}, {result['type']}")
    if "agreement" in result:
        found = result["agreement"]
        say(f"agreement  KL {found['kl']:.2g}, same next token {100 * found['top1']:.1f} % of {found['tokens']}")
    if to == "onnx":
        if (off := result["logits_off"]) is not None:
            say(f"checked    onnxruntime's logits on a prompt are {off:.1g} of their spread from ours")
        say(f"memory     {size(result['kv_bytes'])} of cache per token, up to {result['context']} tokens")
        say("Run it:    see docs/onnx.md, for onnxruntime and onnxruntime-genai")
    else:
        say(f"Run it:    {shlex.join(['qwen3', 'run', result['files'][0]])}")
    return 0


def _gguf(path: Path, out: Path, kind: str | None, limit: int | None, force: bool, line: Line) -> dict[str, Any]:
    from qwen3.quantize.gguf.write import write_gguf

    report = write_gguf(path, out, kind or "stored", split_size=limit, force=force, progress=line.show).to_dict()
    return {**report, "type": ", ".join(f"{count} {kind}" for kind, count in report["kinds"].items())}


def _hf(path: Path, out: Path, kind: str | None, limit: int | None, force: bool, line: Line) -> dict[str, Any]:
    from qwen3.quantize.plain import write_plain

    dtype = None if kind is None else _LONG[kind]
    found = write_plain(path, out, dtype, max_shard_bytes=limit or 5e9, force=force, progress=line.show)
    warnings = []
    if found.rounded:
        name, far = max(found.rounded.items(), key=lambda item: item[1])
        warnings.append(f"{len(found.rounded)} tensors are rounded to {found.dtype}, most {name} (by {far:.1g})")
    return {
        "files": [str(out)], "type": found.dtype, "bytes": found.nbytes, "rounded": found.rounded,
        "agreement": asdict(found.agreement), "warnings": warnings,
    }  # fmt: skip


def _onnx(
    path: Path, out: Path, kind: str | None, limit: int | None, force: bool, line: Line, given: Mapping[str, Any]
) -> dict[str, Any]:
    from qwen3.quantize.onnx.export import export

    if limit is not None:
        raise UsageError("--split-size: an ONNX model keeps its weights in one file; leave it out")
    report = export(path, out, weights=_ONNX[kind or "f32"], force=force, progress=line.show, **given)
    return {
        "files": [str(report.folder)], "type": report.weights, "warnings": list(report.warnings),
        "bytes": sum(count for count, _ in report.files.values()), "logits_off": report.logits_off,
        "kept": report.kept, "rounded": report.rounded, "kv_bytes": report.kv_bytes, "context": report.context,
    }  # fmt: skip
