"""Packing, labels, and batches as a pure function of the step."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from qwen3.tasks import FAMILIES
from qwen3.tokenizer import Tokenizer
from qwen3.train.conversation import completion_text, stopped_sample, turn_sample
from qwen3.train.data import BatchPlan, Mixture, Sample, encode_samples, make_batch, pack, stream_batches


@cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained().prefix(1024)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def random_documents(rng: random.Random, count: int, longest: int) -> list[tuple[list[int], int]]:
    documents = []
    for _ in range(count):
        size = rng.randint(2, longest)
        documents.append(([rng.randrange(500) for _ in range(size)], rng.randint(0, size - 1)))
    return documents


def unpack(batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(tokens, labels) of every packed document."""
    found = []
    for ids, labels, positions, numbers in zip(batch.ids, batch.labels, batch.positions, batch.documents, strict=True):
        for n in range(1, numbers.max() + 1):
            at = np.flatnonzero(numbers == n)
            assert (np.diff(at) == 1).all()
            assert (positions[at] == np.arange(len(at))).all()
            found.append((tuple(map(int, ids[at])), tuple(map(int, labels[at]))))
    return found


def test_packing_keeps_every_token_and_trains_completions_alone() -> None:
    rng = random.Random(0)
    for _ in range(20):
        documents = random_documents(rng, 40, 60)
        batch, left_out = pack(documents, rows=12, length=128, pad_id=7)
        packed = unpack(batch)
        assert len(packed) + left_out == 40
        expected = []
        for tokens, prompt in documents:
            labels = [-100] * len(tokens)
            for at in range(max(prompt, 1), len(tokens)):
                labels[at - 1] = tokens[at]
            expected.append((tuple(tokens), tuple(labels)))
        for item in packed:
            expected.remove(item)
        assert len(expected) == left_out
        assert batch.trained_tokens == sum(sum(label >= 0 for label in labels) for _, labels in packed)
        assert (batch.labels[batch.documents == 0] == -100).all()


def test_a_document_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="129 tokens does not fit a row of 128"):
        pack([([1] * 129, 1)], rows=1, length=128, pad_id=0)


def test_ids_of_the_official_vocabulary_are_kept() -> None:
    ids = [151_643, 70_000, 3]
    batch, _ = pack([(ids, 1)], rows=1, length=4, pad_id=151_643)
    assert batch.ids.tolist() == [[*ids, 151_643]]
    assert batch.labels.tolist() == [[70_000, 3, -100, -100]]


def arithmetic(rng: random.Random) -> Sample:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return Sample(f"{a} + {b} =", f" {a + b}<|endoftext|>")


def build() -> tuple[Mixture, Tokenizer]:
    return Mixture([arithmetic], lambda step: [1.0]), small_tokenizer()


def test_batches_depend_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    plan = BatchPlan(rows=4, length=64, seed=3)
    mixture = build()[0]
    alone = [make_batch(mixture, tokenizer, plan, step) for step in (0, 1, 2, 3, 4)]
    for workers in (0, 2):
        streamed = list(stream_batches(build, plan, range(1, 5), workers))
        for one, other in zip(alone[1:], streamed, strict=True):
            assert all((a == b).all() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    assert not (alone[0].ids == alone[1].ids).all()
    assert alone[0].filled > 0.9


def test_parts_are_encoded_as_the_engine_sees_them(tokenizer: Tokenizer) -> None:
    p = FAMILIES["multiply"].sample(random.Random(2))
    messages = [
        {"role": "user", "content": p.prompt},
        {"role": "assistant", "reasoning_content": p.trace, "content": p.reply},
    ]
    thinking, direct = turn_sample(messages, thinking=True), turn_sample(messages, thinking=False)
    assert thinking.prompt.endswith("<|im_start|>assistant\n")
    assert thinking.completion == f"<think>\n{p.trace}\n</think>\n\n{p.reply}<|im_end|>"
    assert direct.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert direct.completion == f"{p.reply}<|im_end|>"
    for sample in (thinking, direct):
        ((ids, prompt),) = encode_samples(tokenizer, [sample])
        assert ids == tokenizer.encode(sample.prompt + sample.completion)
        assert ids[:prompt] == tokenizer.encode(sample.prompt)


def test_stopped_sample_trains_the_answer_after_the_published_text(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "reasoning_content": "one\n\ntwo\n\nthree", "content": "A"},
    ]
    sample = stopped_sample(messages, 2)
    assert sample.prompt.endswith("<think>\none\n\ntwo")
    assert sample.forced.startswith("\n\nConsidering the limited time by the user")
    ((ids, before),) = encode_samples(tokenizer, [sample])
    forced = tokenizer.encode(sample.forced)
    assert ids[before - len(forced) : before] == forced
    assert sample.completion == "A<|im_end|>"


def test_tool_calls_are_written_as_the_template_does() -> None:
    call = {"function": {"name": "f", "arguments": {"x": "é"}}}
    assert completion_text({"tool_calls": [call, call]}, thinking=False) == (
        '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call><|im_end|>'
    )
    with pytest.raises(ValueError, match="only assistant"):
        turn_sample([{"role": "user", "content": "x"}], thinking=True)
