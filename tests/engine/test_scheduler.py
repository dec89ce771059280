"""The scheduler's policy, one scene at a time. What holds always is in test_scheduler_properties.py."""

from __future__ import annotations

import pytest

from qwen3.engine.blocks import BlockPool
from qwen3.engine.scheduler import Scheduler, Sequence, Status
from qwen3.errors import QueueFullError, UsageError
from tests.engine.scheduler_world import B, World

LONG = 10**6


def prompt(n: int, first: int = 0) -> list[int]:
    return list(range(first, first + n))


def sizes(plan: object) -> list[tuple[int, int, int]]:
    return [(c.seq.id, c.start, c.size) for c in plan.chunks]  # type: ignore[attr-defined]


# One sequence


def test_a_life() -> None:
    world = World(budget=64)
    seq = world.add(prompt(70), outputs=3)
    plan = world.step()
    assert plan is not None
    assert plan.admitted == [seq]
    assert (seq.slot, seq.status) == (1, Status.PREFILL)
    assert sizes(plan) == [(0, 0, 64)]
    assert not plan.chunks[0].last
    assert plan.new_blocks == [(1, i, b) for i, b in enumerate(seq.blocks)]
    plan = world.step()
    assert sizes(plan) == [(0, 64, 6)]
    assert plan is not None
    assert plan.chunks[0].last
    assert (seq.computed, seq.total, len(seq.tokens)) == (70, 71, 70)
    plan = world.step()
    assert plan is not None
    assert (plan.decode, plan.chunks, plan.changed) == ([seq], [], True)
    assert (seq.computed, seq.total, len(seq.tokens)) == (71, 72, 71)
    plan = world.step()
    assert plan is not None
    assert (plan.decode, plan.changed) == ([seq], False)
    assert world.step() is None, "at max_total it leaves by count, before its last token is known"
    assert seq.status is Status.FINISHED
    assert not world.scheduler.has_work
    assert world.pool.used == 0


def test_one_token_only() -> None:
    world = World()
    seq = world.add([1, 2, 3], outputs=1)
    assert world.plan() is not None
    assert seq.status is Status.HELD
    assert world.plan() is None
    assert world.drain() > 0
    assert len(seq.tokens) == 4


def test_a_block_arrives_every_sixteen_tokens() -> None:
    world = World(blocks=40)
    world.add(prompt(10), outputs=100)
    when = [world.scheduler.step for _ in range(90) if (p := world.step()) and p.new_blocks]
    assert when == [1, 8, 24, 40, 56, 72, 88]


def test_where_blocks_abound_they_come_together() -> None:
    """Rows that need a block on different days get it in one step of eight, nobody later than it is needed (the world
    looks) and nobody more of them; where few are left, each on its day."""
    for blocks in (300, 35):
        world, news = World(blocks=blocks, rows=8, budget=256), {}
        for i in range(8):
            world.add(prompt(10 + i, 100 * i), outputs=60 - i)
        for _ in range(70):
            if plan := world.step():
                news[world.scheduler.step] = len(plan.new_blocks)
        days = {step for step, count in news.items() if count and step > 2}
        if blocks == 300:
            assert all(step % 8 == 0 for step in days)
            assert sum(news.values()) == 8 * 5  # 69 tokens each
        else:
            assert days >= set(range(49, 57))


def test_bad_additions() -> None:
    scheduler = Scheduler(BlockPool(5), max_rows=2, token_budget=32)
    with pytest.raises(UsageError, match=r"65 tokens \(5 blocks of 16\).*holds 64 \(4 blocks\)"):
        scheduler.add(Sequence(0, prompt(65), LONG))
    with pytest.raises(UsageError, match="give a new one"):
        scheduler.add(Sequence(0, [], LONG))
    with pytest.raises(UsageError, match="room for a token"):
        scheduler.add(Sequence(0, prompt(8), 8))
    seq = Sequence(0, prompt(64), LONG)
    scheduler.add(seq)
    assert seq.max_total == 65, "cut to what the pool can hold"
    with pytest.raises(UsageError, match="give a new one"):
        scheduler.add(seq)
    with pytest.raises(UsageError, match="committed than launched"):
        scheduler.commit(seq, [1])
    with pytest.raises(UsageError, match="committed than launched"):
        scheduler.commit(Sequence(1, [1], 2), [1])


