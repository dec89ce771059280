"""Who chooses the tokens of a step: the host (any device, the reference) or the GPU itself.

Both keep, for each slot, the last token and the position of the sample that has it, as tensors on the model's device;
the next step reads them there. Slot 0 is the padding rows'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qwen3 import kernels
from qwen3.engine.device_sampler import DeviceSampler, Packed, Told
from qwen3.engine.machine import Machine
from qwen3.engine.request import Request
from qwen3.engine.sampler import RowSampler, sample
from qwen3.engine.scheduler import Sequence as Row
from qwen3.engine.trial import TOP, Trial
from qwen3.errors import CorruptFileError, Qwen3Error

RUNNING, ENDED, FULL, FAILED = 0, 1, 2, 3
"""Codes beside a picked token, to which REPLACED may be added."""


@dataclass(eq=False, slots=True)
class Sample:
    """A request that is queued or runs. `row` is what the scheduler knows of it, `reader` what its tokens mean."""

    request: Request
    row: Row
    sampler: RowSampler
    reader: Any  # TokenStream or Machine: forced(), banned(), push()
    observed: bool  # the host follows it token by token
    torn: bool = False  # between the first and the last change that one token makes
    forced: bool = False  # its last token was
    bound: int = 0  # the slot that the picker has its state in, 0: none
    custom_slot: int = 0  # where its number of experts per token or its adapter is written, 0: nowhere
    trial: Trial | None = None  # while it is not decided whether it thinks
    masked: bool = False  # its slot has a grammar's mask
    drafts: tuple[int, ...] = ()  # proposed for the next step, to be verified

    @property
    def alternatives(self) -> int | None:
        """How many log-probabilities are wanted beside that of its tokens; None: not even theirs."""
        asked = self.request.params.logprobs
        return asked if self.trial is None else max(asked or 0, TOP)

    def mask(self) -> NDArray[np.int32] | None:
        """What a grammar allows next, as bits; None: anything."""
        return None if self.request.stream is None else self.request.stream.mask()


class Picked:
    """Tokens chosen in a step, one for each of its samples."""

    def __init__(self, tokens: list[tuple[int | Qwen3Error, int]]) -> None:
        self._tokens = tokens

    def read(self) -> list[tuple[int | Qwen3Error, int]]:
        """(token, or what went wrong; code) of each sample."""
        return self._tokens

    def ended(self) -> list[tuple[int, int]]:
        """(place, code) of the samples that the picker itself ended."""
        return []

    def ids(self, device: torch.device) -> Tensor:
        """The tokens, int64 on the device; 0 where something went wrong."""
        return torch.tensor([0 if isinstance(token, Qwen3Error) else token for token, _ in self._tokens], device=device)


@dataclass
class Drafted:
    """A sample whose drafts are verified; logits [len(tokens) + 1, rows of the head]: after its last token and each of
    these."""

    item: Sample
    tokens: tuple[int, ...]
    logits: Tensor
    read: Callable[[int], tuple[int | Qwen3Error, int]] = field(init=False)  # token and code of one of its places


class HostPicker:
    """The reference: the samples' own readers say what is forced and what is banned, `sampler.sample` chooses."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.last_token = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.position = torch.zeros(slots + 1, dtype=torch.int32, device=device)

    def bind(self, items: Sequence[Sample]) -> list[tuple[Sample, Exception]]:
        """Give slots to samples; those for which it cannot be done, and why."""
        self.advance(items)
        return []

    def pick(self, logits: Tensor, samples: Sequence[Sample]) -> Picked:
        forced = [item.reader.forced() for item in samples]
        free = [i for i, token in enumerate(forced) if token is None]
        chosen = sample(
            logits if len(free) == len(samples) else logits[free],
            [samples[i].sampler for i in free],
            [len(samples[i].request.output) for i in free],
            [sorted(samples[i].reader.banned()) for i in free],
            [samples[i].mask() for i in free],
        )
        sampled = iter(chosen)
        return Picked([(next(sampled) if token is None else token, RUNNING) for token in forced])

    def verify(self, drafted: list[Drafted]) -> list[Drafted]:
        """Each place is picked when it is read: by then all before it are recorded."""
        for one in drafted:
            one.read = partial(self._pick_one, one)
        return drafted

    def _pick_one(self, drafted: Drafted, place: int) -> tuple[int | Qwen3Error, int]:
        return self.pick(drafted.logits[place : place + 1], [drafted.item]).read()[0]

    def advance(self, samples: Sequence[Sample]) -> None:
        """After their tokens were recorded: what each sample feeds next, and where."""
        if samples:
            slots = torch.tensor([item.row.slot for item in samples])
            last = [item.row.tokens[-1] for item in samples]
            place = [len(item.row.tokens) - 1 for item in samples]
            self.last_token[slots] = torch.tensor(last, dtype=torch.int32, device=self.last_token.device)
            self.position[slots] = torch.tensor(place, dtype=torch.int32, device=self.position.device)


