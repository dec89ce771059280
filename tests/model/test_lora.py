"""LoRA in the network: what is added, what gets gradients, which names mean what."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qwen3 import kernels
from qwen3.checkpoint.adapter import module_shapes, sites
from qwen3.checkpoint.names import fused_shapes, official_shapes
from qwen3.errors import UsageError
from qwen3.kernels.fp8 import Fp8Weight, quantize_fp8
from qwen3.model.load import quantize_model
from qwen3.model.lora import LoraConfig, adapted_experts, attach, detach, loras, matching
from qwen3.train.adapters import add_lora
from tests.adapting import merged_by_names, random_adapter
from tests.fixtures import random_model, tiny_config

IDS = torch.randint(0, 600, (2, 17), generator=torch.Generator().manual_seed(1))
TARGETS = [("*_proj",), ("q_proj", "up_proj"), ("k_proj", "down_proj"), ("layers.1.*",)]


@pytest.mark.parametrize("moe", [False, True])
def test_every_projection_has_its_place(moe: bool) -> None:
    config = tiny_config(moe=moe)
    fused, official = fused_shapes(config), official_shapes(config)
    for site in sites(config):
        name = site.name if site.experts else f"{site.name}.weight"
        assert fused[name] == (*([site.experts] * bool(site.experts)), sum(site.rows), site.inputs)
    for module, shape in module_shapes(config).items():
        one = module.replace("experts", "experts.0") if len(shape) == 3 else module
        assert official[f"{one}.weight"] == shape[-2:]
    named = {n.replace("experts.0.", "experts.") for n in official if "_proj" in n and ".experts.1" not in n}
    assert {n for n in named if ".experts." not in n or n.count(".") == 6} == {
        f"{m}.weight" for m in module_shapes(config)
    }


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("moe", [False, True])
def test_the_forward_is_that_of_the_merged_weights(moe: bool, targets: tuple[str, ...]) -> None:
    model = random_model(tiny_config(moe=moe)).double()
    adapter = random_adapter(model.config, 3, targets, gain=0.5)
    expected = merged_by_names(model, adapter)(IDS)
    plain = model(IDS)
    attach(model, adapter)
    found = model(IDS)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (found - plain).norm() > 0.05 * plain.norm()
    detach(model)
    assert torch.equal(model(IDS), plain)


@pytest.mark.parametrize("moe", [False, True])
def test_a_fresh_adapter_changes_nothing_and_alone_gets_gradients(moe: bool) -> None:
    model = random_model(tiny_config(moe=moe))
    plain = model(IDS)
    trained = add_lora(model, LoraConfig(rank=4), seed=3)
    assert torch.equal(model(IDS), plain)
    assert {n: p for n, p in model.named_parameters() if p.requires_grad}.keys() == trained.keys()
    assert all(p.dtype == torch.float32 for p in trained.values())
    with torch.no_grad():
        for name, p in trained.items():
            if name.endswith("_B"):
                p.normal_(std=0.1)
    model(IDS).logsumexp(-1).sum().backward()
    for name, p in model.named_parameters():
        if name not in trained:
            assert p.grad is None, name
        elif not moe or ".experts." not in name:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    again = random_model(tiny_config(moe=moe))
    for name, p in add_lora(again, LoraConfig(rank=4), seed=3).items():
        assert name.endswith("_B") or torch.equal(p, trained[name])
    with pytest.raises(UsageError, match="has an adapter in it already"):
        add_lora(model, LoraConfig())


@pytest.mark.parametrize("moe", [False, True])
def test_gradients_are_those_of_the_formula(moe: bool) -> None:
    """Against autograd through W + scale · B A, written out for each matrix, in float64."""
    model = random_model(tiny_config(moe=moe)).double()
    adapter = random_adapter(model.config, 2, ("*_proj",), gain=0.3)
    trained = attach(model, adapter)
    for p in trained.values():
        p.data = p.data.double()
    model(IDS).logsumexp(-1).sum().backward()
    found = {m: (p.a.grad, p.b.grad) for lora in loras(model) for m, p in lora.parts().items()}

    other = merged_by_names(random_model(tiny_config(moe=moe)).double(), adapter)
    other(IDS).logsumexp(-1).sum().backward()
    grads = {n: p.grad for n, p in other.named_parameters()}
    for site in sites(model.config):
        whole = grads[site.name if site.experts else f"{site.name}.weight"]
        for module, grad in zip(site.modules, whole.split(site.rows, -2), strict=True):
            part = adapter.parts[module]
            a, b = part.a.double(), part.b.double()
            for got, want in zip(found[module], (b.mT @ grad, grad @ a.mT), strict=True):
                assert (got - part.scale * want).norm() <= 1e-5 * want.norm() + 1e-9, module


def test_experts_are_the_reference_with_other_weights() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, gate_up, down = draw(9, 16), draw(4, 24, 16), draw(4, 16, 12)
    low = (draw(4, 8, 16), draw(4, 24, 8)), (draw(4, 8, 12), draw(4, 16, 8))
    weights, chosen = kernels.route(draw(9, 4), 2, True)
    chosen[3, 1], weights[3, 1] = -1, 0
    expected = kernels.experts(x, gate_up + low[0][1] @ low[0][0], down + low[1][1] @ low[1][0], weights, chosen)
    for invariant in (False, True):
        found = adapted_experts(x, gate_up, down, weights, chosen, *low, residual=x, invariant=invariant)
        assert torch.allclose(found, x + expected)
    keep = torch.zeros(9, 8, dtype=torch.bool)
    keep[:4] = True
    plain = kernels.experts(x, gate_up, down, weights, chosen)
    for invariant in (False, True):
        found = adapted_experts(x, gate_up, down, weights, chosen, *low, keep=keep, invariant=invariant)
        assert torch.allclose(found, torch.cat([expected[:4], plain[4:]]))
    one = adapted_experts(x, gate_up, down, weights, chosen, None, low[1])
    assert torch.allclose(one, kernels.experts(x, gate_up, down + low[1][1] @ low[1][0], weights, chosen))


@pytest.mark.parametrize("moe", [False, True])
def test_an_fp8_base_is_written_out_for_each_product_alone(moe: bool) -> None:
    config = tiny_config(moe=moe)
    model = quantize_model(random_model(config))
    attach(model, random_adapter(config, 2, gain=0.3))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.dtype == torch.float32 and kept.append(t.shape)) or t, lambda t: t
    ):
        out = model(IDS)
    held = {module.shape for module in model.modules() if isinstance(module, Fp8Weight)}
    assert not held & set(kept), "no weight is kept for the way back"
    out.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and ".experts." not in n)


def test_frozen_products_have_the_gradients_of_plain_ones() -> None:
    weight = quantize_fp8(torch.randn(12, 8))
    whole = weight.dequantize(torch.float64)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    plain = x.detach().clone().requires_grad_()
    kernels.frozen_linear(x, weight).pow(2).sum().backward()
    (plain @ whole.T).pow(2).sum().backward()
    assert torch.allclose(x.grad, plain.grad)
    stack = quantize_fp8(torch.randn(3, 12, 8))
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    x.grad = None
    kernels.grouped_linear(x, stack, ends).pow(2).sum().backward()
    plain = x.detach().clone().requires_grad_()
    kernels.grouped_linear(plain, stack.dequantize(torch.float64), ends).pow(2).sum().backward()
    assert torch.allclose(x.grad, plain.grad)


def test_names_and_globs() -> None:
    config = tiny_config(moe=True)
    all_names = list(module_shapes(config))
    assert list(matching(["q_proj"], config)) == [n for n in all_names if n.endswith(".q_proj")]
    assert list(matching(["model.layers.1.self_attn.o_proj"], config)) == ["model.layers.1.self_attn.o_proj"]
    assert list(matching(["layers.0.*.?_proj"], config)) == [f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"]
    assert list(matching(["experts.*", "v_proj"], config)) == [n for n in all_names if "experts" in n or "v_proj" in n]
    assert list(matching(LoraConfig().targets, config)) == all_names
    assert matching(["experts.up_proj"], config)["model.layers.0.mlp.experts.up_proj"] == (8, 32, 64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": ["q_porj"]}, "'q_porj' matches nothing; did you mean 'q_proj'.*q_proj, k_proj.*layers 0 to 1"),
        ({"targets": ["q_proj", "layers.7.*"]}, "'layers.7.*' matches nothing"),
        ({"targets": ["lm_head"]}, "'lm_head' cannot be adapted: the head"),
        ({"targets": ["model.embed_tokens"]}, "cannot be adapted: the embedding"),
        ({"targets": ["mlp.gate"]}, "cannot be adapted: the router"),
        ({"targets": "q_proj"}, "lora.targets is 'q_proj'"),
        ({"targets": []}, "lora.targets is"),
        ({"rank": 0}, "lora.rank is 0"),
        ({"rank": 65}, "lora.rank is 65, but .* 64 is the most"),
        ({"alpha": 0}, "lora.alpha is 0"),
        ({"dropout": 0.1}, "lora.dropout is 0.1"),
    ],
)
def test_what_cannot_be_adapted_is_said(given: dict[str, Any], message: str) -> None:
    model = random_model(tiny_config())
    with pytest.raises(UsageError, match=message) as caught:
        add_lora(model, LoraConfig(**given))
    assert "\n" not in str(caught.value)
    assert not loras(model)
    assert all(p.requires_grad for p in model.parameters())


def test_the_scale() -> None:
    assert LoraConfig(rank=16, alpha=32).scale == 2
    assert LoraConfig(rank=16, alpha=32, rslora=True).scale == 8


def test_bf16_compute_with_float32_masters() -> None:
    model = random_model(tiny_config(), dtype=torch.bfloat16)
    adapter = random_adapter(model.config, 4, gain=0.2)
    expected = copy.deepcopy(model).float()
    attach(expected, adapter)
    attach(model, adapter)
    with torch.no_grad():
        found, want = model(IDS).float(), expected(IDS)
    assert (found - want).norm() < 0.03 * want.norm()
