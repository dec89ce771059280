"""The "torch" backend: the same operations through PyTorch's fused ones. Same signatures as `reference`.

Norms keep the weight's product in float32 where PyTorch's fused kernel does, so bfloat16 results may differ from the
reference by one rounding (the fused one being the more exact).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def qk_norm_rope(
    qk: Tensor, heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """As the reference, over query and key heads at once: half the launches, which is what a decode step costs."""
    dim = qk.shape[-1]
    kv_heads = qk.shape[2] - heads
    weight = torch.cat((q_weight.expand(heads, dim), k_weight.expand(kv_heads, dim)))
    x = F.rms_norm(qk, (dim,), None, eps) * weight
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    x = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return x[:, :, :heads], x[:, :, heads:]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """As the reference, through scaled_dot_product_attention; no score matrix is kept."""
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    if length == 1:
        # One query: the heads that share keys become rows of one small matrix, and nothing is copied.
        rows = q.view(batch, kv_heads, heads // kv_heads, dim)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(batch, heads, 1, dim)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)
    # With a mask, PyTorch's fused kernels do not share keys between heads.
    groups = heads // kv_heads
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
