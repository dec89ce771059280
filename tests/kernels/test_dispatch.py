"""Which backend a device gets: ours where there is one, the plain references on every other kind of device."""

from __future__ import annotations

import pytest
import torch

from qwen3 import kernels
from qwen3.kernels import BLOCK, StepPlan, cpu, dispatch
from qwen3.model.network import Qwen3
from tests.fixtures import random_model, tiny_config
from tests.model.oracle import distance

ENGINE = ("fused_linear", "attend", "decode_inputs", "experts", "uniform_logits")


@pytest.fixture(autouse=True)
def fixture_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fresh process has it, whichever test loaded GPU kernels before."""
    table = {name: {b: f for b, f in backends.items() if b != "gpu"} for name, backends in dispatch._table.items()}
    monkeypatch.setattr(dispatch, "_table", table)
    monkeypatch.setattr(dispatch, "_gpu_loaded", False)
    monkeypatch.setattr(dispatch, "_picked", {})


@pytest.mark.parametrize("device", ["mps", "xpu", "npu", "hpu", "privateuseone", "some_future_one"])
def test_other_devices_run_the_references(device: str) -> None:
    chosen = kernels.chosen(device)
    assert {name: chosen[name] for name in ENGINE} == dict.fromkeys(ENGINE, "reference")
    assert set(chosen.values()) <= {"reference", "torch"}


def test_rocm_runs_the_references_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.warns(UserWarning, match="plain PyTorch operations run"):
        chosen = kernels.chosen("cuda")
    assert {name: chosen[name] for name in ENGINE} == dict.fromkeys(ENGINE, "reference")


def test_the_cpu_runs_its_own_where_no_gradient_is_kept() -> None:
    chosen = kernels.chosen("cpu")
    assert [name for name, backend in chosen.items() if backend == "cpu"] == [*cpu.OPERATIONS, "packed_linear"]
    with torch.enable_grad():
        assert dispatch._pick("fused_linear", "cpu")[0] == "reference"


def test_a_foreign_tensor_goes_to_the_reference() -> None:
    with torch.no_grad():
        out = kernels.fused_linear(torch.empty(3, 8, device="meta"), torch.empty(6, 8, device="meta"), silu=True)
        weights, experts = kernels.route(torch.empty(3, 8, device="meta"), 2, True)
    assert (out.device.type, list(out.shape)) == ("meta", [3, 3])
    assert list(weights.shape) == list(experts.shape) == [3, 2]


def states(model: Qwen3, ids: torch.Tensor) -> torch.Tensor:
    """One engine step over a prompt of all but the last token, then a decode step: their states."""
    config, stepper, count = model.config, model.stepper(), len(ids)
    cache = torch.zeros(2, config.num_hidden_layers, 4, BLOCK, config.num_key_value_heads, config.head_dim)
    found = []
    for first, last in ((0, count - 1), (count - 1, count)):
        positions = torch.arange(first, last, dtype=torch.int32)
        plan = StepPlan(
            positions=positions,
            slots=torch.tensor([3, 1], dtype=torch.int32)[positions // BLOCK] * BLOCK + positions % BLOCK,
            tables=torch.tensor([[3, 1, 0]], dtype=torch.int32),
            starts=torch.tensor([0, last - first], dtype=torch.int32),
            lengths=torch.tensor([last], dtype=torch.int32),
            cos_sin=stepper.cos_sin(count),
            decode=int(first > 0),
            max_query=0 if first else last,
            max_length=count,
        )
        found.append(stepper.hidden(ids[first:last].int(), plan, cache[0], cache[1]))
    return model.norm(torch.cat(found))


@pytest.mark.parametrize("moe", [False, True])
def test_the_engines_steps_run_on_references_alone(monkeypatch: pytest.MonkeyPatch, moe: bool) -> None:
    model = random_model(tiny_config(moe), seed=0)
    ids = torch.randint(600, (21,))
    with torch.inference_mode():
        want = model.hidden(ids.unsqueeze(0))[0]
        assert distance(states(model, ids), want) < 1e-5
        for backends in dispatch._table.values():
            for backend in backends.keys() - {"reference"}:
                monkeypatch.setitem(backends, backend, lambda *_, **__: pytest.fail("not a reference"))
        with kernels.use("reference"):
            assert set(kernels.chosen("cpu").values()) == {"reference"}
            assert distance(states(model, ids), want) < 1e-5
