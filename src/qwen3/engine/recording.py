"""The half of the engine that hears what a step brought: tokens into streams, samples in and out of their slots."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qwen3.chat import Event, Finish, TextDelta, ToolCallDelta
from qwen3.engine.device_sampler import REPLACED
from qwen3.engine.machine import Machine
from qwen3.engine.measures import measure, read_logprobs
from qwen3.engine.pickers import FAILED, FULL, DevicePicker, Drafted, HostPicker, Picked, Sample, failure
from qwen3.engine.request import Request
from qwen3.engine.runner import Runner
from qwen3.engine.sampler import TokenLogprob
from qwen3.engine.scheduler import Scheduler
from qwen3.engine.speculation import Speculation
from qwen3.errors import Qwen3Error
from qwen3.tokenizer import Tokenizer

HEAR = 8  # steps


@dataclass
class Flight:
    """A launched step whose tokens the host has not read."""

    samples: list[Sample]
    followed: list[int]  # places in `samples` of those the host follows token by token
    picked: Picked
    logprobs: tuple[list[int], Tensor, Tensor] | None  # places of those that ask, what `measure` found, logits of all
    drafted: Iterable[Drafted] = ()
    prompts: bool = False  # it had chunks of prompts
    began: float = 0.0  # `time.perf_counter`
    void: set[Sample] = field(default_factory=set)  # whose tokens were taken back after it was launched


class Recorder(ABC):
    """What `Engine` is built on. The engine makes these; see there for what they are."""

    picker: HostPicker | DevicePicker
    runner: Runner
    scheduler: Scheduler
    tokenizer: Tokenizer | None
    vocab_size: int
    overlap: bool  # the host is a step behind
    _flight: Flight | None  # the step that is under way
    _told: Flight | None = None  # one of the last few: see `_hear`
    steps: int  # how many there were
    _ended: list[Sample]  # since the last step
    _observed: dict[int, Sample]  # of those that live, those that the host follows
    _speculation: Speculation | None

    # What came of it

    def _flight_of(
        self, samples: list[Sample], picked: Picked, logits: Tensor, followed: list[int] | None = None
    ) -> Flight:
        if followed is None:
            followed = self._followed(samples)
        places = [i for i in followed if samples[i].alternatives is not None]
        if places:
            top = max(samples[i].alternatives or 0 for i in places)
            numbers = measure(logits[places], picked.ids(logits.device)[places], top, self.vocab_size)
            return Flight(samples, followed, picked, (places, numbers, logits))
        return Flight(samples, followed, picked, None)

    def _followed(self, samples: list[Sample]) -> list[int]:
        return [i for i, item in enumerate(samples) if item.observed] if self._observed else []

    def _drain(self) -> None:
        """Read the step that is under way, if any."""
        flight, self._flight, self._told = self._flight, None, None
        if flight is not None:
            self._land(flight)

    def _land(self, flight: Flight) -> None:
        """Record a step's tokens: one by one where the host follows, else only of samples that have ended."""
        samples = flight.samples
        entries: dict[int, tuple[TokenLogprob, Tensor]] = {}
        if flight.logprobs is not None:
            places, numbers, logits = flight.logprobs
            found = read_logprobs(numbers, [samples[i].alternatives or 0 for i in places])
            entries = {i: (entry, logits[i : i + 1]) for i, entry in zip(places, found, strict=True)}
        followed: Sequence[int] = flight.followed
        if self.overlap:
            self._hear(flight)
        else:
            followed = range(len(samples))
        if followed:
            read = flight.picked.read()
            for i in followed:
                (token, code), item = read[i], samples[i]
                if not item.request.done and item not in flight.void:
                    self._record(item, token, code, *entries.get(i, ()))
                    self._go_on(item)
        verified = [(drafted.item, len(drafted.tokens), self._verify(drafted)) for drafted in flight.drafted]
        if self._speculation is not None:
            self._speculation.landed(flight, verified, self.picker)
        if isinstance(self.picker, HostPicker):
            there = (*samples, *(item for item, _, _ in verified))
            self.picker.advance([item for item in there if not item.request.done])

    def _hear(self, flight: Flight) -> None:
        """End samples that the host does not follow and of whose end it hears now. Every few steps of all: another
        plan, its slots and a look at the device are paid once for several; and, if nobody waits for their slots, as
        they stood some steps ago, which need not be waited for. Else of those that are not in the next step, which says
        it again of the others."""
        after, among = self._flight, None
        if after is not None and not flight.followed:
            gone = set() if after.samples is flight.samples else set(flight.samples).difference(after.samples)
            if self.steps % HEAR == HEAR // 2:
                self._told = flight
            if self.steps % HEAR:
                among = {item for item in gone if not item.request.done}
                if not among:
                    return
            elif self._told is not None and not (gone or self.scheduler.waiting):
                flight = self._told
        told = ((flight.samples[i], code) for i, code in flight.picked.ended())
        ended = [(s, c) for s, c in told if not (s.observed or s.request.done) and (among is None or s in among)]
        self._know([item for item, _ in ended], flight.picked)
        for item, code in ended:
            self._end_blind(item, code)

    def _verify(self, drafted: Drafted) -> int:
        """Record a sample's own tokens for as long as they are those that were drafted, and the first that is not. How
        many were right."""
        item, row = drafted.item, drafted.item.row
        right = 0
        for j, draft in enumerate((*drafted.tokens, -1)):
            if item.request.done:
                return right
            (token, code), logits, known = drafted.read(j), drafted.logits[j : j + 1], len(row.tokens)
            if item.alternatives is not None and not isinstance(token, Qwen3Error):
                self._record(item, token, code, self._entry(token, logits, item.alternatives), logits)
            else:
                self._record(item, token, code)
            if len(row.tokens) != known + 1 or row.tokens[-1] != draft:
                break
            right += 1
            if row.total == len(row.tokens):  # a rule that the device does not know has taken the others back
                break
        item.drafts = ()
        if not item.request.done:
            self.scheduler.rollback(row, row.total - len(row.tokens))
            self._go_on(item)
        return right

    def _record(
        self, item: Sample, token: int | Qwen3Error, code: int, entry: TokenLogprob | None = None,
        logits: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Record one token, with its log-probability, and tell the scheduler."""
        request = item.request
        if isinstance(token, Qwen3Error):
            return self._fail(item, token)
        item.torn = True
        try:
            if not request.clock.first_token:
                self._first_token(item)
            item.forced = item.reader.forced() is not None
            if code & REPLACED and self.tokenizer is not None:
                token = next(iter(self.tokenizer.eos_ids))
            known = len(request.output)
            self._push(item, token)
            if entry is not None and logits is not None and len(request.output) > known:
                self._note(item, token, entry, logits)
            if not request.done:
                self.scheduler.commit(item.row, request.output[len(item.row.tokens) - len(request.ids) :])
            if request.stream is not None:
                self._heed(item)
        except Exception as error:
            self._fail(item, error)
        item.torn = False
        return None

    def _go_on(self, item: Sample) -> None:
        """Forced tokens are known ahead: they need no logits, and take one step."""
        if item.request.done:
            return
        if not self.overlap and item.alternatives is None and (following := item.reader.queued):
            self.scheduler.propose(item.row, following)

    @abstractmethod
    def _heed(self, item: Sample) -> None:
        """A sample with a stream has a token more, and the scheduler knows it: see `steering.py`."""

    @abstractmethod
    def _adapter(self, request: Request) -> int:
        """The number of its adapter, 0: none."""

    @abstractmethod
    def _kept(self, item: Sample, reason: str) -> int | None:
        """How many tokens of a sample that ends are worth keeping in the cache; None: all."""

    def _note(self, item: Sample, token: int, entry: TokenLogprob, logits: Tensor) -> None:
        """A token's log-probability: of the recorded one, which may stand in the place of an end that was sampled."""
        recorded = item.request.output[-1]
        if recorded != entry.id:
            entry = self._entry(recorded, logits, item.alternatives or 0)
        entry.forced = item.forced or recorded != token
        if item.trial is not None and not entry.forced:
            item.trial.observe(entry)
        if (asked := item.request.params.logprobs) is not None:
            item.request.logprobs.append(replace(entry, top=entry.top[:asked]))

    def _entry(self, token: int, logits: Tensor, top: int) -> TokenLogprob:
        """One token's log-probability, and the `top` best, in logits [1, rows of the head]."""
        ids = torch.tensor([token], device=logits.device)
        return read_logprobs(measure(logits, ids, top, self.vocab_size), [top])[0]

    @staticmethod
    def _first_token(item: Sample) -> None:
        request = item.request
        request.clock.first_token = time.perf_counter()
        request.cached_tokens = item.row.cached_tokens
        if request.stream is not None:
            request.stream.cached_tokens = item.row.cached_tokens

    def _push(self, item: Sample, token: int) -> None:
        request, stream = item.request, item.request.stream
        if stream is None:
            recorded = item.reader.push(token)
            request.tokens.append(recorded)
            item.sampler.record(recorded)
            if item.reader.done is not None:
                self._end(item, item.reader.done)
            return
        if item.trial is not None:
            stream.window = item.trial.looked + (not item.forced)
        events = stream.push(token)
        if not self.overlap:
            item.sampler.record(request.output[-1])  # the stream may put the closing text in the place of an early end
        if item.trial is not None:  # decided when the token's probability is known; until then nothing is let out
            item.trial.held += events
        else:
            self._show(item, events)

    def _show(self, item: Sample, events: list[Event]) -> None:
        """Let events out, and see whether that was the end."""
        request, stream = item.request, item.request.stream
        assert stream is not None
        if not request.clock.first_answer and any(isinstance(e, (TextDelta, ToolCallDelta)) for e in events):
            request.clock.first_answer = time.perf_counter()
        self._deliver(request, events)
        if stream.done:
            self._end(item, stream.done)
        elif len(request.output) >= request.max_tokens:
            self._finish(item, "length")

    def _know(self, items: Iterable[Sample], picked: Picked | None = None) -> None:
        """Fetch what the device knows of samples, as far as the host does not follow them. picked: of a step in which
        they have ended: their rules are of no more use, and their answers need not be found in the cache."""
        items = [item for item in items if not item.observed and item.bound]
        if not items or not isinstance(self.picker, DevicePicker):
            return
        for item, told in zip(items, self.picker.fetch(items, picked), strict=True):
            request = item.request
            request.tokens[:] = told.ids
            if told.logprobs is not None:
                request.keep(told.logprobs)
            if picked is None:
                item.reader = told.machine
                self.scheduler.commit(item.row, request.tokens[len(item.row.tokens) - len(request.ids) :])

    def _end_blind(self, item: Sample, code: int) -> None:
        if code == FAILED:
            self._fail(item, failure())
        else:
            self._first_token(item)
            self._end(item, "length" if code == FULL else "stop")

    # Going out

    @staticmethod
    def _deliver(request: Request, events: list[Event], reason: str | None = None) -> None:
        for event in events:
            if isinstance(event, Finish):
                warnings = (*request.warnings, *event.warnings)
                event = replace(event, warnings=warnings, reason=reason or event.reason)
            request.events.append(event)

    def _finish(self, item: Sample, reason: str) -> None:
        if item.request.stream is not None:
            self._let_out(item)
            self._deliver(item.request, item.request.stream.close(reason))
        self._end(item, reason)

    def _let_out(self, item: Sample) -> None:
        """A trial is over, if there is one: what was held back may go."""
        trial, item.trial = item.trial, None
        if trial is not None:
            self._deliver(item.request, trial.held)

    def _fail(self, item: Sample, error: Exception) -> None:
        request = item.request
        if not request.done:
            request.error = error
            if request.stream is not None:
                self._let_out(item)
                self._deliver(request, request.stream.close("cancelled"), reason="error")
            self._end(item, "error")

    def _end(self, item: Sample, reason: str) -> None:
        self._close(item, reason)
        self.scheduler.finish(item.row, self._kept(item, reason))

    def _close(self, item: Sample, reason: str) -> None:
        """It has ended; of the schedule it is not taken out."""
        self._ended.append(item)
        item.request.clock.finished = time.perf_counter()
        item.request.finish_reason = reason
        self._unbind(item)
        if self._speculation is not None:
            self._speculation.ended(item)

    # In and out of slots

    def _machine(self, request: Request) -> Machine:
        """The rules of a request without a stream, at its beginning."""
        if request.machine is not None:
            return replace(request.machine, queue=request.machine.queue.copy(), max_tokens=request.max_tokens)
        params = request.params
        ends = () if params.ignore_eos or self.tokenizer is None else self.tokenizer.eos_ids
        return Machine(
            phase="answer",
            eos=frozenset(ends),
            stop_ids=frozenset(params.stop_ids),
            min_tokens=params.min_tokens,
            max_tokens=request.max_tokens,
        )

    def _bind(self, item: Sample) -> None:
        """A sample got a slot: its state goes there."""
        request, row = item.request, item.row
        request.clock.started = request.clock.started or time.perf_counter()
        if request.experts or request.adapter is not None:
            self.runner.customize(row.slot, request.experts, self._adapter(request))
            item.custom_slot = row.slot

    def _ready(self, items: Sequence[Sample]) -> list[Sample]:
        """Their prompts are being computed: from now on their slots have what the picker needs. Not sooner: a device
        that waits for the first of many prompts should not wait until all of them are bound. Those that were not, and
        have not failed."""
        fresh = [item for item in items if not item.request.done and item.bound != item.row.slot]
        try:
            failed = self.picker.bind(fresh)
        except Exception as error:
            failed = [(item, error) for item in fresh]
        for item, why in failed:
            self._fail(item, why)
        fresh = [item for item in fresh if not item.request.done]
        for item in fresh:
            item.bound = item.row.slot
        return fresh

    def _displace(self, item: Sample) -> None:
        """A sample lost its slot and waits again; what only the device knows of it is fetched while it is there."""
        if not item.request.done:
            self._know([item])
            if not item.observed and item.reader.done is not None:
                self._end(item, item.reader.done)
        self._unbind(item)

    def _unbind(self, item: Sample) -> None:
        item.bound = 0
        if item.custom_slot:
            self.runner.customize(item.custom_slot)
            item.custom_slot = 0
