"""Schedules, Muon's orthogonalisation, and the optimiser against slow twins."""

from __future__ import annotations

import itertools

import pytest
import torch

from qwen3.checkpoint.names import official_views
from qwen3.model import Qwen3
from qwen3.train.initial import init_weights
from qwen3.train.optim import OptimConfig, Optimizer, orthogonalize
from qwen3.train.schedule import warmup_stable_decay
from tests.fixtures import tiny_config


def test_schedule_warms_up_holds_and_decays() -> None:
    values = [warmup_stable_decay(s, 100, warmup=10, decay=40) for s in range(100)]
    assert values[0] == 0.1
    assert values[9:60] == [1.0] * 51
    assert values[60] == 1.0
    assert values[80] == pytest.approx(0.5)
    assert values[99] == pytest.approx(1 / 40)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


@pytest.mark.parametrize("shape", [(4, 32, 32), (2, 64, 16), (3, 16, 48)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    u, values, vh = torch.linalg.svd(torch.randn(shape, generator=generator).double(), full_matrices=False)
    values = values.clamp(min=values.amax() / 50)  # five steps lift a value only so far
    out = orthogonalize((u * values.unsqueeze(-2) @ vh).float()).double()
    inner = u.mT @ out @ vh.mT
    levelled = torch.diagonal(inner, dim1=-2, dim2=-1)
    assert levelled.min() > 0.5
    assert levelled.max() < 1.3
    assert (inner - torch.diag_embed(levelled)).abs().max() < 1e-3


@pytest.mark.parametrize("moe", [False, True])
def test_one_step_equals_a_step_on_separate_matrices(moe: bool) -> None:
    """Fused storage must not change the mathematics: redo the first update matrix by matrix in plain form."""
    model = Qwen3(tiny_config(moe=moe), device="cpu", dtype=torch.float32)
    init_weights(model, 0)
    config = OptimConfig(clip=1e9)
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator)
    before = {n: v.clone() for n, v in official_views(model.config, {n: p.data for n, p in params.items()}).items()}
    grads = official_views(model.config, {n: p.grad for n, p in params.items() if p.grad is not None})
    expected_norm = float(sum((p.grad**2).sum() for p in params.values())) ** 0.5  # type: ignore[operator, misc]
    optimizer = Optimizer(params, model.config, config)
    norm = float(optimizer.step(0.5))
    after = official_views(model.config, {n: p.data for n, p in params.items()})
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    matrices = 0
    for name, old in before.items():
        g = grads[name]
        if old.dim() == 2 and "embed" not in name and "lm_head" not in name and not name.endswith("mlp.gate.weight"):
            momentum = (1 - config.momentum) * g
            nesterov = g + config.momentum * (momentum - g)
            update = orthogonalize(nesterov[None])[0]
            lr = 0.5 * config.matrix_lr * max(1.0, old.shape[0] / old.shape[1]) ** 0.5
            expected = old * (1 - lr * config.weight_decay) - lr * update
            matrices += 1
        else:
            expected = old - 0.5 * config.vector_lr * g / (g.abs() + config.eps)
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
    assert matrices >= 7 * model.config.num_hidden_layers - 3


def test_a_parameter_without_gradient_is_named() -> None:
    model = Qwen3(tiny_config(), device="cpu", dtype=torch.float32)
    init_weights(model, 0)
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        Optimizer(dict(model.named_parameters()), model.config, OptimConfig()).step(1.0)
