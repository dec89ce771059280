"""The engine: requests in, tokens out. One step is one mixed batch: a token of every running sample, and prompt chunks.

Three parts share the work. The scheduler (`scheduler.py`, plain Python) decides who is in a step and owns the blocks of
the KV cache; the runner (`runner.py`, `graphs.py`) turns the step into logits; a picker (`pickers.py`) chooses tokens,
on the device where there is a GPU, else on the host. `recording.py` hears what came of it.

On a GPU steps overlap: while step t runs, the host plans and launches step t + 1 and only then reads the tokens of t.
So what the host knows is one step old: a sample that ended in t has a row in t + 1, whose token nobody reads, and
ending or cancelling twice is the same as once.

Ctrl-C may strike anywhere. What a sample has said so far is in its stream and nowhere else, so after an interrupted
step the next one starts a fresh schedule, and every unfinished sample is computed again from its known tokens: noise is
a function of (seed, index, step, token), so the same tokens follow.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from qwen3.chat import Event
from qwen3.checkpoint.adapter import Adapter
from qwen3.checkpoint.memory import dtype_bytes
from qwen3.engine.adapters import Adapters, Adapting
from qwen3.engine.blocks import BlockPool
from qwen3.engine.budget import usual_chunk
from qwen3.engine.cost import StepCost
from qwen3.engine.deadline import Pace
from qwen3.engine.draft import DraftModel
from qwen3.engine.graphs import Graphs
from qwen3.engine.measures import keep_routes, read_prompt
from qwen3.engine.memory import plan_blocks, usual_kv_dtype
from qwen3.engine.pickers import DevicePicked, DevicePicker, Drafted, Picked, Sample, make_picker
from qwen3.engine.recording import HEAR, Flight
from qwen3.engine.request import Request
from qwen3.engine.runner import Fed, Runner
from qwen3.engine.sampler import RowSampler, check_ids
from qwen3.engine.scheduler import Plan, Scheduler
from qwen3.engine.scheduler import Sequence as Row
from qwen3.engine.speculation import Speculation
from qwen3.engine.steering import MOST_AHEAD
from qwen3.errors import OutOfMemoryError, Qwen3Error, UsageError
from qwen3.kernels import BLOCK
from qwen3.kernels.grouped import GroupWeight
from qwen3.model import Qwen3
from qwen3.model.load import DTYPES
from qwen3.tokenizer import Tokenizer

_MAX_BATCH = {"cuda": 256}
_IDLE_CHUNK = {"cuda": 2048}  # most prompt tokens of a step that nobody asked for, else 256, and its longest time
_IDLE_SECONDS = 0.25  # by estimate: who comes next waits for it
Decoding = tuple[list[Sample], list[int] | None, list[int]]  # of a plan: samples, places followed, slots
KV_DTYPES = {"fp8": torch.float8_e4m3fn, **DTYPES}


class Engine(Adapting):
    """Runs requests on one model. Not thread-safe: one thread at a time may call it (`LLM` sees to that).

    max_batch: most samples that run at once, the rest queue (256 on a GPU, 64 else). max_len: longest prompt and output
    together, in tokens, None: the model's context. prefill_chunk: prompt tokens of a step, which bounds its memory
    (None: up to 32,768 on a GPU, as memory allows; else 2,048). max_queue: most samples that wait; more are refused
    with QueueFullError. blocks: size of the KV pool in blocks of 16 tokens, None: what the device has room for.
    kv_dtype: of the KV cache, None: `usual_kv_dtype`; "fp8" halves it. prefix_cache: keep the KV of what was computed,
    and use it for prompts that begin alike. invariant: a request gets the same tokens and log-probabilities, bit for
    bit, whatever runs beside it. uniform_routing: experts are drawn, not routed (speed on random weights). vocab_size:
    ids from it on are never sampled (None: the tokenizer's). stall: seconds, by estimate, that prompt chunks may add to
    a step in which others decode; None: little where anyone has a stream, else no limit. speculation: tokens are
    guessed ahead and verified, the output stays the same: "ngram" looks for what followed before, a DraftModel guesses
    itself; draft_tokens: most guesses of a row in a step. adapters: there from the start, so that the KV pool leaves
    them room.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer | None = None,
        *,
        max_batch: int | None = None,
        max_len: int | None = None,
        prefill_chunk: int | None = None,
        max_queue: int | None = None,
        blocks: int | None = None,
        kv_dtype: str | torch.dtype | None = None,
        prefix_cache: bool = True,
        invariant: bool = False,
        uniform_routing: bool = False,
        vocab_size: int | None = None,
        stall: float | None = None,
        speculation: str | DraftModel | None = None,
        draft_tokens: int | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        config, kind = model.config, model.device.type
        given = {"max_batch": max_batch, "max_len": max_len, "prefill_chunk": prefill_chunk, "blocks": blocks}
        for name, value in {**given, "draft_tokens": draft_tokens}.items():
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise UsageError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens but the model only {config.vocab_size:,} rows: "
                "they do not belong together"
            )
        if isinstance(kv_dtype, str):
            if kv_dtype not in KV_DTYPES:
                raise UsageError(f"kv_dtype={kv_dtype!r} is not supported; use {', '.join(KV_DTYPES)}")
            kv_dtype = KV_DTYPES[kv_dtype]
        self.model, self.tokenizer = model, tokenizer
        self.vocab_size = vocab_size or (config.vocab_size if tokenizer is None else tokenizer.vocab_size)
        self.max_batch = max_batch or _MAX_BATCH.get(kind, 64)
        self.max_len = min(max_len or config.context_length, config.context_length)
        self.prefill_chunk = prefill_chunk or self._usual_chunk()
        self.max_queue, self.prefix_cache = max_queue, prefix_cache
        self.kv_dtype = kv_dtype or usual_kv_dtype(model)
        self.version = 0  # of the weights
        self.steps = 0
        if kind == "cuda":  # what a former engine left behind, it may be most of the memory
            gc.collect()
            torch.cuda.empty_cache()
        self._adapters = Adapters(model, adapters)
        self._speculation = None if speculation is None else Speculation(speculation, draft_tokens, model.device)
        beside = 0
        if self._speculation is not None:
            beside = self._speculation.bytes_per_block(model.device, self.vocab_size, tokenizer, self.kv_dtype)
        with torch.inference_mode():
            self.picker = make_picker(self.max_batch, self.vocab_size, model.device, model.dtype, self.max_len)
            self.runner = self._make_runner(blocks, invariant, uniform_routing, beside)
            self.runner.adapters = self._adapters
            self.blocks = len(self.runner.k_cache[0])
            if self._speculation is not None:
                self._speculation.attach(self.runner, self.picker, self.vocab_size)
            if isinstance(self.picker, DevicePicker):
                self.graphs = Graphs(self.runner, self.picker.sampler)
                self.graphs.warm(self.prefill_chunk)
        self.overlap = isinstance(self.picker, DevicePicker)
        self.stall = stall
        self._cost = StepCost(config, kind)
        self._live: dict[int, Sample] = {}  # not done, or done since the last step
        self._observed: dict[int, Sample] = {}  # those of them that the host follows
        self.scheduler = self._fresh_scheduler()
        self._flight: Flight | None = None
        self._decoding: Decoding = [], [], []
        self._torn = False
        self._ended = []
        self._routed = False  # a request has asked for routes
        self._next_id = 0
        self._chunk_tokens = self.scheduler.chunk_tokens
        idle = int(_IDLE_SECONDS / self._cost.per_token)
        self._idle_chunk = max(BLOCK, min(idle // BLOCK * BLOCK, _IDLE_CHUNK.get(kind, 256)))
        self._pace = Pace()
        self._timed: list[tuple[Sample, int]] = []
        self._ahead: deque[Request] = deque(maxlen=MOST_AHEAD)

    def _usual_chunk(self) -> int:
        model = self.model
        memory = torch.cuda.mem_get_info(model.device)[1] if model.device.type == "cuda" else 0
        return usual_chunk(model.config, model.device.type, dtype_bytes(model.dtype), memory)

    def _make_runner(self, blocks: int | None, invariant: bool, uniform_routing: bool, beside: int) -> Runner:
        """With as large a KV pool as there is room for. An estimate that was too high is lowered until it fits."""
        model = self.model
        grouped = any(isinstance(module, GroupWeight) for module in model.modules())
        count = blocks or plan_blocks(
            model.config, model.device, model.dtype, self.kv_dtype,
            rows=self.max_batch, max_len=self.max_len, tokens=self.prefill_chunk, beside=beside, grouped=grouped,
        )  # fmt: skip
        for attempt in itertools.count():
            try:
                return Runner(
                    model.stepper(uniform_routing=uniform_routing),
                    model.device,
                    max_rows=self.max_batch,
                    max_len=self.max_len,
                    blocks=count,
                    kv_dtype=self.kv_dtype,
                    invariant=invariant,
                )
            except torch.OutOfMemoryError as error:
                if blocks is not None or attempt == 4:
                    raise OutOfMemoryError(
                        f"a KV cache of {count:,} blocks of {BLOCK} tokens does not fit on {model.device}: "
                        f"{str(error).splitlines()[0]}"
                    ) from error
                torch.cuda.empty_cache()
                count = int(count * 0.85)
        raise AssertionError

    def _fresh_scheduler(self) -> Scheduler:
        return Scheduler(
            BlockPool(self.blocks),
            max_rows=self.max_batch,
            token_budget=self.max_batch + max(BLOCK, self.prefill_chunk),
            chunk_tokens=self.prefill_chunk if self.prefill_chunk >= BLOCK else None,
            max_queue=self.max_queue,
            cost=self._cost,
            work_budget=self._work_budget(),
        )

    # What callers use

    def add(self, request: Request) -> int:
        """Queue one sample; its id. Raises UsageError if it can never run, QueueFullError if too many wait."""
        if request.params.n != 1:
            raise UsageError(f"n={request.params.n}: give each sample its own Request and call add_samples")
        return self.add_samples([request])[0]

    def add_samples(self, requests: Sequence[Request]) -> list[int]:
        """Queue samples of one prompt, which is computed once; their ids, in order. All are queued or none."""
        for request in requests:
            first = requests[0]
            if request.ids is not first.ids and request.ids != first.ids:
                raise UsageError("add_samples: all requests must have the same prompt ids")
            if request is not first and request.alike(first) and not first.warnings:
                request.max_tokens = first.max_tokens
            else:
                self.check(request)
        self._set_aside()
        rows: list[Row] = []
        try:
            for request in requests:
                rows.append(self._queue(request))
        except BaseException:
            for row in rows:
                self.scheduler.cancel(row)
                del self._live[row.id]
                self._observed.pop(row.id, None)
            raise
        return [request.id for request in requests]

    def _queue(self, request: Request) -> Row:
        request.id, self._next_id = self._next_id, self._next_id + 1
        self._routed |= request.keep_routes
        sampler = RowSampler(request.params, request.ids, self.vocab_size, self.runner.device, request.index)
        row = self._row(request)
        self.scheduler.add(row)
        kept = (None, 0) if self.overlap else (None,)  # a device that is ahead keeps its tokens' log-probabilities, too
        observed = request.stream is not None or request.params.logprobs not in kept
        shared = request.machine if self.overlap and not observed else None  # its rules go on where its tokens are
        reader = request.stream or shared or self._machine(request)
        self._live[request.id] = item = Sample(request, row, sampler, reader, observed, trial=request.trial)
        if observed:
            self._observed[request.id] = item
        if request.time_limit is not None:
            self._watch(item)
        return row

    def _row(self, request: Request) -> Row:
        stream = request.stream
        return Row(
            request.id,
            [*request.ids, *request.output],
            max_total=len(request.ids) + request.max_tokens,
            priority=request.priority,
            tenant=request.tenant,
            identity=self._identity(request),
            use_cache=self.prefix_cache and request.params.prompt_logprobs is None and not request.keep_routes,
            lockstep=self.overlap and stream is not None and stream.constrained and stream.state != "thinking",
        )

    def _identity(self, request: Request) -> tuple[object, ...]:
        """What keys and values depend on beside the tokens; RoPE factor and KV dtype are the engine's own."""
        return request.tenant, request.salt, self.version, self._adapter(request), request.experts

    def cancel(self, request_id: int) -> None:
        """Stop a request and free its blocks at once; Finish("cancelled") is its last event. Ended ones: no error."""
        item = self._live.get(request_id)
        if item is not None and not item.request.done:
            self._finish(item, "cancelled")

    def cancel_all(self) -> None:
        for request_id in list(self._live):
            self.cancel(request_id)

    @torch.inference_mode()
    def rollback(self, request_id: int, count: int) -> None:
        """Forget the last `count` generated tokens of a running request without a stream; others follow in their place.

        Raises UsageError if it is not running, has a stream (which cannot unsay), or has fewer tokens.
        """
        self._drain()
        item = self._live.get(request_id)
        if item is None or item.request.done or item.observed:
            raise UsageError(f"request {request_id} cannot be rolled back: it must run and have no stream")
        self._know([item])
        if not 0 <= count <= len(item.request.output):
            raise UsageError(f"rollback of {count} tokens: request {request_id} has {len(item.request.output)}")
        item.request.forget(count)
        item.reader = self._machine(item.request).replay(item.request.tokens)
        self.scheduler.rollback(item.row, count)
        self._bind_again(item)

    def update_weights(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Write new values into the model's parameters, in place, under the names `model.named_parameters()` has.

        Captured graphs stay valid. Running requests go on from their tokens with the new weights; nothing that was
        cached before is used again. Raises UsageError naming a parameter that is unknown or of another shape, before
        anything is written.
        """
        own = dict(self.model.named_parameters())
        new = dict(tensors.items() if isinstance(tensors, Mapping) else tensors)
        for name, value in new.items():
            if name not in own or own[name].shape != value.shape:
                shape = list(own[name].shape) if name in own else "no such parameter"
                raise UsageError(f"update_weights: {name} is {list(value.shape)}, the model has {shape}")
        self._drain()
        with torch.no_grad():
            for name, value in new.items():
                own[name].copy_(value)
        self.version += 1
        self._renew()
        self.scheduler.pool.forget()

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    @property
    def queued(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def stream_stall(self) -> float:
        """Seconds that prompt chunks may add to a step beside streams, by estimate."""
        return self._cost.budget

    @property
    def used_blocks(self) -> int:
        """Blocks that samples hold now; 0 when nothing runs."""
        return self.scheduler.pool.used

    def step(self) -> list[tuple[int, list[Event]]]:
        """`advance`, then (request id, its new events) for each request that has any, in order of id."""
        before = [item.request for item in self._live.values()]
        self.advance()
        found = [(request.id, request.take_events()) for request in before]
        return [(request_id, events) for request_id, events in found if events]

    def advance(self) -> None:
        """Move every running sample on by one token; its events wait in `Request.events`.

        A sample that fails ends with Finish("error") and `Request.error`; the others go on. Never raises for a request.
        """
        self.steps += 1
        with torch.inference_mode():
            if self._torn:
                self._recover()
            self._torn = True
            there = self._observed if self.steps % HEAR else self._live
            for item in [item for item in there.values() if item.request.abandoned and not item.request.done]:
                self._finish(item, "cancelled")
            if self._ahead and not self._live:
                self._queue(self._ahead.popleft())
            if self._timed:
                self._keep_time()
            began = time.perf_counter()
            if self._speculation is not None:
                self._guess(self._speculation)
            before, self._flight = self._flight, self._launch()
            launched = self._flight is not None
            if self._flight is not None:
                self._flight.began = began
            if before is not None:
                self._land(before)
            if not self.overlap:
                self._drain()
            for item in self._ended:
                self._live.pop(item.request.id, None)
                self._observed.pop(item.request.id, None)
            self._ended.clear()
            if launched or not self._live:
                self._pace.step(time.perf_counter() if self._live else None)
            self._torn = False

    def warm_up(self, rows: int | None = None) -> None:
        """Make ready now what is otherwise made when it is first needed: a server does so before it is busy. On a GPU:
        the graphs of decode steps of up to `rows` samples (None: max_batch). Python's garbage collector is told that
        what lives now is there to stay: else it looks at all of it again and again, for tens of milliseconds."""
        gc.collect()
        gc.freeze()
        if isinstance(self.picker, DevicePicker):
            with torch.inference_mode():
                for _ in self._variants():
                    self.graphs.capture(min(rows or self.max_batch, self.max_batch))

    def close(self) -> None:
        """Cancel what runs and give the memory back. The engine cannot be used afterwards."""
        self.cancel_all()
        self._drain()
        if self._speculation is not None and self._speculation.draft is not None:
            self._speculation.draft.detach()
        del self.runner, self.picker

    # Coming in

    def check(self, request: Request) -> None:
        """Raises UsageError for a request that can never run. Sets `max_tokens`, and warns where it was cut."""
        ids, params = request.ids, request.params
        if not ids:
            raise UsageError("the prompt is empty: at least one token is needed")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise UsageError(f"the prompt holds id {bad}; this model's tokens are 0 to {self.vocab_size - 1}")
        room = (self.blocks - 1) * BLOCK
        limit, what = self.max_len, "context"
        if room < limit:
            limit, what = room, "KV cache"
        left = limit - len(ids)
        if left < 1:
            raise UsageError(
                f"the prompt has {len(ids):,} tokens, but the {what} is {limit:,}, prompt and answer together: "
                "shorten it"
            )
        if params.max_tokens is not None and params.max_tokens > left:
            warning = (
                f"max_tokens {params.max_tokens:,} was cut to {left:,}: the prompt's {len(ids):,} tokens leave no more "
                f"of the {what} of {limit:,}"
            )
            if warning not in request.warnings:
                request.warnings.append(warning)
        request.max_tokens = min(params.max_tokens or left, left)
        usual = self.model.config.num_experts_per_tok if self.model.config.is_moe else 0
        if request.experts and not 1 <= request.experts <= usual:
            raise UsageError(f"experts={request.experts} must be 1 to {usual}, or 0 for the model's number")
        self._adapter(request)
        if request.stream is None and (request.time_limit is not None or request.trial is not None):
            raise UsageError("time_limit and trial need a stream: the engine does not follow a request without one")
        check_ids(params, self.vocab_size)

    # One step

    def _launch(self) -> Flight | None:
        """Plan a step and start it; None: there is nothing to do."""
        self.scheduler.work_budget = self._work_budget()
        self.scheduler.chunk_tokens = self._chunk_tokens if self.has_work else min(self._idle_chunk, self._chunk_tokens)
        plan = self.scheduler.plan()
        if plan is None:
            return None
        for row in plan.preempted:
            self._displace(self._live[row.id])
        for row in plan.admitted:
            self._bind(self._live[row.id])
        self.runner.place(plan.new_blocks)
        if plan.changed:
            # Long contexts first: what starts last in a kernel should be short. They are all of this step: the sooner a
            # row would have been empty, the longer it is.
            rows = sorted(plan.decode, key=attrgetter("origin"))
            samples = [self._live[row.id] for row in rows]
            self._decoding = samples, self._followed(samples), [row.slot for row in rows]
        if not plan.decode and not plan.chunks:
            return None
        lost: list[Sample] = []
        while True:
            try:
                return self._run(plan, lost)
            except Exception as error:
                there = [item for item in self._members(plan) if item not in lost and not item.request.done]
                lost += self._blame(there, error)
                if len(lost) >= len(self._members(plan)):
                    return None

    def _work_budget(self) -> float:
        """Seconds that chunks may add to a step in which others decode: nobody waits for requests without a stream."""
        usual = self._cost.budget if self._observed else math.inf
        return usual if self.stall is None else self.stall

    def _members(self, plan: Plan) -> list[Sample]:
        return self._decoding[0] + [self._live[chunk.seq.id] for chunk in plan.chunks]

    def _run(self, plan: Plan, lost: list[Sample]) -> Flight | None:
        """One forward and the choice of its tokens, by a captured graph if it can be. `lost`: samples to leave out."""
        samples, followed, slots, chunks = *self._decoding, plan.chunks
        if lost:
            samples, followed = [item for item in samples if item not in lost], None
            slots = [item.row.slot for item in samples]
            chunks = [chunk for chunk in chunks if self._live[chunk.seq.id] not in lost]
        owners = [self._live[chunk.seq.id] for chunk in chunks]
        members = samples + owners
        if not members:
            return None
        routed = self._routed and any(item.request.keep_routes for item in members)
        plain = not routed and all(item.request.params.prompt_logprobs is None for item in owners)
        extras = [chunk.extra for chunk in chunks]
        if self._speculation is not None:
            extras = self._speculation.prepare(samples, owners, chunks, self.overlap, plain and not lost)
        fed = [
            Fed(c.seq.slot, c.start, [*c.seq.tokens[c.start : c.start + c.size - len(extra)], *extra])
            for c, extra in zip(chunks, extras, strict=True)
        ]
        # Of a row that decodes, with the token it computes; those come longest first.
        longest = max([item.row.total for item in samples[:1]] + [c.start + c.size for c in chunks])
        guessed = any(item.drafts for item in owners)
        if isinstance(self.picker, DevicePicker) and plain and not lost and not guessed and len(chunks) <= 1:
            self._ready(owners if chunks and chunks[0].last else [])
            last = bool(chunks) and chunks[0].last and not owners[0].request.done
            graph = self.graphs.replay(slots, fed[0] if fed else None, last, longest=longest)
            if graph is not None:
                samples, followed = (members, None) if last else (samples, followed)
                flight = self._flight_of(samples, DevicePicked(graph.out, len(samples)), graph.logits, followed)
                flight.prompts = bool(chunks)
                return flight
        if guessed and self._speculation is not None:
            found = self._speculation.round(samples, owners, extras)
            if found is not None:
                return Flight([], [], Picked([]), None, found)
        sizes = [1] * len(samples) + [chunk.size for chunk in chunks]
        routes = self.runner.route_record(sum(sizes)) if routed else None
        hidden = self.runner.forward(slots, fed, self.picker, routes, longest=longest)
        if routes is not None:
            keep_routes([item.request for item in members], sizes, routes)
        places, end = list(range(len(samples))), len(samples)
        samples, drafted, ending = list(samples), [], []
        for item, chunk, extra in zip(owners, chunks, extras, strict=True):
            end += chunk.size
            if item.request.params.prompt_logprobs is not None and chunk.start < len(item.request.ids):
                states = hidden[end - chunk.size : end]
                read_prompt(item.request, chunk.start, states, self.runner.logits, self.vocab_size)
            if item.drafts:
                drafted.append((item, extra, range(end - len(extra) - 1, end)))
                continue
            for token in extra:
                if not item.request.done:
                    self._push(item, token)
            if chunk.last:
                ending.append((item, end - 1))
        self._ready([item for item, _ in ending])
        places += [place for item, place in ending if not item.request.done]
        samples += [item for item, _ in ending if not item.request.done]
        flight = Flight([], [], Picked([]), None)
        if places:
            logits = self.runner.logits(hidden if len(places) == len(hidden) else hidden[places])
            flight = self._flight_of(samples, self.picker.pick(logits, samples), logits)
        if drafted:
            logits = self.runner.logits(hidden[[place for _, _, span in drafted for place in span]])
            parts = logits.split([len(span) for _, _, span in drafted])
            flight.drafted = self.picker.verify([Drafted(*d[:2], part) for d, part in zip(drafted, parts, strict=True)])
        flight.prompts = any(not extra for extra in extras)
        return flight if places or drafted else None

    # When something goes wrong

    def _blame(self, members: list[Sample], error: Exception) -> list[Sample]:
        """A step failed: who pays. Lack of memory costs its youngest sample, and steps become smaller; else all."""
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
            error = OutOfMemoryError(
                f"no memory left for a step over {len(members)} sequences on {self.model.device}: {text}"
            )
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            self._chunk_tokens = max(BLOCK, self._chunk_tokens // 2)
            members = [max(members, key=lambda item: item.request.id)]
        self.scheduler.pool.forget()  # the plan offered blocks that were never filled
        for item in members:
            self._fail(item, error)
        return members

    def _recover(self) -> None:
        """A step was interrupted. What the samples have said is true; all else is made anew."""
        self._flight = self._told = None
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        for item in list(self._live.values()):
            if item.torn:
                self._fail(item, Qwen3Error("interrupted while a token was being recorded"))
        self._rebuild()

    def _rebuild(self) -> None:
        """Start a fresh schedule with an empty cache: unfinished samples are computed again from their tokens."""
        self._know(waiting := [item for item in self._live.values() if not item.request.done])
        for item in waiting:
            self._unbind(item)
            if not item.observed and item.reader.done is not None:  # and nobody had heard of it
                self._close(item, item.reader.done)
        self.scheduler = self._fresh_scheduler()
        self.scheduler.max_queue = None
        for item in (item for item in waiting if not item.request.done):
            item.row = self._row(item.request)
            self.scheduler.add(item.row)
        self.scheduler.max_queue = self.max_queue
        self._decoding = [], [], []
