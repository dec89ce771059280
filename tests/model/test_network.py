"""Names, training, packed documents, dtypes, router outputs, compilation; loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import kernels
from qwen3.errors import ConfigError, ModelNotFoundError, UsageError
from qwen3.family import MODELS
from qwen3.model import Qwen3, RouterOutput, load_model
from qwen3.model import load as load_module
from qwen3.model.rope import Rotary, frequencies
from tests.fixtures import random_checkpoint, random_model, tiny_config
from tests.model.oracle import distance, oracle


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-8B", "Qwen3-30B-A3B", "Qwen3-235B-A22B"])
def test_parameters_have_the_published_number_and_our_names(name: str) -> None:
    config = MODELS[name].config
    model = Qwen3(config, device="meta")
    params = dict(model.named_parameters())
    assert sum(p.numel() for p in params.values()) == config.num_parameters()
    assert {p.dtype for p in params.values()} == {torch.bfloat16}
    assert ("lm_head.weight" in params) != config.tie_word_embeddings
    h, d = config.hidden_size, config.head_dim
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * d
    layer = {key.removeprefix("layers.1."): tuple(p.shape) for key, p in params.items() if key.startswith("layers.1.")}
    wanted: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (h,),
        "self_attn.qkv_proj.weight": (width, h),
        "self_attn.q_norm.weight": (d,),
        "self_attn.k_norm.weight": (d,),
        "self_attn.o_proj.weight": (h, config.num_attention_heads * d),
        "post_attention_layernorm.weight": (h,),
    }
    if config.is_moe:
        wanted["mlp.gate.weight"] = (128, h)
        wanted["mlp.experts.gate_up_proj"] = (128, 2 * config.moe_intermediate_size, h)
        wanted["mlp.experts.down_proj"] = (128, h, config.moe_intermediate_size)
    else:
        wanted["mlp.gate_up_proj.weight"] = (2 * config.intermediate_size, h)
        wanted["mlp.down_proj.weight"] = (h, config.intermediate_size)
    assert layer == wanted
    assert set(model.state_dict()) == set(params)  # nothing but weights is saved


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_gradients_equal_transformers(moe: bool) -> None:
    config = tiny_config(moe)
    ids = torch.randint(0, 600, (2, 20), generator=torch.Generator().manual_seed(1))
    ours, theirs = random_model(config), oracle(config)
    loss = F.cross_entropy(ours(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    wanted = F.cross_entropy(theirs(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    grads = dict(theirs.named_parameters())
    first = ours.layers[0]
    assert isinstance(first.self_attn.qkv_proj.weight.grad, Tensor)
    parts = torch.cat([grads[f"model.layers.0.self_attn.{x}_proj.weight"].grad for x in "qkv"])
    assert distance(first.self_attn.qkv_proj.weight.grad, parts) < 1e-4
    assert distance(first.self_attn.q_norm.weight.grad, grads["model.layers.0.self_attn.q_norm.weight"].grad) < 1e-4
    assert distance(ours.embed_tokens.weight.grad, grads["model.embed_tokens.weight"].grad) < 1e-4
    if moe:
        assert distance(first.mlp.gate.weight.grad, grads["model.layers.0.mlp.gate.weight"].grad) < 1e-4
        fused = grads["model.layers.0.mlp.experts.gate_up_proj"].grad
        assert distance(first.mlp.experts.gate_up_proj.grad, fused) < 1e-4


@torch.inference_mode()
def test_packed_documents_do_not_see_each_other() -> None:
    model = random_model(tiny_config())
    ids = torch.randint(0, 600, (1, 20), generator=torch.Generator().manual_seed(2))
    docs = torch.tensor([[0] * 7 + [1] * 9 + [2] * 4])
    positions = torch.tensor([[*range(7), *range(9), *range(4)]])
    packed = model(ids, positions=positions, doc_ids=docs)
    alone = torch.cat([model(ids[:, a:b]) for a, b in ((0, 7), (7, 16), (16, 20))], dim=1)
    assert distance(packed, alone) < 1e-5


@torch.inference_mode()
def test_a_given_attention_is_used() -> None:
    model = random_model(tiny_config())
    ids = torch.arange(12).view(2, 6)
    shapes = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return kernels.reference.attention(q, k, v, None, True)

    assert distance(model(ids, attention=attention), model(ids)) < 1e-5
    assert shapes == [((2, 4, 6, 32), (2, 2, 6, 32), (2, 2, 6, 32))] * 2
    with pytest.raises(UsageError, match="exclude each other"):
        model(ids, attention=attention, doc_ids=ids)


@torch.inference_mode()
def test_router_outputs() -> None:
    config = replace(tiny_config(moe=True, num_hidden_layers=3), mlp_only_layers=(1,))
    model = random_model(config)
    aux: list[RouterOutput] = []
    model(torch.arange(10).view(2, 5), aux=aux)
    assert [router.layer for router in aux] == [0, 2]
    assert {tuple(router.logits.shape) for router in aux} == {(10, 8)}
    assert all(torch.equal(router.logits.topk(2).indices, router.experts) for router in aux)
    dense: list[RouterOutput] = []
    random_model(tiny_config())(torch.arange(4).view(1, 4), aux=dense)
    assert dense == []


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.inference_mode()
def test_kernels_and_references_agree_in_the_network(moe: bool) -> None:
    model = random_model(tiny_config(moe))
    ids = torch.arange(30).view(2, 15)
    fast = model(ids)
    with kernels.use("reference"):
        assert distance(fast, model(ids)) < 1e-5


@torch.inference_mode()
def test_hidden_and_head_make_the_logits() -> None:
    model = random_model(tiny_config())
    ids = torch.arange(10).view(2, 5)
    states = model.hidden(ids)
    assert states.shape == (2, 5, 64)
    assert torch.equal(model.head(states), model(ids))
    assert distance(model(ids, last_only=True), model.head(states[:, -1:])) < 1e-6


def test_frequencies_stay_float32() -> None:
    config = tiny_config(rope_theta=1e6)
    for model in (
        random_model(config).bfloat16(),
        random_model(config).to("meta"),
        random_model(config).half().float(),
    ):
        assert torch.equal(model.rotary.inv_freq, frequencies(config))
    empty = Qwen3(config, device="meta").to_empty(device="cpu")
    assert torch.equal(empty.rotary.inv_freq, frequencies(config))
    with torch.device("meta"):
        assert torch.equal(Rotary(config).inv_freq, frequencies(config))


def test_published_yarn_figures() -> None:
    """θ 1e6, 128 dimensions, 32,768 original tokens, factor 4: pairs up to 23 stay, from 40 on four times slower."""
    plain = frequencies(MODELS["Qwen3-8B"].config)
    config = MODELS["Qwen3-8B"].config.with_yarn(4.0)
    ratio = plain / frequencies(config)
    assert ratio[:24].tolist() == pytest.approx([1.0] * 24, rel=1e-6)
    assert ratio[40:].tolist() == pytest.approx([4.0] * 24, rel=1e-6)
    assert bool((ratio[24:41].diff() > 0).all())
    cos, sin = Rotary(config)(torch.tensor([[0, 9]]), torch.float32)
    assert cos[0, 0].tolist() == pytest.approx([1.138629] * 64, rel=1e-6)
    assert (cos.square() + sin.square()).sqrt().flatten().tolist() == pytest.approx([1.138629] * 128, rel=1e-6)


def test_compiled_forward_is_one_graph_with_equal_results() -> None:
    model = random_model(tiny_config())
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    ids = torch.arange(12).view(2, 6)
    positions = torch.arange(6).expand(2, 6).contiguous()
    wanted = model(ids, positions=positions, doc_ids=torch.zeros_like(ids))
    assert distance(compiled(ids, positions=positions, doc_ids=torch.zeros_like(ids)), wanted) < 1e-6
    assert distance(compiled(ids), wanted) < 1e-6
    assert distance(compiled(ids, positions=positions), wanted) < 1e-6
    assert len(graphs) == 3


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_load_model(tmp_path: Path, moe: bool) -> None:
    config = tiny_config(moe, dtype="bfloat16")
    random_checkpoint(tmp_path / "m", config, seed=3, shards=2)
    ids = torch.arange(8).view(1, 8)
    model = load_model(tmp_path / "m", device="cpu", dtype=torch.bfloat16)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        assert torch.equal(model(ids), random_model(config, seed=3, dtype=torch.bfloat16)(ids))
    small = load_model(str(tmp_path / "m"), device="cpu")
    assert small.dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(small(ids), random_model(config, seed=3, dtype=torch.bfloat16).float()(ids))
    assert load_model(tmp_path / "m", device="cpu", dtype="float32").dtype == torch.float32
    with pytest.raises(UsageError, match="dtype='int4' is not supported"):
        load_model(tmp_path / "m", dtype="int4")


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        load_model(tmp_path / "nothing")
    quantized = tiny_config(quantization_config={"quant_method": "hqq"})
    random_checkpoint(tmp_path / "hqq", quantized)
    with pytest.raises(ConfigError, match="quantization_config says 'hqq'; what is read is fp8, "):
        load_model(tmp_path / "hqq")
    random_checkpoint(tmp_path / "plain", tiny_config())
    with pytest.raises(UsageError, match="quantization 'int3' is not supported"):
        load_model(tmp_path / "plain", quantization="int3")


def test_default_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = MODELS["Qwen3-0.6B"].config, tiny_config(dtype="bfloat16")
    half = replace(large, dtype="float16")
    wide, narrow, free = torch.float32, torch.bfloat16, large.weight_bytes("float32")
    monkeypatch.setattr(load_module, "available_bytes", lambda: free)
    for native in (True, False):
        monkeypatch.setattr(load_module, "cpu_has_bfloat16", lambda native=native: native)
        assert load_module.default_dtype(large, "cpu") == (narrow if native else wide)
        assert load_module.default_dtype(large, "cuda") == narrow
        assert load_module.default_dtype(small, "cpu") == wide
        assert load_module.default_dtype(half, "cpu") == wide
        assert load_module.default_dtype(half, "cuda") == torch.float16
        assert load_module.default_dtype(replace(large, dtype="float32"), "cuda") == wide
    free -= 1
    assert load_module.default_dtype(large, "cpu") == narrow
    assert load_module.default_dtype(half, "cpu") == narrow
