"""Attention over packed documents against a mask of every pair, and the options of the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.kernels import frozen
from qwen3.model import Qwen3
from qwen3.train.forward import Forward, attend, packed_hidden, plan_attention, to_tensors
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample
from tests.fixtures import random_model, tiny_config

CPU = torch.device("cpu")


def batch_of(lengths: list[int], rows: int = 2, length: int = 48, seed: int = 0, vocabulary: int = 600) -> PackedBatch:
    """Random tokens in documents of these lengths; the first third of each is a prompt."""
    rng = np.random.default_rng(seed)
    samples = []
    for n in lengths:
        trained = np.arange(n) >= max(1, n // 3)
        samples.append(TokenSample(rng.integers(0, vocabulary, n).astype(np.int32), trained))
    batch, left = pack(samples, rows, length, 0)
    assert not left
    return batch


RAGGED = [30, 17, 9, 20, 5, 1]
WHOLE = [48, 48]


def dense_twin(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Softmax over each place's visible ones, written out in loops over rows, heads and places."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for place in range(q.shape[2]):
                seen = [p for p in range(place + 1) if documents[row, p] == documents[row, place]]
                scores = k[row, head // group, seen] @ q[row, head, place] / q.shape[-1] ** 0.5
                out[row, head, place] = scores.softmax(0) @ v[row, head // group, seen]
    return out


@pytest.mark.parametrize("lengths", [RAGGED, WHOLE], ids=["ragged", "whole"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_way_to_attend_is_causal_within_documents(lengths: list[int], kv_heads: int) -> None:
    tensors = to_tensors(batch_of(lengths), CPU)
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, 48, 8, dtype=torch.float64, requires_grad=True) for n in (4, kv_heads, kv_heads)]
    right = dense_twin(inputs[0], inputs[1], inputs[2], tensors.documents)
    outer = torch.randn_like(right)
    expected = [right, *torch.autograd.grad(right, inputs, outer)]
    kinds: list[Any] = ["dense", "varlen", None] + (["equal"] if lengths is WHOLE else [])
    for kind in kinds:
        out = attend(plan_attention(tensors, torch.float64, kind), *inputs)
        for a, b in zip([out, *torch.autograd.grad(out, inputs, outer)], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_flex_attends_alike() -> None:
    """Forward only: FlexAttention has no backward pass on a CPU."""
    tensors = to_tensors(batch_of(RAGGED), CPU)
    q, k, v = (torch.randn(2, n, 48, 16) for n in (4, 2, 2))
    with torch.no_grad():
        flex = attend(plan_attention(tensors, torch.float32, "flex"), q, k, v)
        dense = attend(plan_attention(tensors, torch.float32, "dense"), q, k, v)
    torch.testing.assert_close(flex, dense, rtol=1e-4, atol=1e-5)


def test_a_packed_document_has_the_states_it_has_alone() -> None:
    model = random_model(tiny_config())
    batch = batch_of(RAGGED)
    with torch.no_grad():
        packed = packed_hidden(model, to_tensors(batch, CPU))
        for row in range(2):
            for number in range(1, batch.documents[row].max() + 1):
                at = torch.from_numpy(batch.documents[row] == number)
                alone = model.hidden(torch.from_numpy(batch.ids[row]).long()[at][None])
                torch.testing.assert_close(packed[row, at], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@pytest.mark.parametrize("options", [{"checkpointing": "layers"}, {"checkpointing": "attention"}], ids=str)
def test_checkpointing_changes_no_gradient(moe: bool, options: dict[str, Any]) -> None:
    def gradients(**how: Any) -> dict[str, Tensor]:
        model = random_model(tiny_config(moe=moe))
        hidden, routers = Forward(model, **how)(to_tensors(batch_of(RAGGED), CPU))
        total = hidden.pow(2).sum()
        for router in routers:
            total = total + router.logits.pow(2).sum()
        total.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(), gradients(**options)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_checkpointing_of_attention_computes_it_once() -> None:
    """The kept operator runs once for each layer and direction; "layers" runs it twice."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += "scaled_dot_product" in str(func) and "backward" not in str(func)
            return func(*args, **(kwargs or {}))

    counts = {}
    options: tuple[Any, ...] = ("none", "attention", "layers")
    for how in options:
        model = random_model(tiny_config())
        with Count() as count:
            hidden, _ = Forward(model, checkpointing=how)(to_tensors(batch_of(WHOLE), CPU))
            hidden.sum().backward()
        counts[how] = count.seen
    assert counts == {"none": 2, "attention": 2, "layers": 4}


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_one_compilation_serves_all_layers_and_batches(moe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break, so that a GPU never waits for Python inside a layer."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled(f, backend="aot_eager", fullgraph=True))
    # as on a GPU; the loop over experts that a CPU gets waits for their counts
    monkeypatch.setattr(frozen, "_grouped", lambda x, weight, ends: torch._grouped_mm(x, weight, offs=ends))
    torch._dynamo.utils.counters.clear()
    models = [random_model(tiny_config(moe=moe, num_hidden_layers=3), dtype=torch.bfloat16) for _ in range(2)]
    forwards = [Forward(models[0], compiling="layers"), Forward(models[1])]
    for seed in range(2):
        tensors = to_tensors(batch_of(WHOLE, seed=seed), CPU)
        (a, routers), (b, _) = (forward(tensors) for forward in forwards)
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        assert [router.layer for router in routers] == list(range(3 * moe))
        (a.float().square().sum() + sum(router.logits.float().sum() for router in routers)).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_tensors_say_what_the_batch_is() -> None:
    batch = batch_of(RAGGED)
    tensors = to_tensors(batch, CPU)
    assert not tensors.whole
    assert tensors.longest == 30
    assert tensors.typical == pytest.approx(sum(n * n for n in (30, 17, 9, 20, 5, 1, 14)) / 96)  # and one empty end
    assert len(tensors.places) == batch.trained_tokens
    assert bool((tensors.labels.flatten()[tensors.places] >= 0).all())
    assert to_tensors(batch_of(WHOLE), CPU).whole


def test_wrong_options_are_named() -> None:
    model = Qwen3(tiny_config(), device="cpu", dtype=torch.float32)
    with pytest.raises(UsageError, match="checkpointing='all' must be one of none, layers, attention"):
        Forward(model, checkpointing="all")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="compiling='yes' must be one of"):
        Forward(model, compiling="yes")  # type: ignore[arg-type]
    tensors = to_tensors(batch_of(RAGGED), CPU)
    with pytest.raises(UsageError, match="attention='fast' must be one of"):
        plan_attention(tensors, torch.float32, "fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs rows of one document"):
        plan_attention(tensors, torch.float32, "equal")
