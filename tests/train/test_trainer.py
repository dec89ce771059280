"""The trainer: parts of an update, what stays fixed, what an engine sees, parity with transformers."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen3 import family
from qwen3.checkpoint import save_checkpoint
from qwen3.engine import SamplingParams
from qwen3.errors import CorruptFileError, UsageError
from qwen3.llm import LLM
from qwen3.model import Qwen3
from qwen3.train.forward import BatchTensors
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample
from qwen3.train.trainer import CrossEntropy, Trainer, flops
from tests.fixtures import random_model, tiny_config, tiny_tokenizer
from tests.train import two_processes
from tests.train.test_forward import RAGGED, WHOLE, batch_of


def parameters(model: Qwen3) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_an_update_in_parts_equals_the_update_in_one() -> None:
    """One normaliser over all parts, however their trained tokens are spread."""
    base = random_model(tiny_config())
    whole = batch_of([30, 17, 9, 20, 5], rows=2)
    halves = [
        PackedBatch(*(getattr(whole, name)[row : row + 1] for name in ("ids", "labels", "positions", "documents")))
        for row in range(2)
    ]
    assert halves[0].trained_tokens != halves[1].trained_tokens
    results = []
    for batches in ([whole], halves):
        trainer = Trainer(copy.deepcopy(base), OptimConfig(kind="adamw", eps=1e-3))
        metrics = trainer.update(batches, CrossEntropy())
        results.append((metrics["loss"], metrics["norm"], parameters(trainer.model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    for name, value in results[0][2].items():
        torch.testing.assert_close(value, results[1][2][name], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_mean_over_trained_tokens() -> None:
    model = random_model(tiny_config())
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 600, 20).astype(np.int32)
    weight = rng.random(20).astype(np.float32)
    batch = pack([TokenSample(ids, np.arange(20) > 11, {"weight": weight})], 1, 48, 0)[0]
    with torch.no_grad():
        logprobs = model(torch.from_numpy(ids).long()[None])[0].log_softmax(-1)
    each = -logprobs[torch.arange(11, 19), torch.from_numpy(ids[12:]).long()]
    expected = float((each * torch.from_numpy(weight[12:])).sum() / weight[12:].sum())
    metrics = Trainer(model).update([batch], CrossEntropy(), 0.0)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["trained"] == 8
    assert metrics["tokens"] == 48
    assert set(metrics) == {"loss", "norm", "tokens", "trained", "seconds", "tokens_per_second"}


def test_logprobs_are_the_models() -> None:
    model = random_model(tiny_config())
    batch = batch_of(RAGGED)
    for temperature in (1.0, 0.7):
        found = Trainer(model).logprobs(batch, temperature)
        assert found.shape == (2, 48)
        assert found.dtype == torch.float32
        for row in range(2):
            for number in range(1, batch.documents[row].max() + 1):
                at = batch.documents[row] == number
                ids = torch.from_numpy(batch.ids[row][at]).long()
                with torch.no_grad():
                    right = (model(ids[None])[0] / temperature).log_softmax(-1)
                kept = batch.labels[row][at] >= 0
                expected = right[torch.arange(len(ids) - 1), ids[1:]][torch.from_numpy(kept[:-1])]
                torch.testing.assert_close(found[row, at][kept], expected, rtol=1e-4, atol=1e-5)
                assert not found[row, at][~kept].any()


def test_bf16_parameters_are_the_rounded_masters_where_they_always_were() -> None:
    model = random_model(tiny_config(), dtype=torch.bfloat16)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    trainer = Trainer(model)
    for seed in range(2):
        trainer.update([batch_of(WHOLE, seed=seed)], CrossEntropy())
    for name, p in model.named_parameters():
        assert p.data_ptr() == places[name]
        master = trainer.optimizer.master[name]
        assert master.dtype == torch.float32
        assert torch.equal(p, master.bfloat16())
    assert not torch.equal(trainer.optimizer.master["embed_tokens.weight"], model.embed_tokens.weight.float())


def test_frozen_parameters_stay_and_cost_nothing() -> None:
    model = random_model(tiny_config())
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1.self_attn" in name)
    before = parameters(model)
    trainer = Trainer(model)
    trainer.update([batch_of(RAGGED)], CrossEntropy())
    changed = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert changed == set(trainer.optimizer.master) == {name for name in before if "layers.1.self_attn" in name}
    with pytest.raises(UsageError, match="every parameter is frozen"):
        Trainer(model.requires_grad_(False))


class Broken(CrossEntropy):
    """Not finite, as an overflow would be."""

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = super().__call__(hidden, head, tensors)
        return total * math.inf, metrics


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: Any) -> None:
    trainer = Trainer(random_model(tiny_config()), OptimConfig(kind=kind))
    trainer.update([batch_of(RAGGED)], CrossEntropy())
    before = {name: t.clone() for name, t in trainer.optimizer.state().items()}
    metrics = trainer.update([batch_of(RAGGED)], Broken())
    assert not math.isfinite(metrics["norm"])
    assert all(torch.equal(t, before[name]) for name, t in trainer.optimizer.state().items())
    assert math.isfinite(trainer.update([batch_of(RAGGED)], CrossEntropy())["norm"])


def test_an_update_with_nothing_to_train_is_an_error() -> None:
    batch = batch_of(WHOLE)
    empty = PackedBatch(batch.ids, np.full_like(batch.labels, -100), batch.positions, batch.documents)
    with pytest.raises(UsageError, match="an update with 0 trained tokens"):
        Trainer(random_model(tiny_config())).update([empty], CrossEntropy())


def test_an_engine_over_the_same_model_samples_from_what_was_trained() -> None:
    config = tiny_config()
    model = random_model(config)
    llm = LLM.of(model, tiny_tokenizer(config))
    how = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompt = list(range(40, 60))  # long enough to be cached

    def answer(of: LLM) -> list[int]:
        return list(of.generate([prompt], how)[0].ids)

    first = answer(llm)
    version = llm.engine.version
    trainer = Trainer(model, OptimConfig(vector_lr=0.05), engines=[llm.engine])
    for seed in range(3):
        trainer.update([batch_of(WHOLE, seed=seed)], CrossEntropy())
    assert llm.engine.version == version + 3
    after = answer(llm)
    assert after != first
    assert after == answer(LLM.of(copy.deepcopy(model), tiny_tokenizer(config)))  # nothing cached was used again


def test_a_resumed_trainer_goes_on_bit_by_bit(tmp_path: Path) -> None:
    trainer = Trainer(random_model(tiny_config(moe=True)))
    trainer.update([batch_of(RAGGED)], CrossEntropy())
    trainer.save(tmp_path, {"row": 12})
    trainer.finish()
    other = Trainer(random_model(tiny_config(moe=True), seed=5), seed=9)
    assert other.load(tmp_path) == {"row": 12}
    assert other.updates == 1
    assert torch.equal(
        torch.rand(3), (torch.manual_seed(0), torch.rand(3))[1]
    )  # the generator as the first one left it
    for t in (trainer, other):
        t.update([batch_of(WHOLE)], CrossEntropy())
    for (name, a), b in zip(trainer.optimizer.state().items(), other.optimizer.state().values(), strict=True):
        assert torch.equal(a, b), name
    assert Trainer(random_model(tiny_config())).load(tmp_path / "none") is None
    with pytest.raises(CorruptFileError, match=r"optim\.matrix_lr was 0\.02, now it is 0\.01"):
        Trainer(random_model(tiny_config(moe=True)), OptimConfig(matrix_lr=0.01)).load(tmp_path)


def test_operations_of_a_token_of_the_target() -> None:
    """Qwen3-0.6B on documents of 8,192 tokens: 6.39 GFLOP a token."""
    config = family.MODELS["Qwen3-0.6B"].config
    blank = np.zeros((1, 8192), dtype=np.int32)
    batch = PackedBatch(blank, blank, blank, blank + 1)
    assert flops(config, batch) / 8192 == pytest.approx(6.39e9, rel=0.002)


def plain_loop(
    model: Any, batches: list[PackedBatch], config: OptimConfig, matrices: Mapping[str, bool]
) -> list[float]:
    """What anybody would write with transformers and torch.optim.AdamW."""
    groups = [
        {"params": [p for n, p in model.named_parameters() if matrices[n]], "lr": config.matrix_lr,
         "weight_decay": config.weight_decay},
        {"params": [p for n, p in model.named_parameters() if not matrices[n]], "lr": config.vector_lr,
         "weight_decay": 0.0},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step, batch in enumerate(batches):
        ids, labels = (torch.from_numpy(a).long() for a in (batch.ids, batch.labels))
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / len(batches))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_two_hundred_steps_equal_transformers_and_a_plain_loop(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(tiny_config())
    save_checkpoint(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = OptimConfig(kind="adamw", matrix_lr=2e-3, vector_lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.99))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(200):  # arithmetic progressions: something to learn
        starts, steps = rng.integers(0, 100, (2, 1)), rng.integers(1, 5, (2, 1))
        rows = ((starts + steps * np.arange(24)) % 100).astype(np.int32)
        batches.append(pack([TokenSample(row, np.arange(24) > 3) for row in rows], 2, 24, 0)[0])
    trainer = Trainer(model, config)
    ours = [trainer.update([b], CrossEntropy(), 1 - step / 200)["loss"] for step, b in enumerate(batches)]
    matrices = {n: p.dim() == 2 and "embed" not in n for n, p in theirs.named_parameters()}
    right = plain_loop(theirs.train(), batches, config, matrices)
    assert right[-1] < right[0] - 2
    assert max(abs(a - b) for a, b in zip(ours, right, strict=True)) < 2e-3
    mine, plain = parameters(model)["embed_tokens.weight"], theirs.model.embed_tokens.weight.detach()
    assert float((mine - plain).norm() / plain.norm()) < 1e-3


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_equal_one(sharded: bool, tmp_path: Path) -> None:
    """Each with half of the rows: parameters that both have whole, and FSDP2's shards; balance over both."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.killed_run", "tests.train.two_processes"])
    processes = [context.Process(target=two_processes.work, args=(rank, tmp_path, sharded)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    logs = json.loads((tmp_path / f"log-{sharded}.json").read_text())
    whole = load_file(tmp_path / f"whole-{sharded}.safetensors")
    for kind in ("muon", "adamw"):
        for moe in (False, True):
            log, parameters_of_one = two_processes.updates(
                kind, moe, slice(None), False, tmp_path / f"{kind}-{moe}-one"
            )
            for one, two in zip(log, logs[f"{kind} {moe}"], strict=True):
                assert one == pytest.approx(two, rel=2e-3)
            alone = two_processes.trainer_of(kind, moe, False, seed=1)  # goes on from what two wrote
            assert alone.load(tmp_path / f"{kind}-{moe}-{sharded}") == {"place": 2}
            alone.update(two_processes.batches_of(2, slice(None)), CrossEntropy())
            for name, value in parameters_of_one.items():
                torch.testing.assert_close(whole[f"{kind} {moe}/{name}"], value, rtol=2e-3, atol=2e-4)
                torch.testing.assert_close(parameters(alone.model)[name], value, rtol=2e-3, atol=2e-4)
