"""The cache changes no token: alone, in a padded batch, in chunks, in chosen rows; greedy against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.model import KVCache, Qwen3
from tests.fixtures import random_model, tiny_config
from tests.model.oracle import distance, oracle

USED = 500  # ids from here to the vocabulary's end are never sampled, as in the official models
STEPS = 256


def config_of(moe: bool) -> ModelConfig:
    return tiny_config(moe, vocab_size=512, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False)


def prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, USED, (length,), generator=generator) for length in lengths]


def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """(ids, positions), padded to the longest on one side, positions -1 there."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.full_like(ids, -1)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span], positions[i, span] = row, torch.arange(len(row))
    return ids, positions


def pick(logits: Tensor) -> Tensor:
    return logits[..., :USED].argmax(-1)


def greedy(model: Qwen3, rows: list[Tensor], steps: int, left: bool = True) -> list[list[int]]:
    """Batched and cached."""
    cache = model.new_cache(len(rows), max(len(row) for row in rows) + steps)
    ids, positions = padded(rows, left)
    out = [pick(model(ids, positions=positions, cache=cache, last_only=True))]
    following = torch.tensor([[len(row)] for row in rows])
    for step in range(steps - 1):
        out.append(pick(model(out[-1], positions=following + step, cache=cache)))
    return torch.cat(out, dim=1).tolist()


def greedy_uncached(model: Qwen3, row: Tensor, steps: int) -> list[int]:
    ids = row.unsqueeze(0)
    for _ in range(steps):
        ids = torch.cat((ids, pick(model(ids, last_only=True))), dim=1)
    return ids[0, len(row) :].tolist()


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.inference_mode()
def test_greedy_tokens_equal_transformers(moe: bool) -> None:
    config = config_of(moe)
    rows = prompts((7, 19, 1))
    theirs = oracle(config)
    settings = {"do_sample": False, "max_new_tokens": STEPS, "suppress_tokens": list(range(USED, 512))}
    wanted = []
    for row in rows:
        ids = row.unsqueeze(0)
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        wanted.append(out[0, len(row) :].tolist())
    model = random_model(config)
    alone = [greedy(model, [row], STEPS)[0] for row in rows]
    assert alone == wanted
    assert greedy_uncached(model, rows[0], STEPS) == wanted[0]
    assert greedy(model, rows, STEPS, left=True) == wanted
    assert greedy(model, rows, STEPS, left=False) == wanted
    assert len({token for row in wanted for token in row}) > 20  # not one token again and again


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.inference_mode()
def test_cached_logits_equal_uncached(moe: bool) -> None:
    model = random_model(config_of(moe))
    ids = torch.stack(prompts((40, 40)))
    positions = torch.arange(40).expand(2, 40)
    wanted = model(ids)
    cache = model.new_cache(2, 64)
    chunks = [(0, 13), (13, 14), (14, 15), (15, 40)]
    parts = [model(ids[:, a:b], positions=positions[:, a:b], cache=cache) for a, b in chunks]
    assert distance(torch.cat(parts, dim=1), wanted) < 1e-5
    single = model.new_cache(1, 64)
    parts = [model(ids[:1, a:b], positions=positions[:1, a:b], cache=single) for a, b in chunks]
    assert distance(torch.cat(parts, dim=1), wanted[:1]) < 1e-5


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.inference_mode()
def test_a_padded_batch_equals_each_alone(moe: bool, left: bool) -> None:
    model = random_model(config_of(moe))
    rows = prompts((7, 30, 1, 12))
    ids, positions = padded(rows, left)
    with_cache = model(ids, positions=positions, cache=model.new_cache(4, 32))
    without = model(ids, positions=positions)
    last = model(ids, positions=positions, last_only=True)
    for i, row in enumerate(rows):
        alone = model(row.unsqueeze(0))[0]
        real = positions[i] >= 0
        assert distance(with_cache[i, real], alone) < 1e-5
        assert distance(without[i, real], alone) < 1e-5
        assert distance(last[i, 0], alone[-1]) < 1e-5
    assert bool(with_cache.isfinite().all())


@torch.inference_mode()
def test_padding_writes_nothing() -> None:
    model = random_model(config_of(False))
    ids, positions = padded(prompts((3, 8)), left=True)
    cache = model.new_cache(2, 16)
    model(ids, positions=positions, cache=cache)
    assert cache.written.sum(-1).tolist() == [3, 8]
    assert bool((cache.k[:, 0, :, 3:] == 0).all())
    assert bool((cache.v[:, 1, :, :8] != 0).any())
    before = cache.k.clone()
    model(ids[:, :4], positions=torch.full((2, 4), -1), cache=cache)
    assert torch.equal(cache.k, before)


