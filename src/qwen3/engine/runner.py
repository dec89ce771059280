"""One model on one device: its paged KV cache, and a step's tensors.

What the host and the device say to each other in a step: the host names slots (where a running sample's state is) and
brings the ids of prompt chunks; last tokens and positions of decoding samples are on the device already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import kernels
from qwen3.engine.uploads import Uploads
from qwen3.kernels import BLOCK, StepPlan
from qwen3.model.step import Stepper

if TYPE_CHECKING:
    from qwen3.engine.adapters import Adapters

_SHORT, _PAIRS = 4096, 128
"""Up to so many keys none of more than so many (row, KV head) pairs needs dividing: see `Runner.reach`."""


class State(Protocol):
    """What a sampler keeps for each slot. int32 [slots + 1] on the runner's device, 0 being the padding rows'."""

    last_token: Tensor
    position: Tensor


@dataclass(frozen=True)
class Fed:
    """A chunk of a sample: `ids` go to positions `start` … of the sample in `slot`."""

    slot: int
    start: int
    ids: Sequence[int]


class Prompts(NamedTuple):
    """Chunks of a step, T tokens in all, on the device: as the decoding rows' part of a `StepPlan`, int32."""

    ids: Tensor  # [T]
    positions: Tensor  # [T]
    slots: Tensor  # [T], in the cache
    lengths: Tensor  # of the chunks
    tables: Tensor  # of the chunks
    owners: Tensor  # [T], slots of the samples