@pytest.mark.parametrize(("rows", "budget"), [(0, 64), (8, 23), (-1, 64)])
def test_budgets_that_could_stall_are_refused(rows: int, budget: int) -> None:
    with pytest.raises(UsageError, match="token_budget"):
        Scheduler(BlockPool(9), max_rows=rows, token_budget=budget)


def test_the_queue_is_bounded() -> None:
    world = World(max_queue=2, rows=1, budget=17)
    for _ in range(2):
        world.add([1])
    with pytest.raises(QueueFullError, match="2 requests wait"):
        world.add([1])
    world.step()
    world.add([1])
    world.scheduler.cancel(world.rows[1].seq)
    world.add([1])
    world.drain()
    assert QueueFullError.exit_code == 1


# Mixed steps


def test_prompts_never_stall_rows_that_decode() -> None:
    world = World(blocks=100, rows=4, budget=36)
    chatty = [world.add([i], outputs=40) for i in range(3)]
    world.step()
    long = world.add(prompt(500), outputs=1)
    for n in range(16):
        plan = world.step()
        assert plan is not None
        assert plan.decode == chatty
        assert sizes(plan) == [(3, 32 * n, min(32, 500 - 32 * n))]
    assert long.computed == 500


def test_several_prompts_share_a_step() -> None:
    world = World(blocks=100, rows=4, budget=100)
    for i in range(4):
        world.add(prompt(30, 100 * i))
    assert sizes(world.step()) == [(0, 0, 30), (1, 0, 30), (2, 0, 30)], "10 left: not a block of the fourth"
    assert sizes(world.step()) == [(3, 0, 30)]


def test_chunks_shrink_with_their_position_beside_rows_that_decode() -> None:
    def cost(size: int, position: int) -> float:
        return size * (1 + position / 256)

    world = World(blocks=200, rows=2, budget=272, cost=cost, work_budget=256)
    world.add(prompt(1024), outputs=1)
    assert [c.size for _ in range(4) for c in world.step().chunks] == [272, 272, 272, 208], "alone: tokens count"  # type: ignore[union-attr]
    world.drain()
    world.add([5], outputs=60)
    world.step()
    world.add(prompt(1024, 7), outputs=1)
    seen = []
    while world.scheduler.tokens_left:
        plan = world.step()
        assert plan is not None
        assert len(plan.decode) == 1
        seen += [c.size for c in plan.chunks]
    assert sum(seen) == 1024
    assert seen[:-1] == sorted(seen[:-1], reverse=True)
    assert (seen[0], seen[-2]) == (256, 48)
    assert all(size % B == 0 for size in seen[:-1])


def test_a_block_is_always_computed_however_dear() -> None:
    world = World(blocks=60, cost=lambda size, position: 1e9 * size, work_budget=1)
    world.add([1], outputs=100)
    world.step()
    world.add(prompt(100), outputs=1)
    world.add(prompt(50, 200), outputs=1)
    assert [sizes(world.step()) for _ in range(8)] == [
        *([(1, 16 * i, 16)] for i in range(6)),
        [(1, 96, 4)],
        [(2, 0, 16)],
    ]


def test_the_default_work_budget_is_a_whole_step_at_the_start() -> None:
    world = World(blocks=60, budget=64, cost=lambda size, position: size * (1 + position))
    world.add([1], outputs=100)
    world.step()
    world.add(prompt(200), outputs=1)
    assert [c.size for _ in range(3) for c in world.step().chunks] == [48, 16, 16]  # type: ignore[union-attr]


# The prefix cache


