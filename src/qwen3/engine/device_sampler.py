"""The sampler's state on the GPU: one packed row of numbers a sample, moved on by two kernels inside the step's graph.

Python says once what a sample is (`bind`); from then on each `sample` draws its next token and moves its machine, and
nothing has to come back before the next step starts. The numbers are those of `sampler.sample` and `machine.Machine`,
in float32 where the reference has float64.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3.engine.machine import PHASES, Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import check_ids
from qwen3.engine.uploads import Uploads
from qwen3.errors import UsageError

REPLACED = 4
"""Added to a done code: the recorded id stands in the place of an end that was sampled inside thinking. To a
`TokenStream`, push an end id, not the recorded one."""


class Told(NamedTuple):
    """What the device has recorded of a sample. ids: its tokens. logprobs [len(ids)] float32, None where the params do
    not ask for them: log-softmax of the unmodified logits, of tokens recorded since `bind`; with the other sign where
    the token was forced (a sampled one of probability 1 has -0.0)."""

    ids: list[int]
    logprobs: NDArray[np.float32] | None
    began: Machine  # as it was bound
    text: list[int]
    state: list[int]

    @property
    def machine(self) -> Machine:
        """Its rules where they stand now."""
        _, _, count, phase, used, at, end, done, steps, line = self.state
        return replace(
            self.began, phase=PHASES[phase], used=used, steps=steps, line_state=line, count=count,
            queue=deque(self.text[at:end]), done=None if done == 0 else "length" if done == 2 else "stop",
        )  # fmt: skip


class Packed(NamedTuple):
    """A sample's numbers for `put`: int32 [WIDTH] that siblings share; its key in halves, its rows of the tables."""

    common: NDArray[np.int32]
    own: tuple[int, ...]


class _Table:
    """Rows that few samples need: made on demand, found by the kernels through `cell`, which holds their address."""

    def __init__(self, cell: Tensor, columns: int, dtype: torch.dtype) -> None:
        self.cell = cell
        self.rows = torch.empty(0, columns, dtype=dtype, device=cell.device)
        self.free: list[int] = []
        self.moved: torch.cuda.Event | None = None  # from when on `rows` may be read

    def take(self) -> int:
        """A row's number, 1 or more. Growing moves the rows; captured graphs follow the address in `cell`."""
        if not self.free:
            old = self.rows
            self.rows = old.new_zeros(max(8, 2 * len(old)), old.shape[1])
            self.rows[: len(old)] = old
            self.cell.fill_(self.rows.data_ptr())
            self.moved = torch.cuda.current_stream().record_event() if self.cell.is_cuda else None
            self.free = list(range(len(self.rows) - 1, max(len(old), 1) - 1, -1))
        return self.free.pop()


