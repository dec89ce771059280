"""Reference continuous batching: a queue, the rows that run, one `step` that moves each of them one token on.

A step admits what fits, feeds prompts (in chunks, each prompt by itself on a CPU), then decodes every row that is past
its prompt in one forward. Two properties keep it simple and safe:

* A step can be repeated. Keys and values are written again with the same numbers, the sampler's noise is a function of
  (seed, index, step, token), and a row's state changes only once its token is known. An interrupt in the middle of a
  step (Ctrl-C) therefore costs at most the row whose token was just being recorded.
* Rows in use are slots 0 … n-1 of the cache: a finished row's place is taken by the last one. Nothing has to be freed,
  so nothing can leak.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from qwen3.chat import Event, Finish, TextDelta, ToolCallDelta
from qwen3.engine.request import Request
from qwen3.engine.sampler import RowSampler, TokenLogprob, logprobs_of, sample
from qwen3.engine.slots import Slots
from qwen3.errors import OutOfMemoryError, Qwen3Error, UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer

_HEAD_CHUNK = 128  # prompt positions whose logits exist at once when prompt_logprobs is asked for


class _Group:
    """The samples of one prompt (`n`); `logits` [1, rows of head] follow its last token once it has been computed."""

    def __init__(self) -> None:
        self.logits: torch.Tensor | None = None
        self.prompt_logprobs: list[TokenLogprob | None] = []


class _Row:
    """A running sample. `position` tokens of it are cached, `pending` come next."""

    def __init__(self, request: Request, group: _Group, slot: int, sampler: RowSampler) -> None:
        self.request = request
        self.group = group
        self.slot = slot
        self.sampler = sampler
        self.position = 0
        self.pending: list[int] = []
        self.torn = False  # between the first and the last change that one token makes

    @property
    def waiting(self) -> bool:
        """For its group's prompt, or (a step was cut short) for its first token."""
        return not self.pending and not self.request.output


