"""Packed batches hold every token once, at its own position, and nothing of a document reaches another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qwen3.errors import UsageError
from qwen3.train.packing import IGNORED, PackedBatch, pack
from qwen3.train.samples import TokenSample, completion_sample


def sample(rng: np.random.Generator, size: int, number: int = 0) -> TokenSample:
    trained = rng.random(size) < 0.6
    trained[0] = False
    streams = {
        "advantage": rng.standard_normal(size).astype(np.float32),
        "teacher_ids": rng.integers(0, 99, (size, 3)).astype(np.float32),
    }
    routes = rng.integers(0, 8, (2, size, 4)).astype(np.int16)
    return TokenSample(rng.integers(1, 1000, size).astype(np.int32), trained, streams, routes, f"s{number}")


def taken_apart(batch: PackedBatch) -> list[tuple[list[int], list[int], list[float]]]:
    """(ids, labels, advantages) of each document, read off the rows."""
    found = []
    for row in range(len(batch.ids)):
        for number in range(1, batch.documents[row].max() + 1):
            at = batch.documents[row] == number
            assert (batch.positions[row][at] == np.arange(at.sum())).all()
            found.append(
                (
                    batch.ids[row][at].tolist(),
                    batch.labels[row][at].tolist(),
                    batch.streams["advantage"][row][at].tolist(),
                )
            )
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_document_is_there_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [sample(rng, int(rng.integers(1, 40)), i) for i in range(int(rng.integers(1, 60)))]
    batch, left = pack(samples, 6, 50, pad_id=0)
    wanted = []
    for one in samples:
        if any(one is other for other in left):
            continue
        labels = [*np.where(one.trained[1:], one.ids[1:], IGNORED).tolist(), IGNORED]
        wanted.append((one.ids.tolist(), labels, [*one.streams["advantage"][1:].tolist(), 0.0]))
    assert sorted(taken_apart(batch)) == sorted(wanted)
    assert batch.trained_tokens == sum(int(s.trained.sum()) for s in samples if not any(s is o for o in left))
    rooms = [int((row == 0).sum()) for row in batch.documents]
    assert not left or max(rooms) < min(map(len, left)), "what is left fits nowhere"


def test_streams_and_routes_lie_where_their_labels_and_tokens_do() -> None:
    rng = np.random.default_rng(3)
    one = sample(rng, 7)
    batch, _ = pack([one], 1, 10, pad_id=5)
    assert (batch.streams["teacher_ids"][0, :6] == one.streams["teacher_ids"][1:]).all()
    assert (batch.streams["teacher_ids"][0, 6:] == 0).all()
    assert batch.routes is not None
    assert one.routes is not None
    assert (batch.routes[:, 0, :7] == one.routes).all()
    assert (batch.routes[:, 0, 7:] == -1).all()
    assert (batch.ids[0, 7:] == 5).all()
    assert batch.filled == 0.7


def test_bounds_are_those_of_documents_and_empty_ends() -> None:
    rng = np.random.default_rng(0)
    batch, left = pack([sample(rng, n) for n in (4, 3, 6)], 2, 8, pad_id=0)
    assert not left
    assert batch.bounds().tolist() == [0, 4, 7, 8, 14, 16] or batch.bounds().tolist() == [0, 6, 8, 12, 15, 16]


def test_rows_are_well_filled() -> None:
    rng = np.random.default_rng(1)
    samples = [sample(rng, int(rng.integers(10, 400))) for _ in range(200)]
    total = sum(map(len, samples))
    batch, _ = pack(samples, int(total * 0.98) // 1024, 1024, pad_id=0)
    assert batch.filled > 0.985


def test_a_long_sample_is_refused_or_split_so_that_each_prediction_counts_once() -> None:
    ids = np.arange(1, 24, dtype=np.int32)
    long = completion_sample([], ids.tolist(), source="book")
    with pytest.raises(UsageError, match=r"23 tokens \(source book\) does not fit a row of 10"):
        pack([long], 4, 10, pad_id=0)
    batch, left = pack([long], 4, 10, pad_id=0, split=True)
    assert not left
    assert sorted(batch.labels[batch.labels != IGNORED].tolist()) == ids[1:].tolist()


def test_samples_say_what_does_not_fit() -> None:
    ids = np.arange(3, dtype=np.int32)
    with pytest.raises(UsageError, match=r"trained has shape \[2\] for 3 ids"):
        TokenSample(ids, np.zeros(2, bool))
    with pytest.raises(UsageError, match=r"trained\[0\]"):
        TokenSample(ids, np.ones(3, bool))
    with pytest.raises(UsageError, match="'weight'"):
        TokenSample(ids, np.zeros(3, bool), {"weight": np.zeros(2, np.float32)})
    with pytest.raises(UsageError, match="routes"):
        TokenSample(ids, np.zeros(3, bool), routes=np.zeros((2, 2, 1), np.int16))
    with pytest.raises(UsageError, match="2 values for a completion of 1"):
        completion_sample([1], [2], {"weight": [1.0, 2.0]})


def test_the_empty_end_of_a_row_is_short_documents() -> None:
    rng = np.random.default_rng(1)
    batch, left = pack([sample(rng, 300), sample(rng, 40)], 2, 2048, 0)
    bounds = batch.bounds()
    lengths = np.diff(bounds)
    assert not left
    assert bounds[0] == 0
    assert bounds[-1] == 4096
    assert {300, 40} <= set(lengths.tolist())
    assert lengths.max() == 300  # else 2,008 empty places would be the longest document
    assert all(len(set(batch.documents.reshape(-1)[a:b])) == 1 for a, b in itertools.pairwise(bounds))