@torch.inference_mode()
def test_a_token_far_from_the_start_sees_only_what_was_written() -> None:
    """Rows of different age, holes below the position: an unwritten slot is not a zero key."""
    model = random_model(config_of(False))
    ids = prompts((12,))[0].unsqueeze(0)
    positions = torch.arange(12).unsqueeze(0) + 900
    cache = model.new_cache(1, 1024)
    parts = [model(ids[:, a:b], positions=positions[:, a:b], cache=cache) for a, b in ((0, 8), (8, 9), (9, 12))]
    assert distance(torch.cat(parts, dim=1), model(ids, positions=positions)) < 1e-5


@pytest.mark.parametrize("wanted", [[2, 0], [1, 2], [3], slice(1, 3), torch.tensor([3, 1, 0])], ids=str)
@torch.inference_mode()
def test_selected_rows_share_the_storage(wanted: Any) -> None:
    model = random_model(config_of(False))
    rows = prompts((5, 9, 3, 7))
    ids, positions = padded(rows, left=True)
    cache, twin = model.new_cache(4, 16), model.new_cache(4, 16)
    model(ids, positions=positions, cache=cache)
    model(ids, positions=positions, cache=twin)
    chosen = list(range(4))[wanted] if isinstance(wanted, slice) else [int(i) for i in wanted]
    new = torch.tensor([[11], [12], [13], [14]])
    at = torch.tensor([[len(row)] for row in rows])
    every = model(new, positions=at, cache=twin)
    part = cache.select(wanted)
    assert part.rows == len(chosen)
    assert distance(model(new[chosen], positions=at[chosen], cache=part), every[chosen]) < 1e-5
    assert torch.equal(cache.written[chosen], twin.written[chosen])
    for row in set(range(4)) - set(chosen):
        assert int(cache.written[row].sum()) == len(rows[row])
    part.clear()
    assert cache.written.any(-1).tolist() == [row not in chosen for row in range(4)]


@torch.inference_mode()
def test_a_selection_of_a_selection() -> None:
    cache = KVCache(config_of(False), 5, 4)
    part = cache.select([4, 1, 2]).select([2, 1])
    part.written[:] = True  # rows 2 and 1 are not neighbours in ascending order: gathered, so this is the whole storage
    assert part.rows == 2
    inner = cache.select(slice(1, 4)).select([1, 2])
    inner.clear()
    assert cache.written.any(-1).tolist() == [True, True, False, False, True]


@torch.inference_mode()
def test_a_row_can_start_again() -> None:
    model = random_model(config_of(False))
    first, second = prompts((20, 6))
    cache = model.new_cache(1, 32)
    model(first.unsqueeze(0), positions=torch.arange(20).unsqueeze(0), cache=cache)
    logits = model(second.unsqueeze(0), positions=torch.arange(6).unsqueeze(0), cache=cache)
    assert distance(logits, model(second.unsqueeze(0))) < 1e-5


def test_size() -> None:
    config = config_of(False)
    cache = KVCache(config, 3, 50, dtype=torch.bfloat16)
    assert cache.nbytes == 3 * 50 * config.kv_bytes_per_token(2)
    assert tuple(cache.k.shape) == (2, 3, 2, 50, 32)


def test_no_gradient_through_a_cache() -> None:
    model = random_model(config_of(False))
    ids = torch.tensor([[1, 2, 3]])
    logits = model(ids, positions=torch.tensor([[0, 1, 2]]), cache=model.new_cache(1, 4), last_only=True)
    assert not model.new_cache(1, 4).k.requires_grad
    assert logits.shape == (1, 1, 512)


def test_misuse_is_named() -> None:
    model = random_model(config_of(False))
    ids = torch.tensor([[1, 2]])
    at = torch.tensor([[0, 1]])
    cache = model.new_cache(2, 4)
    with pytest.raises(UsageError, match="positions must be given with a cache"):
        model(ids, cache=cache)
    with pytest.raises(UsageError, match="1 sequences for a KV cache of 2 rows"):
        model(ids, positions=at, cache=cache)
    with pytest.raises(UsageError, match="position 4 lies beyond the KV cache's 4 slots"):
        model(ids, positions=at + 3, cache=cache.select([0]))
    with pytest.raises(UsageError, match="position -2 is negative"):
        model(ids, positions=at - 2, cache=cache.select([0]))
    with pytest.raises(UsageError, match=r"positions are \[1, 1\], ids \[1, 2\]"):
        model(ids, positions=at[:, :1])
    with pytest.raises(UsageError, match=r"ids must be \[batch, tokens\]"):
        model(ids[0])
    with pytest.raises(UsageError, match="without a cache"):
        model(ids, positions=at, cache=cache.select([0]), doc_ids=at)
    for rows in ([], [0, 0], [2], [-1]):
        with pytest.raises(UsageError, match="distinct rows"):
            cache.select(rows)
    with pytest.raises(UsageError, match="rows and max_len of at least 1"):
        model.new_cache(0, 4)