class Runner:
    """Caches of `blocks` blocks, tables for `max_rows` samples of up to `max_len` tokens."""

    def __init__(
        self,
        stepper: Stepper,
        device: torch.device,
        *,
        max_rows: int,
        max_len: int,
        blocks: int,
        kv_dtype: torch.dtype,
        invariant: bool = False,
    ) -> None:
        config = stepper.config
        self.stepper, self.device, self.max_len, self.invariant = stepper, device, max_len, invariant
        self.cos_sin, self.uploads = stepper.cos_sin(max_len), Uploads(device)
        shape = (config.num_hidden_layers, blocks, BLOCK, config.num_key_value_heads, config.head_dim)
        # A kernel may load a slot that was never written and give it weight 0: it must not hold NaN. On a CPU only what
        # was written is read, and pages come as they are used.
        make = torch.zeros if device.type == "cuda" else torch.empty
        self.k_cache = make(shape, dtype=kv_dtype, device=device)
        self.v_cache = make(shape, dtype=kv_dtype, device=device)
        self.k_cache[:, 0].zero_()
        self.v_cache[:, 0].zero_()
        self.tables = torch.zeros(max_rows + 1, -(-max_len // BLOCK), dtype=torch.int32, device=self.device)
        self.expert_counts = torch.full(
            (max_rows + 1,), config.num_experts_per_tok, dtype=torch.int32, device=self.device
        )
        self.adapter_numbers = torch.zeros(max_rows + 1, dtype=torch.int32, device=self.device)
        self.adapters: Adapters | None = None
        self.custom: dict[int, tuple[int, int]] = {}  # slots with a number of experts, or of an adapter, of their own
        self._rows: tuple[list[int], list[Tensor]] = ([], [])  # slots of the last step without chunks; them and starts

    def _send(self, *groups: Sequence[Sequence[int] | np.ndarray]) -> list[Tensor]:
        """Each group of arrays as one int32 tensor on the device: a single copy, each tensor aligned to 16 bytes."""
        sizes = [sum(map(len, group)) for group in groups]
        starts = np.cumsum([0, *(-(-size // 4) * 4 for size in sizes)])
        packed = np.zeros(starts[-1], dtype=np.int32)
        for group, start, size in zip(groups, starts[:-1], sizes, strict=True):
            if size:
                np.concatenate(group, out=packed[start : start + size], casting="unsafe")
        sent = self.uploads.send(torch.from_numpy(packed))
        return [sent[start : start + size] for start, size in zip(starts[:-1].tolist(), sizes, strict=True)]

    def place(self, blocks: Sequence[tuple[int, int, int]]) -> None:
        """Write (slot, index, block) entries into the block tables."""
        if blocks:
            entries = np.fromiter(chain.from_iterable(blocks), np.int64, 3 * len(blocks)).reshape(-1, 3).T
            entries[0] = entries[0] * self.tables.shape[1] + entries[1]
            where, _, found = self.uploads.send(torch.from_numpy(entries))
            self.tables.view(-1).index_copy_(0, where, found.to(torch.int32))

    def reach(self, rows: int, longest: int | None) -> int:
        """`StepPlan.max_length` of a step with so many decoding rows, none longer than `longest` (None: any length).

        Only where attention works differently on it: each value is a captured graph of its own."""
        many = rows * self.k_cache.shape[3] > _PAIRS and not self.invariant
        return min(_SHORT, self.max_len) if many and longest is not None and longest <= _SHORT else self.max_len

    def forward(
        self, decode: Sequence[int], chunks: Sequence[Fed], state: State, routes: Tensor | None = None,
        longest: int | None = None,
    ) -> Tensor:  # fmt: skip
        """States [N, h] after one step: a token of each slot in `decode`, then the chunks' tokens. longest: no sample
        has more keys then."""
        if not chunks:
            if self._rows[0] != decode:
                self._rows = [*decode], self._send([decode], [range(len(decode) + 1)])
            rows, starts = self._rows[1]
            return self.step(rows, starts, state, routes=routes, longest=longest)
        count, own, sizes = len(decode), [chunk.slot for chunk in chunks], [len(chunk.ids) for chunk in chunks]
        ends = [chunk.start + n for chunk, n in zip(chunks, sizes, strict=True)]
        rows, starts, ids, positions, lengths, slots, owners = self._send(
            [decode],
            [np.arange(count + 1), count + np.cumsum(sizes, dtype=np.int64)],
            [chunk.ids for chunk in chunks],
            [np.arange(chunk.start, end) for chunk, end in zip(chunks, ends, strict=True)],
            [ends],
            [own],
            [np.repeat(own, sizes)],
        )
        places = self.places(owners, positions)
        prompts = Prompts(ids, positions, places, lengths, self.tables[slots], owners)
        told = tuple(zip(sizes, ends, strict=True))
        return self.step(
            rows, starts, state, prompts, max_query=max(sizes), chunks=told, routes=routes, longest=longest
        )

    def places(self, owners: Tensor, positions: Tensor) -> Tensor:
        """Cache slots of tokens of the samples in the slots `owners`."""
        return self.tables[owners, positions // BLOCK] * BLOCK + positions % BLOCK

    def step(
        self, rows: Tensor, starts: Tensor, state: State, prompts: Prompts | None = None, *, max_query: int = 0,
        chunks: tuple[tuple[int, int], ...] = (), routes: Tensor | None = None, longest: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The same from what is on the device: `rows` are slots; starts, max_query and chunks as in `StepPlan`."""
        parts: list[Sequence[Tensor]] = []
        embedded, experts = None, None
        if len(rows):
            embedded, *decoding = kernels.decode_inputs(
                rows, state.last_token, state.position, self.tables, self.stepper.embedding
            )
            parts.append(decoding)
        if prompts is not None:
            # Not of all ids at once: in a dry run those of the rows that decode are garbage.
            own = F.embedding(prompts.ids, self.stepper.embedding)
            embedded = own if embedded is None else torch.cat([embedded, own])
            parts.append(prompts[:5])
        ids, positions, slots, lengths, tables = (
            torch.cat(some) if len(some) > 1 else some[0] for some in zip(*parts, strict=True)
        )
        fewer, layout = self.variant
        owners = rows if prompts is None or not (fewer or layout) else torch.cat([rows, prompts.owners])
        if fewer:
            experts = self.expert_counts[owners]
        plan = StepPlan(
            positions=positions, slots=slots, tables=tables, starts=starts, lengths=lengths, cos_sin=self.cos_sin,
            decode=len(rows), max_query=max_query, max_length=self.reach(len(rows), longest), chunks=chunks,
            invariant=self.invariant, experts=experts,
        )  # fmt: skip
        how: dict[str, Any] = {"embedded": embedded, "routes": routes}
        if layout and self.adapters is not None:
            how["operations"] = self.adapters.operations(self.adapter_numbers[owners])
        return self.stepper.hidden(ids, plan, self.k_cache, self.v_cache, **how)

    @torch.inference_mode()  # a request may be cancelled, and leave, between two steps
    def customize(self, slot: int, experts: int = 0, adapter: int = 0) -> None:
        """Experts per token and adapter of the sample in `slot`; 0, and when it leaves: the model's number, none."""
        self.expert_counts[slot] = experts or self.stepper.config.num_experts_per_tok
        self.adapter_numbers[slot] = adapter
        self.custom.pop(slot, None)
        if experts or adapter:
            self.custom[slot] = experts, adapter

    @property
    def variant(self) -> tuple[bool, int]:
        """Which operations a step is made of: whether there are numbers of experts of their own, and where the adapters
        are (0: nobody uses any). Each value has captured graphs of its own."""
        if not self.custom or self.adapters is None:
            return bool(self.custom), 0
        experts, adapters = zip(*self.custom.values(), strict=True)
        return any(experts), self.adapters.layout if any(adapters) else 0

    def route_record(self, tokens: int) -> Tensor:
        """Room for the experts that each of a step's tokens takes in each layer: int16 [L, N, k]; -1: none."""
        config = self.stepper.config
        shape = (config.num_hidden_layers, tokens, config.num_experts_per_tok)
        return torch.full(shape, -1, dtype=torch.int16, device=self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.stepper.logits(hidden, invariant=self.invariant)
