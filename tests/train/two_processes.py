"""What each of two processes does in `test_trainer`: the same updates as one process, on half of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from qwen3.model import Qwen3
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import PackedBatch
from qwen3.train.trainer import CrossEntropy, Trainer
from tests.fixtures import random_model, tiny_config
from tests.train.test_forward import batch_of


def rows(batch: PackedBatch, which: slice) -> PackedBatch:
    return PackedBatch(*(getattr(batch, name)[which] for name in ("ids", "labels", "positions", "documents")))


def batches_of(step: int, which: slice) -> list[PackedBatch]:
    return [rows(batch_of([30, 17, 9, 20, 5 + i], rows=2, seed=2 * step + i), which) for i in range(2)]


def shard(model: Qwen3) -> None:
    """Every layer in two halves, and the modules around them; gradients are summed, not averaged."""
    from torch.distributed.fsdp import fully_shard

    for module in (*model.layers, model.embed_tokens, model.norm):
        fully_shard(module)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def trainer_of(kind: Any, moe: bool, sharded: bool, seed: int = 0) -> Trainer:
    model = random_model(tiny_config(moe=moe, tie_word_embeddings=True), seed=seed)
    if sharded:
        shard(model)
    return Trainer(model, OptimConfig(kind=kind, eps=1e-3), balance=0.1 if moe else 0.0)


def updates(
    kind: Any, moe: bool, which: slice, sharded: bool, folder: Path
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Three updates on these rows, a checkpoint and another trainer before the last: (metrics, parameters)."""
    torch.set_num_threads(1)
    trainer = trainer_of(kind, moe, sharded)
    log = []
    for step in range(3):
        if step == 2:
            trainer.save(folder, {"place": step})
            trainer.finish()
            trainer = trainer_of(kind, moe, sharded, seed=1)
            assert trainer.load(folder) == {"place": step}
        batches = batches_of(step, which)
        metrics = trainer.update(batches, CrossEntropy())
        log.append({name: value for name, value in metrics.items() if "second" not in name})
    whole: dict[str, Any] = dict(trainer.model.named_parameters())
    return log, {n: (p.full_tensor() if sharded else p).detach().clone() for n, p in whole.items()}


def work(rank: int, folder: Path, sharded: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{sharded}", rank=rank, world_size=2)
    found = {
        f"{kind} {moe}": updates(kind, moe, slice(rank, rank + 1), sharded, folder / f"{kind}-{moe}-{sharded}")
        for kind in ("muon", "adamw")
        for moe in (False, True)
    }
    if rank == 0:
        import json

        (folder / f"log-{sharded}.json").write_text(json.dumps({name: log for name, (log, _) in found.items()}))
        tensors = {f"{name}/{n}": t.contiguous() for name, (_, whole) in found.items() for n, t in whole.items()}
        save_file(tensors, folder / f"whole-{sharded}.safetensors")
    dist.destroy_process_group()
