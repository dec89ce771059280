"""An engine on the CPU whose host is one step late, as on a GPU: the device's sampler runs in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from qwen3.engine import Engine
from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.pickers import DevicePicked, DevicePicker, Sample
from qwen3.engine.runner import Runner
from qwen3.tokenizer import Tokenizer


class _Done:
    def synchronize(self) -> None: ...


class _Picked(DevicePicked):
    def __init__(self, out: Tensor, count: int) -> None:
        self._out, self._count, self._host, self.done = out, count, out.clone(), _Done()  # type: ignore[assignment]


class InterpretedPicker(DevicePicker):
    def __init__(self, slots: int, vocab_size: int, max_len: int) -> None:
        self.device = torch.device("cpu")
        self.sampler = DeviceSampler(slots, vocab_size, self.device, max_len=max_len, chunk=512)
        self.last_token, self.position = self.sampler.last_token, self.sampler.position

    def pick(self, logits: Tensor, samples: Sequence[Sample]) -> Any:
        out = torch.zeros(len(samples), 2, dtype=torch.int32)
        self.sampler.sample(logits, torch.tensor([item.row.slot for item in samples], dtype=torch.int32), out)
        return _Picked(out, len(samples))

    def fetch(self, items: Sequence[Sample], picked: Any) -> Any:
        return super().fetch(items, None)


class _NoGraphs:
    def replay(self, *_: Any, **__: Any) -> None:
        return None


@torch.inference_mode()
def blank(runner: Runner) -> None:
    """A device's caches begin as zeros (see `Runner`); a round reads places that no token was written to."""
    runner.k_cache.zero_()
    runner.v_cache.zero_()


def overlapped(model: Any, tokenizer: Tokenizer, **options: Any) -> Engine:
    """An engine that launches a step before it has read the last one."""
    engine = Engine(model, tokenizer, **({"max_batch": 4, "max_len": 600} | options))
    engine.picker = InterpretedPicker(engine.max_batch, engine.vocab_size, engine.max_len)
    engine.graphs = _NoGraphs()  # type: ignore[assignment]
    engine.overlap = True
    blank(engine.runner)
    return engine