class DevicePicked(Picked):
    """`out` int32 [rows, 2] on the device: tokens and codes of the first `count` rows. Copied to the host meanwhile."""

    def __init__(self, out: Tensor, count: int) -> None:
        self._out, self._count = out, count
        self._host = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        self._host.copy_(out, non_blocking=True)
        self.done = torch.cuda.Event()
        self.done.record()

    def _rows(self) -> np.ndarray:
        self.done.synchronize()
        return self._host.numpy()[: self._count]

    def read(self) -> list[tuple[int | Qwen3Error, int]]:
        return [outcome(token, code) for token, code in self._rows().tolist()]

    def read_one(self, start: int, place: int) -> tuple[int | Qwen3Error, int]:
        return outcome(*self._rows()[start + place].tolist())

    def ended(self) -> list[tuple[int, int]]:
        codes = self._rows()[:, 1] & 3
        return [(i, int(codes[i])) for i in codes.nonzero()[0].tolist()]

    def ids(self, device: torch.device) -> Tensor:
        return self._out[: self._count, 0].long()


class DevicePicker:
    """The GPU: `DeviceSampler` picks inside the step's own graph, and the host reads tokens when it finds time."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device, max_len: int) -> None:
        self.sampler = DeviceSampler(slots, vocab_size, device, max_len=max_len)
        self.last_token, self.position = self.sampler.last_token, self.sampler.position
        self.device = device
        self._side = torch.cuda.Stream(device)

    def bind(self, items: Sequence[Sample]) -> list[tuple[Sample, Exception]]:
        slots, packed, failed = [], [], []
        for item in items:
            try:
                packed.append(self._packed(item))
                slots.append(item.row.slot)
            except Exception as error:
                failed.append((item, error))
        if slots:
            self.sampler.put(slots, packed)
        return failed

    def _packed(self, item: Sample) -> Packed:
        request, row, machine = item.request, item.row, item.reader
        if request.stream is not None:
            machine = Machine.of(request.stream, request.params, request.max_tokens)
        return self.sampler.pack(
            row.slot,
            request.params,
            machine,
            prompt_ids=request.ids,
            stream_key=item.sampler.stream_key,
            max_tokens=request.max_tokens,
            output=request.output,
            position=len(row.tokens) - 1,
        )

    def pick(self, logits: Tensor, samples: Sequence[Sample]) -> Picked:
        slots = torch.tensor([item.row.slot for item in samples], dtype=torch.int32)
        out = torch.zeros(len(samples), 2, dtype=torch.int32, device=self.device)
        self.sampler.sample(logits, self.sampler.uploads.send(slots), out)
        return DevicePicked(out, len(samples))

    def verify(self, drafted: list[Drafted]) -> list[Drafted]:
        """All places at once: the device goes on as long as its tokens are the drafts."""
        width = max(len(one.tokens) for one in drafted)
        logits = torch.stack([F.pad(one.logits, (0, 0, 0, width - len(one.tokens))) for one in drafted])
        drafts = torch.tensor([[*one.tokens, *[-1] * (width - len(one.tokens))] for one in drafted], dtype=torch.int32)
        slots = torch.tensor([one.item.row.slot for one in drafted], dtype=torch.int32)
        out = torch.zeros(len(drafted), width + 1, 2, dtype=torch.int32, device=self.device)
        slots, drafts = (self.sampler.uploads.send(some) for some in (slots, drafts))
        self.sampler.verify(logits, slots, drafts, out)
        picked = DevicePicked(out.view(-1, 2), out.shape[0] * out.shape[1])
        for i, one in enumerate(drafted):
            one.read = partial(picked.read_one, i * (width + 1))
        return drafted

    def fetch(self, items: Sequence[Sample], picked: Picked | None) -> list[Told]:
        """What the device knows of samples that the host does not follow; with `picked`, as of that step, which another
        one that is still running need not delay (a sample that has ended changes no more)."""
        slots = [item.row.slot for item in items]
        most = max(item.row.total - len(item.request.ids) for item in items)
        if not isinstance(picked, DevicePicked):
            return self.sampler.snapshots(slots, most)
        self._side.wait_event(picked.done)
        with torch.cuda.stream(self._side):
            return self.sampler.snapshots(slots, most)


def make_picker(
    slots: int, vocab_size: int, device: torch.device, dtype: torch.dtype, max_len: int
) -> HostPicker | DevicePicker:
    """The device's own where it has one. In float32 the GPU's attention is the plain one, which no graph can hold."""
    if device.type == "cuda" and dtype != torch.float32 and kernels.chosen("cuda")["decode_inputs"] == "gpu":
        return DevicePicker(slots, vocab_size, device, max_len)
    return HostPicker(slots, device)


def outcome(token: int, code: int) -> tuple[int | Qwen3Error, int]:
    """What the device says of a row: its token, or why it has none, and the code."""
    return failure() if code & 3 == FAILED else token, code


def failure() -> Qwen3Error:
    """Why a row that the device reports has no token."""
    return CorruptFileError(
        "no token could be sampled: all are forbidden, or the model's logits are not numbers (see `qwen3 verify`)"
    )
