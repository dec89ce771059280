"""Needles: what they are made of, what counts as found, and positions that are stretched and come back."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3.checkpoint import save_checkpoint
from qwen3.errors import UsageError
from qwen3.tasks.base import interval
from qwen3.tokenizer import Tokenizer
from qwen3.train import needle as needles
from qwen3.train.bits_per_byte import Text, bits_per_byte
from qwen3.train.needle import NeedleDraw, choices, long_claim, needle, needle_test, set_rope, stretched
from qwen3.train.packing import IGNORED, PackedBatch
from tests.fixtures import random_model, tiny_config

TOK = Tokenizer.from_pretrained().prefix(608)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_stands_where_it_is_asked_for(depth: float) -> None:
    prompt, answer = needle(TOK, random.Random(1), 400, depth)
    assert 370 < len(prompt) + len(answer) <= 400
    text, code = TOK.decode(prompt), TOK.decode(answer).strip(" .")
    assert text.count(f"is {code}.") == 1
    assert len(code) == 5
    assert TOK.decode(prompt + answer).endswith(f" is {code}.")
    assert TOK.encode_plain(TOK.decode(prompt + answer)) == prompt + answer  # as a text would be encoded
    assert text.index(code) / text.index("Question") == pytest.approx(depth, abs=0.12)


def test_a_length_without_room_is_told() -> None:
    with pytest.raises(UsageError, match="a needle of 20 tokens: its fact and question alone have"):
        needle(TOK, random.Random(1), 20, 0.5)


def reader(batch: PackedBatch) -> np.ndarray:
    """Finds the code when it stands in the last 150 tokens before the question."""
    text = TOK.decode(batch.ids[0].tolist())
    fact = text.index("The secret code")
    near = len(TOK.encode_plain(text[fact:])) < 150
    labels = batch.labels[batch.labels != IGNORED]
    return labels if near else labels + 1


def test_accuracy_is_by_length_and_depth_with_an_interval() -> None:
    found = needle_test(reader, TOK, [120, 400], (0.0, 1.0), count=6)
    assert found["lengths"] == {"120": {"0": 1.0, "1": 1.0}, "400": {"0": 0.0, "1": 1.0}}
    assert (found["accuracy"], found["of"]) == (0.75, 24)
    assert found["interval"] == pytest.approx((0.551, 0.880), abs=0.001)  # by Wilson's formula, by hand
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(20, 20)[1] == 1.0


def test_draws_train_answers_of_all_lengths() -> None:
    draw = NeedleDraw(TOK, (100, 300))
    samples = [draw(random.Random(i)) for i in range(30)]
    assert 70 < min(map(len, samples)) < 130 < 250 < max(map(len, samples)) <= 300
    for sample in samples:
        assert TOK.decode(sample.ids[sample.trained].tolist()).endswith(".<|endoftext|>")
        assert sample.trained.sum() == 8
    assert NeedleDraw(TOK, (100, 100), answers=False)(random.Random(0)).trained.sum() > 70


def test_positions_are_stretched_for_a_while() -> None:
    model = random_model(tiny_config(rope_theta=1e4))
    before = model.rotary.inv_freq.clone()
    with stretched(model, 4.0, 64):
        assert model.config.context_length == 4096
        scaling = model.config.rope_scaling
        assert scaling is not None
        assert (scaling.factor, scaling.original_max_position_embeddings) == (4.0, 64)
        assert not model.rotary.inv_freq.equal(before)
        assert model.rotary.scale == pytest.approx(0.1 * math.log(4) + 1)
    assert model.rotary.inv_freq.equal(before)
    assert model.config == tiny_config(rope_theta=1e4)
    set_rope(model, theta=1e6, context=8192)
    assert (model.config.rope_theta, model.config.max_position_embeddings) == (1e6, 8192)
    assert model.rotary.inv_freq.equal(random_model(tiny_config()).rotary.inv_freq)


def test_choices_are_greedy_decoding() -> None:
    model = random_model(tiny_config())
    prompt, answer = needle(TOK, random.Random(3), 90, 0.5)
    seen: list[PackedBatch] = []
    needle_test(lambda batch: (seen.append(batch), np.zeros(7))[1], TOK, [90], (0.5,), count=1)
    batch = seen[0]
    logits = model(torch.from_numpy(batch.ids).long())[0]
    at = torch.from_numpy(batch.labels[0] != IGNORED)
    assert choices(model)(batch).tolist() == logits[at].argmax(-1).tolist()
    assert len(prompt) + len(answer) <= 90


def test_the_claim_and_the_command_give_both_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(tiny_config())
    found = long_claim(model, TOK, 64, count=1)
    assert (list(found["native"]["lengths"]), list(found["yarn"]["lengths"])) == (["256"], ["1024"])
    assert found["holds"] is False
    assert model.config == tiny_config()
    save_checkpoint(tmp_path / "m", model, tokenizer=TOK)
    needles.main([str(tmp_path / "m"), "--base", "64", "--count", "1"])
    assert json.loads(capsys.readouterr().out) == found | {
        name: found[name] | {"interval": list(found[name]["interval"])} for name in ("native", "yarn")
    }
    needles.main([str(tmp_path / "m"), "--length", "100", "--depth", "0.5", "--factor", "2", "--count", "2"])
    assert json.loads(capsys.readouterr().out)["of"] == 2


def test_bits_per_byte_are_the_models_own_log_probabilities_over_bytes() -> None:
    model = random_model(tiny_config()).requires_grad_(False)
    texts = ["A text of ünicode bytes.", "Another, a little longer than that.", "x"]
    documents = [[*TOK.encode_plain(text), TOK.control.endoftext] for text in texts]
    given = [
        Text(np.array(ids, np.int32), len(text.encode()) - len(TOK.token_bytes(ids[0])))
        for text, ids in zip(texts, documents, strict=True)
    ]
    found = bits_per_byte(model, given, length=64)
    nats = 0.0
    for ids in documents:
        logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        nats -= sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1))
    assert found["bytes"] == sum(text.predicted_bytes for text in given)
    assert found["tokens"] == sum(map(len, documents)) - 3
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)
    assert found["nats_per_token"] == pytest.approx(nats / found["tokens"], rel=1e-5)
    cut = bits_per_byte(model, given, length=8, rows=2)
    assert (cut["tokens"], cut["bytes"]) == (found["tokens"], found["bytes"])
    assert math.isnan(bits_per_byte(model, [Text(np.array([3], np.int32), 0)], length=8)["bits_per_byte"])
