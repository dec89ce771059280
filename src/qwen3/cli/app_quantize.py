"""The flags of `qwen3 quantize`. The work is in `qwen3.cli.quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3.cli.flags import Json

HELP = (
    "Write a model in fewer bits: read back, compared with the original, then put in place. METHOD: rtn (round to "
    "nearest), gptq, awq, w8a8 (SmoothQuant), fp8, or gguf with --type. Calibration data comes with the program; "
    "--dry-run shows what each module gets, and the size."
)
EPILOG = "Example: qwen3 quantize embedded gptq --out ./embedded-4bit. Guide: docs/quantization.md"


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, tag, hub id or 'embedded'.")],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="rtn, gptq, awq, w8a8, fp8 or gguf.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="The folder to write; of gguf the file.")
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", metavar="N", help="2, 3, 4 (usual), 5, 6 or 8.")] = None,
    group: Annotated[
        int | None, typer.Option("--group", metavar="N", help="Columns to a scale: 32, 64, 128 (usual); -1: a row.")
    ] = None,
    asym: Annotated[bool, typer.Option("--asym", help="With zero points (awq has them anyway, unless --sym).")] = False,
    sym: Annotated[bool, typer.Option("--sym", help="Without zero points.")] = False,
    act_order: Annotated[
        bool | None,
        typer.Option("--act-order/--no-act-order", help="gptq: columns with large activations first (usual)."),
    ] = None,
    static_groups: Annotated[
        bool | None,
        typer.Option("--static-groups/--no-static-groups", help="gptq: groups side by side, no order stored (usual)."),
    ] = None,
    fp8_scale: Annotated[
        str | None, typer.Option("--fp8-scale", metavar="NAME", help="fp8: block (128 × 128, usual), channel, tensor.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="gptq, gptq_v2, awq, compressed-tensors, fp8 or mlx."),
    ] = None,
    type: Annotated[str | None, typer.Option("--type", metavar="NAME", help="gguf: q8_0, q4_0, q4_k_m …")] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="gguf: importances from this file.")
    ] = None,
    save_imatrix: Annotated[
        Path | None, typer.Option("--save-imatrix", metavar="FILE", help="gguf: keep what --calibration collects.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="gguf: no other type for widths that do not fit.")] = False,
    split_size: Annotated[
        str | None, typer.Option("--split-size", metavar="SIZE", help="gguf: most bytes of weights in a file, as 4GB.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", metavar="FILE|NAME", help="qwen3 (built in), or .txt or .jsonl.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Sequences of it (128).")] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", metavar="N", help="Tokens in each (512).")
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule", metavar="RULE", help="'*down_proj=bits:8,group:32' or '*layers.0.*=keep'; may be repeated."
        ),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option("--target-size", metavar="SIZE", help="Bits by module so that it has e.g. 300MB.")
    ] = None,
    target_bits: Annotated[
        float | None, typer.Option("--target-bits", metavar="X", help="Likewise, so many per quantized weight.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the calibration data (0).")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda …; none: the best there is.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Measure what it cost (qwen3 diff); a page there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and end.")] = False,
    as_json: Json = False,
) -> int:
    given = {name: value for name, value in locals().items() if value is not None}
    from qwen3.cli import app_diff
    from qwen3.cli import quantize as verb

    app_diff.check_place("--report", page := given.pop("report", None))
    code = verb.quantize(verb.Wish(**given))
    if page is not None and out is not None and not dry_run:
        app_diff.report(model, out, page)
    return code
