"""A device, simulated: it owns the block tables, writes what each cache position holds, and checks every read.

Content is a hash chain: what position p of a sequence must hold is a number made of its identity and tokens 0 … p. The
next token is a function of the content at the last position, so a recomputed sequence says the same again. Tokens
become known `lag` plans late, as in the engine.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from qwen3.engine.blocks import BlockPool
from qwen3.engine.scheduler import Chunk, Plan, Scheduler, Sequence, Status

B = 16


def chain(previous: int, token: int) -> int:
    return hash((previous, token, 77))


def sampled(content: int, vocab: int) -> int:
    return (content >> 7) % vocab


def check_pool(pool: BlockPool, tables: list[list[int]]) -> None:
    """Everything in the pool fits together; `tables`: the block lists of all who hold some."""
    held = Counter(block for table in tables for block in table)
    assert held == Counter({b: n for b, n in enumerate(pool.references) if n}), "references differ from the tables"
    rested = [block for tenant in pool.tenants.values() for block in tenant.idle]
    free, idle = set(pool._free), set(rested)
    assert sorted([*pool._free, *rested, *held]) == list(range(1, pool.blocks)), "a block in two states or in none"
    assert (pool.free, pool.cached, pool.used) == (len(free), len(idle), len(held))
    assert pool.free + pool.used + pool.cached == pool.blocks - 1
    seen, nodes = {}, Counter[Any]()
    for identity, root in pool.roots.items():
        assert root.alive
        assert root.key == identity
        assert root.children, "an empty root"
        below = [root]
        while below:
            node = below.pop()
            for key, child in node.children.items():
                assert (child.alive, child.parent, child.key, child.tenant) == (True, node, key, root.tenant)
                assert child.block not in seen
                seen[child.block] = child
                nodes[root.tenant.name] += 1
                below.append(child)
    assert seen == {block: node for block, node in enumerate(pool._nodes) if node is not None}
    assert idle <= seen.keys(), "a cached block that cannot be found"
    assert not free & seen.keys()
    assert nodes == {name: tenant.nodes for name, tenant in pool.tenants.items()}, "tenants' counts"
    assert all(nodes.values()), "a tenant that holds nothing"
    for name, tenant in pool.tenants.items():
        assert tenant.name == name
        assert all(pool._nodes[block].tenant is tenant for block in tenant.idle)  # type: ignore[union-attr]
        assert list(tenant.idle.values()) == sorted(tenant.idle.values())


def check(scheduler: Scheduler) -> None:
    """The scheduler's books agree with one another."""
    check_pool(scheduler.pool, [s.blocks for s in scheduler.running.values()])
    assert sorted([*scheduler._slots, *scheduler.running]) == list(range(1, scheduler.max_rows + 1))
    by_status: dict[Status, set[Sequence]] = {status: set() for status in Status}
    for slot, seq in scheduler.running.items():
        by_status[seq.status].add(seq)
        assert seq.slot == slot
        assert len(seq.tokens) <= seq.total <= seq.max_total
        assert seq.hashed * B <= seq.computed < seq.total
        assert seq.computed <= len(seq.blocks) * B
        assert seq.status is not Status.PREFILL or not seq.lagging
    assert sum(map(len, by_status.values())) == sum(
        len(by_status[s]) for s in (Status.PREFILL, Status.DECODE, Status.HELD)
    )
    assert len(scheduler._prefill) == len(by_status[Status.PREFILL])
    assert set(scheduler._prefill) == by_status[Status.PREFILL]
    assert by_status[Status.DECODE] <= {*scheduler._decode, *scheduler._joined}
    for seq in by_status[Status.DECODE]:
        assert seq in scheduler._calendar[seq.due]
        assert scheduler.step < seq.due <= scheduler.step + B + 8
    assert all(step > scheduler.step for step in scheduler._calendar), "a day that has passed"
    assert len(scheduler._calendar) <= B + 8
    queued = [seq for share in scheduler._shares.values() for seq in share.queue.values()]
    assert len(queued) == len(scheduler.waiting)
    assert set(queued) == set(scheduler.waiting.values())
    assert all(s.status is Status.WAITING and not s.blocks for s in queued)
    for (priority, tenant), share in scheduler._shares.items():
        rows = [s for s in scheduler.running.values() if s.share is share]
        assert list(share.queue) == sorted(share.queue)
        assert {(s.priority, s.tenant) for s in (*rows, *share.queue.values())} == {(priority, tenant)}
        assert share.live == len(rows) + len(share.queue) > 0
        assert share.decoding == sum(s.status is Status.DECODE for s in rows)