class Engine:
    """Runs requests on one model. Not thread-safe: one thread at a time may call it (`LLM` sees to that).

    max_batch: most rows that run at once, the rest queue in order. max_len: longest prompt and output together, in
    tokens, None: the model's context. prefill_chunk: prompt tokens per step, which bounds activation memory.
    prefill_rows: prompts that share one forward (padded); 1 makes a prompt's numbers independent of its neighbours;
    None: 1 on a CPU, 16 on a GPU.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 64,
        max_len: int | None = None,
        prefill_chunk: int = 2048,
        prefill_rows: int | None = None,
    ) -> None:
        config = model.config
        for name, value in (("max_batch", max_batch), ("max_len", max_len), ("prefill_chunk", prefill_chunk)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if tokenizer.vocab_size > config.vocab_size:
            raise UsageError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens but the model only {config.vocab_size:,} rows: "
                "they do not belong together"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.max_len = min(max_len or config.context_length, config.context_length)
        self.prefill_chunk = prefill_chunk
        self.prefill_rows = prefill_rows or (1 if model.device.type == "cpu" else 16)
        self.steps = 0  # forwards' worth of work done, for statistics
        self._slots = Slots(config, model.device, model.dtype, max_batch, self.max_len)
        self._queue: deque[tuple[Request, _Group]] = deque()
        self._rows: list[_Row] = []
        self._live: dict[int, Request] = {}  # not done, or done since the last step
        self._ended = False
        self._next_id = 0

    # What callers use

    def add(self, request: Request) -> int:
        """Queue one sample; its id. Raises UsageError if it can never run (nothing is queued then)."""
        if request.params.n != 1:
            raise UsageError(f"n={request.params.n}: give each sample its own Request and call add_samples")
        return self.add_samples([request])[0]

    def add_samples(self, requests: Sequence[Request]) -> list[int]:
        """Queue samples of one prompt, which is computed once and its cache rows copied; their ids, in order."""
        for request in requests:
            if request.ids != requests[0].ids:
                raise UsageError("add_samples: all requests must have the same prompt ids")
            self.check(request)
        group = _Group()
        for request in requests:
            request.id = self._next_id
            self._next_id += 1
            self._live[request.id] = request
            self._queue.append((request, group))
        return [request.id for request in requests]

    def cancel(self, request_id: int) -> None:
        """Stop a request and free its row at once; Finish("cancelled") is its last event. Finished ones: no error."""
        request = self._live.get(request_id)
        if request is not None and not request.done:
            self._finish(request, "cancelled")
            with torch.inference_mode():
                self._tidy()

    def cancel_all(self) -> None:
        for request_id in list(self._live):
            self.cancel(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to hand out."""
        return bool(self._live)

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def step(self) -> list[tuple[int, list[Event]]]:
        """`advance`, then (request id, its new events) for each request that has any, in order of id."""
        before = list(self._live.values())
        self.advance()
        found = [(request.id, request.take_events()) for request in before]
        return [(request_id, events) for request_id, events in found if events]

    def advance(self) -> None:
        """Move every running sample on by one token; its events wait in `Request.events`.

        A sample that fails ends with Finish("error") and `Request.error`; the others go on. Never raises for a request.
        """
        self.steps += 1
        with torch.inference_mode():
            for row in self._rows:
                if row.torn:
                    self._fail(row.request, Qwen3Error("interrupted while a token was being recorded"))
                elif row.request.abandoned and not row.request.done:
                    self._finish(row.request, "cancelled")
            self._tidy()
            self._admit()
            self._wake()
            for rows, sizes in self._prefill_groups():
                self._run(rows, sizes)
            decoding = [row for row in self._rows if len(row.pending) == 1 and not row.request.done]
            if decoding:
                self._run(decoding, [1] * len(decoding))
            self._tidy()
            if self._ended:
                self._live = {request.id: request for request in self._live.values() if not request.done}
                self._ended = False

    # Coming in

    def check(self, request: Request) -> None:
        """Raises UsageError for a request that can never run. Sets `max_tokens`, and warns where it was cut."""
        ids, params = request.ids, request.params
        if not ids:
            raise UsageError("the prompt is empty: at least one token is needed")
        bad = next((i for i in ids if not 0 <= i < self.tokenizer.vocab_size), None)
        if bad is not None:
            raise UsageError(f"the prompt holds id {bad}; this model's tokens are 0 to {self.tokenizer.vocab_size - 1}")
        left = self.max_len - len(ids)
        if left < 1:
            raise UsageError(
                f"the prompt has {len(ids):,} tokens, but the context is {self.max_len:,}, prompt and answer together: "
                "shorten it"
            )
        if params.max_tokens is not None and params.max_tokens > left:
            warning = (
                f"max_tokens {params.max_tokens:,} was cut to {left:,}: the prompt's {len(ids):,} tokens leave no more "
                f"of the context of {self.max_len:,}"
            )
            if warning not in request.warnings:
                request.warnings.append(warning)
        request.max_tokens = min(params.max_tokens or left, left)
        RowSampler(params, (), self.tokenizer.vocab_size, torch.device("cpu"))  # checks the ids it names

    def _admit(self) -> None:
        """Queue to rows, in order, as far as rows and memory go."""
        while self._queue and len(self._rows) < self.max_batch:
            request, group = self._queue[0]
            if request.abandoned and not request.done:
                self._finish(request, "cancelled")
            if not request.done and not any(row.request is request for row in self._rows):
                try:
                    self._slots.reserve(len(self._rows) + 1, len(request.ids) + 1)
                    sampler = RowSampler(
                        request.params, request.ids, self.tokenizer.vocab_size, self.model.device, request.index
                    )
                except Exception as error:
                    if isinstance(error, OutOfMemoryError) and self._rows:  # rows will come free
                        return
                    self._fail(request, error)
                else:
                    self._rows.append(_Row(request, group, len(self._rows), sampler))
                    request.clock.started = time.perf_counter()
            self._queue.popleft()

    def _wake(self) -> None:
        """Rows that wait for their group: copy its prompt from a row that has it, or compute it themselves."""
        for row in self._rows:
            if not row.waiting:
                continue
            peers = [r for r in self._rows if r.group is row.group and not r.waiting]
            donor = next((r for r in peers if r.position >= len(row.request.ids)), None)
            if donor is not None and row.group.logits is not None:
                try:
                    self._join(donor, [row])
                except Exception as error:
                    self._blame([row], error)
                else:
                    self._advance([row], row.group.logits)
            elif not peers:
                row.position, row.pending = 0, list(row.request.ids)

    def _join(self, donor: _Row, rows: list[_Row]) -> None:
        for row in rows:
            length = len(row.request.ids)
            self._slots.copy(donor.slot, row.slot, length)
            row.position = length

    # The forward

    def _prefill_groups(self) -> list[tuple[list[_Row], list[int]]]:
        """Rows with several pending tokens and how many of them to feed now: at most `prefill_chunk` in all."""
        groups: list[tuple[list[_Row], list[int]]] = []
        budget = self.prefill_chunk
        for row in self._rows:
            if len(row.pending) > 1 and budget > 0 and not row.request.done:
                size = min(len(row.pending), budget)
                budget -= size
                if groups:
                    rows, sizes = groups[-1]
                    padded = max(*sizes, size) * (len(rows) + 1)
                    if len(rows) < self.prefill_rows and padded <= self.prefill_chunk:
                        rows.append(row)
                        sizes.append(size)
                        continue
                groups.append(([row], [size]))
        return groups

    def _run(self, rows: list[_Row], sizes: list[int]) -> None:
        """Feed each row its next tokens and, where none is left to feed, choose the one that follows."""
        kept: list[tuple[_Row, int]] = []
        for row, size in zip(rows, sizes, strict=True):
            try:
                self._slots.reserve(len(self._rows), row.position + size)
                kept.append((row, size))
            except Exception as error:
                self._fail(row.request, error)
        if not kept:
            return
        rows, sizes = [row for row, _ in kept], [size for _, size in kept]
        try:
            logits = self._forward(rows, sizes)
        except Exception as error:
            self._blame(rows, error)
            return
        ended: list[int] = []
        for i, (row, size) in enumerate(kept):
            if size == len(row.pending):
                ended.append(i)
            else:
                row.pending, row.position = row.pending[size:], row.position + size
        if ended:
            self._advance([rows[i] for i in ended], logits if len(ended) == len(rows) else logits[ended])

    def _forward(self, rows: list[_Row], sizes: list[int]) -> torch.Tensor:
        """Logits [B, rows of head] after the last token fed to each row."""
        device = self.model.device
        width = max(sizes)
        pads = [width - size for size in sizes]
        fed = [row.pending[:size] for row, size in zip(rows, sizes, strict=True)]
        ids = torch.tensor([f + [0] * pad for f, pad in zip(fed, pads, strict=True)], device=device)
        places = [
            [*range(row.position, row.position + size), *[-1] * pad]
            for row, size, pad in zip(rows, sizes, pads, strict=True)
        ]
        cache = self._slots.view([row.slot for row in rows])
        hidden = self.model.hidden(ids, torch.tensor(places, device=device), cache)
        for b, row in enumerate(rows):
            if row.request.params.prompt_logprobs is not None and row.position < len(row.request.ids):
                self._read_prompt(row, hidden[b, : sizes[b]])
        if width > 1:
            last = torch.tensor(sizes, device=device) - 1
            hidden = hidden[torch.arange(len(rows), device=device), last].unsqueeze(1)
        return self.model.head(hidden)[:, 0]

    def _read_prompt(self, row: _Row, hidden: torch.Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the states [T, h] at `row.position` and on."""
        found = row.group.prompt_logprobs
        del found[row.position + 1 :]  # a repeated step
        found[:] = found or [None]
        following = row.request.ids[row.position + 1 : row.position + 1 + len(hidden)]
        for start in range(0, len(following), _HEAD_CHUNK):
            ids = following[start : start + _HEAD_CHUNK]
            logits = self.model.head(hidden[start : start + len(ids)])
            found.extend(logprobs_of(logits, ids, row.request.params.prompt_logprobs or 0, self.tokenizer.vocab_size))

    def _blame(self, rows: list[_Row], error: Exception) -> None:
        """A forward failed. Out of memory costs the youngest row of several, which may be enough; else all of them."""
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
        if memory:
            error = OutOfMemoryError(
                f"no memory left for a step over {len(rows)} sequences on {self.model.device}: {text}"
            )
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            rows = [max(rows, key=lambda row: row.request.id)]
        for row in rows:
            self._fail(row.request, error)

    # The token that follows

    def _advance(self, rows: list[_Row], logits: torch.Tensor) -> None:
        """Choose and record the next token of rows whose pending tokens have all been fed; logits [B, rows of head]."""
        try:
            rows, logits = self._spread(rows, logits)
            forced = [row.request.stream.forced() for row in rows]
            tokens = self._choose(rows, logits, forced)
        except Exception as error:
            self._blame(rows, error)
            return
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if isinstance(token, Qwen3Error):
                self._fail(row.request, token)
            else:
                self._commit(row, token, forced[i] is not None, logits[i : i + 1])

    def _spread(self, rows: list[_Row], logits: torch.Tensor) -> tuple[list[_Row], torch.Tensor]:
        """A prompt that has just been computed serves the rows of its group that wait for it, too."""
        source = list(range(len(rows)))
        for i, row in enumerate(list(rows)):
            if row.position < len(row.request.ids) and row.group.logits is None:
                row.group.logits = logits[i : i + 1].clone()
                late = [r for r in self._rows if r.waiting and r.group is row.group and not r.request.done]
                self._join(row, late)
                rows = rows + late
                source += [i] * len(late)
        return rows, logits if len(source) == len(logits) else logits[source]

    def _choose(self, rows: list[_Row], logits: torch.Tensor, forced: list[int | None]) -> Sequence[int | Qwen3Error]:
        free = [i for i, token in enumerate(forced) if token is None]
        chosen = sample(
            logits if len(free) == len(rows) else logits[free],
            [rows[i].sampler for i in free],
            [len(rows[i].request.output) for i in free],
            [sorted(rows[i].request.stream.banned()) for i in free],
        )
        sampled = iter(chosen)
        return [next(sampled) if token is None else token for token in forced]

    def _commit(self, row: _Row, token: int, forced: bool, logits: torch.Tensor) -> None:
        """Record one token, and the forced ones after it, which need no logits and are fed together with it."""
        request = row.request
        row.torn = True
        row.position += len(row.pending)
        row.pending = []
        top = request.params.logprobs
        try:
            if not request.clock.first_token:
                request.clock.first_token = time.perf_counter()
                request.prompt_logprobs = list(row.group.prompt_logprobs)
            self._push(row, token)
            if top is not None:
                recorded = request.output[-1]
                entry = logprobs_of(logits, [recorded], top, self.tokenizer.vocab_size)[0]
                entry.forced = forced or recorded != token
                request.logprobs.append(entry)
            else:  # log-probabilities need each token's own logits: then forced tokens are fed one by one
                while not request.done and (following := request.stream.forced()) is not None:
                    self._push(row, following)
        except Exception as error:
            self._fail(request, error)
        row.torn = False

    def _push(self, row: _Row, token: int) -> None:
        request = row.request
        events = request.stream.push(token)
        recorded = request.output[-1]  # the stream may put the closing text in the place of an early end
        row.pending.append(recorded)
        row.sampler.record(recorded)
        if not request.clock.first_answer and any(isinstance(e, (TextDelta, ToolCallDelta)) for e in events):
            request.clock.first_answer = time.perf_counter()
        self._deliver(request, events)
        if request.stream.done:
            self._end(request, request.stream.done)
        elif len(request.output) >= request.max_tokens:
            self._finish(request, "length")

    # Going out

    @staticmethod
    def _deliver(request: Request, events: list[Event], reason: str | None = None) -> None:
        for event in events:
            if isinstance(event, Finish):
                warnings = (*request.warnings, *event.warnings)
                event = replace(event, warnings=warnings, reason=reason or event.reason)
            request.events.append(event)

    def _finish(self, request: Request, reason: str) -> None:
        self._deliver(request, request.stream.close(reason))
        self._end(request, reason)

    def _fail(self, request: Request, error: Exception) -> None:
        if not request.done:
            request.error = error
            self._deliver(request, request.stream.close("cancelled"), reason="error")
            self._end(request, "error")

    def _end(self, request: Request, reason: str) -> None:
        self._ended = True
        request.clock.finished = time.perf_counter()
        request.finish_reason = reason

    def _tidy(self) -> None:
        """Drop finished rows and close the gaps, so that the rows are slots 0 … n-1 again."""
        if any(request.done for request, _ in self._queue):
            self._queue = deque(entry for entry in self._queue if not entry[0].done)
        if any(row.request.done for row in self._rows):
            self._rows = [row for row in self._rows if not row.request.done]
            if not self._rows:
                self._slots.clear()
        if all(row.slot < len(self._rows) for row in self._rows):
            return
        taken = {row.slot for row in self._rows}
        for hole in range(len(self._rows)):
            if hole not in taken:
                last = max(self._rows, key=lambda row: row.slot)
                if last.position:
                    self._slots.copy(last.slot, hole, last.position)
                last.slot = hole
