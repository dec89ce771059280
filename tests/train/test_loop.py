"""The loop learns, resumes bit for bit, and refuses a foreign state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3.errors import CorruptFileError
from qwen3.model import Qwen3
from qwen3.train.data import Batch, BatchPlan, Sample, stream_batches
from qwen3.train.loop import TrainConfig, document_mask, init_weights, next_token_loss, to_device, train
from qwen3.train.probe import exact_share
from tests.fixtures import tiny_config
from tests.train.test_data import build, small_tokenizer

PLAN = BatchPlan(rows=2, length=64, seed=1)


def make_model() -> Qwen3:
    tokenizer = small_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer) + 6, num_hidden_layers=1)
    model = Qwen3(config, device="cpu", dtype=torch.float32)
    init_weights(model, 0)
    return model


def batches(first: int, last: int) -> Iterator[Batch]:
    return stream_batches(build, PLAN, range(first, last), 0)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    config = TrainConfig(steps=6, warmup=2, log_every=2, save_every=3)
    whole, halved = make_model(), make_model()
    train(whole, lambda first: batches(first, 6), config, tmp_path / "whole")

    class Cut(Exception):
        pass

    def cut(first: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(first, 6)):
            if i == 4:
                raise Cut
            yield batch

    with pytest.raises(Cut):
        train(halved, cut, config, tmp_path / "halved")
    fresh = make_model()
    summary = train(fresh, lambda first: batches(first, 6), config, tmp_path / "halved")
    assert summary["step"] == 6
    for (name, a), (_, b) in zip(whole.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    lines = [json.loads(line) for line in (tmp_path / "halved" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "start"] == [0, 3]


def test_loss_falls(tmp_path: Path) -> None:
    model = make_model()
    train(model, lambda first: batches(first, 30), TrainConfig(steps=30, warmup=3, log_every=5), tmp_path)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert losses[-1] < losses[0] - 1.0


def test_the_probe_counts_samples_whose_every_trained_token_is_the_first_choice() -> None:
    tokenizer = small_tokenizer()
    seven = tokenizer.encode("7")[0]

    def predict(ids: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        choice = ids.roll(-1, dims=1)  # right everywhere but after an equals sign that a 7 follows
        return choice.where(choice != seven, 0)

    right, wrong = Sample("7 + 1 =", "8<|endoftext|>"), Sample("6 + 1 =", "7<|endoftext|>")
    groups = {"nothing": [Sample("6 + 1 =", "")], "right": [right] * 30, "wrong": [wrong], "mixed": [right, wrong] * 20}
    shares = exact_share(predict, tokenizer, groups, rows=2, length=64, device=torch.device("cpu"))
    assert shares == {"nothing": 1.0, "right": 1.0, "wrong": 0.0, "mixed": 0.5}


def test_documents_do_not_see_each_other() -> None:
    """A packed batch has the loss of its documents alone, weighted by their trained tokens."""
    model = make_model()
    batch = next(batches(0, 1))
    ids, labels, positions, documents = to_device(batch, torch.device("cpu"))
    with torch.no_grad():
        packed = float(next_token_loss(model, ids, labels, positions, documents))
        flexed = float(next_token_loss(model, ids, labels, positions, documents, document_mask(documents)))
        total, count = 0.0, 0
        for row in range(ids.shape[0]):
            for n in range(1, int(documents[row].max()) + 1):
                at = documents[row] == n
                logits = model(ids[row, at][None])
                kept = labels[row, at] >= 0
                loss = torch.nn.functional.cross_entropy(logits[0][kept], labels[row, at][kept], reduction="sum")
                total, count = total + float(loss), count + int(kept.sum())
    assert packed == pytest.approx(total / count, rel=1e-5)
    assert flexed == pytest.approx(packed, rel=1e-5)


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(steps=1, warmup=1, save_every=1)
    train(make_model(), lambda first: batches(first, 1), config, tmp_path)
    for changes, why in (({"num_hidden_layers": 2}, "differs in"), ({"vocab_size": 700}, "has shape")):
        other = Qwen3(tiny_config(**{"num_hidden_layers": 1} | changes), device="cpu", dtype=torch.float32)
        init_weights(other, 0)
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(CorruptFileError, match=rf"state\.safetensors: not a training state .*{why}"):
            train(other, lambda first: batches(first, 2), replace(config, steps=2), tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(CorruptFileError, match=r"state\.safetensors: not a training state"):
        train(make_model(), lambda first: batches(first, 1), TrainConfig(steps=1), tmp_path)
