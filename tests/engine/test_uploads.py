"""The ring that small arrays go through: nothing in it is written over before its copy is over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen3.engine.uploads import Uploads


class _Event:
    """Of a copy that is over only when somebody waits for it."""

    def __init__(self, ring: _Ring, part: int) -> None:
        self.ring, self.part = ring, part

    def synchronize(self) -> None:
        self.ring.land(self.part)


class _Ring(Uploads):
    """A ring in ordinary memory whose copies are made as late as they may be."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.device("cpu"), size)
        self._ring = torch.zeros(size, dtype=torch.uint8)
        self.waits = 0
        self.under_way: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def copy(self, target: torch.Tensor, values: torch.Tensor) -> None:
        staged = self.stage(values)
        self.under_way.append((self._part, target, staged))

    def _mark(self) -> _Event:  # type: ignore[override]
        return _Event(self, self._part)

    def land(self, part: int) -> None:
        self.waits += 1
        for one, target, staged in self.under_way:
            if one == part:
                target.copy_(staged)
        self.under_way = [row for row in self.under_way if row[0] != part]


def test_what_is_sent_arrives_however_late_the_copies_are() -> None:
    rng = np.random.default_rng()
    ring, sent = _Ring(16384), []
    for _ in range(2000):
        dtype = rng.choice([np.int32, np.int64, np.float32, np.int16])
        shape = tuple(rng.integers(1, 9, size=rng.integers(1, 4)))
        values = torch.from_numpy(rng.integers(-1000, 1000, size=shape).astype(dtype))
        sent.append((values.clone(), torch.zeros_like(values)))
        ring.copy(sent[-1][1], values)
        values.zero_()  # the caller's array may change as soon as it was staged
    for part in (0, 1):
        ring.land(part)
    assert ring.waits > 20  # it went round many times
    for values, found in sent:
        assert torch.equal(values, found)


def test_views_that_are_not_contiguous_are_staged_as_they_look() -> None:
    ring = _Ring(1 << 16)
    values = torch.arange(60).view(5, 12).t()[::2]
    assert torch.equal(ring.stage(values), values)


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.arange(5)
    uploads = Uploads(torch.device("cpu"))
    assert uploads.send(values).data_ptr() == values.data_ptr()
    target = torch.zeros(5, dtype=torch.int64)
    uploads.copy(target, values)
    assert torch.equal(target, values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_arrays_of_any_size_arrive() -> None:
    device = torch.device("cuda")
    uploads, found = Uploads(device, 1 << 16), []
    for size in np.random.default_rng().integers(1, 20_000, size=200).tolist():
        values = torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32)
        found.append((values.clone(), uploads.send(values)))
        values.zero_()
    for values, there in found:
        assert torch.equal(values, there.cpu())
