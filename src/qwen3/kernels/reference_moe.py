"""Mixture of experts as the engine asks for it, in plain PyTorch: experts counted per token, skipped ones, residual."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.kernels import reference


def route(logits: Tensor, top_k: int, normalise: bool, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.route`. counts [N]: experts per token, 1 to top_k; beyond, weight 0 and expert -1."""
    weights, chosen = reference.route(logits.float(), top_k, False)
    if counts is not None:
        beyond = torch.arange(top_k, device=logits.device) >= counts.unsqueeze(1)
        weights, chosen = weights.masked_fill(beyond, 0), chosen.masked_fill(beyond, -1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), chosen


def experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    chosen: Tensor,
    *,
    residual: Tensor | None = None,
    invariant: bool = False,
) -> Tensor:
    """As `reference.experts` (+ residual [N, h]); expert -1 is skipped. invariant: token by token."""
    if invariant and len(x) > 1:
        rows = range(len(x))
        out = torch.cat([experts(x[i : i + 1], gate_up, down, weights[i : i + 1], chosen[i : i + 1]) for i in rows])
    else:
        used = chosen >= 0
        weights = weights.to(x.dtype).masked_fill(~used, 0)
        out = reference.experts(x, gate_up, down, weights, chosen.long().masked_fill(~used, 0))
    return out if residual is None else residual + out


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers without visible structure (the finaliser of MurmurHash3)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """ids, positions [N] -> [N, experts] float32 in (0, 1), hashed from id, position and layer.

    Their best k are a uniform choice without replacement: what the router of random weights is replaced by in
    benchmarks, where real ones would favour a few experts.
    """
    seed = _mix((ids.long() + 0x9E3779B9) & 0xFFFFFFFF)
    seed = _mix(seed ^ (positions.long() & 0xFFFFFFFF))
    seed = _mix((seed + layer) & 0xFFFFFFFF)
    lanes = _mix(torch.arange(experts, device=ids.device) + 0x7F4A7C15)
    noise = _mix(seed.unsqueeze(1) ^ lanes)
    return ((noise >> 9).float() + 0.5) * 2.0**-23
