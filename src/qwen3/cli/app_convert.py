"""The flags of `qwen3 convert`. The work is in `qwen3.cli.convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = (
    "Write a model in another container, its numbers unchanged where that can hold them: gguf (one file for llama.cpp "
    "and its like), hf (a folder in the published layout; quantized weights are widened), onnx. Read back, compared "
    "with the original, then put in place. For fewer bits: qwen3 quantize."
)
EPILOG = "Example: qwen3 convert embedded --to gguf --out embedded.gguf. Guide: docs/cli.md"


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, tag, hub id or 'embedded'.")],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="gguf, hf or onnx.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="File (gguf) or folder (hf, onnx).")],
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="NAME", help="bf16, f16, f32; of onnx also int8, int4. None: as stored."),
    ] = None,
    split_size: Annotated[
        str | None, typer.Option("--split-size", metavar="SIZE", help="Most bytes of weights in a file, as 4GB.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")] = False,
) -> int:
    from qwen3.cli import convert as verb

    return verb.convert(model, to, out, type, split_size, force, as_json)
