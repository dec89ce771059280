"""Training state on disk: weights, moments and position, as safetensors, replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from qwen3.errors import CorruptFileError
from qwen3.train.optim import Optimizer


def save_state(path: Path, optimizer: Optimizer, step: int) -> None:
    """Write everything a resumed run needs to `path`; a crash leaves the old file."""
    partial = path.with_suffix(".partial")
    meta = {"step": str(step), "optimizer_step": str(optimizer.step_count)}
    save_file({name: t.contiguous() for name, t in optimizer.state().items()}, partial, metadata=meta)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_state(path: Path, optimizer: Optimizer) -> int:
    """Restore the optimiser and the network it updates; returns the step to go on with.

    Raises CorruptFileError for a file that is no training state, or another model's; nothing is restored then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
        tensors = load_file(path)
        step, optimizer_step = int(meta["step"]), int(meta["optimizer_step"])
        optimizer.load_state(tensors, optimizer_step)
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise CorruptFileError(f"{path}: not a training state of this model ({error})") from None
    return step
