"""A quantized checkpoint's folder: streamed to disk, read back, compared, and only then put in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.folder import MANIFEST
from qwen3.checkpoint.header import read_json
from qwen3.checkpoint.journal import JOURNAL, STAGING_PREFIX, staging
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.resolved import Resolved
from qwen3.checkpoint.save import measure, put_in_place
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.quantize.compare import Agreement, check_written, compare, probe, prompts
from qwen3.quantize.outline import Outline, fitted
from qwen3.quantize.shards import Shards
from qwen3.quantize.types import Grouped, Rounded

# what lies beside the weights of a model and stays true of it in fewer bits
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
Progress = Callable[[str, float], None]
"""After the last tensor: what is being done, and which share of it is."""


@dataclass(frozen=True)
class Written:
    """files: name → (bytes, sha256)."""

    folder: Path
    files: dict[str, tuple[int, str]]
    agreement: Agreement

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(size for name, (size, _) in self.files.items() if name.endswith(".safetensors"))


def check_target(out: Path, source: Resolved, force: bool) -> None:
    """Raises UsageError if `out` is the model itself, a file, or holds anything, unless `force` is given."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    if out.resolve() in (source.path.resolve(), source.path.resolve().parent):
        raise UsageError(f"--out {out} is where the model itself lies; give another folder")
    found = [] if not out.is_dir() else sorted(p.name for p in out.iterdir() if not p.name.startswith(STAGING_PREFIX))
    if not found or force or JOURNAL in found:
        return
    if (how := stored_as(out)) and MANIFEST in found:
        raise UsageError(
            f"{out} exists already, a checkpoint in {how}: run it (qwen3 run {out}), give another --out, or --force "
            "to write it anew"
        )
    raise UsageError(f"{out} is not empty (it has {found[0]}); give another --out, or --force to write into it")


def stored_as(folder: Path) -> str | None:
    """The name of the quantization that a folder's config.json gives; None if there is none."""
    try:
        config: Any = read_json(folder / "config.json")
    except Qwen3Error:
        return None
    if not isinstance(config, dict):
        return None
    found = config.get("quantization_config") or config.get("quantization")
    return str(found.get("quant_method", "mlx")) if isinstance(found, dict) else None


def write_folder(
    out: str | Path,
    source: Resolved,
    todo: Outline,
    tensors: Iterable[tuple[str, Rounded | Tensor]],
    *,
    force: bool = False,
    max_shard_bytes: float = 5e9,
    about: Any = None,
    progress: Progress | None = None,
) -> Written:
    """Writes what `todo` outlines. tensors: of each module what a method made of it, of all else the tensor itself,
    by official names, with or without ".weight". about: what the manifest says of how it was made, JSON.

    Each is written when it comes and let go: memory holds one, and a layer in float32 of either model when they are
    compared. Then the folder is read back (`compare`); what was there before is replaced all at once.

    Raises UsageError as `check_target`; CorruptFileError naming a tensor with NaN, infinite or zero scales, or one that
    is read back otherwise; Qwen3Error when the disk is full. Nothing is left behind then.
    """
    out = Path(out)
    check_target(out, source, force)
    say = progress or (lambda what, share: None)
    with staging(out) as stage:
        free = shutil.disk_usage(stage).free
        if todo.nbytes > free:
            raise Qwen3Error(f"{out}: the weights take {todo.nbytes:,} bytes but the disk has {free:,} free")
        (stage / "config.json").write_text(json.dumps(todo.config_json(), indent=2, ensure_ascii=False) + "\n")
        ids = prompts(_tokenizer(source, todo, stage), todo.config)
        with Shards(stage, todo.tensors, max_shard_bytes) as shards:
            probes = _write(shards, todo, tensors)
            written = shards.finish()
        say("reading it back", 0.0)
        check_written(stage, todo.config, probes, todo.format.loss)
        agreement = compare(source.path, stage, ids, lambda done, of: say("comparing", done / of))
        for path in stage.iterdir():
            if path.name not in written:
                written[path.name] = measure(path)
        put_in_place(out, stage, written, about)
    return Written(out, written, agreement)


def _write(shards: Shards, todo: Outline, tensors: Iterable[tuple[str, Rounded | Tensor]]) -> dict[str, Tensor]:
    """Official name → `probe` of what was written."""
    probes: dict[str, Tensor] = {}
    dtype: torch.dtype = getattr(torch, todo.config.dtype)
    for name, tensor in tensors:
        module = name.removesuffix(".weight")
        if (module in todo.planned) == isinstance(tensor, Tensor):
            raise UsageError(f"{module}: the method made something else than was planned")
        if isinstance(tensor, Tensor):
            tensor = tensor.to(dtype)
            parts = {".weight": tensor}
        else:
            tensor = fitted(tensor, todo.planned[module], module)
            if isinstance(tensor, Grouped) and int(tensor.q.max()) >> tensor.bits:
                raise CorruptFileError(f"not saved: {module} has numbers of more than {tensor.bits} bits")
            parts = todo.format.tensors(module, tensor)
        for suffix, part in parts.items():
            if "scale" in suffix and (nothing := int((part == 0).sum())):
                raise CorruptFileError(f"not saved: {module}{suffix} has {nothing} scales that are zero")
            name_there, row = todo.places.get(module + suffix, (module + suffix, None))
            shards.write(name_there, part, row)
        probes[f"{module}.weight"] = probe(tensor)
    return probes


def _tokenizer(source: Resolved, todo: Outline, stage: Path) -> Any:
    """Copies what lies beside the weights; the model's tokenizer, None if it has none."""
    if source.kind == "gguf":
        tokenizer = find_tokenizer(source, todo.config)[0]
        tokenizer.save(stage)
        return tokenizer
    for path in sorted({path for pattern in COPIED for path in source.path.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, stage / path.name)
    return find_tokenizer(source, todo.config)[0] if any((stage / n).exists() for n in COPIED[:3]) else None
