"""A model is made ready for a CPU: packed copies of its weights, and threads by measurement."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.checkpoint import available_bytes
from qwen3.kernels import BLOCK, StepPlan
from qwen3.kernels import cpu as cpu_kernels
from qwen3.model.load import SMALL_MODEL
from qwen3.model.network import Qwen3

_STEPS = 6
_WORTH = 0.85  # more threads must bring a step to this share of one thread's time
_SHARE = 0.5  # of the free memory, for copies of weights


def prepare_cpu(model: Qwen3) -> int:
    """Packs the weights of a model on a CPU (see `kernels.cpu`) and fits the threads; returns the bytes of all copies.

    A packed weight is read once where a plain one is read and rearranged; decoding is 1.6 to 2.7 times as fast. They
    take at most half of the memory that is free now: weights beyond that are used as they are.
    """
    if model.device.type != "cpu" or kernels.chosen("cpu")["fused_linear"] != "cpu":
        return 0
    stepper, free = model.stepper(), available_bytes()
    if free is not None:
        cpu_kernels.pack_limit = cpu_kernels.packed_bytes + int(free * _SHARE)
    matrices = [w for layer in stepper.layers for w in (layer.qkv, layer.out, layer.up, layer.down)]
    for weight in (stepper.head, *matrices):  # those that are held in fewer bits lie as they are read already
        if isinstance(weight, Tensor) and weight.dim() == 2:
            cpu_kernels.packed(weight)
    fit_threads(model)
    return cpu_kernels.packed_bytes


def fit_threads(model: Qwen3) -> int:
    """Set PyTorch's threads (for the whole process) to what decodes faster here, one or all, and return the number.

    A small model's operators take tens of microseconds, so threads that have to wait for a busy core cost far more
    than they bring: on two shared cores a step of the embedded model went from 2 ms to between 20 and 300. Left alone:
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


@torch.inference_mode()
def _step_seconds(model: Qwen3) -> float:
    """Median seconds of one decode step, after a warm-up."""
    config, stepper = model.config, model.stepper()
    shape = (2, config.num_hidden_layers, 2, BLOCK, config.num_key_value_heads, config.head_dim)
    cache = torch.zeros(shape, dtype=model.dtype, device="cpu")
    turns = stepper.cos_sin(_STEPS + 1)
    one = torch.ones(1, dtype=torch.int32, device="cpu")
    times = []
    for position in range(_STEPS + 1):
        start = time.perf_counter()
        plan = StepPlan(
            positions=one * position, slots=one * (BLOCK + position), tables=one.view(1, 1),
            starts=torch.arange(2, dtype=torch.int32, device="cpu"), lengths=one * (position + 1), cos_sin=turns,
            decode=1, max_query=0, max_length=_STEPS + 1,
        )  # fmt: skip
        stepper.logits(stepper.hidden(one, plan, cache[0], cache[1]))
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[_STEPS // 2]