def test_a_prefix_is_found_and_the_last_token_is_computed() -> None:
    world = World(blocks=60, budget=200)
    world.add(prompt(100))
    world.drain()
    same, longer, exact = world.add(prompt(100)), world.add(prompt(150)), world.add(prompt(96))
    assert sizes(world.step()) == [(1, 96, 4), (2, 96, 54), (3, 80, 16)]
    assert [s.cached_tokens for s in (same, longer, exact)] == [96, 96, 80]
    world.drain()


def test_answers_are_found_too() -> None:
    world = World(blocks=60, budget=200)
    first = world.add(prompt(20), outputs=45)
    world.drain()
    follow = world.add([*first.tokens, 7, 7, 7])
    world.step()
    assert follow.cached_tokens == 64 // B * B == 64
    world.drain()
    world.check_texts()


@pytest.mark.parametrize("samples", [2, 4])
def test_samples_of_one_prompt_compute_it_once(samples: int) -> None:
    world = World(blocks=100, rows=4, budget=64)
    rows = [world.add(prompt(150), outputs=5) for _ in range(samples)]
    plan = world.step()
    assert sizes(plan) == [(0, 0, 64)]
    assert plan is not None
    assert plan.admitted == rows, "the others have their slot and wait for the blocks"
    world.drain()
    assert world.computed_tokens == 150 + (samples - 1) * 6 + samples * 4
    assert [s.cached_tokens for s in rows[1:]] == [144] * (samples - 1)


def test_a_follower_goes_on_alone_when_its_leader_is_cancelled() -> None:
    world = World(blocks=100, rows=4, budget=64)
    leader, follower = world.add(prompt(150)), world.add(prompt(150))
    world.step()
    world.scheduler.cancel(leader)
    assert sizes(world.step()) == [(1, 64, 64)]
    assert follower.cached_tokens == 64
    world.drain()
    world.check_texts()


def test_identities_and_refusals_to_share() -> None:
    world = World(blocks=200, rows=8, budget=400)
    world.add(prompt(64))
    world.drain()
    for fields in ({"identity": "other"}, {"use_cache": False}, {"identity": ("lora", 1)}):
        assert world.add(prompt(64), **fields).cached_tokens == 0
    world.drain()
    assert all(row.seq.cached_tokens == 0 for row in world.rows.values())
    assert world.add(prompt(64)).cached_tokens == 0, "before it is admitted"
    world.drain()
    assert world.rows[4].seq.cached_tokens == 48


def test_forgotten_prefixes_are_computed_again() -> None:
    world = World(blocks=60)
    world.add(prompt(64))
    world.drain()
    world.pool.forget()
    again = world.add(prompt(64))
    world.drain()
    assert again.cached_tokens == 0


@pytest.mark.parametrize("recompute", [True, False])
def test_new_weights(recompute: bool) -> None:
    """Nothing computed before is found after; running rows recompute, or go on out of sight."""
    scheduler = Scheduler(BlockPool(60), max_rows=2, token_budget=64)
    rows = [Sequence(i, prompt(40, 100 * i), 60, identity="v1") for i in range(3)]
    for row in rows:
        scheduler.add(row)
    scheduler.plan()
    scheduler.plan()
    for row in rows[:2]:
        scheduler.commit(row, [1] * (row.total - len(row.tokens)))
    scheduler.renew(lambda row: "v2", recompute=recompute)
    scheduler.pool.forget()
    assert [row.identity for row in rows] == ["v2"] * 3
    assert not scheduler.pool.roots
    plan = scheduler.plan()
    assert plan is not None
    if recompute:
        assert plan.preempted == [rows[1], rows[0]]
        assert [row.computed for row in rows] == [0, 0, 0]
        plan = scheduler.plan()
        assert plan is not None
        assert plan.admitted == rows[:2], "in the order of arrival"
        assert set(scheduler.pool.roots) == {"v2"}
    else:
        assert plan.preempted == []
        assert not rows[0].use_cache
        scheduler.finish(rows[0])
        assert not scheduler.pool.roots, "mixed KV is not offered"