class DeviceSampler:
    """Sampling state of `slots` samples at most, numbered from 1; slot 0 is for padding rows and never changes.

    last_token, position, count: int32 [slots + 1]: the last recorded id, the position it will be computed at, how many
    tokens the sample has. history: int32 [slots + 1, max_len]: its ids in order; a negative one is ~id, recorded in the
    place of an end (see REPLACED). All methods put their work on the current stream; none waits but `snapshots`.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device, *, max_len: int, chunk: int = 1024) -> None:
        from qwen3.kernels.gpu import sample

        self._kernel, self.vocab_size, self._chunk = sample, vocab_size, chunk
        self._packed = torch.zeros(slots + 1, sample.WIDTH.value, dtype=torch.int32, device=device)
        self._state = torch.zeros(sample.STATES.value, slots + 1, dtype=torch.int32, device=device)
        self._state[sample.DONE.value] = 1
        self.last_token, self.position, self.count = self._state[:3]
        self.history = torch.zeros(slots + 1, max_len, dtype=torch.int32, device=device)
        self._cells = torch.zeros(5, dtype=torch.int64, device=device)
        self.uploads = Uploads(device)
        padded = -(-vocab_size // chunk) * chunk
        sizes = (padded, torch.float32), (padded, torch.int16), (padded // 32, torch.int32), (max_len, torch.float32)
        self._pace: tuple[NDArray[np.uint16], Tensor] | None = None  # a machine's table, and its copy on the device
        self._tables = [_Table(self._cells[i], *size) for i, size in enumerate(sizes)]
        self._bound: dict[int, tuple[Machine, list[int], list[int]]] = {}  # slot: machine, forced ids, rows of tables
        self._last: tuple[Any, ...] | None = None  # what `pack` was given, and what came: siblings have much in common

    def bind(self, slot: int, params: SamplingParams, machine: Machine, **about: Any) -> None:
        """Give a slot to a sample; see `pack`."""
        self.put([slot], [self.pack(slot, params, machine, **about)])

    def pack(
        self,
        slot: int,
        params: SamplingParams,
        machine: Machine,
        *,
        prompt_ids: Sequence[int],
        stream_key: int,
        max_tokens: int | None = None,
        output: Sequence[int] = (),
        position: int | None = None,
    ) -> Packed:
        """A sample's numbers for `put`: fresh, or coming back with `output` (recorded ids) and its machine as it stood.

        params: resolved. stream_key: `RowSampler.stream_key`. max_tokens: None is the machine's. position: of the token
        whose logits come next, None: the last of prompt and output; each `sample` adds 1. Counts for the penalties are
        made anew; a mask must be set anew. Raises UsageError for what cannot be carried out, naming the field.
        """
        if not 1 <= slot < len(self._packed):
            raise UsageError(f"slot={slot} must be 1 to {len(self._packed) - 1}")
        if max_tokens not in (None, machine.max_tokens):
            machine = replace(machine, max_tokens=max_tokens)
        place = len(prompt_ids) + len(output) - 1 if position is None else position
        known = output or prompt_ids
        given = params, machine, known[-1] if known else 0, place, len(output), machine.pace is not None
        # Only of fresh ones: with its first token a machine is another.
        if machine.count or self._last is None or self._last[0][0] is not params or self._last[0] != given:
            self._last = given, *self._numbers(*given)
        common, text = self._last[1:]
        self._bind_pace(machine.pace)
        self.release(slot)
        rows = self._bind_tables(params, prompt_ids, output)
        self._bound[slot] = machine, text, rows
        if output:
            self.uploads.copy(self.history[slot, : len(output)], torch.tensor(output, dtype=torch.int32))
        return Packed(common, (stream_key & 0xFFFFFFFF, stream_key >> 32, *rows))

    def _numbers(
        self, params: SamplingParams, machine: Machine, last: int, position: int, count: int, paced: bool
    ) -> tuple[NDArray[np.int32], list[int]]:
        """What is the same for all samples of a prompt, and the ids that may be forced."""
        k, text = self._kernel, [*machine.early_stop, *machine.close_think, *machine.queue]
        ends = [*sorted(machine.eos), *sorted(machine.stop_ids - machine.eos)]
        early, close = len(machine.early_stop), len(machine.early_stop) + len(machine.close_think)
        check_ids(params, self.vocab_size)
        if machine.count != count:
            raise UsageError(f"output has {count} ids, but the machine has seen {machine.count}")
        if len(ends) > (many := k.TEXT.value - k.ENDS.value) or len(text) > k.WIDTH.value - k.TEXT.value:
            raise UsageError(
                f"{len(ends)} end ids and {len(text)} ids to force are more than a row holds, {many} and "
                f"{k.WIDTH.value - k.TEXT.value}: give fewer stop_token_ids"
            )
        top_k = params.top_k if params.top_k and 0 < params.top_k < self.vocab_size else 0
        filtered = (params.top_p or 1) < 1 or (params.min_p or 0) > 0
        kind = k.WIDE if top_k > k.MAX_K else k.TOP_K if top_k else k.NUCLEUS if filtered else k.FREE
        numbers = [math.log2(math.e) / max(params.temperature or 1, 1e-30), params.top_p or 1, params.min_p or 0]
        numbers[1] = numbers[1] if numbers[1] < 1 else 3e38  # sums round: what is off must drop nothing
        numbers += [params.repetition_penalty, params.frequency_penalty, params.presence_penalty]
        packed = np.zeros(k.WIDTH.value, np.int32)
        packed[: k.KEY_LOW.value] = (
            *(last, position, count, PHASES.index(machine.phase), machine.used, close, len(text)),
            *({None: 0, "stop": 1, "length": 2}[machine.done], machine.steps, machine.line_state),
            (k.GREEDY if params.greedy else kind).value,
            *(top_k or 2**30, *np.array(numbers, np.float32).view(np.int32)),
        )
        packed[k.KEY_HIGH.value + 1 : k.BIAS_ROW.value] = (
            *(machine.min_tokens, machine.max_tokens, -1 if machine.budget is None else min(machine.budget, 2**31 - 1)),
            *(machine.think, machine.end_think, machine.tool_call, machine.end_tool_call, len(machine.eos)),
            *(len(ends), early, close, machine.margin, machine.max_steps, min(machine.close_at, 2**31 - 1)),
            *(min(machine.gap, close - early), machine.think if machine.ban_think else -1, paced),
        )
        packed[k.ENDS.value : k.ENDS.value + len(ends)] = ends
        packed[k.TEXT.value : k.TEXT.value + len(text)] = text
        return packed, text

    def put(self, slots: Sequence[int], packed: Sequence[Packed]) -> None:
        """Set slots to what `pack` made for each."""
        k, numbers = self._kernel, np.concatenate([one.common for one in packed]).reshape(len(packed), -1)
        own = np.array([one.own for one in packed], np.uint32).view(np.int32)
        numbers[:, k.KEY_LOW.value : k.KEY_HIGH.value + 1] = own[:, :2]
        numbers[:, k.BIAS_ROW.value : k.LOGPROB_ROW.value + 1] = own[:, 2:]
        rows = self.uploads.send(torch.from_numpy(numbers))
        places = self.uploads.send(torch.tensor(slots, dtype=torch.int64))
        self._packed.index_copy_(0, places, rows)
        self._state.index_copy_(1, places, rows[:, : len(self._state)].t())

    def sample(self, logits: Tensor, rows: Tensor, out: Tensor) -> None:
        """Draw and record one token a row. No synchronisation; can be captured in a graph.

        logits [R, vocab_size or more columns] float32, bfloat16 or float16, not changed; rows [R] int32: their slots.
        out [R, 2] int32: the recorded id; the done code: 0 goes on, 1 an end, 2 length, 3 nothing was recorded (id -1:
        damaged logits, -2: every token is forbidden), plus REPLACED. A done row's last id and code are repeated.
        """
        if len(logits):
            given = logits, rows, out, self._packed, self._state, self._cells, self.history
            self._kernel.sample(*given, self.vocab_size, self._chunk)

    def verify(self, logits: Tensor, rows: Tensor, drafts: Tensor, out: Tensor, accept: Tensor | None = None) -> None:
        """Draw and record a row's tokens as long as they are the drafted ones, and the one that follows these.

        logits [R, K + 1, vocab_size or more columns]: behind a row's last token and behind each of its drafts [R, K]
        int32 (-1: none, as where a row has fewer); rows [R] int32: their slots. out [R, K + 1, 2] int32, each position
        as `sample` would have it, or (-1, 0): not drawn, as the one before was not its draft or the sample's last.
        Token for token what `sample` draws one by one. accept [R, K] bool, for measurements: the drafts that count as
        equal whatever was drawn. No synchronisation; can be captured in a graph.
        """
        if accept is not None:
            drafts = torch.where(accept, self._kernel.ANY.value, -1).to(torch.int32)
        for place in range(logits.shape[1] if len(logits) else 0):
            given = rows, out, self._packed, self._state, self._cells, self.history, self.vocab_size, self._chunk
            self._kernel.sample(logits[:, place], *given, drafts, place)

    def close(self, slot: int, at: int) -> None:
        """Set a slot's `close_at`: its thinking is closed once `at` tokens are recorded, after the next one if they are
        already. Takes effect with the next `sample` that is put on the stream; -1 takes it back."""
        machine, text, rows = self._bound[slot]
        self._bound[slot] = replace(machine, close_at=at), text, rows
        self._packed[slot, self._kernel.CLOSE_AT.value].fill_(min(at, 2**31 - 1))

    def copy_state(self, other: DeviceSampler, slots: Tensor) -> None:
        """Set slots [n] int32 to where they are in `other`: last_token, position and count, nothing else. For a draft
        model's sampler. No synchronisation; can be captured in a graph."""
        self._state[:3].index_copy_(1, slots.long(), other._state[:3].index_select(1, slots))

    def set_mask(self, slot: int, words: Tensor | None) -> None:
        """Restrict a slot's next tokens to the set bits of `words` [ceil(vocab_size / 32)] int32; None: no more."""
        rows = self._bound[slot][2]
        if words is not None:
            rows[2] = rows[2] or self._tables[2].take()
            self.uploads.copy(self._tables[2].rows[rows[2], : len(words)], words)
        self._packed[slot, self._kernel.MASK_ROW.value].fill_(rows[2] if words is not None else 0)

    def snapshots(self, slots: Sequence[int], most: int | None = None) -> list[Told]:
        """What is recorded of slots now, to `bind` them again later. Waits for the device, for many as for one; twice
        where the caller does not know how many tokens a slot has at most."""
        bound = [self._bound[slot] for slot in slots]
        kept = [rows[3] for _, _, rows in bound]
        places = torch.tensor([*slots, *kept], dtype=torch.int32)  # on any stream, so not through the ring
        if self._cells.is_cuda:
            places = places.pin_memory().to(self._cells.device, non_blocking=True)
        own, rows = places.split(len(slots))
        longest = int(self.count.index_select(0, own).max()) if most is None else most
        parts = [self._state.index_select(1, own).t(), self.history[:, :longest].index_select(0, own)]
        if any(kept):
            if self._tables[3].moved is not None:
                torch.cuda.current_stream().wait_event(self._tables[3].moved)
            parts.append(self._tables[3].rows[:, :longest].index_select(0, rows).view(torch.int32))
        told = torch.cat(parts, 1).cpu().numpy()  # one copy
        states, recorded, logprobs = np.split(told, np.cumsum([part.shape[1] for part in parts[:2]]), axis=1)
        recorded, logprobs = np.where(recorded < 0, ~recorded, recorded), logprobs.view(np.float32)
        return [
            Told(recorded[i, : state[2]].tolist(), logprobs[i, : state[2]] if kept[i] else None, machine, text, state)
            for i, (state, (machine, text, _)) in enumerate(zip(states.tolist(), bound, strict=True))
        ]

    def release(self, slot: int) -> None:
        """Give back what the slot holds. Nothing is done on the device: a step in flight may still write it."""
        if slot in self._bound:
            for table, row in zip(self._tables, self._bound.pop(slot)[2], strict=True):
                if row:
                    table.free.append(row)

    def _bind_pace(self, table: NDArray[np.uint16] | None) -> None:
        """Put a tokenizer's table on the device, once."""
        if table is None or (self._pace is not None and self._pace[0] is table):
            return
        if self._pace is not None:
            if np.array_equal(table, self._pace[0]):
                return
            raise UsageError("the machine's pace is another tokenizer's than that of the samples before")
        if len(table) < self.vocab_size:
            raise UsageError(f"the machine's pace has {len(table):,} entries, but vocab_size is {self.vocab_size:,}")
        self._pace = table, torch.from_numpy(table.astype(np.int16)).to(self._cells.device)
        self._cells[4].fill_(self._pace[1].data_ptr())

    def _bind_tables(self, params: SamplingParams, prompt_ids: Sequence[int], output: Sequence[int]) -> list[int]:
        """Rows of the four tables for one sample, filled; 0: needs none."""
        rows = [0, 0, 0, 0 if params.logprobs is None else self._tables[3].take()]
        width = self._tables[0].rows.shape[1]
        if params.logit_bias:
            rows[0] = self._tables[0].take()
            biases = torch.zeros(width)
            biases[list(params.logit_bias)] = torch.tensor(list(params.logit_bias.values()))
            self.uploads.copy(self._tables[0].rows[rows[0]], biases)
        if (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0):
            rows[1] = self._tables[1].take()
            times, counts = Counter(output), torch.zeros(width, dtype=torch.int16)
            counts[list(times)] = torch.tensor(list(times.values())).clamp(max=2**15 - 1).to(torch.int16)
            counts[list(set(prompt_ids))] |= -(2**15)
            self.uploads.copy(self._tables[1].rows[rows[1]], counts)
        return rows
