"""Requests with different adapters in one batch: each says what its merged model says, and nothing leaks."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from qwen3 import LLM, SamplingParams, kernels
from qwen3.checkpoint.adapter import Adapter, LowRank, write_adapter
from qwen3.engine import Engine, Request
from qwen3.engine.adapters import Adapters
from qwen3.engine.draft import DraftModel
from qwen3.engine.graphs import Graphs
from qwen3.engine.runner import Fed, Runner
from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.model.load import quantize_model
from tests.adapting import merged_by_names, random_adapter
from tests.engine.overlapped import overlapped
from tests.engine.test_engine import prompt
from tests.engine.test_graphs import inputs_of, prepared
from tests.fixtures import random_model, tiny_config

PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True).resolved("instruct")
TARGETS = {"all": ("*_proj",), "some": ("q_proj", "down_proj"), "one": ("layers.1.*.v_proj",)}


def config_of(moe: bool) -> Any:
    return tiny_config(moe=moe)


def adapters_of(config: Any) -> dict[str, Adapter]:
    """Of different ranks (20 in all is more than 16 columns), different targets."""
    return {
        "a": random_adapter(config, 3, TARGETS["all"], seed=1),
        "b": random_adapter(config, 12, TARGETS["some"], seed=2),
        "c": random_adapter(config, 5, TARGETS["one"], seed=3, gain=3.0),
    }


def ask(adapter: str | None, seed: int = 0, length: int = 40, **how: Any) -> Request:
    return Request(prompt(seed, length), how.pop("params", PARAMS), adapter=adapter, **how)


def finish(engine: Engine, *requests: Request) -> list[list[int]]:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.advance()
    for request in requests:
        if request.error:
            raise request.error
    return [request.output for request in requests]


@pytest.mark.parametrize(
    "how", [{}, {"prefill_chunk": 16}, {"invariant": True}, {"speculation": "ngram"}, {"max_batch": 2}]
)
@pytest.mark.parametrize("moe", [False, True])
def test_a_mixed_batch_is_each_alone_and_each_merged(moe: bool, how: dict[str, Any]) -> None:
    model = random_model(config_of(moe))
    adapters = adapters_of(model.config)
    engine = Engine(model, vocab_size=634, adapters=adapters, **how)
    asked = [ask(name, seed) for seed in (0, 1) for name in (None, *adapters)]
    together = finish(engine, *asked)
    networks = {None: model} | {name: merged_by_names(model, adapter) for name, adapter in adapters.items()}
    plain = {name: Engine(network, vocab_size=634) for name, network in networks.items()}
    expected = [finish(plain[r.adapter], ask(None, seed))[0] for r, seed in zip(asked, [0] * 4 + [1] * 4, strict=True)]
    assert together == expected
    assert len({tuple(tokens) for tokens in together}) == 8, "the adapters matter"
    alone = [finish(engine, ask(r.adapter, seed))[0] for r, seed in zip(asked, [0] * 4 + [1] * 4, strict=True)]
    assert alone == expected
    assert engine.runner.custom == {}


@pytest.mark.parametrize("moe", [False, True])
def test_invariant_bits_do_not_depend_on_the_neighbours(moe: bool) -> None:
    model = random_model(config_of(moe))
    engine = Engine(model, vocab_size=634, adapters=adapters_of(model.config), invariant=True, prefix_cache=False)
    params = SamplingParams(temperature=1, seed=5, max_tokens=8, logprobs=0, ignore_eos=True).resolved("instruct")
    alone, crowd = ask("a", params=params), ask("a", params=params)
    finish(engine, alone)
    finish(engine, crowd, *(ask(name, i, 10 + i) for i, name in enumerate((None, "b", "c", "a"))))
    assert crowd.output == alone.output
    assert [entry.logprob for entry in crowd.logprobs] == [entry.logprob for entry in alone.logprobs]


def test_no_cached_prompt_crosses_adapters() -> None:
    model = random_model(tiny_config())
    engine = Engine(model, vocab_size=634, adapters=adapters_of(model.config))
    for name in (None, "a", "b"):
        fresh, again = ask(name, length=50), ask(name, length=50)
        assert finish(engine, fresh) == finish(engine, again)
        assert (fresh.cached_tokens, again.cached_tokens) == (0, 48), name
    engine.load_adapter("a", random_adapter(model.config, 3, seed=9))
    reloaded = ask("a", length=50)
    finish(engine, reloaded)
    assert reloaded.cached_tokens == 0, "KV of the old one is never used again"
    untouched = ask("b", length=50)
    finish(engine, untouched)
    assert untouched.cached_tokens == 48


def test_loading_and_unloading_while_others_run() -> None:
    model = random_model(tiny_config())
    given = adapters_of(model.config)
    engine = Engine(model, vocab_size=634)
    expected = {n: finish(Engine(merged_by_names(model, x), vocab_size=634), ask(None))[0] for n, x in given.items()}
    assert engine.adapters == {}
    with pytest.raises(UsageError, match="adapter 'a' is not loaded; none is"):
        engine.add(ask("a"))
    running = [ask(None, 7), ask(None, 8)]
    plain = finish(Engine(model, vocab_size=634), ask(None, 7), ask(None, 8))
    for request in running:
        engine.add(request)
    engine.advance()
    engine.load_adapter("a", given["a"])
    first = ask("a")
    engine.add(first)
    for _ in range(3):
        engine.advance()
    engine.load_adapter("b", given["b"])  # grows: what runs goes on
    second = ask("b")
    engine.add(second)
    engine.advance()
    with pytest.raises(UsageError, match="adapter 'a' is in use by 1 requests"):
        engine.unload_adapter("a")
    finish(engine)
    assert [r.output for r in running] == plain
    assert (first.output, second.output) == (expected["a"], expected["b"])
    assert {name: found.rank for name, found in engine.adapters.items()} == {"a": 3, "b": 12}
    engine.unload_adapter("a")
    with pytest.raises(UsageError, match="adapter 'a' is not loaded; there is: b"):
        engine.add(ask("a"))
    with pytest.raises(UsageError, match="adapter 'a' is not loaded"):
        engine.unload_adapter("a")
    engine.load_adapter("c", given["c"])  # into columns that held another
    assert finish(engine, ask("c"), ask("b")) == [expected["c"], expected["b"]]
    engine.unload_adapter("b")
    engine.unload_adapter("c")
    assert engine.adapters == {}
    assert finish(engine, ask(None, 7))[0] == plain[0]


def test_free_columns_are_used_again_and_captured_steps_stay_valid() -> None:
    model = random_model(tiny_config())
    held = Adapters(model, {"a": random_adapter(model.config, 8, seed=1), "b": random_adapter(model.config, 8, seed=2)})
    layout, where = held.layout, {name: pair[0].data_ptr() for name, pair in held._pairs.items()}
    held.unload("a")
    held.load("c", random_adapter(model.config, 5, seed=3))
    held.load("c", random_adapter(model.config, 8, seed=4))
    assert held.layout == layout
    assert {name: pair[0].data_ptr() for name, pair in held._pairs.items()} == where
    assert len({*held.loaded["b"].columns, *held.loaded["c"].columns}) == 16
    held.load("d", random_adapter(model.config, 1, seed=5))
    assert held.layout > layout
    held.unload("b")
    held.unload("c")
    held.unload("d")
    assert not held._pairs, "the last one frees the memory"


def test_an_adapter_that_is_replaced_takes_effect_in_the_middle() -> None:
    model = random_model(tiny_config())
    old, new = (random_adapter(model.config, 4, seed=i) for i in (1, 2))
    engine = Engine(model, vocab_size=634, adapters={"policy": old})
    request, other = ask("policy"), ask(None, 3)
    engine.add(request)
    engine.add(other)
    for _ in range(6):
        engine.advance()
    engine.load_adapter("policy", new)
    known = len(request.output)
    finish(engine)
    assert other.output == finish(Engine(model, vocab_size=634), ask(None, 3))[0]
    ids = request.ids + request.output[:known]
    rest = Request(ids, SamplingParams(temperature=0, max_tokens=16 - known, ignore_eos=True).resolved("instruct"))
    assert request.output[known:] == finish(Engine(merged_by_names(model, new), vocab_size=634), rest)[0]


def test_a_preempted_sample_keeps_its_adapter() -> None:
    model = random_model(tiny_config())
    adapters = adapters_of(model.config)
    engine = Engine(model, vocab_size=634, adapters=adapters, blocks=1 + 10, prefix_cache=False)
    asked = [ask(name, seed) for seed, name in enumerate(("a", "b", None, "c"))]
    found = finish(engine, *asked)
    assert found == [finish(engine, ask(name, seed))[0] for seed, name in enumerate(("a", "b", None, "c"))]
    assert engine.runner.custom == {}


@pytest.mark.parametrize("moe", [False, True])
def test_a_draft_guesses_and_the_adapter_verifies(moe: bool) -> None:
    model = random_model(config_of(moe))
    adapters = adapters_of(model.config)
    draft = DraftModel(random_model(tiny_config(num_hidden_layers=1), seed=4))
    engine = Engine(model, vocab_size=634, adapters=adapters, speculation=draft)
    plain = Engine(model, vocab_size=634, adapters=adapters)
    names = ["a", None, "b"]
    assert finish(engine, *(ask(n, i) for i, n in enumerate(names))) == finish(
        plain, *(ask(n, i) for i, n in enumerate(names))
    )


def test_nothing_is_different_where_nobody_asks_for_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config())
    engine = Engine(model, vocab_size=634, adapters=adapters_of(model.config))
    monkeypatch.setattr(Adapters, "operations", lambda *_: pytest.fail("an adapter's step"))
    expected = finish(Engine(model, vocab_size=634), ask(None), ask(None, 1))
    assert finish(engine, ask(None), ask(None, 1)) == expected
    assert engine.runner.variant == (False, 0)


@pytest.mark.parametrize("moe", [False, True])
def test_an_fp8_base_can_have_adapters(moe: bool) -> None:
    model = quantize_model(random_model(config_of(moe)))
    adapters = adapters_of(model.config)
    engine = Engine(model, vocab_size=634, adapters=adapters)
    found = finish(engine, *(ask(name) for name in (None, *adapters)))
    assert len({tuple(tokens) for tokens in found}) == 4
    with torch.no_grad():
        from qwen3.model.lora import attach

        attach(model, adapters["a"])
        ids = ask("a").ids + found[1][:-1]
        logits = model(torch.tensor([ids]))[0, -16:, :634]
    assert logits.argmax(-1).tolist() == found[1]


def test_operations_on_any_mixture_of_tokens() -> None:
    """Against each token alone, by the formula."""
    model = random_model(tiny_config())
    adapters = adapters_of(model.config)
    held = Adapters(model, adapters)
    names = [None, "c", "a", "b", "a", None, "c"]
    numbers = torch.tensor([0 if n is None else held.loaded[n].number for n in names], dtype=torch.int32)
    layer = model.layers[1]
    weight, norm = layer.self_attn.qkv_proj.weight, layer.input_layernorm.weight
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), kernels.use("reference"):
        linear, _ = held.operations(numbers)
        found = linear(x, weight, norm=norm, eps=1e-6)
        normed = kernels.rms_norm(x, norm, 1e-6).double()
        expected = normed @ weight.double().T
        for i, name in enumerate(names):
            top = 0
            for leaf, rows in (("q_proj", 128), ("k_proj", 64), ("v_proj", 64)):
                part = None if name is None else adapters[name].parts.get(f"model.layers.1.self_attn.{leaf}")
                if part is not None:
                    delta = part.scale * (part.b.double() @ (part.a.double() @ normed[i]))
                    expected[i, top : top + rows] += delta
                top += rows
        assert (found - expected).norm() < 1e-5 * expected.norm()
        gate = layer.mlp.gate_up_proj.weight
        assert linear(x, gate, norm=norm, eps=1e-6, silu=True).shape == (7, 128)
        huge = {m: LowRank(part.a * 3e38, part.b, 1.0) for m, part in adapters["a"].parts.items()}
        bad, _ = Adapters(model, {**adapters, "bad": Adapter(huge)}).operations(numbers)
        assert torch.allclose(bad(x, weight, norm=norm, eps=1e-6), found), "another's overflow reaches nobody"


@pytest.mark.parametrize("moe", [False, True])
@torch.inference_mode()
def test_what_a_graph_captures_is_the_eager_step(moe: bool) -> None:
    """Compared without capturing: rows with several adapters, a chunk with another, padding."""
    model = random_model(config_of(moe))
    with kernels.use("reference"):
        runner, state, given = prepared(moe)
        runner.stepper, runner.adapters = model.stepper(), Adapters(model, adapters_of(model.config))
        loaded = runner.adapters.loaded
        for slot, name in ((1, "a"), (2, "b"), (5, "c")):
            runner.customize(slot, adapter=loaded[name].number)
        graphs, out, chunk = Graphs(runner, state), torch.zeros(5, 2, dtype=torch.int32), Fed(5, 48, range(400, 421))
        graphs._step(4, 32, inputs_of(graphs, 4, 32, [3, 1, 2], chunk, True), out)
        expected = runner.logits(runner.forward([3, 1, 2], [chunk], state)[[0, 1, 2, 23]])
        torch.testing.assert_close(given[-1][0][:4], expected, rtol=1e-4, atol=1e-4)
        with_others = runner.forward([3, 1, 2], [], state)
        for slot in (1, 2, 5):
            runner.customize(slot)
        without = runner.forward([3, 1, 2], [], state)
        assert torch.allclose(with_others[0], without[0])
        assert not torch.allclose(with_others[1:], without[1:], atol=0.1)


def test_graphs_of_a_former_layout_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config())
    runner = Runner(model.stepper(), torch.device("cpu"), max_rows=4, max_len=64, blocks=9, kv_dtype=torch.float32)
    graphs = Graphs(runner, prepared(False)[1])
    monkeypatch.setattr(graphs, "_capture", lambda *key: key)
    runner.adapters = Adapters(model, {"a": random_adapter(model.config, 4)})
    graphs.find(2)
    runner.customize(1, adapter=1)
    graphs.find(2)
    old = runner.variant
    assert {key[2] for key in graphs._graphs} == {(False, 0), old}
    runner.adapters.load("b", random_adapter(model.config, 16))
    graphs.find(2)
    assert {key[2] for key in graphs._graphs} == {(False, 0), runner.variant} != {(False, 0), old}


@pytest.mark.parametrize("moe", [False, True])
def test_adapters_where_the_device_is_a_step_ahead(moe: bool, tokenizer: Any) -> None:
    model = random_model(config_of(moe))
    adapters = adapters_of(model.config)
    late = overlapped(model, tokenizer, adapters=adapters)
    names = ("a", None, "b", "c", "a")
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True).resolved("instruct")
    asked, expected = ([ask(name, i, 20, params=params) for i, name in enumerate(names)] for _ in range(2))
    assert finish(late, *asked) == finish(Engine(model, tokenizer, adapters=adapters), *expected)
    assert late.runner.custom == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("moe", [False, True])
def test_on_a_gpu_the_probabilities_are_those_of_the_merged_model(moe: bool, fp8: bool) -> None:
    """Prompts, captured decode steps, loading while others run; and as fast as before where nobody asks for one."""
    experts = {"moe_intermediate_size": 128} if moe else {}
    config = tiny_config(moe=moe, hidden_size=256, head_dim=128, intermediate_size=512, **experts)
    model = random_model(config, dtype=torch.bfloat16).cuda()
    adapters = {name: random_adapter(config, rank, seed=rank, gain=0.5) for name, rank in (("a", 8), ("b", 20))}
    twin = random_model(config, dtype=torch.bfloat16).float()
    networks = {None: model} | {name: merged_by_names(twin, adapters[name]).cuda() for name in adapters}
    model = random_model(config, dtype=torch.bfloat16).cuda()
    engine = Engine(
        quantize_model(model) if fp8 else model, vocab_size=634, max_batch=16, adapters={"a": adapters["a"]}
    )
    params = SamplingParams(temperature=1, seed=1, max_tokens=24, logprobs=0, ignore_eos=True).resolved("instruct")
    asked = [ask(name, i, 30 + 7 * i, params=params) for i, name in enumerate(("a", None, "a", None))]
    for request in asked:
        engine.add(request)
    for _ in range(4):
        engine.advance()
    engine.load_adapter("b", adapters["b"])
    asked += [ask(name, i, 30 + 7 * i, params=params) for i, name in enumerate(("b", "a", "b"))]
    finish(engine, *asked[4:])
    alone = 0.0  # what FP8 does by itself
    for request in sorted(asked, key=lambda request: request.adapter is not None):
        network = networks[request.adapter].float()
        with torch.no_grad():
            logits = network(torch.tensor([request.ids + request.output], device="cuda"))[0]
        truth = logits.double().log_softmax(-1)[len(request.ids) - 1 : -1]
        found = torch.tensor([entry.logprob for entry in request.logprobs], device="cuda")
        wanted = truth.gather(-1, torch.tensor(request.output, device="cuda").unsqueeze(-1))[:, 0]
        apart = (found - wanted).abs()
        # Of experts that are nearly level 16 bits may choose another one: such tokens are far off.
        off = (apart.median() if moe else apart.mean()).item()
        if fp8 and request.adapter is None:
            alone = max(alone, off)
        assert off < (max(0.3, 2 * alone) if fp8 else 0.1), request.adapter


def test_of_another_model() -> None:
    engine = Engine(random_model(tiny_config()), vocab_size=634)
    with pytest.raises(UsageError, match=r"of another model: .*q_proj is \[128, 96\] there and \[128, 64\] here"):
        engine.load_adapter("x", random_adapter(tiny_config(hidden_size=96)))
    with pytest.raises(UsageError, match=r"is of another model: .* and not here"):
        engine.load_adapter("x", random_adapter(tiny_config(num_hidden_layers=3)))
    with pytest.raises(UsageError, match="name must be a text"):
        engine.load_adapter("", random_adapter(tiny_config()))
    with pytest.raises(UsageError, match="is not finite in"):
        engine.load_adapter("x", random_adapter(tiny_config(), gain=float("inf")))
    assert engine.adapters == {}


# The front door


@pytest.fixture
def llm(tokenizer: Any) -> Any:
    with LLM.of(random_model(tiny_config()), tokenizer, mode="instruct", prefill_ahead=True) as found:
        yield found


SHORT = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def test_chat_with_a_name_or_a_folder(llm: LLM, tmp_path: Any) -> None:
    adapter = random_adapter(llm.config, 4, seed=1)
    write_adapter(tmp_path / "style", adapter, llm.config)
    plain = llm.chat("Hi", sampling=SHORT)
    llm.load_adapter("mine", tmp_path / "style")
    mine = llm.chat("Hi", sampling=SHORT, adapter="mine")
    assert mine.ids != plain.ids
    assert llm.chat("Hi", sampling=SHORT, adapter=tmp_path / "style").ids == mine.ids
    assert llm.chat("Hi", sampling=SHORT, adapter="style").ids == mine.ids
    assert list(llm.adapters) == ["mine", "style"]
    assert llm.adapters["style"].source == str(tmp_path / "style")
    assert llm.chat_batch(["Hi", "Ho"], sampling=SHORT, adapter="mine")[0].ids == mine.ids
    assert llm.generate(list(mine.prompt_ids), SHORT, adapter="mine")[0].ids == mine.ids
    with llm.chat("Hi", sampling=SHORT, adapter="mine", stream=True) as stream:
        list(stream)
    assert stream.result.ids == mine.ids
    assert llm.chat("Hi", sampling=SHORT).ids == plain.ids
    llm.unload_adapter("mine")
    with pytest.raises(UsageError, match="adapter 'mine' is not loaded; there is: style"):
        llm.chat("Hi", adapter="mine")


def test_a_folder_that_was_written_again_is_loaded_again(llm: LLM, tmp_path: Any) -> None:
    folder = tmp_path / "out"
    found = []
    for seed in (1, 2):
        write_adapter(folder, random_adapter(llm.config, 4, seed=seed), llm.config)
        found.append(llm.chat("Hi", sampling=SHORT, adapter=str(folder)).ids)
    assert found[0] != found[1]
    number = llm.adapters["out"].number
    assert llm.chat("Hi", sampling=SHORT, adapter=str(folder)).ids == found[1]
    assert llm.adapters["out"].number == number
    other = tmp_path / "else" / "out"
    write_adapter(other, random_adapter(llm.config, 2), llm.config)
    with pytest.raises(UsageError, match=r"would go by the name 'out', as .* does already"):
        llm.chat("Hi", adapter=other)


def test_wrong_folders_are_said(llm: LLM, tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no adapter"):
        llm.chat("Hi", adapter=tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        llm.chat("Hi", adapter="./nowhere")
    with pytest.raises(UsageError, match="adapter must be a name or a folder, not 3"):
        llm.chat("Hi", adapter=3)
    write_adapter(tmp_path, random_adapter(tiny_config(hidden_size=96), 2), tiny_config(hidden_size=96))
    with pytest.raises(CorruptFileError, match="no adapter for this model"):
        llm.chat("Hi", adapter=tmp_path)
    assert not llm.engine.has_work


def test_a_name_wins_over_a_folder_here(llm: LLM, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.load_adapter("style", random_adapter(llm.config, 4, seed=1))
    expected = llm.chat("Hi", sampling=SHORT, adapter="style").ids
    write_adapter(tmp_path / "style", random_adapter(llm.config, 4, seed=2), llm.config)
    monkeypatch.chdir(tmp_path)
    assert llm.chat("Hi", sampling=SHORT, adapter="style").ids == expected
    llm.unload_adapter("style")
    assert llm.chat("Hi", sampling=SHORT, adapter="style").ids != expected
    assert llm.adapters["style"].source == os.path.realpath(tmp_path / "style")


def test_what_comes_next_is_computed_with_the_same_adapter(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.load_adapter("a", random_adapter(llm.config, 4))
    engine = llm.engine
    engine.prefill_ahead(prompt(3, 50), adapter="a")
    while engine.has_idle_work:
        engine.advance()
    for name, known in (("a", 48), (None, 0)):
        request = ask(name, 3, 50)
        finish(engine, request)
        assert request.cached_tokens == known
    told: list[Any] = []
    assert llm._idle is not None
    monkeypatch.setattr(llm._idle, "expect", lambda make, experts, adapter: told.append((len(make()), adapter)))
    stop = llm.chat("Hi", sampling=SHORT, adapter="a").ids[5]
    sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[stop])
    assert llm.chat("Hi", sampling=sampling, adapter="a").finish_reason == "stop"
    assert [name for count, name in told if count] == ["a"]
