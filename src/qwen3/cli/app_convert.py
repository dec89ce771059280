"""The flags of `qwen3 convert`. The work is in `qwen3.cli.convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3.cli.flags import Json

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
    activations: Annotated[
        str | None, typer.Option("--activations", metavar="TYPE", help="onnx: fp32 or fp16, to compute in.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", metavar="N", help="onnx: columns to a scale of int8, int4 [32].")
    ] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--zero-points", help="onnx: int8, int4 around the middle, or not.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option("--embedding", metavar="TYPE", help="onnx: int8 or kept, beside int8, int4.")
    ] = None,
    accuracy_level: Annotated[
        int | None, typer.Option("--accuracy-level", metavar="N", help="onnx: 4 is activations in int8, faster [0].")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", metavar="N", help="onnx: 18 to 23 [21].")] = None,
    fused: Annotated[
        bool | None, typer.Option("--fused/--plain", help="onnx: onnxruntime's operators, or standard ones.")
    ] = None,
    last_only: Annotated[
        bool | None, typer.Option("--last-only", help="onnx: logits of the last token only: less memory.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="TOKENS", help="onnx: longest sequence [the model's].")
    ] = None,
    as_json: Json = False,
) -> int:
    from qwen3.cli import convert as verb

    options = {
        "activations": activations, "block_size": block_size, "symmetric": symmetric, "embedding": embedding,
        "accuracy_level": accuracy_level, "opset": opset, "fused": fused, "last_only": last_only, "context": context,
    }  # fmt: skip
    return verb.convert(model, to, out, type, split_size, force, as_json, options)
