"""A small run that takes its data from every generator of random numbers, so that a resumed one shows what was lost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from qwen3.train.checkpoints import rewind
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample
from qwen3.train.trainer import CrossEntropy, Trainer
from tests.fixtures import random_model, tiny_config


def next_batch(drawn: list[int]) -> PackedBatch:
    """Documents whose seeds come from Python's, numpy's and torch's generators; `drawn` is the position in the data."""
    seeds = [random.randrange(1 << 30), int(np.random.randint(1 << 30)), int(torch.randint(1 << 30, ()))]
    drawn.append(seeds[0])
    samples = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 20))
        samples.append(TokenSample(rng.integers(0, 600, n).astype(np.int32), np.arange(n) > 0))
    return pack(samples, 2, 32, 0)[0]


def run(folder: Path, updates: int) -> None:
    """Train to `updates`, a checkpoint every second one, a line of log for each."""
    torch.set_num_threads(1)
    trainer = Trainer(random_model(tiny_config(num_hidden_layers=1, hidden_size=32)), OptimConfig(), seed=3)
    position = trainer.load(folder / "checkpoints")
    drawn: list[int] = [] if position is None else list(position["drawn"])
    rewind(folder / "log.jsonl", trainer.updates)
    folder.mkdir(exist_ok=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.updates < updates:
            metrics = trainer.update([next_batch(drawn)], CrossEntropy(), 0.999**trainer.updates)
            line = {"update": trainer.updates, "loss": metrics["loss"], "norm": metrics["norm"], "drawn": drawn[-1]}
            log.write(json.dumps(line) + "\n")
            log.flush()
            if trainer.updates % 2 == 0:
                trainer.save(folder / "checkpoints", {"drawn": drawn})
    trainer.save(folder / "checkpoints", {"drawn": drawn})
    trainer.finish()
