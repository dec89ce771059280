"""Several processes that train one model: how they meet, share parameters, and agree. Applied from outside the network.

torchrun --nproc-per-node 2 -m qwen3.train pretrain model=tiny data=corpus
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from qwen3.model import Qwen3
from qwen3.train.optim import is_sharded, processes


def shard(model: Qwen3) -> None:
    """FSDP2: every layer in parts, and the modules around them. Gradients are summed, not averaged: the trainer divides
    by what the loss is a mean of."""
    from torch.distributed.fsdp import fully_shard

    around = [model.embed_tokens, model.norm] + ([] if model.lm_head is None else [model.lm_head])
    for module in (*model.layers, *around):
        fully_shard(module)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def gathered_whole(model: Qwen3) -> Qwen3:
    """A network of its own with all parameters of a sharded one, in every process."""
    config = model.config
    whole = Qwen3(config, device=model.device, dtype=model.dtype)
    sharded: dict[str, Any] = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in whole.named_parameters():
            own = sharded[name]
            p.copy_(own.full_tensor() if is_sharded(own) else own)
    return whole


def merged(position: Mapping[str, Any]) -> dict[str, Any]:
    """The positions of all processes' streams in one. All must ask."""
    if processes() == 1:
        return dict(position)
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, dict(position))
    return {"update": position["update"], "lanes": {k: v for one in found for k, v in one["lanes"].items()}}


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether it is set in one of the processes. All must ask."""
    if processes() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def wait_for_all() -> None:
    if processes() > 1:
        dist.barrier()


def join() -> None:
    """Meet the processes that torchrun started, where it did. A GPU for each, or gloo between CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
