"""The trained mixture of experts against the network's reference, and the balance loss against its formula."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import kernels
from qwen3.model import Qwen3
from qwen3.model.network import RouterOutput, SparseMLP
from qwen3.train.forward import BatchTensors, Forward, to_tensors
from qwen3.train.moe import added, balance_loss, experts, load_statistics, route, router_sums, sparse_forward
from qwen3.train.packing import PackedBatch
from qwen3.train.trainer import Trainer
from tests.fixtures import random_model, tiny_config
from tests.train.test_forward import CPU, RAGGED, WHOLE, batch_of


def block(dtype: torch.dtype = torch.float64) -> SparseMLP:
    torch.manual_seed(0)
    mlp = SparseMLP(tiny_config(moe=True), "cpu", dtype)
    for p in mlp.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return mlp


def test_forward_and_gradients_equal_the_reference_block() -> None:
    mlp = block()
    x = torch.randn(2, 30, 64, dtype=torch.float64)
    outer = torch.randn_like(x)
    results = []
    for forward in (sparse_forward, SparseMLP.forward):
        mine = x.clone().requires_grad_()
        out, logits, chosen = forward(mlp, mine)
        results.append([out, logits, chosen, *torch.autograd.grad(out, [mine, *mlp.parameters()], outer)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # the reference's softmax is float32


def test_an_expert_nobody_chose_gets_a_gradient_of_zeros() -> None:
    mlp = block()
    x = torch.randn(3, 64, dtype=torch.float64)
    chosen = torch.tensor([[0, 7], [7, 0], [0, 3]])
    weights = torch.rand(3, 2, dtype=torch.float64)
    up, down = mlp.experts.gate_up_proj, mlp.experts.down_proj
    out = experts(x, up, down, weights, chosen)
    expected = kernels.experts(x, up, down, weights, chosen)
    torch.testing.assert_close(out, expected)
    d_up, d_down = torch.autograd.grad(out.sum(), [up, down])
    idle = [1, 2, 4, 5, 6]
    assert not d_up[idle].any()
    assert not d_down[idle].any()
    assert all(bool(d_up[e].any()) for e in (0, 3, 7))


def test_replayed_experts_get_the_weights_the_router_gives_them_now() -> None:
    logits = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    routes = torch.tensor([[1, 2], [-1, -1], [7, 0], [3, 4], [-1, -1]], dtype=torch.int16)
    weights, chosen = route(logits, 2, True, routes)
    own = logits.topk(2).indices
    for token, wanted in enumerate(routes.tolist()):
        expected = wanted if wanted[0] >= 0 else own[token].tolist()
        assert chosen[token].tolist() == expected
        probabilities = logits[token].softmax(0)[expected]
        torch.testing.assert_close(weights[token], probabilities / probabilities.sum())
    unnormalised, _ = route(logits, 2, False, routes)
    torch.testing.assert_close(unnormalised[0], logits[0].softmax(0)[[1, 2]])


def test_replaying_the_own_choices_changes_nothing_and_others_do() -> None:
    model = random_model(tiny_config(moe=True))
    batch = batch_of(RAGGED)
    hidden, routers = Forward(model)(to_tensors(batch, CPU))
    routes = torch.stack([r.experts.view(2, 48, 2) for r in routers]).numpy().astype(np.int16)

    def again(taken: np.ndarray[Any, Any]) -> Tensor:
        replayed = PackedBatch(batch.ids, batch.labels, batch.positions, batch.documents, routes=taken)
        return Forward(model)(to_tensors(replayed, CPU))[0]

    assert torch.equal(again(routes), hidden)
    assert torch.equal(again(np.full_like(routes, -1)), hidden)
    assert not torch.allclose(again((routes + 1) % 8), hidden)


def formula(logits: list[Tensor], k: int = 2) -> Tensor:
    """Σ over layers of E Σ f_i P_i, from each layer's router logits [tokens, E] of a whole update."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in logits:
        p = layer.softmax(-1)
        count, size = p.shape
        f = F.one_hot(p.topk(k).indices, size).sum((0, 1)) / (k * count)
        total = total + size * (f * p.mean(0)).sum()
    return total


