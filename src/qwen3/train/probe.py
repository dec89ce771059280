"""A cheap progress probe: is every token of a held-out completion the model's first choice?

Where the completion is determined by the prompt (a worked trace in a fixed order), this is the greedy accuracy of
trace and answer together, and it needs one forward pass instead of a generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.data import Sample, encode_samples, pack
from qwen3.train.loop import to_device


def exact_share(
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    tokenizer: Tokenizer,
    samples: Mapping[str, Sequence[Sample]],
    *,
    rows: int,
    length: int,
    device: torch.device,
) -> dict[str, float]:
    """For each named group, the share of samples whose trained tokens are all predicted.

    predict(ids, positions, documents) -> [B, T] int64 first choices. Groups are packed one after the other into
    batches of [rows, length]. Raises UsageError when that leaves one out.
    """
    result = {}
    for name, group in samples.items():
        waiting = sorted(encode_samples(tokenizer, group), key=lambda d: -len(d[0]))
        right = 0
        while waiting:
            size, chunk = 0, []
            while waiting and size + len(waiting[0][0]) <= rows * length * 0.9:
                chunk.append(waiting.pop(0))
                size += len(chunk[-1][0])
            batch, left_out = pack(chunk, rows, length, tokenizer.control.endoftext)
            if left_out:
                raise UsageError(f"{left_out} samples of {name} did not fit; use longer rows")
            ids, labels, positions, documents = to_device(batch, device)
            choice = predict(ids, positions, documents)
            wrong = ((choice != labels) & (labels >= 0)).cpu().numpy()
            for row in range(rows):
                numbers = batch.documents[row]
                bad = set(np.unique(numbers[wrong[row]]))
                right += len(set(np.unique(numbers)) - {0} - bad)
        result[name] = round(right / len(group), 4)
    return result
