"""Which tokens the next step computes. Pure Python, no clock, no randomness: the same calls give the same plans.

The policy, in the order in which `plan` applies it:

1. Every row past its prompt decodes one token, whatever else goes on. Where no block is free, the least recently used
   cached one is evicted, then the row of lowest priority that arrived last is preempted: it gives up its slot and its
   blocks (full ones stay cached), goes back to the front of its queue and later recomputes what it knows.
2. Admission: the lowest priority number first, in it the tenant served least, in that its oldest request; nobody
   overtakes. It takes a slot and, at once, the blocks of what is known so far (never of max_tokens), if one more stays
   to spare for it and for every running row. Who does not fit may push out rows of strictly lower priority.
3. Rows with extra tokens known ahead (a draft, a forced text) take 1 + k at once where that costs nobody anything.
4. The rest of the token budget goes to prompts in chunks; while rows decode, `cost` bounds these too, so they shrink
   with their position. A prompt takes what the prefix cache has at its start and before every chunk. If another row
   computes its next block in this very plan (samples of one prompt), it waits for the next plan and finds it.

Contract with the engine:

* A returned plan is launched, and its work runs before that of later plans (stream order). So blocks may be cached when
  they are planned, and given back while launched steps still touch them. If a launch fails: `pool.forget()`,
  `rollback` what will never arrive, `preempt` the rows.
* Tokens become known late. `total` and `computed` count what has been launched; `tokens` grows by `commit`, in order,
  one step or hundreds of steps later. A row that has ended without being told launches tokens too many: harmless.
* A preempted sequence whose tokens are not all known (`lagging`) keeps its place, but is not admitted before `commit`
  has brought the rest or `finish` ended it.

A step without arrivals costs nothing per row: the decode list stays the same object, `total` and `computed` of its rows
follow from the number of the step, and a calendar by step knows who needs a block or is at `max_total`. Where blocks
abound they are handed out in one step of eight, up to seven steps sooner than needed: what brings any costs the device.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile
from math import inf
from operator import attrgetter

from qwen3.engine.blocks import BlockPool, Node
from qwen3.errors import QueueFullError, UsageError

_rank = attrgetter("priority", "arrival")
_TOGETHER = 8  # steps


class Status(Enum):
    NEW = "new"
    WAITING = "waiting"  # in the queue: never admitted, or preempted
    PREFILL = "prefill"  # running, has known tokens to compute
    DECODE = "decode"  # running, one token a step
    HELD = "held"  # running, nothing to compute before its launched tokens are known (at max_total, or a draft is out)
    FINISHED = "finished"


@dataclass(eq=False, repr=False, slots=True)
class Sequence:
    """One sample. The first fields are the caller's; `tokens` starts as the prompt and is copied.

    max_total: most tokens, prompt included. priority: lower goes first. tenant: shares fairly with the others of its
    priority. identity: all that changes keys and values besides the tokens. use_cache: look up and offer prefixes.
    lockstep: its next token may only be launched once the last one is known (a grammar's mask, a draft, wait for it).
    """

    id: int
    tokens: list[int]  # all that are known
    max_total: int
    priority: int = 0
    tenant: Hashable = ""
    identity: Hashable = ()
    use_cache: bool = True
    lockstep: bool = False

    prompt_len: int = field(init=False)
    status: Status = Status.NEW
    slot: int = 0  # 1 … max_rows while it runs; after a preemption still the slot it had, 0 when finished
    blocks: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, found in the prefix cache when it was first computed
    preemptions: int = 0
    pending_extra: list[int] = field(default_factory=list)  # see Scheduler.propose

    # The scheduler's books.
    arrival: int = 0
    scheduler: Scheduler = field(init=False)
    share: Share = field(init=False)
    frozen_computed: int = 0  # `computed` and `total` of a row that does not decode
    frozen_total: int = 0
    origin: int = 0  # of a row that decodes: computed == step - origin
    due: int = 0  # the step at which it needs a block or is at max_total
    node: Node | None = None  # of its last hashed block; None: no block is hashed
    hashed: int = 0  # its first blocks, which are in the prefix tree: never written again
    needed: int = 0  # blocks that were needed when it was refused
    resumed: bool = False  # past its prompt, goes on from known tokens

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)
        self.prompt_len = self.frozen_total = len(self.tokens)

    @property
    def computed(self) -> int:
        """Tokens whose KV is in the cache once everything launched has run."""
        return self.scheduler.step - self.origin if self.status is Status.DECODE else self.frozen_computed

    @property
    def total(self) -> int:
        """Tokens including those launched but not known yet."""
        return self.scheduler.step - self.origin + 1 if self.status is Status.DECODE else self.frozen_total

    @property
    def lagging(self) -> bool:
        return len(self.tokens) < self.total

    def __repr__(self) -> str:
        known = f"{len(self.tokens)} of {self.total} tokens known"
        return f"Sequence(id={self.id}, {self.status.value}, slot={self.slot}, {known})"


@dataclass(slots=True)
class Chunk:
    """Tokens start … start+size-1 of `seq`. last: its last position yields a token. extra: if not empty, the last
    len(extra) inputs are these, and the one before is the newest token (maybe only the device knows it yet)."""

    seq: Sequence
    start: int
    size: int
    last: bool
    extra: tuple[int, ...] = ()


@dataclass(slots=True)
class Plan:
    """One step. Look at `preempted` first (their slots may be given away in `admitted`), then `new_blocks`. A plan with
    neither `decode` nor `chunks` only brings news; there is nothing to launch."""

    decode: list[Sequence] = field(default_factory=list)  # one token each; not to be changed by the reader
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    new_blocks: list[tuple[int, int, int]] = field(default_factory=list)  # (slot, index in its table, block)
    changed: bool = False  # `decode` differs from the previous plan's


@dataclass(slots=True)
class Share:
    """One tenant at one priority: what waits, and the tokens computed for it so far (prompts and outputs)."""

    priority: int
    queue: OrderedDict[int, Sequence] = field(default_factory=OrderedDict)  # by arrival
    live: int = 0  # sequences that wait or run
    decoding: int = 0  # rows, which are served one token a step
    paid: int = 0  # the rest

    def served(self, step: int) -> int:
        return self.paid + self.decoding * step


class Scheduler:
    """max_rows: sequences that run at once. token_budget: most tokens of a step, at least max_rows + 16; chunk_tokens:
    most of prompts among them, None: no bound of its own. max_queue: most sequences that wait (None: no bound).
    cost(size, position): the work of a chunk, growing with both; where rows decode, the chunks of a step stay within
    `work_budget` (None: cost(token_budget, 0)) in sum, but one block is always computed. Raises UsageError for a token
    budget that could stall prompts.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_rows: int,
        token_budget: int,
        chunk_tokens: int | None = None,
        max_queue: int | None = None,
        cost: Callable[[int, int], float] | None = None,
        work_budget: float | None = None,
    ) -> None:
        if max_rows < 1 or token_budget < max_rows + pool.block_size:
            least = f"at least max_rows + {pool.block_size}, and max_rows at least 1"
            raise UsageError(f"max_rows={max_rows}, token_budget={token_budget}: the budget must be {least}")
        self.pool = pool
        self.max_rows = max_rows
        self.token_budget = token_budget
        self.chunk_tokens = token_budget if chunk_tokens is None else chunk_tokens
        self.max_queue = max_queue
        self.cost = cost
        self.work_budget = inf if cost is None else cost(token_budget, 0) if work_budget is None else work_budget
        self.step = 0  # plans made; during `plan`: those before it
        self.running: dict[int, Sequence] = {}  # by slot
        self.waiting: dict[int, Sequence] = {}  # by arrival
        self._arrivals = 0
        self._slots = list(range(max_rows, 0, -1))
        self._shares: dict[tuple[int, Hashable], Share] = {}  # of (priority, tenant) with anything here
        self._prefill: list[Sequence] = []
        self._decode: list[Sequence] = []
        self._joined: list[Sequence] = []  # decode from the next plan on
        self._left = self._abounds = False  # somebody in these two does not decode any more; many blocks hold nothing
        self._calendar: defaultdict[int, list[Sequence]] = defaultdict(list)  # by step; an entry counts if it is .due
        self._proposals: list[Sequence] = []
        self._draft = Plan()  # the next plan, as far as it is known

    # What the engine says

    def add(self, seq: Sequence) -> None:
        """Queues a new sequence; `max_total` is cut to what the whole pool can hold.

        Raises QueueFullError (try again later), UsageError if it was added before, is empty or can never fit."""
        size, blocks = self.pool.block_size, self.pool.blocks - 1
        if seq.status is not Status.NEW or not 0 < seq.prompt_len < seq.max_total:
            raise UsageError(f"{seq!r} with max_total={seq.max_total}: give a new one, a prompt and room for a token")
        if seq.prompt_len > blocks * size:
            raise UsageError(
                f"the prompt has {seq.prompt_len} tokens ({self._blocks(seq.prompt_len)} blocks of {size}), the KV "
                f"cache holds {blocks * size} ({blocks} blocks): shorten the prompt or give the cache more memory"
            )
        if self.max_queue is not None and len(self.waiting) >= self.max_queue:
            raise QueueFullError(f"{len(self.waiting)} requests wait (max_queue={self.max_queue}): try again later")
        seq.max_total = min(seq.max_total, blocks * size + 1)
        seq.arrival = self._arrivals = self._arrivals + 1
        seq.scheduler = self
        seq.share = share = self._shares.setdefault((seq.priority, seq.tenant), Share(seq.priority))
        if not share.queue:  # credit is not saved up: who comes (back) starts level with the least served
            others = [s for s in self._shares.values() if s.priority == seq.priority and s is not share]
            level = [s.served(self.step) for s in ([s for s in others if s.queue] or others)]
            share.paid += max(0, min(level, default=0) - share.served(self.step))
        share.live += 1
        self._wait(seq)

    def commit(self, seq: Sequence, tokens: list[int]) -> None:
        """The next launched tokens are known. Ignored once finished. Raises UsageError if they were never launched."""
        if seq.status is Status.FINISHED:
            return
        known = len(seq.tokens) + len(tokens)
        if seq.status is Status.NEW or known > seq.total:
            raise UsageError(f"{seq!r}: {len(tokens)} more tokens were committed than launched")
        seq.tokens.extend(tokens)
        if known > (seq.hashed + 1) * self.pool.block_size:
            self._register(seq)
        if seq.status is Status.HELD:
            self._resume(seq)

    def finish(self, seq: Sequence, keep: int | None = None) -> None:
        """It is over: slot and blocks are given back at once, full blocks stay cached (with `keep`, only those of its
        first `keep` tokens). Twice is once."""
        if keep is not None and self.running.get(seq.slot) is seq:
            self._register(seq)
            seq.use_cache = False
            while seq.hashed > keep // self.pool.block_size and seq.node is not None:
                node, seq.node, seq.hashed = seq.node, seq.node.parent, seq.hashed - 1
                self.pool.drop(node)
        if seq.status is Status.WAITING:
            del self.waiting[seq.arrival], seq.share.queue[seq.arrival]
            if seq in self._draft.preempted:
                self._draft.preempted.remove(seq)
        elif self.running.get(seq.slot) is seq:
            self._stop(seq)
        if seq.status is not Status.NEW and seq.status is not Status.FINISHED:
            seq.share.live -= 1
            if not seq.share.live:
                del self._shares[seq.priority, seq.tenant]
        seq.status, seq.slot = Status.FINISHED, 0

    cancel = finish  # whatever it was doing

    def rollback(self, seq: Sequence, n: int) -> None:
        """Forget the last `n` tokens, launched ones included; these must not be committed any more. The row goes on
        from its tokens, as a chunk, once all that remain are known. Ignored once it is finished.

        Raises UsageError when that reaches into the prompt."""
        if seq.status is Status.FINISHED or n == 0:
            return
        total, size = seq.total - n, self.pool.block_size
        if n < 0 or total < seq.prompt_len:
            raise UsageError(f"{seq!r}: cannot forget {n} tokens, it has {seq.total - seq.prompt_len} after its prompt")
        if seq.status is Status.DECODE:
            self._stop_decoding(seq)
        seq.frozen_total = total
        del seq.tokens[total:]
        if seq.status is Status.WAITING:
            return
        seq.frozen_computed, keep = min(seq.frozen_computed, total - 1), self._blocks(total)
        if seq.frozen_computed < seq.hashed * size:  # never write into a block of the prefix tree: take another
            keep = seq.frozen_computed // size
            seq.frozen_computed = keep * size
            while seq.hashed > keep:
                seq.hashed -= 1
                if seq.node is not None and seq.node.alive:
                    seq.node = seq.node.parent if seq.hashed else None
        self.pool.release(seq.blocks[keep:])
        del seq.blocks[keep:]
        self._resume(seq)

    def preempt(self, seq: Sequence) -> None:
        """Back to the front of its queue, to recompute what it knows. The next plan tells, and does not admit it."""
        if seq.status is not Status.DECODE and seq.status is not Status.PREFILL:
            return
        self._stop(seq)
        seq.preemptions, seq.resumed, seq.needed = seq.preemptions + 1, False, 0
        self._draft.preempted.append(seq)
        self._draft.new_blocks = [entry for entry in self._draft.new_blocks if entry[0] != seq.slot]
        older = list(takewhile(lambda arrival: arrival < seq.arrival, seq.share.queue))
        self._wait(seq)
        for arrival in (seq.arrival, *reversed(older)):
            seq.share.queue.move_to_end(arrival, last=False)

    def propose(self, seq: Sequence, tokens: Iterable[int]) -> None:
        """`tokens` follow the newest launched token of `seq` (a draft, or forced). The next plan takes as many as cost
        nobody anything, as one chunk, or drops them and decodes as usual. After the chunk the row is held until all its
        launched tokens are known: `commit` what was accepted and the token sampled after it, `rollback` the rest."""
        seq.pending_extra = list(tokens)
        self._proposals.append(seq)

    def wait(self, seq: Sequence) -> None:
        """From now on in lockstep."""
        seq.lockstep = True
        if seq.status is Status.DECODE:
            self._stop_decoding(seq)
            self._resume(seq)

    def renew(self, identity: Callable[[Sequence], Hashable], *, recompute: bool = True) -> None:
        """Weights changed in place: every sequence here gets a new identity. Running ones are preempted and recompute,
        or (recompute=False) go on with KV of both kinds, which the cache will not see."""
        for seq in sorted(self.running.values(), key=_rank, reverse=True):
            if recompute:
                self.preempt(seq)
            seq.use_cache &= seq.status is Status.WAITING
        for seq in (*self.running.values(), *self.waiting.values()):
            seq.identity = identity(seq)

    # What the engine asks

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def tokens_left(self) -> int:
        """Known tokens still to compute (for gauges: it looks at every sequence)."""
        return sum(s.total - s.computed for s in (*self.waiting.values(), *self._prefill))

    def plan(self) -> Plan | None:
        """The next step, which from now on counts as launched. None: nothing to do before something is said."""
        plan, now, self._abounds = self._draft, self.step + 1, self.pool.free > 2 * len(self.running)
        for seq in self._calendar.pop(now, ()):
            if seq.due == now:
                self._turn_page(seq)
        if self.waiting:
            self._admit()
        if self._proposals:
            self._take_proposals()
        joined = self._joined
        if joined or self._left:
            self._decode = [*dict.fromkeys([s for s in (*self._decode, *joined) if s.status is Status.DECODE])]
            self._joined, self._left, plan.changed = [], False, True
        if self._prefill:
            self._feed()
        self.step = now
        plan.decode = self._decode
        for seq in joined:
            if seq.lockstep and seq.status is Status.DECODE:
                self._stop_decoding(seq)
        if not (plan.decode or plan.chunks or plan.admitted or plan.preempted):
            return None
        self._draft = Plan()
        return plan

    # 1. Rows that decode

    def _turn_page(self, seq: Sequence) -> None:
        """Its day in the calendar: it is at max_total, or needs a block."""
        decodes, seq.due = seq.status is Status.DECODE, 0
        if decodes and self.step - seq.origin + 1 >= seq.max_total:
            return self._stop_decoding(seq)
        while not (block := self.pool.take()):
            victim = self._victims()[-1]  # at worst itself
            self.preempt(victim)
            if victim is seq:
                return None
        self._append(seq, block)
        return self._set_due(seq) if decodes else None

    def _set_due(self, seq: Sequence) -> None:
        due, end = seq.origin + len(seq.blocks) * self.pool.block_size + 1, seq.origin + seq.max_total
        early = due % _TOGETHER if self._abounds else 0  # many rows get theirs in one step, some sooner than they must
        seq.due = due = min(end, max(due - early, min(due, self.step + 2)))
        self._calendar[due].append(seq)

    def _start_decoding(self, seq: Sequence, ahead: int) -> None:
        """From the plan on that is `ahead` of the last one finished: 1 between plans, 2 while one is made."""
        seq.status, seq.origin = Status.DECODE, self.step + ahead - 1 - seq.frozen_computed
        seq.share.decoding += 1
        seq.share.paid -= self.step + ahead - 1
        self._joined.append(seq)
        self._set_due(seq)

    def _stop_decoding(self, seq: Sequence) -> None:
        """Launched plans count, one that is being made does not."""
        seq.frozen_computed, seq.frozen_total = seq.computed, seq.total
        seq.status, seq.due, self._left = Status.HELD, 0, True
        seq.share.decoding -= 1
        seq.share.paid += self.step

    def _victims(self) -> list[Sequence]:
        """Rows that can be preempted (held ones are about to end or go on), the first to go last."""
        return sorted((s for s in self.running.values() if s.status is not Status.HELD), key=_rank)

    # 2. Admission

    def _admit(self) -> None:
        while self.waiting:
            queued = [share for share in self._shares.values() if share.queue]
            if len(queued) > 1:
                queued.sort(key=lambda s: (s.priority, s.served(self.step), next(iter(s.queue))))
            seq = next(iter(queued[0].queue.values()))
            if seq.lagging or seq in self._draft.preempted or not (self._fits(seq) or self._push_out(seq)):
                return
            del self.waiting[seq.arrival], seq.share.queue[seq.arrival]
            seq.slot, seq.status = self._slots.pop(), Status.PREFILL
            self.running[seq.slot] = seq
            seq.blocks += [self.pool.take() for _ in range(self._blocks(seq.frozen_total) - len(seq.blocks))]
            self._draft.new_blocks.extend((seq.slot, i, block) for i, block in enumerate(seq.blocks))
            self._prefill.append(seq)
            self._draft.admitted.append(seq)

    def _fits(self, seq: Sequence) -> bool:
        """True: there is room, and it holds what the cache has of it. Refused, it looks again when there is as much as
        it lacked, or in the next plan but 15."""
        before = self.pool.available
        spare = before - len(self.running)
        if not self._slots or (spare < seq.needed and self.step % 16):
            return False
        self._look_up(seq)
        whole = min(self._blocks(seq.frozen_total) + 1, self._blocks(seq.max_total - 1))
        seq.needed = before - self.pool.available + whole - len(seq.blocks)
        if spare < seq.needed:
            self._drop_blocks(seq)
            if not seq.preemptions:
                seq.cached_tokens = 0
            return False
        return True

    def _push_out(self, seq: Sequence) -> bool:
        """Preempts rows of strictly lower priority, the lowest and youngest first, if that can be enough."""
        if all(share.priority <= seq.priority for share in self._shares.values()):
            return False
        lower = [s for s in self._victims() if s.priority > seq.priority]
        while lower:
            spare = self.pool.available - len(self.running) + sum(len(s.blocks) + 1 for s in lower)
            if spare < seq.needed:
                return False
            self.preempt(lower.pop())
            if self._fits(seq):
                return True
        return False

    # 3. Tokens known ahead

    def _take_proposals(self) -> None:
        tokens = self.token_budget - len(self.running) - self.pool.block_size  # nobody loses his token, prompts a block
        proposals, self._proposals = self._proposals, []
        for seq in proposals:
            extra, seq.pending_extra = tuple(seq.pending_extra), []
            if seq.status is Status.DECODE or (seq.status is Status.PREFILL and seq.computed == seq.total - 1):
                extra = extra[: max(0, min(tokens, seq.max_total - seq.total - 1))]
                lack = self._blocks(seq.total + len(extra)) - len(seq.blocks)
                if extra and lack <= self.pool.available:
                    tokens -= len(extra)
                    for _ in range(lack):
                        self._append(seq, self.pool.take())
                    if seq.status is Status.DECODE:
                        self._stop_decoding(seq)
                    else:
                        self._prefill.remove(seq)
                    self._compute(seq, 1 + len(extra), extra)

    # 4. Prompts

    def _feed(self) -> None:
        """First rows that resume, then by priority, then the tenant served least: long prompts take turns."""
        self._prefill.sort(key=attrgetter("arrival"))
        if len(self._shares) > 1 or any(s.resumed for s in self._prefill):
            self._prefill.sort(key=lambda s: (not s.resumed, s.priority, s.share.served(self.step)))
        given = len(self._decode) + sum(c.size for c in self._draft.chunks)
        tokens = min(self.token_budget - given, self.chunk_tokens)
        work = self.work_budget if self._decode or self._draft.chunks or self._prefill[0].resumed else inf
        first = True
        for seq in self._prefill:
            if self._look_up(seq):
                start = seq.frozen_computed
                size = self._chunk_size(seq, tokens, inf if seq.resumed else work, first)
                if not size:
                    break
                tokens -= size
                if self.cost is not None and work < inf and not seq.resumed:
                    work, first = work - self.cost(size, start), False
                self._compute(seq, size)
        self._prefill = [s for s in self._prefill if s.status is Status.PREFILL]

    def _chunk_size(self, seq: Sequence, tokens: int, work: float, at_least_one: bool) -> int:
        """All that is left of its prompt, or as many whole blocks as the budgets allow (0: none)."""
        size, start = self.pool.block_size, seq.frozen_computed
        left = seq.frozen_total - start
        if left > tokens:
            left = tokens // size * size
        if self.cost is None or work == inf or not left or self.cost(left, start) <= work:
            return left
        low, high = 0, (left - 1) // size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost(middle * size, start) <= work else (low, middle - 1)
        return low * size or (min(left, size) if at_least_one else 0)

    def _compute(self, seq: Sequence, size: int, extra: tuple[int, ...] = ()) -> None:
        """Puts a chunk into the plan."""
        start, end = seq.frozen_computed, seq.frozen_computed + size
        last = end >= seq.frozen_total
        self._draft.chunks.append(Chunk(seq, start, size, last, extra))
        seq.frozen_computed = end
        seq.share.paid += size
        self._register(seq, ahead=1)
        if last:
            seq.frozen_total, seq.resumed, seq.status = end + 1, False, Status.HELD
            if not extra and not seq.lockstep and seq.frozen_total < seq.max_total:
                self._start_decoding(seq, ahead=2)

    # The prefix cache

    def _look_up(self, seq: Sequence) -> bool:
        """Takes the blocks the cache has where `seq` goes on; its last token is always computed. False: the next one is
        being computed by another row in this plan."""
        size, first = self.pool.block_size, seq.hashed
        if not seq.use_cache or seq.frozen_computed != first * size:
            return True
        node = self.pool.roots.get(seq.identity) if seq.node is None else seq.node
        for i in range(first, (seq.frozen_total - 1) // size):
            node = node and node.children.get(tuple(seq.tokens[i * size : (i + 1) * size]))
            if node is None or node.step > self.step:
                break
            block = self.pool.hold(node)
            if i < len(seq.blocks):  # it has a slot, and has set a block aside
                self.pool.release([seq.blocks[i]])
                seq.blocks[i] = block
                self._draft.new_blocks.append((seq.slot, i, block))
            else:
                seq.blocks.append(block)
            seq.node, seq.hashed, seq.frozen_computed = node, i + 1, (i + 1) * size
        if not seq.preemptions and seq.frozen_total == seq.prompt_len:
            seq.cached_tokens += (seq.hashed - first) * size
        return node is None or node.step <= self.step

    def _register(self, seq: Sequence, ahead: int = 0) -> None:
        """Offers the full blocks that are computed and known. The last known token does not count, except in the plan
        that computes it (ahead=1): after a draft was cut, its place in the cache holds the draft's."""
        size, limit = self.pool.block_size, min(seq.computed, len(seq.tokens) - 1 + ahead)
        while seq.use_cache and (seq.hashed + 1) * size <= limit:
            i = seq.hashed
            parent = self.pool.root(seq.identity, seq.tenant) if seq.node is None else seq.node
            ids = tuple(seq.tokens[i * size : (i + 1) * size])
            seq.node = self.pool.register(parent, ids, seq.blocks[i], self.step + ahead)
            seq.hashed += 1

    # Small things

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.pool.block_size)

    def _append(self, seq: Sequence, block: int) -> None:
        self._draft.new_blocks.append((seq.slot, len(seq.blocks), block))
        seq.blocks.append(block)

    def _resume(self, seq: Sequence) -> None:
        """A held row whose tokens are all known goes on from these."""
        if seq.status is Status.HELD and len(seq.tokens) == seq.frozen_total < seq.max_total:
            if seq.frozen_computed == seq.frozen_total - 1:
                return self._start_decoding(seq, ahead=1)
            seq.status, seq.resumed = Status.PREFILL, True
            self._prefill.append(seq)
        if seq.status is Status.PREFILL and len(seq.blocks) < self._blocks(seq.frozen_total):
            seq.due = self.step + 1
            self._calendar[seq.due].append(seq)
        return None

    def _stop(self, seq: Sequence) -> None:
        """Takes slot and blocks from a running sequence."""
        self._register(seq)
        if seq.status is Status.DECODE:
            self._stop_decoding(seq)
        elif seq.status is Status.PREFILL:
            self._prefill.remove(seq)
        self._drop_blocks(seq)
        self._slots.append(seq.slot)
        del self.running[seq.slot]

    def _drop_blocks(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks, seq.node, seq.due = [], None, 0
        seq.hashed = seq.frozen_computed = 0

    def _wait(self, seq: Sequence) -> None:
        seq.status = Status.WAITING
        seq.share.queue[seq.arrival] = self.waiting[seq.arrival] = seq
