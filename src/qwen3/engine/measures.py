"""Numbers that requests may ask for beside their tokens: log-probabilities, and the experts that were taken.

Log-probabilities are raw: log-softmax of the model's own logits at temperature 1, before bias, penalties and filters.
The normaliser runs over every row of the head, as in the published code; padding rows are never listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qwen3.engine.request import Request
from qwen3.engine.sampler import TokenLogprob

_HEAD_CHUNK = 128  # prompt positions whose logits exist at once


def measure(logits: Tensor, ids: Tensor, top: int, vocab_size: int) -> Tensor:
    """Logits [P, rows of the head], chosen ids [P] -> float64 [P, 2 + 2·top]: the chosen id and its log-probability,
    then the `top` best log-probabilities and their ids. Nothing waits for the device."""
    wide = logits.float()
    total = torch.logsumexp(wide, dim=1, keepdim=True)
    best = torch.topk(wide[:, :vocab_size], min(top, vocab_size), dim=1)
    ids = ids.long().unsqueeze(1)
    return torch.cat(
        [part.double() for part in (ids, wide.gather(1, ids) - total, best.values - total, best.indices)], 1
    )


def read_logprobs(numbers: Tensor, tops: Sequence[int]) -> list[TokenLogprob]:
    """What `measure` found, with as many alternatives as each row asked for."""
    width = (numbers.shape[1] - 2) // 2
    found = []
    for row, top in zip(numbers.tolist(), tops, strict=True):
        values, ids = row[2 : 2 + top], row[2 + width : 2 + width + top]
        found.append(TokenLogprob(int(row[0]), row[1], [(int(i), v) for i, v in zip(ids, values, strict=True)]))
    return found


def read_prompt(
    request: Request, start: int, hidden: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int
) -> None:
    """Log-probabilities of the prompt tokens that follow the states [T, h] at position `start` and on."""
    found, top = request.prompt_logprobs, request.params.prompt_logprobs or 0
    del found[start + 1 :]  # a repeated step
    found[:] = found or [None]
    following = request.ids[start + 1 : start + 1 + len(hidden)]
    for first in range(0, len(following), _HEAD_CHUNK):
        ids = following[first : first + _HEAD_CHUNK]
        logits = head(hidden[first : first + len(ids)])
        numbers = measure(logits, torch.tensor(ids, device=logits.device), top, vocab_size)
        found.extend(read_logprobs(numbers, [top] * len(ids)))


def keep_routes(requests: Sequence[Request], sizes: Sequence[int], routes: Tensor) -> None:
    """Hand each request that asks the part of routes [L, N, k] that its `sizes` tokens of the step are."""
    for request, part in zip(requests, routes.split(list(sizes), dim=1), strict=True):
        if request.keep_routes:
            request.routes.append(part.cpu())
