"""A checkpoint becomes a folder that onnxruntime and onnxruntime-genai run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qwen3 import __version__
from qwen3.checkpoint import read_config, resolve
from qwen3.checkpoint.journal import staging
from qwen3.checkpoint.save import measure, put_in_place
from qwen3.checkpoint.source import Source, open_source
from qwen3.errors import UsageError
from qwen3.quantize.compare import prompts
from qwen3.quantize.folder import check_target
from qwen3.quantize.onnx.check import check
from qwen3.quantize.onnx.genai import write_sidecars
from qwen3.quantize.onnx.graph import DATA, MODEL, OPSETS, Graph, onnx_library
from qwen3.quantize.onnx.network import Network
from qwen3.quantize.onnx.operands import Operands
from qwen3.quantize.onnx.weights import BITS, Layout, Weights

WEIGHTS = ("fp32", "fp16", "int8", "int4")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
_PROMPT = 16  # tokens of the check
_LOSS = {torch.float32: 1e-3, torch.float16: 0.05}
_LOSS_INT8 = 0.7
"""How far logits may be from ours, by what is computed in (unrelated ones are 1.4 away). With int8 activations a token
near a router's border may take another expert."""


@dataclass(frozen=True)
class Report:
    """files: name → (bytes, sha256). kept: matrices that have the numbers of the checkpoint's own groups; rounded:
    those that were rounded here. logits_off: how far onnxruntime's logits on a prompt were from those of the engine's
    layers, as a share of their spread; None: not checked. kv_bytes: a token's share of the cache. warnings: what is
    doubtful."""

    folder: Path
    files: dict[str, tuple[int, str]]
    weights: str
    fused: bool
    kept: int
    rounded: int
    logits_off: float | None
    kv_bytes: int
    context: int
    seconds: float
    warnings: tuple[str, ...]