# Memory


def test_preemption_takes_the_youngest_and_it_loses_nothing() -> None:
    world = World(blocks=9, rows=4, budget=64)
    old, young = world.add(prompt(30), outputs=60), world.add(prompt(30, 50), outputs=60)
    told = []
    while old.status is not Status.FINISHED:
        plan = world.step()
        assert plan is None or old not in plan.preempted
        told += plan.preempted if plan else []
    assert told == [young] * young.preemptions
    assert told
    world.drain()
    assert len(young.tokens) == 90
    world.check_texts()


def test_a_preempted_row_waits_for_its_last_token() -> None:
    scheduler = Scheduler(BlockPool(20), max_rows=2, token_budget=64)
    seq, next_one = Sequence(0, prompt(10), 60), Sequence(1, prompt(10), 60)
    scheduler.add(seq)
    scheduler.plan()
    scheduler.plan()
    scheduler.preempt(seq)
    assert (seq.status, seq.lagging, seq.total, seq.computed, seq.slot) == (Status.WAITING, True, 12, 0, 1)
    scheduler.add(next_one)
    plan = scheduler.plan()
    assert plan is not None
    assert (plan.preempted, plan.admitted, plan.decode, plan.chunks) == ([seq], [], [], [])
    assert scheduler.plan() is None, "nobody overtakes it, and it cannot start"
    scheduler.commit(seq, [1])
    assert scheduler.plan() is None
    scheduler.commit(seq, [2])
    plan = scheduler.plan()
    assert plan is not None
    assert plan.admitted == [seq, next_one]
    assert sizes(plan) == [(0, 0, 12), (1, 0, 10)]


def test_a_cancelled_preempted_row_is_not_reported() -> None:
    scheduler = Scheduler(BlockPool(20), max_rows=2, token_budget=64)
    seq = Sequence(0, prompt(10), 60)
    scheduler.add(seq)
    scheduler.plan()
    scheduler.preempt(seq)
    scheduler.cancel(seq)
    assert scheduler.plan() is None
    assert not scheduler.has_work


def test_admission_counts_what_is_known_not_max_tokens() -> None:
    world = World(blocks=12, rows=4, budget=64)
    rows = [world.add(prompt(30, 40 * i), outputs=100) for i in range(4)]
    plan = world.step()
    assert plan is not None
    assert plan.admitted == rows[:3], "2 blocks each, one more, one to spare for each that runs"
    world.drain()


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    world = World(blocks=12, rows=8, budget=64)
    for i in range(4):
        world.add([i] * 20, outputs=20)
    large = world.add(prompt(160), outputs=16)
    late = [world.add([i] * 20, outputs=20) for i in range(4, 12)]
    world.drain()
    assert world.admissions[:5] == [0, 1, 2, 3, large.id]
    assert set(world.admissions[5:]) >= {s.id for s in late}


# Priorities and tenants


def test_priorities_go_first_and_push_out_only_lower_ones() -> None:
    world = World(blocks=60, rows=2, budget=64)
    low, middle = world.add([1], priority=2, outputs=50), world.add([2], priority=1, outputs=50)
    world.step()
    same, high = world.add([3], priority=1, outputs=50), world.add([4], priority=0, outputs=50)
    plan = world.step()
    assert plan is not None
    assert (plan.preempted, plan.admitted) == ([low], [high])
    plan = world.step()
    assert plan is not None
    assert (plan.preempted, plan.admitted) == ([], []), "an equal is not pushed out"
    world.drain()
    firsts = list(dict.fromkeys(world.finished))
    assert firsts == [middle.id, high.id, same.id, low.id]


