"""Every operation in plain PyTorch, as the published code computes it. Slow, differentiable, obviously right.

The order of roundings matters in bfloat16 and is the one of transformers' `modeling_qwen3.py` and
`modeling_qwen3_moe.py`: normalise in float32, round, then multiply by the weight; cos and sin rounded before use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> [..., out]."""
    return F.linear(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., h] in any float dtype, weight [h] -> [..., h]: x / sqrt(mean(x²) + eps) in float32, rounded, × weight."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, T, heads, D]; cos, sin [B or 1, T, D/2]. Dimension j is paired with j + D/2."""
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def qk_norm_rope(
    qk: Tensor, heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """QK-norm, then RoPE. qk [B, T, heads + kv_heads, D], weights [D] -> q [B, T, heads, D], k [B, T, kv_heads, D]."""
    q, k = qk[:, :, :heads], qk[:, :, heads:]
    return rotate(rms_norm(q, q_weight, eps), cos, sin), rotate(rms_norm(k, k_weight, eps), cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2f] -> silu(gate) · up [..., f]; the gate is the first half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Grouped-query attention, scale 1/sqrt(D), softmax in float32: q [B, H, T, D], k, v [B, KV, S, D] -> [B, H, T, D].

    `mask` [B or 1, 1, T, S] is added to the scores (0 or -inf), in q's dtype. `causal` (T = S): token t sees 0..t.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        length = q.shape[2]
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if mask is not None:
        scores = scores + mask
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def route(logits: Tensor, top_k: int, normalise: bool, *, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits [N, E] -> (weights [N, top_k] in logits' dtype, experts [N, top_k] int64).

    Softmax over all experts in float32, the best `top_k`, divided by their sum if `normalise` (`norm_topk_prob`).
    counts [N]: experts of each token where that is fewer; those beyond have weight 0 and number -1.
    """
    weights, chosen = F.softmax(logits, dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
    if counts is not None:
        beyond = torch.arange(top_k, device=logits.device) >= counts.unsqueeze(-1)
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
    """Σ over each token's experts of weight · SwiGLU expert, plus `residual`.

    x [N, h], gate_up [E, 2m, h], down [E, h, m], weights and chosen [N, k] -> [N, h]; chosen -1 counts nothing. Tokens
    are sorted by expert, so that each expert that was chosen at all runs once, over all its tokens. invariant: each
    token's numbers are those it would have alone.
    """
    if invariant and len(x) > 1:
        rows = zip(*(t.split(1) for t in (x, weights, chosen)), strict=True)
        out = torch.cat([experts(one, gate_up, down, scale, own) for one, scale, own in rows])
        return out if residual is None else residual + out
    top_k = chosen.shape[1]
    flat = chosen.flatten().long()
    order = flat.argsort(stable=True)
    order = order[int((flat < 0).sum()) :]
    tokens = order // top_k
    rows_in, scales = x[tokens], weights.to(x.dtype).flatten()[order].unsqueeze(-1)
    out = torch.zeros_like(x)
    start = 0
    for expert, count in enumerate(torch.bincount(flat[order], minlength=gate_up.shape[0]).tolist()):
        if count == 0:
            continue
        span = slice(start, start + count)
        part = F.linear(silu_mul(F.linear(rows_in[span], gate_up[expert])), down[expert]) * scales[span]
        out = out.index_add(0, tokens[span], part)
        start += count
    return out if residual is None else residual + out
