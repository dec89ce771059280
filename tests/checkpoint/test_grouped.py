"""Checkpoints as a GPU holds them in 4 and 8 bits, on a CPU by the plain twin: the numbers of the files, number for
number, and the same answers as from the widened network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3.checkpoint import load_weights, read_config, resolve, save_checkpoint
from qwen3.errors import OutOfMemoryError, UsageError
from qwen3.kernels.grouped import GroupWeight
from qwen3.kernels.packed import PackedWeight
from qwen3.model import Qwen3, load_model
from qwen3.model.lora import attach
from qwen3.model.pack import pack_model
from tests.adapting import random_adapter
from tests.checkpoint.formats import build as formats
from tests.checkpoint.formats.test_models import HOW, IDS, small
from tests.checkpoint.gguf import build as gguf
from tests.checkpoint.gguf.test_model import EMBEDDED, moe  # noqa: F401 (a fixture)

BITS = {  # held in them; the others are widened
    "gptq": 4, "gptq-asymmetric": 4, "gptq-8": 8, "gptq-channel": 4, "awq": 4, "w4a16": 4, "w4a16-zero": 4, "w8a16": 8,
    "w8a8": 8, "mlx": 4, "mlx-8": 8, "mlx-3": 4,
}  # fmt: skip


def load(source: Path, pack: str = "kept", dtype: torch.dtype = torch.float32) -> tuple[Qwen3, dict[str, GroupWeight]]:
    model = Qwen3(read_config(source), device="meta", dtype=dtype).eval()
    load_weights(model, source, device="cpu", dtype=dtype, pack=pack, grouped=True)
    model.rotary.to("cpu")
    return model, {name: part for name, part in model.named_modules() if isinstance(part, GroupWeight)}


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("name", HOW)
@pytest.mark.filterwarnings("ignore:.*become")
def test_formats(name: str, kind: str, tmp_path: Path) -> None:
    folder, twin = small(tmp_path, name, kind)
    model, found = load(folder)
    more = (1 if kind == "dense" else 4) if name.startswith("mlx") else 0  # embedding and head, routers left out
    count = 4 * model.config.num_hidden_layers
    assert len(found) in ((count, count + 1, count + 2) if more else (count,) if name in BITS else (0,))
    plain = dict(twin.named_parameters())
    for path, part in found.items():
        assert part.bits == BITS[name]
        assert torch.allclose(part.dequantize(), plain[path], rtol=1e-6, atol=1e-7), path
    with torch.no_grad():
        assert (model(IDS) - twin(IDS)).norm() < 1e-4 * twin(IDS).norm()


def q4_k_m(name: str) -> str:
    """Query and key are of another type than values: the three are one matrix."""
    return "Q6_K" if name.startswith("token_embd") or "attn_v" in name or "0.ffn_down" in name else "Q4_K"


KINDS: list[Any] = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q5_K", "IQ4_XS", q4_k_m]


@pytest.mark.parametrize("kinds", KINDS)
def test_gguf(kinds: str | Callable[[str], str], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = request.getfixturevalue("moe") if kinds in ("Q4_0", q4_k_m) else EMBEDDED
    file, twin = gguf.write(source, tmp_path / "m.gguf", kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, found = load(file)
    plain = dict(twin.named_parameters())
    assert len(found) == 1 + 4 * model.config.num_hidden_layers
    for path, part in found.items():
        wide = plain[path].detach()
        assert torch.allclose(part.dequantize(), wide, rtol=1e-5, atol=1e-6 * float(wide.abs().max())), path
    with torch.no_grad():
        assert (model(IDS) - twin(IDS)).norm() < 1e-4 * twin(IDS).norm()


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_rounded_while_read(kind: str) -> None:
    """To the numbers that a CPU rounds to, and so does rounding in memory."""
    from qwen3.kernels import grouped

    source = resolve("embedded").path
    model, found = load(source, kind)
    same = {name: part for name, part in load_model(source, "cpu", quantization=kind).named_modules()
            if isinstance(part, PackedWeight)}  # fmt: skip
    plain = dict(load_model(source, "cpu", "float32").named_parameters())
    assert found.keys() == same.keys()
    for name, part in found.items():
        assert torch.equal(part.dequantize(), same[name].dequantize()), name
        again = grouped.quantize_rtn(plain[name], part.bits, part.group)
        assert torch.equal(again.data, part.data), name
        assert torch.equal(again.scale, part.scale), name
    assert model.dtype == torch.float32
    half, _ = load(source, kind, torch.bfloat16)
    with torch.no_grad():
        assert half.dtype == half(IDS).dtype == torch.bfloat16
        assert (half(IDS).float() - model(IDS)).norm() < 0.03 * model(IDS).norm()


def test_a_model_in_memory_is_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve("embedded").path
    model, (_, found) = load_model(source, "cpu", "float32"), load(source, "int4")
    monkeypatch.setattr("qwen3.model.pack.has_groups", lambda device, dtype: True)
    with monkeypatch.context() as patch:
        patch.setattr(Qwen3, "device", torch.device("cuda"))
        pack_model(model, "int4")
    held = {name: part for name, part in model.named_modules() if isinstance(part, GroupWeight)}
    assert held.keys() == found.keys()
    assert all(torch.equal(part.data, found[name].data) for name, part in held.items())
    assert {name for name, _ in model.named_parameters()}.isdisjoint(held)


def test_experts_are_rounded_together() -> None:
    from qwen3.kernels import grouped

    weight = torch.randn(3, 8, 64)
    whole = grouped.quantize_rtn(weight, 4, 32)
    for expert, part in enumerate(weight):
        assert torch.equal(whole[expert].dequantize(), grouped.quantize_rtn(part, 4, 32).dequantize())


def test_an_engine_on_them_answers_as_the_widened_network() -> None:
    from qwen3 import LLM, SamplingParams

    llm = LLM("embedded", device="cpu", dtype="float32")
    model, found = load(resolve("embedded").path, "int8")
    held = LLM.of(model, llm.tokenizer)
    with torch.no_grad():
        for name, part in found.items():
            dict(llm.model.named_parameters())[name].copy_(part.dequantize())
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    for question in ("What is 2 + 2?", "What is the capital of France?"):
        assert held.chat(question, sampling=greedy).ids == llm.chat(question, sampling=greedy).ids


@pytest.mark.parametrize("experts", [False, True])
def test_adapters_are_trained_beside_them(experts: bool, tmp_path: Path) -> None:
    """The same gradients as beside the widened network, and no weight is kept for the way back."""
    folder, _ = formats.make(tmp_path, "moe" if experts else "dense", formats.awq())
    model, found = load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = load_model(folder, "cpu", "float32")
    for network in (model, twin):
        attach(network, random_adapter(network.config, 2, gain=0.1))
        network(IDS).logsumexp(-1).sum().backward()
    right: dict[str, Any] = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert (parameter.grad - right[name]).norm() <= 1e-3 * right[name].norm(), name
    assert all(not p.requires_grad for part in found.values() for p in part.parameters())


def test_memory_is_that_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve("embedded").path
    _, found = load(source, "int4")
    need = sum(part.nbytes for part in found.values())
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: need + 200_000)
    load(source, "int4")
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: need - 200_000)
    with pytest.raises(OutOfMemoryError, match="free"):
        load(source, "int4")


def test_a_published_model_is_asked_about_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 billion weights: 16 GB in bfloat16, under 5 in 4 bits."""
    from qwen3.options import check_options

    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 5_000_000_000)
    check_options("Qwen/Qwen3-8B", "cpu", None, "int4")
    for weights in (None, "int8"):
        with pytest.raises(OutOfMemoryError, match="Qwen3-8B needs"):
            check_options("Qwen/Qwen3-8B", "cpu", None, weights)