def test_a_high_priority_takes_memory_from_lower_ones_only_if_that_is_enough() -> None:
    world = World(blocks=11, rows=8, budget=64)
    top = world.add(prompt(90), priority=0, outputs=5)
    low = world.add(prompt(20, 200), priority=5, outputs=5)
    world.step()
    world.add(prompt(120, 500), priority=1, outputs=5)
    plan = world.step()
    assert plan is not None
    assert plan.preempted == [], "even all of the low ones would not do"
    assert {top, low} <= set(world.scheduler.running.values())
    world.drain()


def test_tenants_share_a_priority_fairly() -> None:
    world = World(blocks=300, rows=2, budget=64)
    for i in range(12):
        world.add(prompt(20, 30 * i), tenant="greedy", outputs=10)
    for i in range(4):
        world.add(prompt(20, 1000 + 30 * i), tenant="modest", outputs=10)
    world.drain()
    turn = [world.rows[i].seq.tenant for i in world.admissions]
    assert turn[:8].count("modest") == 4


def test_a_newcomer_starts_level_and_credit_is_not_saved() -> None:
    world = World(blocks=300, rows=1, budget=64)
    for i in range(14):
        world.add(prompt(40, 50 * i), tenant="old", outputs=10)
    while len(world.finished) < 8:
        world.step()
    for i in range(6):
        world.add(prompt(40, 1000 + 50 * i), tenant="new", outputs=10)
    world.drain()
    turn = [world.rows[i].seq.tenant for i in world.admissions]
    first = turn.index("new")
    assert turn[first : first + 6].count("new") in (3, 4), "turns from now on, no six in a row"


def test_books_of_tenants_are_closed() -> None:
    world = World(rows=2)
    for i in range(50):
        world.add([i], tenant=f"t{i}", priority=i % 3, outputs=2)
    world.drain()
    assert not world.scheduler._shares


def test_long_prompts_of_tenants_take_turns() -> None:
    world = World(blocks=300, rows=4, budget=64)
    world.add(prompt(640), tenant="a", outputs=1)
    world.add(prompt(640, 1000), tenant="b", outputs=1)
    assert [sizes(world.step())[0][0] for _ in range(6)] == [0, 1, 0, 1, 0, 1]


# Late news


def test_cancel_at_every_moment_twice() -> None:
    world = World(blocks=60, rows=4, budget=36)
    waiting = world.add(prompt(90))
    world.scheduler.cancel(waiting)
    prefilling, decoding, ending = world.add(prompt(300, 5)), world.add([1], outputs=50), world.add([2], outputs=2)
    world.step()
    world.step()
    world.step()
    assert prefilling.status is Status.PREFILL
    while decoding.status is not Status.DECODE or ending.status is Status.DECODE:
        world.step()
    for seq in (waiting, prefilling, decoding, ending):
        world.scheduler.cancel(seq)
        world.scheduler.finish(seq)
        assert (seq.status, seq.slot, seq.blocks) == (Status.FINISHED, 0, [])
        known = list(seq.tokens)
        world.scheduler.commit(seq, [9])
        world.scheduler.rollback(seq, 1)
        world.scheduler.preempt(seq)
        assert seq.tokens == known
    assert not world.scheduler.has_work
    assert world.pool.used == 0
    assert world.step() is None
    fresh = Sequence(99, [1], 5)
    world.scheduler.cancel(fresh)
    with pytest.raises(UsageError, match="give a new one"):
        world.scheduler.add(fresh)


def test_tokens_may_become_known_all_at_the_end() -> None:
    """A rollout: Python hears nothing for 200 steps."""
    scheduler = Scheduler(BlockPool(40), max_rows=2, token_budget=64)
    seq = Sequence(0, prompt(20), 220)
    scheduler.add(seq)
    while scheduler.plan():
        pass
    assert (seq.status, seq.total, len(seq.tokens)) == (Status.HELD, 220, 20)
    scheduler.commit(seq, prompt(200, 1000))
    scheduler.finish(seq)
    follow = Sequence(1, [*seq.tokens, 5], 300)
    scheduler.add(follow)
    scheduler.plan()
    assert follow.cached_tokens == 208
