"""Speculative decoding in the engine: which rows verify guesses in the next step, and where the guesses come from.

Guesses for a row need all its tokens, so where the host is a step late (a GPU) the rows wait for their last token as
long as guessing pays, and run freely while it rests. See `speculate` for how many guesses pay and why the output is the
one of plain steps, `draft` for guesses of a second network.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from qwen3.engine.draft import DraftModel, kv_bytes_per_block
from qwen3.engine.pickers import DevicePicker, HostPicker, Sample
from qwen3.engine.rounds import Round, Rounds
from qwen3.engine.runner import Runner
from qwen3.engine.scheduler import Chunk, Scheduler, Status
from qwen3.engine.speculate import Controller, NGram, Track
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwen3.engine.recording import Flight

_LONGEST = {"ngram": 8, "draft": 4}


class Speculation:
    """kind: "ngram" (prompt lookup), or a draft model attached to the engine's runner. longest: most guesses of a row,
    None: 8 of prompt lookup, 4 of a draft model. Raises UsageError for another kind or number."""

    def __init__(self, kind: str | DraftModel, longest: int | None, device: torch.device) -> None:
        if kind != "ngram" and not isinstance(kind, DraftModel):
            raise UsageError(f"speculation={kind!r} is not supported; use 'ngram', a DraftModel, or None")
        self.draft = kind if isinstance(kind, DraftModel) else None
        self.longest = longest or _LONGEST["ngram" if self.draft is None else "draft"]
        self.controller = Controller(self.longest, device=device.type, uniform=self.draft is not None)
        self._known: dict[int, tuple[NGram | None, Track]] = {}  # by id of the request
        self.rounds: Rounds | None = None  # where a device chooses
        self.pays = True  # rows wait for their last token
        self.whole = False  # the step that was prepared is a round
        self._last = 0.0  # when a step's tokens were last known

    def bytes_per_block(
        self, device: torch.device, vocab_size: int, tokenizer: Tokenizer | None, kv_dtype: torch.dtype
    ) -> int:
        """What a block of the KV pool takes beside the target's. Raises UsageError for a draft that does not fit."""
        if self.draft is None:
            return 0
        self.draft.check(device, vocab_size, tokenizer)
        return kv_bytes_per_block(self.draft.model.config, kv_dtype)

    def attach(self, runner: Runner, picker: HostPicker | DevicePicker, vocab_size: int) -> None:
        """Join the engine's runner, when it is there."""
        if self.draft is not None:
            self.draft.attach(runner, vocab_size, on_device=isinstance(picker, DevicePicker))
        if isinstance(picker, DevicePicker):
            self.rounds = Rounds(runner, picker.sampler, self.draft)

    def ended(self, item: Sample) -> None:
        """A sample ended, and still has its blocks."""
        if self.draft is not None:
            self.draft.leave([item.row])
        self.forget(item)

    def forget(self, item: Sample) -> None:
        """A sample is gone, or its tokens became others."""
        self._known.pop(item.request.id, None)
        if self.draft is not None:
            self.draft.forget(item.row)

    def _of(self, item: Sample) -> tuple[NGram | None, Track]:
        known = self._known.get(item.request.id)
        if known is None:
            table = NGram(item.row.tokens) if self.draft is None else None
            known = self._known[item.request.id] = table, self.controller.track()
        if known[0] is not None:
            known[0].tokens = item.row.tokens  # of another row, after an interrupted step
        return known

    def propose(self, samples: Sequence[Sample], scheduler: Scheduler, picker: HostPicker | DevicePicker) -> None:
        """Before a step is planned: what each of the decoding `samples` verifies in it."""
        if not samples:
            return
        self.pays = self.controller.begin(len(samples))
        ready = [item for item in samples if _free(item)]
        if not self.pays or not ready:
            return
        tables, tracks = zip(*map(self._of, ready), strict=True)
        if self.draft is None:
            found = [table.propose(self.longest) for table in tables]
            lengths = self.controller.lengths(tracks, [len(tokens) for tokens in found])
        else:
            room = [max(0, min(self.longest, item.row.max_total - item.row.total - 1)) for item in ready]
            lengths = self.controller.lengths(tracks, room)
            count = max(lengths, default=0)
            if count and isinstance(picker, HostPicker):
                found = self.draft.draft(ready, count)
            else:  # the device guesses once the blocks are there
                found = [[-1] * count] * len(ready)
        for item, tokens, length in zip(ready, found, lengths, strict=True):
            item.drafts = tuple(tokens[:length])
            if item.drafts:
                scheduler.propose(item.row, item.drafts)

    def prepare(
        self, samples: Sequence[Sample], owners: Sequence[Sample], chunks: Sequence[Chunk], on_device: bool, plain: bool
    ) -> list[tuple[int, ...]]:
        """Before a planned step runs: what each chunk carries beyond the tokens that are known. Guesses for which there
        was no room are forgotten; a draft model computes the prompts' chunks too, and on a device it guesses now, if
        the step is no round. plain: it may be one."""
        for item in samples:
            item.drafts = ()
        extras = [chunk.extra for chunk in chunks]
        drafted = [i for i, item in enumerate(owners) if item.drafts and extras[i]]
        for i, item in enumerate(owners):
            item.drafts = extras[i] if i in drafted else ()
        self.whole = plain and self._is_round(samples, owners, extras)
        if self.draft is None:
            return extras
        self.draft.feed(chunks)
        if on_device:
            self.draft.leave([item.row for item in samples])
            self.draft.sync([owners[i].row for i in drafted])
            if drafted and not self.whole:
                rows = [owners[i].row for i in drafted]
                count, longest = max(len(extras[i]) for i in drafted), max(len(row.tokens) for row in rows)
                found = self.draft.draft_on_device([row.slot for row in rows], count, longest).tolist()
                for i, guesses in zip(drafted, found, strict=True):
                    owners[i].drafts = extras[i] = tuple(max(0, guess) for guess in guesses[: len(extras[i])])
        return extras

    def _is_round(self, samples: Sequence[Sample], owners: Sequence[Sample], extras: Sequence[tuple[int, ...]]) -> bool:
        """Whether all that a step does is to verify guesses, on a device; rows without any go with those that have."""
        if self.rounds is None or not owners or not all(item.drafts for item in owners):
            return False
        longest = max(len(item.row.tokens) for item in (*samples, *owners))
        known = all(item.observed and item.row.total == len(item.row.tokens) + 1 for item in samples)
        return known and self.rounds.fits(len(samples) + len(owners), max(map(len, extras)), longest)

    def round(
        self, samples: Sequence[Sample], owners: Sequence[Sample], extras: Sequence[tuple[int, ...]]
    ) -> Round | None:
        """The whole step in one launch, if it is a round."""
        if not self.whole or self.rounds is None:
            return None
        if self.draft is not None:
            extras = [(0,) * len(extra) for extra in extras]
        items = [*samples, *owners]
        return self.rounds.replay(items, [*[()] * len(samples), *extras], max(len(item.row.tokens) for item in items))

    def landed(
        self, flight: Flight, verified: Sequence[tuple[Sample, int, int]], picker: HostPicker | DevicePicker
    ) -> None:
        """A step's tokens are known. verified: a sample, its guesses, and how many of them were right."""
        for item, count, right in verified:
            if item.request.id in self._known:
                self.controller.saw(self._known[item.request.id][1], count, right)
        own = isinstance(flight.drafted, Round)  # which has seen to it
        if verified and not own and self.draft is not None and isinstance(picker, DevicePicker):
            slots = [item.row.slot for item, _, _ in verified if item.bound]
            self.draft.follow(picker.sampler, torch.tensor(slots, dtype=torch.int32, device=picker.device))
        now, rows = time.perf_counter(), len(flight.samples) + len(verified)
        if rows and not flight.prompts:
            waited = isinstance(picker, DevicePicker) and self.pays and not verified
            seconds = now - max(flight.began, self._last)
            self.controller.timed(rows, rows + sum(count for _, count, _ in verified), seconds, waited=waited)
        self._last = now


def _free(item: Sample) -> bool:
    """Whether its next token is to be sampled, behind tokens that are all known."""
    row = item.row
    known = row.status is Status.DECODE and not row.lagging
    return known and not (item.request.done or item.trial is not None or item.reader.queued or item.masked)
