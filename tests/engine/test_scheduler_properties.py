"""What holds whatever happens: hypothesis and seeded storms drive the scheduler against a simulated device.

The device (scheduler_world.py) checks every position that is read, after every plan: its content must be that of the
reader's own tokens under its own identity. The pool's and the scheduler's books are checked after every event.
"""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qwen3.engine.blocks import BlockPool
from qwen3.engine.scheduler import Scheduler, Sequence, Status
from tests.engine.scheduler_world import World, check


class Storm(RuleBasedStateMachine):
    """Small pools, prompts that share prefixes, everything in any order."""

    world: World

    @initialize(
        blocks=st.integers(3, 24),
        rows=st.integers(1, 5),
        budget=st.integers(16, 80),
        lag=st.integers(0, 2),
        dear=st.booleans(),
    )
    def start(self, blocks: int, rows: int, budget: int, lag: int, dear: bool) -> None:
        options = {"cost": lambda size, position: size * (1 + position / 32), "work_budget": 24.0} if dear else {}
        self.world = World(blocks, rows, rows + budget, lag=lag, **options)

    def pick(self, number: int) -> Sequence:
        return self.world.rows[number % len(self.world.rows)].seq

    def somebody(self) -> bool:
        return bool(self.world.rows)

    @rule(
        length=st.integers(1, 100),
        odd=st.integers(0, 120),
        outputs=st.integers(1, 50),
        ends=st.integers(1, 60),
        identity=st.sampled_from("ab"),
        tenant=st.sampled_from("xyz"),
        priority=st.integers(0, 2),
        use_cache=st.booleans(),
        lockstep=st.booleans(),
    )
    def add(self, length: int, odd: int, outputs: int, ends: int, use_cache: bool, **fields: object) -> None:
        length = min(length, (self.world.pool.blocks - 1) * 16)
        tokens = [int(i == odd) for i in range(length)]
        self.world.add(tokens, outputs, length + ends, use_cache=use_cache or length % 3 > 0, **fields)
        check(self.world.scheduler)

    @rule(times=st.integers(1, 8))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    @rule()
    def plan_early(self) -> None:
        self.world.plan()

    @precondition(somebody)
    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        self.world.scheduler.cancel(self.pick(number))
        check(self.world.scheduler)

    @precondition(somebody)
    @rule(number=st.integers(0, 99), n=st.integers(0, 40))
    def rollback(self, number: int, n: int) -> None:
        self.world.rollback(self.pick(number), n)

    @precondition(somebody)
    @rule(number=st.integers(0, 99), tokens=st.lists(st.integers(0, 1), max_size=24))
    def propose(self, number: int, tokens: list[int]) -> None:
        self.world.scheduler.propose(self.pick(number), tokens)

    @precondition(somebody)
    @rule(number=st.integers(0, 99))
    def preempt(self, number: int) -> None:
        self.world.scheduler.preempt(self.pick(number))
        check(self.world.scheduler)

    @rule(identity=st.sampled_from(["a", "b", None]))
    def forget(self, identity: str | None) -> None:
        self.world.pool.forget(identity)
        check(self.world.scheduler)

    @rule(recompute=st.booleans())
    def renew(self, recompute: bool) -> None:
        self.world.scheduler.renew(lambda seq: seq.identity, recompute=recompute)
        check(self.world.scheduler)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.check_texts()


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def storm(seed: int, events: int) -> World:
    """Random arrivals, cancels, rollbacks, drafts and preemptions on a random small machine, then peace."""
    r = random.Random(seed)
    rows, blocks = r.choice([1, 2, 4, 8]), r.choice([4, 6, 9, 14, 24, 60])
    world = World(
        blocks, rows, rows + r.choice([16, 20, 64, 200]), lag=r.choice([0, 1, 1, 2]), vocab=r.choice([1, 2, 3])
    )
    for _ in range(events):
        event, running = r.random(), list(world.scheduler.running.values())
        if event < 0.2:
            n = min(r.choice([5, 20, 60, 1000]), (blocks - 1) * 16)
            tokens = [0] * n if r.random() < 0.6 else [r.randrange(2) for _ in range(r.randint(1, n))]
            world.add(
                tokens,
                r.choice([1, 2, 5, 20, 60]),
                ends_at=len(tokens) + r.choice([1, 3, 10, 40, 1000]),
                identity=r.choice("ab"),
                priority=r.choice([0, 0, 0, 1, 2]),
                lockstep=r.random() < 0.3,
                tenant=r.choice("xyz"),
                use_cache=r.random() < 0.9,
            )
        elif event < 0.85:
            world.step()
        elif running:
            seq = r.choice(running)
            if event < 0.9:
                world.scheduler.cancel(seq)
            elif event < 0.94:
                world.rollback(seq, r.randint(0, 40))
            elif event < 0.98:
                world.scheduler.propose(seq, [r.randrange(2) for _ in range(r.randint(1, 20))])
            else:
                world.scheduler.preempt(seq)
        check(world.scheduler)
    world.drain()
    world.check_texts()
    return world


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_storms(first: int) -> None:
    worlds = [storm(seed, 200) for seed in range(first, first + 10)]
    rows = [row.seq for world in worlds for row in world.rows.values()]
    assert sum(world.reads for world in worlds) > 50_000
    assert any(row.cached_tokens for row in rows), "the storms should find prefixes"
    assert any(row.preemptions for row in rows), "the storms should run out of blocks"


