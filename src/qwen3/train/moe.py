"""The mixture of experts as it is trained: grouped products with gradients, replayed routes, load balance, statistics.

Load balance over the GLOBAL batch (Qiu et al. 2025, "Demons in the detail"; used for Qwen3, arXiv 2505.09388, section
2): a layer's loss is E · Σ_i f_i · P_i, f_i the share of all choices of the update that fell on expert i, P_i the mean
probability of expert i over the update's tokens; 1 when all is even. f_i is a count and has no gradient, so that the
gradient of a micro-batch needs nothing of the others but their counts. With one micro-batch these are there; with
several they come from a forward pass over all of them first ("exact": the formula to the last digit, for a third more
work), or are those so far ("running": what the authors do where a batch comes in parts, near enough for many parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from qwen3 import kernels
from qwen3.model.network import RouterOutput, SparseMLP


def sparse_forward(mlp: SparseMLP, x: Tensor, routes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As `SparseMLP.forward`, for training. x [B, T, h] -> (out [B, T, h], logits [B·T, E], chosen [B·T, k] int64).

    routes: int [B·T, k], the experts to take; -1: the router's own choice for the token.
    """
    flat = x.reshape(-1, x.shape[-1])
    logits = mlp.gate(flat)
    weights, chosen = route(logits, mlp.top_k, mlp.normalise, routes)
    if mlp.experts.plain:
        out = experts(flat, mlp.experts.gate_up_proj, mlp.experts.down_proj, weights, chosen)
    else:
        out = mlp.experts(flat, weights, chosen)
    return out.view_as(x), logits, chosen


def route(logits: Tensor, top_k: int, normalise: bool, routes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits [N, E] -> (weights [N, k] in their dtype, experts [N, k] int64): softmax over all experts in float32, the
    best k, divided by their sum if `normalise`. routes [N, k]: experts taken instead where they are not -1, with the
    weights that the router gives them now."""
    probabilities = F.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    chosen = probabilities.topk(top_k, dim=-1).indices
    if routes is not None:
        chosen = torch.where(routes >= 0, routes.long(), chosen)
    weights = probabilities.gather(-1, chosen)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), chosen


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Σ over each token's experts of weight · SwiGLU expert. x [N, h], gate_up [E, 2m, h], down [E, h, m], weights and
    chosen [N, k] -> [N, h]. No capacity: every choice is computed, whatever the load.

    The tokens are sorted by expert, and each projection is one grouped product. The weight is multiplied in before
    the down projection, where a token is narrowest.
    """
    count, k = chosen.shape
    sorted_experts, order = chosen.flatten().short().sort(stable=True)  # a quarter of the digits that int64 has
    numbers = torch.arange(gate_up.shape[0], dtype=torch.int16, device=x.device)
    ends = torch.searchsorted(sorted_experts, numbers, right=True).int()  # no count leaves the device
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    rows = _Dispatch.apply(x, order, places, k)
    inner = kernels.silu_mul(kernels.grouped_linear(rows, gate_up, ends))
    inner = inner * _Permute.apply(weights.flatten(), order, places)[:, None].to(inner.dtype)
    out = kernels.grouped_linear(inner, down, ends)
    return _Permute.apply(out, places, order).view(count, k, -1).sum(1)


class _Dispatch(torch.autograd.Function):
    """Rows of x [N, h], each once for every one of its k choices, in the order of the experts. On the way back a row's
    k gradients are fetched and added: no atomics, the same sum every time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.k = k
        return x[order // k]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return outer[places].view(-1, ctx.k, outer.shape[-1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """x[order]; places is the inverse of order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x[order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return outer[places], None, None


class RouterSums(NamedTuple):
    """Sums over the tokens of a micro-batch that are no padding, one row for each sparse layer. counts [L, E]: choices
    of each expert. probabilities [L, E]: differentiable. entropy [L]: of a token's distribution over experts, nats."""

    counts: Tensor
    probabilities: Tensor
    entropy: Tensor


def router_sums(routers: list[RouterOutput], documents: Tensor) -> RouterSums:
    """documents: [B, T], 0 where there is padding. All in float32 (float64 for a float64 model)."""
    kept = (documents.flatten() > 0).to(torch.promote_types(routers[0].logits.dtype, torch.float32))
    counts, sums, entropies = [], [], []
    for router in routers:
        p = F.softmax(router.logits, dim=-1, dtype=kept.dtype)
        sums.append(kept @ p)
        with torch.no_grad():
            entropies.append(-(kept @ torch.special.xlogy(p, p).sum(-1)))
            weights = kept[:, None].expand_as(router.experts).flatten()
            counts.append(kept.new_zeros(p.shape[-1]).index_add_(0, router.experts.flatten(), weights))
    return RouterSums(torch.stack(counts), torch.stack(sums), torch.stack(entropies))


def added(parts: Sequence[RouterSums]) -> RouterSums:
    """The sums over several micro-batches, without gradients."""
    return RouterSums(*(torch.stack(sums).sum(0).detach() for sums in zip(*parts, strict=True)))


def balance_loss(probabilities: Tensor, counts: Tensor, tokens: float) -> Tensor:
    """Σ over layers of E · Σ_i f_i · P_i. probabilities [L, E]: summed over tokens of this part of the update. counts
    [L, E] and tokens: of the whole update. The losses of the parts add up to that of the whole."""
    shares = counts / counts.sum(-1, keepdim=True)
    return probabilities.shape[-1] * (shares * probabilities).sum() / tokens


def load_statistics(counts: Tensor) -> dict[str, Tensor]:
    """Of the choices [L, E]: the highest and lowest load over the mean one (worst layer), and the entropy of the load
    as a share of the even one's (mean of layers)."""
    shares = counts / counts.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(-1) / torch.log(torch.tensor(float(counts.shape[-1])))
    even = shares * counts.shape[-1]
    return {"load_max": even.max(), "load_min": even.min(), "load_entropy": entropy.mean()}
