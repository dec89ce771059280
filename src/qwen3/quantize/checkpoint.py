"""A quantization as a whole: a model, a `Spec` and a folder → a checkpoint in fewer bits, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3.checkpoint import Resolved, read_config, resolve
from qwen3.checkpoint.source import open_source
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.model.load import best_device
from qwen3.quantize.folder import Written, check_target, write_folder
from qwen3.quantize.formats.choose import choose, usual
from qwen3.quantize.mixed import choose as distribute
from qwen3.quantize.mixed import measure
from qwen3.quantize.outline import Outline, outline
from qwen3.quantize.run import Report, quantize_tensors
from qwen3.quantize.spec import Spec

Progress = Callable[[str, float], None]
"""What is being done, and which share of all is."""


@dataclass(frozen=True)
class Quantized:
    """bytes_before: of the original's weights. seconds: all in all."""

    source: Resolved
    spec: Spec
    outline: Outline
    report: Report
    written: Written
    bytes_before: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        files = sorted(self.written.files.items())
        return {
            "model": self.source.name, "out": str(self.written.folder), "spec": asdict(self.spec),
            "format": self.outline.format.name, "bytes_before": self.bytes_before, "bytes_after": self.written.nbytes,
            "bits_per_weight": self.outline.bits_per_weight, "agreement": asdict(self.written.agreement),
            **self.report.to_dict(), "seconds": self.seconds,
            "files": {name: {"bytes": count, "sha256": digest} for name, (count, digest) in files},
        }  # fmt: skip


def quantize_checkpoint(
    model: str | Path,
    out: str | Path,
    spec: Spec,
    *,
    format: str | None = None,
    force: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Writes the model, any name that `resolve` knows, to the folder `out`. format: of `formats.choose.FORMATS`; None:
    the spec's usual one. device: that computes; None: the best there is.

    Raises what `outline`, `quantize_tensors` and `write_folder` raise; then `out` is as it was.
    """
    started, source, out = time.monotonic(), resolve(model), Path(out)
    check_target(out, source, force)
    todo = outlined(spec, read_config(source.path), format)
    with closing(open_source(source.path, todo.config)) as opened:
        before = opened.nbytes
    report, say = Report(), progress or (lambda what, share: None)
    tensors = quantize_tensors(
        source.path, spec, report=report, device=device or best_device(),
        progress=lambda done, of, module: say(f"{done:,} of {of:,} matrices, {module}", 0.9 * done / of),
    )  # fmt: skip
    about = {"by": "qwen3 quantize", "from": source.describe(), "spec": asdict(spec)}
    written = write_folder(
        out, source, todo, tensors, force=force, about=about, progress=lambda what, share: say(what, 0.9 + 0.1 * share)
    )
    return Quantized(source, spec, todo, report, written, before, time.monotonic() - started)


def outlined(spec: Spec, config: ModelConfig, format: str | None = None) -> Outline:
    """What would be written: see `outline`."""
    return outline(spec, config, choose(format or usual(spec), getattr(torch, config.dtype)))


def meet(
    model: str | Path,
    spec: Spec,
    todo: Outline,
    *,
    nbytes: int | None = None,
    average: float | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Spec:
    """The spec with rules that give each kind of matrix, layer by layer, the bits with which the model has at most so
    many bytes, or its quantized weights so many bits on average, at the least loss. Raises UsageError as
    `mixed.measure` and `mixed.choose`."""
    say = progress or (lambda what, share: None)
    found = measure(
        resolve(model).path, spec, todo.format.bits, device=device or best_device(),
        progress=lambda done, of, module: say(f"measuring {done:,} of {of:,}, {module}", done / of),
    )  # fmt: skip
    if nbytes is None:
        return distribute(found, average=average).applied(spec)
    left = nbytes - (todo.nbytes - sum(todo.sizes.values()))
    for _ in range(16):  # what a format has beside numbers and scales depends on the choice
        mixed = distribute(found, nbytes=left).applied(spec)
        size = outline(mixed, todo.config, todo.format).nbytes
        if size <= nbytes:
            return mixed
        left -= size - nbytes
    raise UsageError(f"no choice of bits comes to {nbytes:,} bytes; ask for a little more")
