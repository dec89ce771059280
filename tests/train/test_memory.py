"""The arithmetic of memory against what is really kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qwen3.errors import OutOfMemoryError
from qwen3.train.forward import Checkpointing, Forward, to_tensors
from qwen3.train.memory import activations, check_memory, plan_memory
from qwen3.train.optim import OptimConfig, Optimizer
from qwen3.train.packing import pack
from qwen3.train.samples import TokenSample
from tests.fixtures import random_model, tiny_config

CPU = torch.device("cpu")


def kept(config: Any, checkpointing: Checkpointing, tokens: int = 128) -> float:
    """Numbers a token that autograd keeps, parameters apart."""
    model = random_model(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other gets its address
        return tensor

    sample = TokenSample(np.arange(tokens, dtype=np.int32), np.arange(tokens) > 0)
    tensors = to_tensors(pack([sample], 1, tokens, 0)[0], CPU)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Forward(model, checkpointing=checkpointing)(tensors)
    return sum(size for size, _ in found.values()) / 4 / tokens


@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 3, "hidden_size": 96}, {"moe": True}, {"moe": True, "num_experts_per_tok": 4}]
)
def test_activations_are_those_that_autograd_keeps(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert activations(config, "none") == pytest.approx(kept(config, "none"), rel=0.04)
    layer = activations(config, "none") / config.num_hidden_layers
    assert kept(config, "layers") < activations(config, "layers") < kept(config, "layers") + 1.1 * layer
    assert activations(config, "layers") < activations(config, "attention") < activations(config, "none")


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_optimisers_part_is_its_buffers(kind: Any) -> None:
    model = random_model(tiny_config(moe=True))
    optimizer = Optimizer(dict(model.named_parameters()), model.config, OptimConfig(kind=kind))
    real = 4 * sum(t.numel() for t in (optimizer._master, optimizer._grad, optimizer._first, optimizer._second))
    plan = plan_memory(model.config, optimizer.config, 256, "cpu").parts
    assert plan["masters and sums of gradients"] + plan["moments"] == pytest.approx(real, rel=0.02)
    assert plan["parameters and gradients"] == 8 * model.config.num_parameters()


def test_what_cannot_fit_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_memory(tiny_config(), OptimConfig(), 4096, "cpu")
    monkeypatch.setattr("qwen3.train.memory.available_bytes", lambda device: plan.total)
    assert "are free" in check_memory(plan, CPU, 4096)
    monkeypatch.setattr("qwen3.train.memory.available_bytes", lambda device: plan.total // 2)
    with pytest.raises(
        OutOfMemoryError, match=r"training needs .* GB of memory: .*tokens_per_micro_batch=1\d\d\d would"
    ):
        check_memory(plan, CPU, 4096)
    monkeypatch.setattr("qwen3.train.memory.available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match="no micro-batch would: take a smaller model"):
        check_memory(plan, CPU, 4096)
    monkeypatch.setattr("qwen3.train.memory.available_bytes", lambda device: None)
    assert check_memory(plan, CPU, 4096) == str(plan)


def test_the_plan_is_near_what_an_h100_took() -> None:
    """Measured: Qwen3-0.6B with Muon, 4 rows of 8,192 tokens, 55.2 GB (benchmarks/2026-11-22-train-dense06b-h100.json);
    the embedded shape, 32 rows of 4,096 tokens, 13.8 GB (…-train-embedded-h100.json)."""
    from qwen3.family import MODELS

    assert plan_memory(MODELS["Qwen3-0.6B"].config, OptimConfig(), 4 * 8192, "cuda").total / 1e9 == pytest.approx(
        55.2, rel=0.1
    )
    embedded = tiny_config(
        vocab_size=8320, hidden_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=128, intermediate_size=1024,
    )  # fmt: skip
    assert plan_memory(embedded, OptimConfig(), 32 * 4096, "cuda").total / 1e9 == pytest.approx(13.8, rel=0.25)
