"""How many CPU threads a small model decodes best with: measured, since it depends on who else uses the cores."""

from __future__ import annotations

import os
import time

import torch

from qwen3.model.load import SMALL_MODEL
from qwen3.model.network import Qwen3

_STEPS = 6
_WORTH = 0.85  # more threads must bring a step to this share of one thread's time


def fit_threads(model: Qwen3) -> int:
    """Set PyTorch's threads (for the whole process) to what decodes faster here, one or all, and return the number.

    A small model's operators take tens of microseconds, so threads that have to wait for a busy core cost far more
    than they bring: on two shared cores a step of the embedded model went from 4 ms to between 20 and 350. Left alone:
    models from 100 M parameters on (they wait for memory), other devices, and a number set by OMP_NUM_THREADS.
    """
    everything = torch.get_num_threads()
    if (
        everything == 1
        or model.device.type != "cpu"
        or model.config.num_parameters() >= SMALL_MODEL
        or "OMP_NUM_THREADS" in os.environ
    ):
        return everything
    many = _step_seconds(model)
    torch.set_num_threads(1)
    if many < _WORTH * _step_seconds(model):
        torch.set_num_threads(everything)
    return torch.get_num_threads()


@torch.no_grad()
def _step_seconds(model: Qwen3) -> float:
    """Median seconds of one decode step, after a warm-up."""
    cache = model.new_cache(1, _STEPS + 1)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    times = []
    for position in range(_STEPS + 1):
        start = time.perf_counter()
        model(ids, positions=torch.tensor([[position]]), cache=cache)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[_STEPS // 2]
