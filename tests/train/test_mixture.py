"""A number determines a sample, shares and epochs are exact, and a place in the data says all that comes after it."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import Shards, write_shards
from qwen3.train.mixture import Lane, Mixture, Rows, Source, Stream, kept_out, shuffled
from qwen3.train.packing import IGNORED, PackedBatch
from qwen3.train.samples import TokenSample

TOK = Tokenizer.from_pretrained().prefix(608)


def draw(rng: random.Random) -> TokenSample:
    """7 to 40 tokens, told apart by the second."""
    size = rng.randint(7, 40)
    return TokenSample(np.array([500, *(rng.randrange(500) for _ in range(size))], np.int32), np.arange(size + 1) > 0)


def long_draw(rng: random.Random) -> TokenSample:
    return TokenSample(np.array(rng.choices(range(500), k=150), np.int32), np.arange(150) > 0)


def failing(rng: random.Random) -> TokenSample:
    if rng.random() < 0.02:
        raise UsageError("the source is dry")
    return draw(rng)


def shards(folder: Path, count: int = 50, longest: int = 90, seed: int = 0) -> Path:
    """Documents whose first id is their number, so that their tokens say where they come from."""
    rng = random.Random(seed)
    documents = [[i, *(rng.randrange(100, 600) for _ in range(rng.randint(1, longest)))] for i in range(count)]
    write_shards(folder, documents, TOK, shard_tokens=400)
    return folder


def taken_apart(batches: list[PackedBatch]) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        for row in range(len(batch.ids)):
            for number in range(1, batch.documents[row].max() + 1):
                at = batch.documents[row] == number
                assert (batch.positions[row][at] == np.arange(at.sum())).all()
                found[tuple(batch.ids[row][at].tolist())] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.text(max_size=5))
def test_an_epochs_order_has_every_place_once(count: int, seed: str) -> None:
    assert sorted(shuffled(i, count, seed) for i in range(count)) == list(range(count))


def test_orders_differ_between_epochs_and_look_random() -> None:
    first, second = ([shuffled(i, 1000, seed) for i in range(1000)] for seed in ("a", "b"))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert abs(np.corrcoef(first, range(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1
    assert max(shuffled(i, 10**12, "big") for i in range(20)) < 10**12


def test_shares_are_of_tokens_and_documents_come_once_an_epoch(tmp_path: Path) -> None:
    long, short = shards(tmp_path / "long", 40, 90), shards(tmp_path / "short", 60, 8, seed=1)
    mixture = Mixture(
        [Source("long", 3, long), Source("short", 1, short, kept=10), Source("drawn", 1, draw)], 128, seed=5
    )
    samples = [mixture.sample(i) for i in range(9000)]
    tokens = Counter[str]()
    for sample in samples:
        tokens[sample.source] += len(sample)
    total = sum(tokens.values())
    assert tokens["long"] / total == pytest.approx(0.6, abs=0.02)
    assert tokens["short"] / total == pytest.approx(0.2, abs=0.02)
    kept = kept_out(Shards(short), 10)
    assert len({*kept}) == 10
    for name, count, trained in (("long", 40, {*range(40)}), ("short", 50, {*range(60)} - {*kept})):
        order = [int(sample.ids[0]) for sample in samples if sample.source == name]
        for epoch in range(len(order) // count):
            assert sorted(order[epoch * count : (epoch + 1) * count]) == sorted(trained)
    assert mixture.tokens > 0
    assert mixture.epochs(9000)["long"] > 10
    assert all((a.ids == b.ids).all() for a, b in zip(samples[70:80], mixture.feed(70, 80), strict=True))


def test_wrong_sources_are_told(tmp_path: Path) -> None:
    folder = shards(tmp_path / "a", 5)
    for sources, message in (
        ([], "needs a source"),
        ([Source("a", 1, draw), Source("a", 1, draw)], "two sources have one name: a"),
        ([Source("a", -1, draw)], "weight of a"),
        ([Source("a", 0, draw)], "every source has the weight 0"),
        ([Source("a", 1, folder, kept=5)], "has 5 documents, and 5 are kept"),
    ):
        with pytest.raises(UsageError, match=message):
            Mixture(sources, 64)
    with pytest.raises(UsageError, match="cannot load the sources"):
        Stream(Mixture([Source("a", 1, lambda rng: draw(rng))], 64), Rows(1, 64, 1, 0), workers=1)
    with pytest.raises(UsageError, match="3 micro-batches of an update cannot be dealt to 2 processes"):
        Stream(Mixture([Source("a", 1, draw)], 64), Rows(1, 64, 3, 0), processes=2)


def test_every_prediction_is_trained_once_or_still_waits_however_long_its_document(tmp_path: Path) -> None:
    mixture = Mixture([Source("all", 1, shards(tmp_path / "s", 50, 200)), Source("long", 1, long_draw)], 64)
    rows = Rows(2, 64, 2, 0)
    lanes = [Lane(mixture, rows, i) for i in range(rows.lanes)]
    batches = [lane.batch() for _ in range(5) for lane in lanes]
    assert np.mean([batch.filled for batch in batches]) > 0.95
    assert max(batch.positions.max() for batch in batches) == 63
    found, wanted = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for batch in batches:
        at = batch.labels != IGNORED
        found.update(zip(batch.ids[at].tolist(), batch.labels[at].tolist(), strict=True))
    for i, lane in enumerate(lanes):
        following, waiting = lane.state
        for number, start, stop in waiting:
            found.update(itertools.pairwise(mixture.sample(number).ids[start:stop].tolist()))
        for number in range(i, following, rows.lanes):
            wanted.update(itertools.pairwise(mixture.sample(number).ids.tolist()))
    assert found == wanted
    assert sum(wanted.values()) > 7000


def run(mixture: Mixture, updates: range, workers: int, place: object = None) -> tuple[list[PackedBatch], object]:
    with Stream(mixture, Rows(1, 64, 3, 0), workers) as stream:
        if place is not None:
            stream.restore(json.loads(json.dumps(place)))
        made = [batch for i in updates for batch in stream(i)]
        return made, stream.position()


def same(a: list[PackedBatch], b: list[PackedBatch]) -> bool:
    return len(a) == len(b) and all(
        (x.ids == y.ids).all() and (x.labels == y.labels).all() for x, y in zip(a, b, strict=True)
    )


def test_a_place_is_exact_with_any_number_of_workers(tmp_path: Path) -> None:
    mixture = Mixture([Source("s", 1, shards(tmp_path / "s")), Source("d", 1, draw)], 64, seed=3)
    whole, end = run(mixture, range(9), 0)
    parts: list[PackedBatch] = []
    place: object = None
    for updates, workers in ((range(2), 2), (range(2, 5), 0), (range(5, 9), 1)):
        made, place = run(mixture, updates, workers, place)
        parts += made
    assert same(parts, whole)
    assert place == json.loads(json.dumps(end))
    assert sum(taken_apart(whole).values()) > 30


def test_processes_take_the_parts_of_an_update_between_them(tmp_path: Path) -> None:
    mixture, rows = Mixture([Source("s", 1, shards(tmp_path / "s")), Source("d", 1, draw)], 64), Rows(1, 64, 4, 0)
    alone = Stream(mixture, rows)
    pair = [Stream(mixture, rows, process=i, processes=2) for i in range(2)]
    for update in range(5):
        one, (a, b) = alone(update), (stream(update) for stream in pair)
        assert same(one, [a[0], b[0], a[1], b[1]])
    lanes = [stream.position()["lanes"] for stream in pair]
    assert lanes[0] | lanes[1] == alone.position()["lanes"]
    again = Stream(mixture, rows)
    again.restore({"update": 5, "lanes": lanes[0] | lanes[1]})
    assert same(again(5), alone(5))


def test_what_a_worker_meets_is_told_and_none_is_left_behind() -> None:
    rows = Rows(1, 64, 1, 0)
    stream = Stream(Mixture([Source("d", 1, failing)], 64), rows, workers=1)
    with pytest.raises(UsageError, match="in a data worker: the source is dry"):
        list(map(stream, range(200)))
    processes = [process for process, _ in stream._started]
    stream.close()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(UsageError, match="0 comes next"), Stream(Mixture([Source("d", 1, draw)], 64), rows) as other:
        other(1)
