"""The scheduler with tokens known ahead, rolled back, or waited for (lockstep)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwen3.engine.blocks import BlockPool
from qwen3.engine.scheduler import Scheduler, Sequence, Status
from qwen3.errors import UsageError
from tests.engine.scheduler_world import B, World

LONG = 10**6


def prompt(n: int, first: int = 0) -> list[int]:
    return list(range(first, first + n))


def sizes(plan: object) -> list[tuple[int, int, int]]:
    return [(c.seq.id, c.start, c.size) for c in plan.chunks]  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 30])
def test_rollback(n: int) -> None:
    world = World(blocks=60, lag=0)
    seq = world.add(prompt(14), outputs=60)
    while len(seq.tokens) < 50:
        world.step()
    kept = seq.tokens[: 50 - n]
    world.rollback(seq, n)
    assert (seq.tokens, seq.total) == (kept, 50 - n)
    plan = world.step()
    assert plan is not None
    if n in (1, 17):  # nothing shared with the cache would be written: one token is left to compute
        assert (plan.decode, plan.chunks) == ([seq], [])
    else:
        assert [(c.seq, c.last) for c in plan.chunks] == [(seq, True)]
        assert plan.chunks[0].size <= B
    world.drain()
    world.check_texts()


def test_rollback_does_not_write_into_what_is_cached() -> None:
    world = World(blocks=60, lag=0, vocab=50)
    seq = world.add(prompt(20), outputs=60)
    while len(seq.tokens) < 50:
        world.step()
    shared = list(seq.blocks[:3])
    reader = world.add([*seq.tokens[:48], 999], outputs=60)
    world.step()
    assert reader.blocks[:3] == shared
    world.rollback(seq, 10)  # back to 40, in the middle of the third block
    world.step()
    assert seq.blocks[:2] == shared[:2]
    assert seq.blocks[2] != shared[2]
    world.drain()
    world.check_texts()


def test_rollback_stops_at_the_prompt() -> None:
    world = World(lag=0)
    seq = world.add(prompt(14), outputs=60)
    for _ in range(6):
        world.step()
    with pytest.raises(UsageError, match="cannot forget 7 tokens, it has 6"):
        world.scheduler.rollback(seq, 7)
    with pytest.raises(UsageError, match="cannot forget -1"):
        world.scheduler.rollback(seq, -1)
    world.rollback(seq, 6)
    assert seq.tokens == prompt(14)
    world.drain()
    world.check_texts()


def test_a_draft_is_verified_in_one_chunk_and_the_rest_taken_back() -> None:
    world = World(blocks=60, lag=0, vocab=3)
    model = world.add(prompt(20), outputs=60)
    other = world.add([7], outputs=60)
    world.drain()
    truth = model.tokens
    seq = world.add(prompt(20), outputs=60)
    world.step()
    plans = 0
    while seq.status is not Status.FINISHED:
        right = truth[len(seq.tokens) : len(seq.tokens) + 3]
        world.scheduler.propose(seq, [*right, 99, 99])
        plan = world.step()
        assert plan is not None
        plans += 1
        if len(seq.tokens) < 70:
            assert [(c.size, c.extra[:3]) for c in plan.chunks] == [(6, tuple(right))]
    assert seq.tokens == truth
    assert plans <= 17, "four tokens a plan"
    assert other.status is Status.FINISHED


def test_forced_tokens_and_a_lag() -> None:
    """The newest token is only on the device; what must follow it is known all the same."""
    scheduler = Scheduler(BlockPool(40), max_rows=2, token_budget=64)
    seq = Sequence(0, prompt(20), 100)
    scheduler.add(seq)
    scheduler.plan()
    scheduler.plan()
    assert (seq.total, len(seq.tokens)) == (22, 20)
    scheduler.propose(seq, [5, 6, 7])
    plan = scheduler.plan()
    assert plan is not None
    assert (plan.decode, plan.changed) == ([], True)
    assert [(c.start, c.size, c.last, c.extra) for c in plan.chunks] == [(21, 4, True, (5, 6, 7))]
    assert (seq.status, seq.total) == (Status.HELD, 26)
    scheduler.commit(seq, [1, 2])
    assert scheduler.plan() is None
    scheduler.commit(seq, [5, 6, 7, 8])
    plan = scheduler.plan()
    assert plan is not None
    assert (plan.decode, plan.chunks, seq.computed) == ([seq], [], 26)


def test_lockstep() -> None:
    """A row that waits for its last token has a place in every other step; the others never wait for it."""
    world = World(blocks=60, rows=4, lag=1)
    slow, fast = world.add(prompt(14), outputs=20), world.add(prompt(30), outputs=60)
    slow.lockstep = True
    seen = []
    for _ in range(40):
        plan = world.step()
        assert plan is not None
        seen.append((slow in plan.decode, fast in plan.decode))
    waits = [a for a, _ in seen]
    assert not any(a and b for a, b in pairwise(waits))
    assert sum(waits) == 19
    assert all(b for _, b in seen[2:])
    world.drain()
    world.check_texts()


def test_drafts_give_way() -> None:
    world = World(blocks=9, rows=2, budget=18, lag=0)
    seq, _ = world.add(prompt(2), outputs=50), world.add([9], outputs=60)
    world.step()
    world.scheduler.propose(seq, [1] * 40)
    plan = world.step()
    assert plan is not None
    assert seq in plan.decode, "no token of the budget to spare: it decodes as usual"
    assert seq.pending_extra == []
    world.drain()
    world.check_texts()


def test_what_a_draft_left_behind_is_not_offered() -> None:
    """All is rejected, and the request ends at once: the block's last place holds the draft's token, not the text's."""
    scheduler = Scheduler(BlockPool(40), max_rows=2, token_budget=64)
    seq = Sequence(0, prompt(14), 100)
    scheduler.add(seq)
    scheduler.plan()
    scheduler.commit(seq, [50])
    scheduler.propose(seq, [60, 61, 62])
    plan = scheduler.plan()
    assert plan is not None
    assert sizes(plan) == [(0, 14, 4)]
    scheduler.commit(seq, [51])
    assert (len(seq.tokens), seq.computed) == (16, 18)
    scheduler.finish(seq)
    assert not scheduler.pool.roots