def test_a_network_in_few_bits_is_not_saved(tmp_path: Path) -> None:
    model, _ = load(resolve("embedded").path, "int4")
    with pytest.raises(UsageError, match="weights in few bits cannot be saved"):
        save_checkpoint(tmp_path / "m", model)


def test_where_nothing_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3.model.pack.has_groups", lambda device, dtype: False)
    with pytest.raises(UsageError, match="weights='int4' are for a CPU, or an NVIDIA GPU"):
        load_model(resolve("embedded").path, "meta", quantization="int4")
    model = Qwen3(read_config(resolve("embedded").path), device="meta")
    with pytest.raises(UsageError, match="not for meta and bfloat16"):
        pack_model(model, "int8")


def test_what_they_are_for_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a GPU they are slower than bfloat16 for many requests at once (docs/quantization.md)."""
    folder, _ = small(tmp_path, "gptq", "dense")
    monkeypatch.setattr(
        "qwen3.model.load.load_weights", lambda *given, **how: load_weights(*given, **how | {"grouped": True})
    )
    with pytest.warns(
        UserWarning, match="few bits are for up to 32 requests at once; for more, torch.float32 is faster"
    ):
        model = load_model(folder, "cpu")
    assert any(isinstance(part, GroupWeight) for part in model.modules())
