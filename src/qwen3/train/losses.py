"""Log-probabilities and cross-entropy of a large vocabulary, a few thousand tokens at a time.

The official head has 151,936 rows: the logits of 65,536 tokens would be 20 GB in bf16 and twice that as float32. Here
at most `chunk` tokens' logits exist, in the head's own dtype; sums, exponentials and results are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qwen3.train.packing import IGNORED

CHUNK = 4096  # tokens: 1.2 GB of bf16 logits with the official vocabulary


def chunk_for(weight: Tensor) -> int:
    """Tokens whose logits under this head take 2.5 GB, or 1/32 of a smaller GPU's memory; 1 GB on other devices."""
    room = 1e9
    if weight.is_cuda:
        room = min(2.5e9, torch.cuda.get_device_properties(weight.device).total_memory / 32)
    return max(256, int(room / (weight.element_size() * weight.shape[0])) // 256 * 256)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """Sum of weights · −log p(label) over the tokens whose label is not -100, float32, in nats.

    hidden: [N, h]. weight: [V, h], the head. labels: int64 [N]. weights: float32 [N], None: ones; no gradient flows
    into them. The gradients are made beside the loss, from logits that are there already (three products in all; the
    loss alone must then be what is differentiated, scaled as one likes).
    """

    def part(at: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        kept = labels[at] != IGNORED
        scale = kept.float() if weights is None else torch.where(kept, weights[at].float(), 0.0)
        return _loss_and_gradient(logits, labels[at].clamp(min=0), scale)

    return linear_loss(hidden, weight, part, chunk)


Part = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def linear_loss(hidden: Tensor, weight: Tensor, part: Part, chunk: int = CHUNK) -> Tensor:
    """A sum over tokens of any function of their logits, float32. part(where, logits [n, V]) gives the sum over these
    tokens, float32, and its gradient [n, V] in the logits' dtype, which may take the logits' place in memory."""
    loss: Tensor = _LinearLoss.apply(hidden, weight, part, chunk)
    return loss


def token_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = CHUNK, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log p(label), entropy), float32 [N] each, 0 where the label is -100; gradients flow through the first.

    hidden: [N, h]. weight: [V, h]. labels: int64 [N]. temperature: logits are divided by it, in float32. For losses
    that are any function of the log-probabilities: the logits are computed again on the way back (four products in
    all).
    """
    logprob, entropy = _TokenLogprobs.apply(hidden, weight, labels, chunk, temperature)
    return logprob, entropy


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, part: Part, chunk: int) -> Tensor:
        wanted = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for at in _chunks(len(hidden), chunk):
            each, gradient = part(at, hidden[at] @ weight.T)
            loss += each
            if d_hidden is not None:
                d_hidden[at] = gradient @ weight
            if d_weight is not None:
                d_weight += gradient.T @ hidden[at]
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if g is None else g * outer.to(g.dtype) for g in ctx.saved_tensors)
        return (*found, None, None)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprob = torch.zeros(len(labels), dtype=torch.float32, device=hidden.device)
        entropy, total = torch.zeros_like(logprob), torch.zeros_like(logprob)
        for at in _chunks(len(labels), chunk):
            kept = labels[at] != IGNORED
            logits = hidden[at] @ weight.T
            total[at], chosen, spread = _statistics(logits, labels[at].clamp(min=0), temperature)
            logprob[at] = torch.where(kept, chosen, 0.0)
            entropy[at] = torch.where(kept, spread, 0.0)
        ctx.save_for_backward(hidden, weight, labels, total)
        ctx.chunk, ctx.temperature = chunk, temperature
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, total = ctx.saved_tensors
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for at in _chunks(len(labels), ctx.chunk):
            scale = torch.where(labels[at] != IGNORED, -outer[at] / ctx.temperature, 0.0)
            logits = hidden[at] @ weight.T
            gradient = _gradient(logits, labels[at].clamp(min=0), total[at], scale, ctx.temperature)
            if d_hidden is not None:
                d_hidden[at] = gradient @ weight
            if d_weight is not None:
                d_weight += gradient.T @ hidden[at]
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None


def _chunks(count: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, count, chunk)]


def _statistics(logits: Tensor, target: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(log of the sum, log-probability of the target, entropy) of each row, float32."""
    values = logits.float() / temperature
    total = values.logsumexp(-1)
    chosen = values.gather(-1, target[:, None])[:, 0] - total
    entropy = total - ((values - total[:, None]).exp() * values).sum(-1)
    return total, chosen, entropy


def _gradient(logits: Tensor, target: Tensor, total: Tensor, scale: Tensor, temperature: float = 1.0) -> Tensor:
    """Of scale · −log p(target), by row, in the logits' dtype."""
    p = (logits.float() / temperature - total[:, None]).exp()
    places = torch.arange(logits.shape[-1], device=logits.device)
    return ((p - (places == target[:, None]).float()) * scale[:, None]).to(logits.dtype)


def _loss_and_gradient(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    total, chosen, _ = _statistics(logits, target)
    return -(chosen * scale).sum(), _gradient(logits, target, total, scale)


if torch.cuda.is_available():  # one pass over the logits each, instead of a float32 copy of them for every step
    _statistics = torch.compile(_statistics, dynamic=True)
    _gradient = torch.compile(_gradient, dynamic=True)
    _loss_and_gradient = torch.compile(_loss_and_gradient, dynamic=True)
