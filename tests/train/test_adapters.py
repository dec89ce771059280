"""Adapters on disk and merged; QLoRA's base. PEFT and bitsandbytes are the oracles where they are installed."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import load_weights, save_checkpoint
from qwen3.checkpoint.adapter import (
    CONFIG,
    WEIGHTS,
    Adapter,
    LowRank,
    adapter_stamp,
    is_adapter,
    module_shapes,
    read_adapter,
    write_adapter,
)
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError, Qwen3Error, UnsafeFileError, UsageError
from qwen3.model import Qwen3
from qwen3.model.load import quantize_model
from qwen3.model.lora import attach, detach, loras
from qwen3.train.adapters import LoraConfig, Policy, adapter_of, add_lora, load_adapter, merge, save_adapter, table
from qwen3.train.forward import plan_attention, run_layer, run_layers, to_tensors
from qwen3.train.nf4 import NF4, Nf4Weight, dynamic_code, hold_nf4, memory, quantize_nf4
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import pack
from qwen3.train.samples import completion_sample
from qwen3.train.trainer import CrossEntropy, Trainer
from tests.adapting import merged_by_names, random_adapter
from tests.engine.test_engine import oracle
from tests.fixtures import random_model, tiny_config

IDS = torch.randint(0, 600, (2, 17), generator=torch.Generator().manual_seed(1))


def same(one: Adapter, other: Adapter) -> bool:
    return one.parts.keys() == other.parts.keys() and all(
        torch.equal(p.a, q.a) and torch.equal(p.b, q.b) and math.isclose(p.scale, q.scale)
        for p, q in ((one.parts[module], other.parts[module]) for module in one.parts)
    )


# Files


@pytest.mark.parametrize("targets", [("*_proj",), ("q_proj", "v_proj"), ("layers.1.*.up_proj", "o_proj")])
@pytest.mark.parametrize("moe", [False, True])
def test_what_is_saved_is_read(moe: bool, targets: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny_config(moe=moe)
    adapter = random_adapter(config, 3, targets, gain=2.5)
    write_adapter(tmp_path, Adapter(adapter.parts, base="embedded"), config)
    found = read_adapter(tmp_path, config)
    assert same(found, adapter)
    assert (found.base, found.source) == ("embedded", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    names = load_file(tmp_path / WEIGHTS)
    if "q_proj" in targets:
        assert names["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (3, 64)
        assert names["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].shape == (128, 3)
        assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_ranks_and_scales_may_differ(tmp_path: Path) -> None:
    config = tiny_config(moe=True)
    parts = random_adapter(config, 4).parts | random_adapter(config, 2, ("k_proj", "up_proj"), gain=0.25).parts
    write_adapter(tmp_path, Adapter(parts), config)
    assert same(read_adapter(tmp_path, config), Adapter(parts))


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    model = random_model(tiny_config(moe=True))
    attach(model, random_adapter(model.config, 2))
    expected = model(IDS)
    save_adapter(tmp_path, model, base="x")
    other = random_model(tiny_config(moe=True))
    trained = load_adapter(other, tmp_path)
    assert torch.equal(other(IDS), expected)
    assert trained.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(UsageError, match="there is no adapter in this model"):
        adapter_of(random_model(tiny_config()))


def test_a_save_is_all_or_nothing(tmp_path: Path) -> None:
    config = tiny_config()
    good = random_adapter(config, 2)
    write_adapter(tmp_path, good, config)
    bad = dict(good.parts)
    name = next(iter(bad))
    bad[name] = LowRank(torch.full_like(bad[name].a, math.nan), bad[name].b, 1.0)
    with pytest.raises(CorruptFileError, match=r"not saved: .* has .* NaN"):
        write_adapter(tmp_path, Adapter(bad), config)
    assert same(read_adapter(tmp_path, config), good)


def changed(folder: Path, tensors: Any = None, **config: Any) -> None:
    told = json.loads((folder / CONFIG).read_text()) | config
    (folder / CONFIG).write_text(json.dumps(told))
    if tensors is not None:
        found = load_file(folder / WEIGHTS)
        tensors(found)
        save_file(found, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda f: changed(f, peft_type="IA3"), ConfigError, "peft_type is 'IA3'"),
        (lambda f: changed(f, use_dora=True), ConfigError, "use_dora is 'True'"),
        (lambda f: changed(f, bias="all"), ConfigError, "bias is 'all'"),
        (lambda f: changed(f, modules_to_save=["lm_head"]), ConfigError, "modules_to_save"),
        (lambda f: changed(f, something_new=3), ConfigError, "something_new is '3'"),
        (lambda f: changed(f, init_lora_weights="pissa_niter_4"), ConfigError, "changed the base weights"),
        (lambda f: changed(f, r=0), ConfigError, "r is '0'"),
        (lambda f: changed(f, lora_alpha="x"), ConfigError, "lora_alpha is 'x'"),
        (lambda f: changed(f, rank_pattern={"(a+)+$": 3}), ConfigError, "rank_pattern must map"),
        (lambda f: changed(f, alpha_pattern={"q_proj": "x"}), ConfigError, "alpha_pattern is wrong for"),
        (lambda f: changed(f, r=5), CorruptFileError, r"q_proj.lora_A has shape \[3, 64\] instead of \[5, 64\]"),
        (lambda f: (f / CONFIG).write_text("{"), CorruptFileError, "not valid JSON"),
        (lambda f: (f / CONFIG).write_text("[]"), ConfigError, "not a JSON object"),
        (lambda f: changed(f, lambda t: t.pop(Q + "B.weight")), CorruptFileError, "missing .*q_proj.lora_B"),
        (
            lambda f: changed(f, lambda t: (t.pop(Q + "A.weight"), t.pop(Q + "B.weight"))),
            CorruptFileError,
            r"missing model.layers.0.self_attn.q_proj \(lora_A and lora_B\)",
        ),
        (
            lambda f: changed(f, lambda t: t.update({Q + "magnitude_vector": torch.ones(3)})),
            CorruptFileError,
            "unexpected .*magnitude_vector",
        ),
        (
            lambda f: changed(f, lambda t: t.update({Q.replace("q_proj", "z_proj") + "A.weight": torch.ones(3, 64)})),
            CorruptFileError,
            "unexpected .*z_proj",
        ),
        (
            lambda f: changed(f, lambda t: t.update({Q + "A.weight": torch.ones(3, 64, dtype=torch.int8)})),
            CorruptFileError,
            "stored as I8",
        ),
        (
            lambda f: changed(f, lambda t: t.update({Q + "A.weight": torch.full((3, 64), math.inf)})),
            CorruptFileError,
            "q_proj has NaN or infinite",
        ),
        (lambda f: (f / WEIGHTS).unlink(), ModelNotFoundError, "no such file"),
        (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), UnsafeFileError, "a pickle that can run code"),
        (lambda f: (f / CONFIG).unlink(), ModelNotFoundError, "holds no adapter"),
        (lambda f: (f / CONFIG).rename(f / "config.json"), ModelNotFoundError, "is a model, not an adapter"),
    ],
)
def test_a_wrong_file_is_one_clear_line(break_it: Any, error: type[Qwen3Error], message: str, tmp_path: Path) -> None:
    config = tiny_config()
    write_adapter(tmp_path, random_adapter(config, 3, ("q_proj", "v_proj")), config)
    break_it(tmp_path)
    with pytest.raises(error, match=message) as caught:
        read_adapter(tmp_path, config)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_adapter_of_another_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(tiny_config(), 3, ("q_proj",)), tiny_config())
    with pytest.raises(CorruptFileError, match=r"q_proj.lora_A has shape \[3, 64\] instead of \[3, 96\]"):
        read_adapter(tmp_path, tiny_config(hidden_size=96))
    with pytest.raises(CorruptFileError, match=r"missing model.layers.2.self_attn.q_proj"):
        read_adapter(tmp_path, tiny_config(num_hidden_layers=3))
    with pytest.raises(CorruptFileError, match=r"unexpected .*layers\.1"):
        read_adapter(tmp_path, tiny_config(num_hidden_layers=1))
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        read_adapter(tmp_path / "nowhere", tiny_config())


def test_harmless_keys_of_other_versions_are_taken(tmp_path: Path) -> None:
    config = tiny_config()
    adapter = random_adapter(config, 4, ("q_proj",), gain=2.0)
    write_adapter(tmp_path, adapter, config)
    changed(tmp_path, eva_config=None, loftq_config={}, use_qalora=False, peft_version="0.99", lora_dropout=0.05)
    assert same(read_adapter(tmp_path, config), adapter)
    changed(tmp_path, use_rslora=True, lora_alpha=4)
    assert {part.scale for part in read_adapter(tmp_path, config).parts.values()} == {2.0}
    changed(tmp_path, layers_to_transform=[1])
    names = [name for name in load_file(tmp_path / WEIGHTS) if ".layers.0." in name]
    changed(tmp_path, lambda t: [t.pop(name) for name in names])
    assert list(read_adapter(tmp_path, config).parts) == ["model.layers.1.self_attn.q_proj"]


def test_a_trainers_folder_is_its_adapter(tmp_path: Path) -> None:
    config = tiny_config()
    adapter = random_adapter(config, 4, ("q_proj",))
    write_adapter(tmp_path / "out" / "adapter", adapter, config)
    found = read_adapter(tmp_path / "out", config)
    assert same(found, adapter)
    assert found.source == str(tmp_path / "out")
    assert is_adapter(tmp_path / "out")
    assert adapter_stamp(tmp_path / "out") == found.stamp != ()
    assert not is_adapter(tmp_path)
    assert adapter_stamp(tmp_path) == ()


# Merging


@pytest.mark.parametrize("moe", [False, True])
def test_merged_and_saved_is_the_base_and_the_difference(moe: bool, tmp_path: Path) -> None:
    model = random_model(tiny_config(moe=moe))
    adapter = random_adapter(model.config, 3, gain=0.5)
    expected = merged_by_names(model, adapter)
    attach(model, adapter)
    logits = model(IDS)
    assert merge(model) is model
    assert not loras(model)
    assert (model(IDS) - logits).norm() < 1e-4 * logits.norm()
    save_checkpoint(tmp_path, model)
    other = Qwen3(model.config)
    load_weights(other, tmp_path)
    for name, p in other.named_parameters():
        assert torch.allclose(p, dict(expected.named_parameters())[name], atol=1e-6), name


def test_a_merge_rounds_once() -> None:
    model = random_model(tiny_config(), dtype=torch.bfloat16)
    adapter = random_adapter(model.config, 3, gain=0.1)
    expected = merged_by_names(copy.deepcopy(model).float(), adapter)
    merge(model, adapter)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(expected.named_parameters())[name].bfloat16()), name


def test_a_compressed_base_is_not_merged_into() -> None:
    for compress in (quantize_model, hold_nf4):
        model = compress(random_model(tiny_config()))
        with pytest.raises(UsageError, match="is kept compressed"):
            merge(model, random_adapter(model.config))


def test_the_table_says_what_is_trained() -> None:
    model = random_model(tiny_config(moe=True))
    trained = add_lora(model, LoraConfig(rank=4, targets=("q_proj", "experts.up_proj")))
    text = table(model)
    count = sum(p.numel() for p in trained.values())
    assert count == 2 * 4 * (64 + 128) + 2 * 8 * 4 * (64 + 32)
    assert f"trainable {count:,} beside {model.config.num_parameters():,} frozen" in text
    rows = [line.split() for line in text.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["q_proj", "2"], ["up_proj", "2"]]
    assert "8 × 4 × 64" in text
    assert rows[2][-1] == f"{2 * 8 * 4 * (64 + 32):,}"


# QLoRA


def test_the_codebook_is_quantiles_of_a_normal_distribution() -> None:
    """QLoRA, appendix E: both halves evenly spaced in probability, zero exactly, the ends at ±1."""
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    upper = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    lower = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([upper, lower, torch.zeros(1, dtype=torch.float64)]).sort().values
    assert torch.allclose(values / values.max(), torch.tensor(NF4, dtype=torch.float64), atol=1e-6)


def test_the_dynamic_code_is_signed_and_fine_near_one() -> None:
    code = dynamic_code()
    assert len(code) == len(code.unique()) == 256
    assert (code[0], code[-1], code[127]) == (pytest.approx(-0.99297, abs=1e-5), 1.0, 0.0)
    assert torch.equal(code[:127], -code[128:255].flip(0))


@pytest.mark.parametrize("shape", [(64, 128), (3, 32, 48), (300, 64)])
def test_nf4_by_the_definition(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.02
    held = quantize_nf4(weight)
    count = shape[0] if len(shape) == 3 else 1
    table_, code = torch.tensor(NF4), dynamic_code()
    for e, matrix in enumerate(weight.view(count, -1)):
        blocks = matrix.view(-1, 64)
        peak = blocks.abs().amax(-1)
        nearest = ((blocks / peak[:, None])[..., None] - table_).abs().argmin(-1)
        rest = peak - peak.mean()
        pad = torch.cat([rest, rest.new_zeros(-len(rest) % 256)]).view(-1, 256)
        top = pad.abs().amax(-1, keepdim=True)
        sizes = ((pad / top)[..., None] - code).abs().argmin(-1)
        found = (code[sizes] * top).flatten()[: len(peak)] + peak.mean()
        expected = (table_[nearest] * found[:, None]).view(shape[-2:])
        own = held.dequantize(torch.float32).view(count, *shape[-2:])[e]
        assert torch.allclose(own, expected, atol=1e-7)
        assert (own - weight.view(count, *shape[-2:])[e]).norm() < 0.11 * weight.view(count, -1)[e].norm()
        if count > 1:
            assert torch.equal(held[e].dequantize(torch.float32), own)
    zero = quantize_nf4(torch.zeros(2, 64))
    assert torch.equal(zero.dequantize(torch.float32), torch.zeros(2, 64))
    with pytest.raises(UsageError, match="is no multiple of 64"):
        quantize_nf4(torch.zeros(3, 20))


def test_nf4_equals_bitsandbytes() -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(bnb.get_4bit_type("nf4", device="cpu"), torch.tensor(NF4))
    assert torch.equal(bnb.create_dynamic_map(), dynamic_code())
    weight = torch.randn(1024, 512, generator=torch.Generator().manual_seed(2)) * 0.02
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    held = quantize_nf4(weight)
    assert torch.equal(codes.flatten(), held.codes.flatten())
    assert (state.absmax != held.sizes[0]).float().mean() < 0.005  # ties in the last bit
    assert (bnb.dequantize_4bit(codes, state) - held.dequantize(torch.float32)).abs().max() < 1e-3


@pytest.mark.parametrize("moe", [False, True])
def test_qlora_trains_as_lora_on_the_rounded_weights(moe: bool) -> None:
    config = tiny_config(moe=moe)
    model = hold_nf4(random_model(config))
    whole = random_model(config)
    with torch.no_grad():
        held = {n: m.dequantize(torch.float32) for n, m in model.named_modules() if isinstance(m, Nf4Weight)}
        for name, value in held.items():
            dict(whole.named_parameters())[name].copy_(value)
    assert len(held) == 4 * config.num_hidden_layers
    assert torch.allclose(model(IDS), whole(IDS), atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(IDS), whole(IDS), atol=1e-4)
    adapter = random_adapter(config, 2, gain=0.2)
    kept: list[torch.Size] = []
    grads = []
    for network in (model, whole):
        trained = attach(network, adapter)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            loss = network(IDS).logsumexp(-1).mean()
        if network is model:
            assert not {value.shape for value in held.values()} & set(kept), "no weight is kept for the way back"
        loss.backward()
        grads.append({name: p.grad for name, p in trained.items()})
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).norm() <= 1e-4 * grads[1][name].norm() + 1e-9, name
    detach(model)
    model.bfloat16()
    name, value = next(iter(held.items()))
    assert torch.equal(model.get_submodule(name).dequantize(torch.float32), value), "a cast leaves it as it is"


def test_a_compiled_layer_keeps_no_weight_either() -> None:
    """A compiler that sees that forward and backward write out the same weight would keep it."""
    model = hold_nf4(random_model(tiny_config(num_hidden_layers=1)))
    attach(model, random_adapter(model.config, 2))
    batch, _ = pack([completion_sample([], list(range(16)))], 1, 16, 0)
    tensors = to_tensors(batch, torch.device("cpu"))
    kept: list[tuple[torch.Size, torch.dtype]] = []
    run = torch.compile(run_layer, backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.shape, t.dtype)) or t, lambda t: t):
        found, _ = run_layers(model, tensors, plan_attention(tensors, model.dtype), run)
    assert kept
    assert not {shape for shape, dtype in kept if dtype == torch.float32} & {(256, 64), (64, 128)}
    assert torch.allclose(found, model.hidden(tensors.ids), atol=1e-5)
    found.sum().backward()


@pytest.mark.parametrize("moe", [False, True])
def test_the_trainer_trains_the_adapter_and_an_engine_follows(moe: bool) -> None:
    model = random_model(tiny_config(moe=moe))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_lora(model, LoraConfig(rank=8))
    engine = Engine(model, vocab_size=634)
    trainer = Trainer(model, OptimConfig(vector_lr=0.03), engines=[Policy(engine, "policy", model)], balance=0.0)
    prompt, answer = list(range(20, 30)), [7, 300, 12, 550, 41]
    batch, _ = pack([completion_sample(prompt, answer)], 1, 32, 0)
    for _ in range(100):  # the loss still jumps by the 40th, on which of them depends on the machine
        loss = trainer.update([batch], CrossEntropy())["loss"]
        if loss < 0.05:
            break
    assert loss < 0.05
    for name, p in before.items():
        assert torch.equal(p, dict(model.named_parameters())[name]), name
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True).resolved("instruct")
    asked = [Request(prompt, params, adapter=name) for name in ("policy", None)]
    for request in asked:
        engine.add(request)
    while engine.has_work:
        engine.advance()
    assert asked[0].output == answer
    assert asked[1].output != answer
    merge(model)
    with torch.no_grad():
        assert model(torch.tensor([prompt + answer[:-1]]))[0, -5:].argmax(-1).tolist() == answer


def test_the_memory_is_said() -> None:
    model = hold_nf4(random_model(tiny_config(), dtype=torch.bfloat16))
    count = sum(math.prod(shape) for shape in module_shapes(model.config).values())
    text = memory(model)
    assert text.startswith(f"{count:,} weights in nf4 take ")
    assert f"instead of {2 * count:,}" in text
    held = [m for m in model.modules() if isinstance(m, Nf4Weight)]
    assert sum(m.nbytes for m in held) * 8 < 4.3 * count


# PEFT


def peft_model(model: Qwen3, **how: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    other = peft.get_peft_model(oracle(model), peft.LoraConfig(task_type="CAUSAL_LM", **how))
    with torch.no_grad():
        for name, p in other.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.1)
    return other.eval()


@pytest.mark.parametrize("moe", [False, True])
def test_peft_reads_ours(moe: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = random_model(tiny_config(moe=moe))
    targets = ("*_proj",)
    attach(model, random_adapter(model.config, 3, targets, gain=0.7))
    save_adapter(tmp_path, model)
    other = peft.PeftModel.from_pretrained(oracle(random_model(tiny_config(moe=moe))), str(tmp_path)).eval()
    with torch.no_grad():
        expected, found = model(IDS), other(IDS).logits
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "how",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.1.*\.(up|down)_proj"},
        {"r": 4, "target_modules": ["o_proj", "k_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"o_proj": 3}},
        {"r": 2, "target_modules": ["gate_proj"], "layers_to_transform": [1]},
    ],
)
def test_we_read_pefts(how: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(tiny_config())
    other = peft_model(model, **how)
    other.save_pretrained(str(tmp_path))
    load_adapter(model, tmp_path)
    with torch.no_grad():
        expected, found = other(IDS).logits, model(IDS)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "how",
    [
        {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        {"r": 4, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    ],
)
def test_we_read_pefts_experts(how: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(tiny_config(moe=True))
    other = peft_model(model, **how)
    other.save_pretrained(str(tmp_path))
    load_adapter(model, tmp_path)
    with torch.no_grad():
        expected, found = other(IDS).logits, model(IDS)
    assert (found - expected).norm() < 1e-5 * expected.norm()