class Row:
    """What the device and the caller know of one sequence. `ids` runs ahead of seq.tokens by the lag."""

    def __init__(self, seq: Sequence, ends_at: int) -> None:
        self.seq = seq
        self.ids = list(seq.tokens)
        self.chain = [hash(("root", seq.identity))]  # chain[p + 1]: what position p must hold
        self.ends_at = ends_at  # total length at which the caller hangs up without having told (like an EOS)
        self.generation = 0  # launches before a rollback are void

    def content(self, position: int) -> int:
        while len(self.chain) <= position + 1:
            self.chain.append(chain(self.chain[-1], self.ids[len(self.chain) - 1]))
        return self.chain[position + 1]

    def truncate(self, total: int) -> None:
        del self.ids[total:]
        del self.chain[total + 1 :]
        self.generation += 1


class World:
    def __init__(
        self, blocks: int = 24, rows: int = 4, budget: int = 64, *, lag: int = 1, vocab: int = 2, **options: Any
    ) -> None:
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(self.pool, max_rows=rows, token_budget=budget, **options)
        self.budget, self.lag, self.vocab = budget, lag, vocab
        self.rows: dict[int, Row] = {}
        self.table: dict[tuple[int, int], int] = {}  # (slot, index) -> block
        self.cache: dict[tuple[int, int], int] = {}  # (block, offset) -> content
        self.written: dict[int, tuple[int, int]] = {}  # block -> (plan, sequence that wrote last)
        self.known: deque[list[tuple[Row, int, list[int], bool]]] = deque()  # per plan: row, generation, tokens, draft?
        self.plans = self.reads = self.computed_tokens = 0
        self.finished: list[int] = []
        self.admissions: list[int] = []
        self.last_decode: list[Sequence] = []

    def add(self, tokens: list[int], outputs: int = 20, ends_at: int = 10**9, **fields: Any) -> Sequence:
        seq = Sequence(len(self.rows), tokens, len(tokens) + outputs, **fields)
        self.scheduler.add(seq)
        self.rows[seq.id] = Row(seq, min(ends_at, seq.max_total))
        return seq

    # One plan, launched at once

    def plan(self) -> Plan | None:
        plan = self.scheduler.plan()
        check(self.scheduler)
        if plan is None:
            self.known.append([])
            return None
        self.plans += 1
        self.check_plan(plan)
        for slot, index, block in plan.new_blocks:
            self.table[slot, index] = block
        for seq in plan.admitted:
            self.admissions.append(seq.id)
        work = [(self.rows[c.seq.id], c.start, c.size, c) for c in plan.chunks]
        work += [(self.rows[s.id], s.computed - 1, 1, None) for s in plan.decode]
        news: list[tuple[Row, int, list[int], bool]] = []
        feeds = []
        for row, start, size, chunk in work:
            inputs = row.ids[start : start + size]
            if chunk is not None and chunk.extra:
                inputs = row.ids[start : start + 1] + list(chunk.extra)
            assert len(inputs) == size, f"{row.seq!r} computes tokens that nobody has"
            feeds.append((row, start, inputs, chunk))
            self.computed_tokens += size
        for row, start, inputs, _ in feeds:  # a step writes, then reads
            content = row.content(start - 1)
            for position, token in enumerate(inputs, start):
                content = chain(content, token)
                block = self.block(row, position)
                self.cache[block, position % B] = content
                self.written[block] = (self.plans, row.seq.id)
        for row, start, inputs, chunk in feeds:
            for position in range(start):
                block = self.block(row, position)
                assert self.cache.get((block, position % B)) == row.content(position), (
                    f"{row.seq!r} reads something else at {position} (block {block})"
                )
                when, who = self.written[block]
                assert when < self.plans or who == row.seq.id, "reads what another row computes in the same step"
                self.reads += 1
            drafted = chunk is not None and bool(chunk.extra)
            news.append((row, row.generation, self.outcome(row, start, inputs, chunk), drafted))
        self.known.append([entry for entry in news if entry[2]])
        return plan

    def block(self, row: Row, position: int) -> int:
        block = self.table[row.seq.slot, position // B]
        assert 0 < block < self.pool.blocks
        assert block == row.seq.blocks[position // B], "the device's table is out of date"
        return block

    def outcome(self, row: Row, start: int, inputs: list[int], chunk: Chunk | None) -> list[int]:
        """Tokens that come out of a row's work: one, or what is accepted of a draft and one more."""
        if chunk is not None and not chunk.last:
            return []
        if chunk is not None and chunk.extra:
            accepted = []
            for token in [*chunk.extra, None]:
                right = sampled(row.content(start + len(accepted)), self.vocab)
                accepted.append(right)
                row.ids.append(right)
                if right != token:
                    break
            return accepted
        position = start + len(inputs) - 1
        if chunk is not None:
            assert position + 1 == len(row.ids), "a chunk that is not last, marked as last"
        token = sampled(row.content(position), self.vocab)
        row.ids.append(token)
        return [token]

    def check_plan(self, plan: Plan) -> None:
        assert plan.changed or plan.decode is self.last_decode or not (plan.decode or self.last_decode)
        self.last_decode = plan.decode
        size = len(plan.decode) + sum(c.size for c in plan.chunks)
        assert size <= self.budget
        everybody = [s.id for s in plan.decode] + [c.seq.id for c in plan.chunks]
        assert len(set(everybody)) == len(everybody), "two jobs for one row"
        assert all(s.status is (Status.HELD if s.lockstep else Status.DECODE) for s in plan.decode)
        assert all(s.total <= s.max_total for s in plan.decode)
        assert not any(s.lockstep and s.total > len(s.tokens) + 1 for s in plan.decode), "it did not wait"
        assert not {s.id for s in plan.preempted} & set(everybody)
        for c in plan.chunks:
            assert c.size > 0
            assert c.last or c.size % B == 0
            assert c.last or (c.start + c.size) % B == 0
            assert c.seq.computed == c.start + c.size or c.seq.status is Status.DECODE
        targets = [(slot, index) for slot, index, _ in plan.new_blocks]
        assert len(set(targets)) == len(targets), "one table entry written twice"
        for c in plan.chunks:  # nobody writes where another may read
            assert all(self.pool.references[b] == 1 for b in c.seq.blocks[c.start // B : -(-(c.start + c.size) // B)])
        for seq in plan.decode:
            assert self.pool.references[seq.blocks[(seq.computed - 1) // B]] == 1
        for seq in plan.admitted:  # nobody overtakes
            for other in self.scheduler.waiting.values():
                assert seq.priority <= other.priority
                assert seq.share is not other.share or seq.arrival < other.arrival

    # What becomes known

    def commit_one(self) -> None:
        """The oldest launched plan's tokens."""
        for row, generation, tokens, drafted in self.known.popleft():
            seq = row.seq
            if generation != row.generation or seq.status is Status.FINISHED:
                if seq.status is Status.FINISHED:
                    self.scheduler.commit(seq, tokens)  # ignored
                continue
            self.scheduler.commit(seq, tokens)
            if drafted:
                self.scheduler.rollback(seq, seq.total - len(seq.tokens))
            if len(seq.tokens) >= row.ends_at:
                self.finish(seq)

    def finish(self, seq: Sequence) -> None:
        if seq.status is not Status.FINISHED:
            self.finished.append(seq.id)
        self.scheduler.finish(seq)
        check(self.scheduler)

    def rollback(self, seq: Sequence, n: int) -> None:
        """As the engine does it: to a length all of whose tokens are known."""
        n += seq.total - len(seq.tokens)
        if seq.status is Status.FINISHED or seq.total - n < seq.prompt_len:
            return
        total = seq.total - n
        self.scheduler.rollback(seq, n)
        self.rows[seq.id].truncate(total)
        check(self.scheduler)

    def step(self) -> Plan | None:
        plan = self.plan()
        while len(self.known) > self.lag:
            self.commit_one()
        check(self.scheduler)
        return plan

    def drain(self, limit: int = 3000) -> int:
        """Until everybody is done; how many plans that took."""
        for n in range(limit):
            if not self.scheduler.has_work:
                assert self.pool.used == 0
                return n
            self.step()
        raise AssertionError(f"not done after {limit} plans: {[r.seq for r in self.rows.values()]}")

    def check_texts(self) -> None:
        """Everybody said what it would have said alone in the world, under its own identity."""
        for row in self.rows.values():
            seq = row.seq
            content, ids = hash(("root", seq.identity)), seq.tokens[: seq.prompt_len]
            for token in ids:
                content = chain(content, token)
            while len(ids) < len(seq.tokens):
                ids.append(sampled(content, self.vocab))
                content = chain(content, ids[-1])
            assert ids == seq.tokens, f"{seq!r} said something else"