def test_the_balance_losses_of_the_parts_add_up_to_the_formula_on_the_whole() -> None:
    """Value and gradients, in float64; the last places of each part are padding."""
    torch.manual_seed(0)
    parts = [[torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)] for n in (50, 7, 31)]
    sums = []
    for part in parts:
        documents = (torch.arange(len(part[0])) < len(part[0]) - 5).long()[None]
        sums.append(router_sums([RouterOutput(i, p, p.topk(2).indices) for i, p in enumerate(part)], documents))
    counts, tokens = added(sums).counts, float(sum(len(part[0]) - 5 for part in parts))
    total = torch.stack([balance_loss(s.probabilities, counts, tokens) for s in sums]).sum()
    expected = formula([torch.cat([part[layer][:-5] for part in parts]) for layer in range(3)])
    torch.testing.assert_close(total, expected)
    flat = [p for part in parts for p in part]
    for a, b in zip(torch.autograd.grad(total, flat), torch.autograd.grad(expected, flat), strict=True):
        torch.testing.assert_close(a, b)


class Nothing:
    """A loss without a gradient, so that balance is all there is."""

    def normaliser(self, batch: PackedBatch) -> float:
        return float(batch.trained_tokens)

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        return 0 * hidden.sum() + 0 * head.sum(), {}


def balance_gradient(base: Qwen3, batches: list[PackedBatch], **how: Any) -> tuple[Tensor, float]:
    """(the flat gradient of an update with weight 0.5 on balance, the balance it reports)."""
    trainer = Trainer(copy.deepcopy(base), balance=0.5, **how)
    metrics = trainer.update(batches, Nothing(), 0.0)
    return trainer.optimizer._grad / metrics["trained"], metrics["balance"]


@pytest.mark.parametrize("parts", [1, 3])
def test_an_update_in_parts_has_the_gradient_of_the_formula_over_the_whole(parts: int) -> None:
    batches = [batch_of([40 - 3 * i, 30, 9 + i], seed=i) for i in range(parts)]
    base = random_model(tiny_config(moe=True)).double()  # though norms and routers round to float32 inside
    gradient, balance = balance_gradient(base, batches)
    logits: list[list[Tensor]] = [[], []]
    for batch in batches:
        for router in Forward(base)(to_tensors(batch, CPU))[1]:
            logits[router.layer].append(router.logits[torch.from_numpy(batch.documents.reshape(-1) > 0)])
    expected = formula([torch.cat(layer) for layer in logits])
    assert balance == pytest.approx(float(expected) / 2, rel=1e-6)  # the mean of two layers
    (0.5 * expected).backward()
    optimizer = Trainer(base).optimizer
    for p in base.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.collect()
    assert float((gradient - optimizer._grad).norm() / optimizer._grad.norm()) < 1e-6


def test_running_counts_are_those_so_far() -> None:
    """Exact for one part, and for parts that are all alike; not for others."""
    base = random_model(tiny_config(moe=True)).double()
    batches = [batch_of(WHOLE, seed=i) for i in range(3)]

    def gradient(counts: Any, of: list[PackedBatch]) -> Tensor:
        return balance_gradient(base, of, balance_counts=counts)[0]

    for alike in (batches[:1], batches[:1] * 3):
        torch.testing.assert_close(gradient("exact", alike), gradient("running", alike))
    exact, running = gradient("exact", batches), gradient("running", batches)
    assert float((exact - running).norm() / exact.norm()) > 0.1


def test_even_load_costs_one_for_each_layer_and_one_expert_for_all_costs_them_all() -> None:
    even, one, tokens = torch.full((2, 8), 25.0), torch.tensor([[200.0, *[0.0] * 7]] * 2), 100.0
    assert float(balance_loss(torch.full((2, 8), 12.5), even, tokens)) == pytest.approx(2.0)
    assert float(balance_loss(torch.tensor([[100.0, *[0.0] * 7]] * 2), one, tokens)) == pytest.approx(16.0)
    statistics = {name: float(value) for name, value in load_statistics(one).items()}
    assert statistics == pytest.approx({"load_max": 8.0, "load_min": 0.0, "load_entropy": 0.0})
    assert float(load_statistics(even)["load_entropy"]) == pytest.approx(1.0)


def test_padding_is_counted_nowhere() -> None:
    model = random_model(tiny_config(moe=True))
    batch = batch_of([40, 30])
    tensors = to_tensors(batch, CPU)
    sums = router_sums(Forward(model)(tensors)[1], tensors.documents)
    assert sums.counts.sum(-1).tolist() == [140.0, 140.0]
    torch.testing.assert_close(sums.probabilities.sum(-1), torch.full((2,), 70.0))
