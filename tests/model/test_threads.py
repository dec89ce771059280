"""A model on a CPU: packed weights, and a number of threads that is measured where it matters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qwen3.kernels import cpu
from qwen3.model import threads
from tests.fixtures import random_model, tiny_config


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("many", "one", "chosen"), [(5.0, 4.0, 1), (3.9, 4.0, 1), (2.0, 4.0, 2)])
def test_more_threads_only_where_they_pay(
    monkeypatch: pytest.MonkeyPatch, many: float, one: float, chosen: int
) -> None:
    monkeypatch.setattr(threads, "_step_seconds", lambda model: many if torch.get_num_threads() == 2 else one)
    assert threads.fit_threads(random_model(tiny_config(), seed=0)) == chosen
    assert torch.get_num_threads() == chosen


def test_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config(), seed=0)
    assert 0 < threads._step_seconds(model) < 1
    assert threads.fit_threads(model) in (1, 2)


def test_what_the_user_or_the_size_decides_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config(), seed=0)
    monkeypatch.setattr(threads, "_step_seconds", lambda model: pytest.fail("measured"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.fit_threads(model) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "SMALL_MODEL", 1)
    assert threads.fit_threads(model) == 2


@pytest.mark.skipif(not cpu.has_fbgemm(), reason="this PyTorch has no FBGEMM")
@pytest.mark.parametrize("moe", [False, True])
def test_weights_are_packed_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch, moe: bool) -> None:
    monkeypatch.setattr(cpu, "pack_limit", cpu.pack_limit)
    monkeypatch.setattr(threads, "fit_threads", lambda model: 1)
    before = cpu.packed_bytes
    model = random_model(tiny_config(moe), seed=0)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    layers, experts = model.stepper().layers, 0 if moe else 1
    matrices = [w for layer in layers for w in (layer.qkv, layer.out, *[layer.up, layer.down] * experts)]
    wanted = 2 * sum(w.numel() for w in [*matrices, model.stepper().head])
    monkeypatch.setattr(threads, "available_bytes", lambda: wanted)
    some = threads.prepare_cpu(model) - before
    assert wanted / 4 < some <= wanted / 2
    for weight in model.parameters():
        weight.data = weight.data.clone()
    monkeypatch.setattr(threads, "available_bytes", lambda: 1 << 40)
    assert threads.prepare_cpu(model) - before == wanted
    del model, layers, matrices, weight
    assert cpu.packed_bytes == before
