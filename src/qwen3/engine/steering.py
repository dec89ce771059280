"""What the engine does about a sample's thinking, between two of its tokens.

The stream says what must happen (`chat.stream.TokenStream`: grammar, loops, limits), this says when: the device may be
a step ahead of the host, so a rule either takes effect from a token on that was not launched yet, or the tokens that
were launched without it are taken back, their place in the cache is written again, and the same noise draws anew.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from qwen3.chat.stream import EARLY_STOP, TokenStream
from qwen3.engine.deadline import Pace
from qwen3.engine.params import SamplingParams
from qwen3.engine.pickers import DevicePicker, Sample
from qwen3.engine.recording import Recorder
from qwen3.engine.request import Request
from qwen3.engine.sampler import RowSampler
from qwen3.engine.scheduler import Status
from qwen3.engine.speculation import Speculation
from qwen3.engine.trial import Trial
from qwen3.errors import UsageError

_IDLE_PRIORITY = 2**31
MOST_AHEAD = 64  # prompts that are expected


class Steering(Recorder):
    """`Recorder` with the rules of thinking. The engine makes these; see there."""

    _live: dict[int, Sample]
    _pace: Pace
    _timed: list[tuple[Sample, int]]  # with a time limit; tokens that closing its thought takes
    _ahead: deque[Request]  # background work that has not begun, or was pushed aside

    def answer_now(self, request_id: int) -> bool:
        """Close the thinking of a running or waiting request; it goes on with its answer. False: it does not think (any
        more), or has no stream."""
        item = self._live.get(request_id)
        if item is None or item.request.done or item.request.stream is None:
            return False
        with torch.inference_mode():
            return self._close_thinking(item, "client")

    def _heed(self, item: Sample) -> None:
        if item.trial is not None:
            self._judge(item, item.trial)
        stream = item.request.stream
        if item.request.done or stream is None:
            return
        if stream.wants_end is not None:
            return self._finish(item, stream.wants_end)
        if stream.wants_close is not None:
            self._close_thinking(item, stream.wants_close)
        if self.overlap and stream.constrained:
            self._constrain(item, stream)

    # From a token on, or back to one

    def _close_thinking(self, item: Sample, cause: str) -> bool:
        stream, row = item.request.stream, item.row
        assert stream is not None
        ahead = row.total - len(item.request.ids) - len(stream.output_ids)
        if not (self.overlap and item.bound and ahead > 0):
            closed = stream.close_thinking(cause)
            self._bind_again(item)
            return closed
        # The step under way ends without it, the next one hears of it before its token is recorded.
        at = len(stream.output_ids) + ahead + 1
        closed = stream.close_thinking(cause, at)
        if closed and isinstance(self.picker, DevicePicker):
            self.picker.sampler.close(row.slot, at)
        return closed

    def _take_back(self, item: Sample, keep: int | None = None) -> None:
        """Forget launched tokens that are not known yet; with `keep`, all but so many of the output's."""
        known = len(item.row.tokens) if keep is None else len(item.request.ids) + keep
        if (count := item.row.total - known) > 0:
            if item.row.total > len(item.row.tokens) and self._flight is not None:
                self._flight.void.add(item)
            self.scheduler.rollback(item.row, count)
            self._bind_again(item)

    def _bind_again(self, item: Sample) -> None:
        """The picker's state of a sample that has a slot is not its stream's any more."""
        if item.bound:
            item.bound = 0
            self._ready([item])

    # A grammar, where the device chooses

    def _constrain(self, item: Sample, stream: TokenStream) -> None:
        """A row waits for its last token where the grammar has a word in the next; else it runs like any other."""
        if stream.state == "thinking":
            item.row.lockstep = False
        elif not item.row.lockstep:
            self.scheduler.wait(item.row)
        words = stream.mask()
        if words is not None:
            self._take_back(item)
        self._set_mask(item)

    def _set_mask(self, item: Sample) -> None:
        """The grammar's mask into the sample's slot, or out of it."""
        words = item.mask() if self.overlap and item.bound else None
        if isinstance(self.picker, DevicePicker) and (words is not None or item.masked):
            item.masked = words is not None
            self.picker.sampler.set_mask(item.row.slot, None if words is None else torch.from_numpy(words))

    def _ready(self, items: Sequence[Sample]) -> list[Sample]:
        fresh = super()._ready(items)
        for item in fresh:
            if self.overlap and self._speculation is not None and self._speculation.draft is not None:
                self._speculation.draft.bind(item)
            item.masked = False
            self._set_mask(item)
        return fresh

    # Whether to think

    def _judge(self, item: Sample, trial: Trial) -> None:
        """The attempt to answer at once has a token more."""
        request, stream = item.request, item.request.stream
        assert stream is not None
        verdict = trial.verdict(over=stream.done is not None or len(request.output) >= request.max_tokens)
        if verdict == "think":
            item.trial = None
            request.stream = item.reader = stream.fresh(policy=request.thinking, source=stream.source)
            request.stream.discarded = len(stream.output_ids)
            request.stream.window = trial.looked
            request.stream.cached_tokens = stream.cached_tokens
            request.logprobs.clear()
            item.sampler = RowSampler(request.params, request.ids, self.vocab_size, self.runner.device, request.index)
            if self._speculation is not None:
                self._speculation.forget(item)
            self._take_back(item, keep=0)
        elif verdict is not None:
            item.trial, events = None, trial.held
            self._show(item, events)

    # Ahead of time

    def _guess(self, speculation: Speculation) -> None:
        """Tokens to verify in the next step. Where the host is late, rows wait for their last token while that pays."""
        rows = [self._live[row.id] for row in self.scheduler.running.values() if row.status is not Status.PREFILL]
        if self.overlap:  # of others the host learns nothing before they end
            rows = [item for item in rows if item.observed]
        speculation.propose(rows, self.scheduler, self.picker)
        for item in rows if self.overlap else ():
            if speculation.pays and not item.row.lockstep:
                self.scheduler.wait(item.row)
            elif not speculation.pays and item.mask() is None:
                item.row.lockstep = False

    @abstractmethod
    def check(self, request: Request) -> None:
        """See the engine."""

    def prefill_ahead(
        self, ids: Sequence[int], *, tenant: str = "", salt: str = "", adapter: str | None = None, experts: int = 0
    ) -> None:
        """Compute the KV of a prompt that is expected, when there is nothing else to do, for the prefix cache. Requests
        that come push it aside; what was done by then stays. Too long ones, and the oldest of too many, are dropped."""
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True).resolved("instruct")
        request = Request(
            list(ids), params, tenant=tenant, salt=salt, adapter=adapter, experts=experts,
            background=True, priority=_IDLE_PRIORITY,
        )  # fmt: skip
        with contextlib.suppress(UsageError):
            self.check(request)
            self._ahead.append(request)

    def _set_aside(self) -> None:
        """Idle work makes room. It is live only where nothing else is."""
        if self.has_work:
            return
        for item in list(self._live.values()):
            if item.request.background and not item.request.done:
                self._finish(item, "cancelled")
                self._ahead.appendleft(replace(item.request, finish_reason=None, tokens=[]))

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to hand out. Idle work does not count."""
        return any(not item.request.background for item in self._live.values())

    @property
    def has_idle_work(self) -> bool:
        """Whether `advance` has something to do that nobody waits for."""
        return bool(self._ahead or self._live) and not self.has_work

    # In time

    def _keep_time(self) -> None:
        """Close the thinking of those whose time is nearly up, end those whose time is up."""
        now = time.perf_counter()
        for item, forced in self._timed:
            request, stream = item.request, item.request.stream
            if request.done or stream is None or request.time_limit is None:
                continue
            left = request.clock.added + request.time_limit - now
            if left <= 0:
                request.warnings.append(f"the time limit of {request.time_limit:g} s ended it")
                self._finish(item, "length")
            elif stream.state in ("start", "thinking"):
                limit = request.max_tokens - len(request.output)
                if self._pace.must_close(left, forced, limit):
                    self._close_thinking(item, "time")
        self._timed = [(item, forced) for item, forced in self._timed if not item.request.done]

    def _watch(self, item: Sample) -> None:
        """A sample with a time limit. Forced tokens take one step where the host chooses, else one each."""
        stream = item.request.stream
        assert stream is not None
        self._timed.append((item, len(stream.tokenizer.encode(EARLY_STOP)) if self.overlap else 1))

    def _kept(self, item: Sample, reason: str) -> int | None:
        stream = item.request.stream
        if stream is None or reason != "stop":
            return None
        report = stream.report()
        if report.ended_by in (None, "natural"):
            self._pace.answered(len(stream.output_ids) - report.used - report.forced_tokens)
        # The next turn's prompt has no thoughts: what was computed behind them is of no use to it.
        return None if report.ended_by is None else len(item.request.ids)
