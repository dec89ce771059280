"""Small arrays on their way from the host to a device, which nobody waits for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BYTES = 4 << 20


class Uploads:
    """Through a ring of pinned memory: from pageable memory a copy would wait for all earlier work, and pinning memory
    anew for each takes from a tenth of a millisecond to a whole one, more than a small model's step.

    A half of the ring is written again when the copies out of it are over, which one event tells: all belong on one
    stream. On a CPU: what comes is what was given.
    """

    def __init__(self, device: torch.device, size: int = _BYTES) -> None:
        self.device, self._half = device, size // 2
        self._ring = torch.empty(size, dtype=torch.uint8, pin_memory=True) if device.type == "cuda" else None
        self._part = self._at = 0  # which half, and the next byte of it
        self._free: list[torch.cuda.Event | None] = [None, None]

    def send(self, values: Tensor) -> Tensor:
        """The values on the device."""
        return self.stage(values).to(self.device, non_blocking=True)

    def copy(self, target: Tensor, values: Tensor) -> None:
        """The values into a tensor on the device."""
        target.copy_(self.stage(values), non_blocking=True)

    def stage(self, values: Tensor) -> Tensor:
        """The values in pinned memory, from where one copy may begin now."""
        size = values.nbytes
        if self._ring is None:
            return values
        if size > self._half:
            return values.pin_memory()
        if self._at + size > self._half:
            self._free[self._part] = self._mark()
            self._part, self._at = 1 - self._part, 0
            if (event := self._free[self._part]) is not None:
                event.synchronize()
        start = self._part * self._half + self._at
        self._at += -(-size // 16) * 16
        staged = self._ring[start : start + size]
        # Not by torch, which wakes its threads for it.
        np.copyto(staged.numpy(), values.contiguous().view(-1).view(torch.uint8).numpy())
        return staged.view(values.dtype).view(values.shape)

    def _mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()