@pytest.mark.parametrize("seed", range(4))
def test_nobody_starves(seed: int) -> None:
    """Under a steady stream of newcomers of the same priority, everybody ends within a bound of its arrival."""
    r = random.Random(seed)
    world = World(blocks=14, rows=3, budget=35)
    arrived: dict[int, int] = {}
    latest = 0
    for now in range(600):
        if len(world.scheduler.waiting) < 5 and r.random() < 0.5:
            n = r.choice([3, 20, 60, 150])
            seq = world.add([r.randrange(2) for _ in range(n)], r.choice([2, 10, 40]), tenant=r.choice("xy"))
            arrived[seq.id] = now
        for number in world.finished[latest:]:
            assert now - arrived[number] < 250
        latest = len(world.finished)
        world.step()
    assert len(world.finished) > 40
    world.drain()


@pytest.mark.parametrize("seed", range(4))
def test_order_of_arrival_within_a_priority(seed: int) -> None:
    r = random.Random(seed)
    world = World(blocks=30, rows=3, budget=64)
    for _ in range(120):
        if r.random() < 0.4:
            world.add([r.randrange(2) for _ in range(r.randint(1, 80))], r.randint(1, 30), priority=r.randrange(3))
        world.step()
    world.drain()
    first = list(dict.fromkeys(world.admissions))
    for priority in range(3):
        mine = [i for i in first if world.rows[i].seq.priority == priority]
        assert mine == sorted(mine)
        assert len(mine) > 5


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    """30 % cancelled at a random moment; the plans are not simulated, the books are looked at now and then."""
    r = random.Random(7)
    pool = BlockPool(400)
    scheduler = Scheduler(pool, max_rows=32, token_budget=512, max_queue=64)
    live: list[Sequence] = []
    made = 0
    while made < 10_000 or scheduler.has_work:
        while made < 10_000 and len(scheduler.waiting) < 32:
            head = [made % 7] * r.choice([0, 16, 48])
            seq = Sequence(made, [*head, *(r.randrange(50) for _ in range(r.randint(1, 40)))], 10**6, tenant=made % 5)
            seq.max_total = seq.prompt_len + r.randint(1, 40)
            scheduler.add(seq)
            live.append(seq)
            made += 1
        scheduler.plan()
        for seq in live:
            lag = seq.total - len(seq.tokens) - (seq.status is Status.DECODE)
            scheduler.commit(seq, [1] * max(0, lag))
            if len(seq.tokens) >= seq.max_total or r.random() < 0.015:
                scheduler.finish(seq)
        live = [seq for seq in live if seq.status is not Status.FINISHED]
        if scheduler.step % 100 == 0:
            check(scheduler)
    assert pool.used == 0
    assert pool.free + pool.cached == 399
    assert not scheduler._shares
    assert not scheduler._prefill
    for _ in range(20):
        assert scheduler.plan() is None
    assert not scheduler._calendar
    assert not scheduler._decode


def test_a_steady_step_costs_nothing_per_row() -> None:
    """256 rows decode: the list stays the same object, and a plan takes microseconds (the bound is generous)."""
    r = random.Random(0)
    scheduler = Scheduler(BlockPool(40_000), max_rows=256, token_budget=8192)
    for i in range(256):
        scheduler.add(Sequence(i, [r.randrange(10_000) for _ in range(r.randint(100, 1024))], 4000))
    while scheduler.tokens_left:
        scheduler.plan()
    first = scheduler.plan()
    assert first is not None
    took, granted = [], 0
    for _ in range(320):
        start = time.perf_counter()
        plan = scheduler.plan()
        took.append(time.perf_counter() - start)
        assert plan is not None
        assert plan.decode is first.decode
        assert not plan.changed
        granted += len(plan.new_blocks)
    assert len(first.decode) == 256
    assert granted == 256 * 320 // 16
    assert sorted(took)[160] < 300e-6