def export(
    path: str | Path,
    out: str | Path,
    *,
    weights: str = "fp32",
    activations: str | None = None,
    block_size: int = 32,
    symmetric: bool = True,
    embedding: str = "int8",
    accuracy_level: int = 0,
    opset: int = 21,
    fused: bool = True,
    last_only: bool = False,
    context: int | None = None,
    force: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Report:
    """Writes model.onnx, model.onnx.data, genai_config.json, config.json and the tokenizer's files to the folder `out`.

    path: a checkpoint in any format that is read. weights: of the projections; "int8" and "int4" in groups of
    block_size columns (16, 32, 64, 128 or 256), symmetric or with zeros of their own. A matrix that the checkpoint has
    in such groups already (GPTQ, AWQ, Q4_0, …) keeps its numbers and its groups. activations: "fp32" or "fp16", what is
    computed in, the cache and all other weights too (None: fp16 for fp16 weights, else fp32). embedding: "int8", or
    "kept" in floats, of embedding and head beside int8 and int4 weights.

    fused: onnxruntime's operators (GroupQueryAttention with a cache in place, MatMulNBits, MoE or QMoE); else standard
    ONNX only, for any runtime: the cache grows by Concat, every expert computes every token. accuracy_level: of
    MatMulNBits; 0 and 1 compute in float32, 4 rounds activations to int8 (faster). last_only: logits of the last column
    alone, which saves gigabytes in long prompts. context: tokens the tables of RoPE reach to (None: the model's own).

    Memory holds a few tensors, and in the check afterwards the whole model in onnxruntime. The folder is there whole or
    not at all. progress: called with what is being done and which share of it is.

    Raises UsageError for a wrong argument, a folder that is not empty (unless `force`) or a block size that does not
    divide; CorruptFileError naming a tensor with NaN or infinite values; Qwen3Error without the onnx package, for a
    full disk, or if onnxruntime computes something else than the engine.
    """
    started, out = time.perf_counter(), Path(out)
    _check_arguments(weights, activations, block_size, embedding, accuracy_level, opset, fused)
    onnx, say = onnx_library(), progress or (lambda what, share: None)
    source = resolve(path)
    check_target(out, source, force)
    config = read_config(source.path)
    if context is not None and not 2 <= context <= config.context_length:
        raise UsageError(f"context must be between 2 and the model's {config.context_length}, not {context}")
    context = context or config.context_length
    with staging(out) as stage, closing(open_source(source.path, config)) as opened:
        held = weights_of(opened, weights, activations, block_size, symmetric, embedding)
        with open(stage / DATA, "wb") as data:
            operands = Operands(Graph(data, opset), held, fused, accuracy_level)
            steps = lambda done, of: say("writing weights", done / of)  # noqa: E731
            Network(config, operands, context, last_only, steps).build()
        onnx.save_model(operands.graph.model(source.name, __version__), stage / MODEL)
        onnx.checker.check_model(str(stage / MODEL))
        opened.check_unchanged()
        written = replace(config, dtype=str(held.dtype).removeprefix("torch."), quantization_config=None)
        tokenizer = write_sidecars(stage, source, written, shared=fused, context=context, level=accuracy_level)
        say("checking in onnxruntime", 0.0)
        rounds = accuracy_level == 4 or (fused and config.is_moe and held.bits == 8)  # activations, to int8
        loss = _LOSS_INT8 if held.bits is not None and rounds else _LOSS[held.dtype]
        ids = prompts(tokenizer, config)[0][: min(_PROMPT, context)]
        off = check(stage, held, config, ids, accuracy_level, loss)
        files = {file.name: measure(file) for file in sorted(stage.iterdir())}
        put_in_place(out, stage, files, {"onnx": {"weights": weights, "activations": written.dtype, "fused": fused}})
    layouts = {name: layout for name in opened.stored if (layout := held.layout(name)) is not None}
    kept = sum(layout.kept for layout in layouts.values())
    return Report(
        out, files, weights, fused, kept, len(layouts) - kept, off, config.kv_bytes_per_token(held.dtype.itemsize),
        context, time.perf_counter() - started, tuple(_warnings(held, layouts, off)),
    )  # fmt: skip


def _warnings(held: Weights, layouts: Mapping[str, Layout], off: float | None) -> Iterator[str]:
    kinds = [held.source.stored[name].kind for name, layout in layouts.items() if not layout.kept]
    twice = [kind for kind in kinds if kind in held.source.compressed]
    if twice:
        found = ", ".join(sorted(set(twice)))
        yield f"{len(twice)} of the matrices are in {found} in the checkpoint and were rounded again, to the nearest"
    if off is None:
        yield "not checked: onnxruntime is not installed, or memory is too small for the model in it"


def weights_of(
    source: Source, weights: str = "fp32", activations: str | None = None, block_size: int = 32,
    symmetric: bool = True, embedding: str = "int8",
) -> Weights:  # fmt: skip
    """What `export` makes of a checkpoint's tensors, given these arguments."""
    dtype = DTYPES[activations or ("fp16" if weights == "fp16" else "fp32")]
    bits = BITS.get(weights)
    return Weights(source, bits, None if bits is None or embedding == "kept" else 8, block_size, symmetric, dtype)


def _check_arguments(
    weights: str, activations: str | None, block_size: int, embedding: str, level: int, opset: int, fused: bool
) -> None:
    for name, value, allowed in (
        ("weights", weights, WEIGHTS),
        ("activations", activations, (None, *DTYPES)),
        ("block_size", block_size, (16, 32, 64, 128, 256)),
        ("embedding", embedding, ("int8", "kept")),
        ("accuracy_level", level, ACCURACY_LEVELS),
        ("opset", opset, OPSETS),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
    if weights == "fp16" and activations == "fp32":
        raise UsageError("weights 'fp16' are computed with in fp16: leave activations out, or take weights 'fp32'")
    if weights in ("int8", "int4") and not fused and opset < 21:
        raise UsageError(f"groups of {weights} numbers need opset 21 in standard ONNX, not {opset}")
