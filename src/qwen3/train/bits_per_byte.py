"""How well a model predicts text, in a unit that no vocabulary changes: bits for each byte of UTF-8."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3.model import Qwen3
from qwen3.train.forward import BatchTensors, Forward, to_tensors
from qwen3.train.losses import chunk_for, token_logprobs
from qwen3.train.packing import IGNORED, pack
from qwen3.train.samples import TokenSample

Run = Callable[[BatchTensors], Any]


class Text(NamedTuple):
    """A document: ids int32 [n], and the UTF-8 bytes of all but its first token, which nothing predicts."""

    ids: NDArray[np.int32]
    predicted_bytes: int


@torch.no_grad()
def bits_per_byte(
    model: Qwen3,
    texts: Sequence[Text],
    *,
    length: int,
    rows: int = 1,
    forward: Run | None = None,
    head: Tensor | None = None,
) -> dict[str, float]:
    """{"bits_per_byte", "nats_per_token", "tokens", "bytes"} of all texts. The end of a text is predicted like its
    tokens and has no bytes. One that is longer than `length` is cut into parts, and each predicted token has what its
    part holds before it; compare numbers of one length only. forward, head: a trainer's.
    """
    run = forward or Forward(model)
    weight = (model.embed_tokens if model.lm_head is None else model.lm_head).weight if head is None else head
    left = [TokenSample(text.ids, np.arange(len(text.ids)) > 0) for text in texts if len(text.ids) > 1]
    nats, tokens = 0.0, 0
    while left:
        batch, left = pack(left, rows, length, 0, split=True)
        tensors = to_tensors(batch, model.device)
        with torch.set_grad_enabled(forward is not None and model.device.type == "cuda"):  # as it was compiled
            hidden = run(tensors)[0].detach().flatten(0, 1)
        found: Tensor = token_logprobs(hidden, weight, tensors.labels.flatten(), chunk_for(weight))[0]
        nats -= float(found.double().sum())
        tokens += int((batch.labels != IGNORED).sum())
    size = sum(text.predicted_bytes for text in texts if len(text.ids) > 1)
    return {
        "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        "nats_per_token": nats / tokens if tokens else math.nan, "tokens": float(tokens), "bytes": float(size),
    }  # fmt: skip
