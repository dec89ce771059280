"""A checkpoint of any format as a folder in the published layout, unquantized: what a GGUF file goes back to."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint import official_shapes, read_config, resolve
from qwen3.checkpoint.journal import staging
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.resolved import Resolved
from qwen3.checkpoint.save import measure, put_in_place
from qwen3.checkpoint.source import Source, open_source
from qwen3.config import DTYPE_BYTES, ModelConfig
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.quantize.compare import Agreement, compare, prompts
from qwen3.quantize.folder import COPIED, Progress, check_target
from qwen3.quantize.shards import Shards


@dataclass(frozen=True)
class Folder:
    """files: name → (bytes, sha256). rounded: official tensors that `dtype` does not hold exactly, with the largest
    error of any of their numbers as a share of the tensor's largest."""

    folder: Path
    dtype: str
    files: dict[str, tuple[int, str]]
    rounded: dict[str, float]
    agreement: Agreement

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(size for name, (size, _) in self.files.items() if name.endswith(".safetensors"))


def write_plain(
    path: str | Path,
    out: str | Path,
    dtype: str | None = None,
    *,
    max_shard_bytes: float = 5e9,
    force: bool = False,
    progress: Progress | None = None,
) -> Folder:
    """Writes the model at `path` to the folder `out`, all tensors in one dtype, as published checkpoints are: config,
    safetensors, tokenizer, template. dtype None: the one that the matrices have, bfloat16 if they are quantized.

    One tensor at a time is in memory. It is read back and compared before it is put in place.

    Raises UsageError for a wrong argument, CorruptFileError naming a tensor with values that are not finite (also after
    rounding), Qwen3Error when the disk is full, and what the checkpoint's reader raises. Nothing is left behind then.
    """
    out = Path(out)
    model = resolve(path)
    config = read_config(model.path)
    dtype = dtype or config.dtype
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"--type {dtype} is no plain type; take {', '.join(DTYPE_BYTES)}")
    check_target(out, model, force)
    say = progress or (lambda what, share: None)
    plain = replace(config, dtype=dtype, quantization_config=None)
    form: torch.dtype = getattr(torch, dtype)
    planned = {name: torch.empty(shape, dtype=form, device="meta") for name, shape in official_shapes(config).items()}
    with closing(open_source(model.path, config)) as source, staging(out) as stage:
        size, free = sum(tensor.nbytes for tensor in planned.values()), shutil.disk_usage(out).free
        if size > free:
            raise Qwen3Error(f"{out}: the weights take {size:,} bytes but the disk has {free:,} free")
        (stage / "config.json").write_text(json.dumps(plain.to_dict(), indent=2, ensure_ascii=False) + "\n")
        _copy_beside(model, config, stage)
        with Shards(stage, planned, max_shard_bytes) as shards:
            rounded = _write(shards, planned, source, say)
            written = shards.finish()
        source.check_unchanged()
        ids = prompts(find_tokenizer(model, config)[0], config)
        agreement = compare(model.path, stage, ids, lambda done, of: say("comparing", done / of))
        written |= {path.name: measure(path) for path in stage.iterdir() if path.name not in written}
        put_in_place(out, stage, written)
    return Folder(out, dtype, written, rounded, agreement)


def _write(shards: Shards, planned: dict[str, Tensor], source: Source, say: Progress) -> dict[str, float]:
    rounded = {}
    for done, (name, blank) in enumerate(planned.items(), 1):
        stored: Any = source.stored[name]
        tensor = stored.read(slice(None), torch.float32)
        other = tensor.to(blank.dtype)
        if bool(torch.isfinite(tensor).all()) and not bool(torch.isfinite(other).all()):
            raise CorruptFileError(f"not saved: {name} has values up to {float(tensor.abs().max()):.3g}, too large")
        if not torch.equal(other.float(), tensor):
            rounded[name] = float((other.float() - tensor).abs().max() / tensor.abs().max())
        shards.write(name, other)
        say(name, done / len(planned))
    return rounded


def _copy_beside(model: Resolved, config: ModelConfig, stage: Path) -> None:
    """Tokenizer, template and the like; a GGUF file has them in its metadata."""
    if model.kind == "gguf":
        find_tokenizer(model, config)[0].save(stage)
        return
    for path in {path for pattern in COPIED for path in model.path.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, stage / path.name)
