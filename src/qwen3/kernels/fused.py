"""The "torch" backend: the same operations through PyTorch's fused ones. Same signatures as `reference`.

Norms keep the weight's product in float32 where PyTorch's fused kernel does, so bfloat16 results may differ from the
reference by one rounding (the fused one being the more exact).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.kernels import reference

# Above this many elements the fused QK-norm only moves more memory (measured on a 2-core EPYC: 5.1 ms became 6.4 ms).
_FEW = 1 << 16


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference. Float32 inference on a CPU goes to oneDNN, where F.linear would take MKL.

    Measured on a 2-core EPYC, torch 2.13: 2.1 to 2.5 times faster from one row (8320 × 512: 1.13 ms against 0.52 ms)
    to 512. bfloat16 goes to oneDNN anyway, and gradients need F.linear.
    """
    if x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def has_onednn() -> bool:
    """Whether this PyTorch has the operator `linear` uses (x86 and ARM builds of 2.11 to 2.13 do)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def qk_norm_rope(
    qk: Tensor, heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """As the reference, over query and key heads at once: half the launches, which is what a decode step costs."""
    if qk.numel() > _FEW:
        return reference.qk_norm_rope(qk, heads, q_weight, k_weight, eps, cos, sin)
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
        rows = q.reshape(batch, kv_heads, heads // kv_heads, dim)
        # reshape: the CUDA kernels give their result in another stride order.
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).reshape(batch, heads, 1, dim)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)
    # With a mask, PyTorch's fused kernels do not share keys between heads.
    groups = heads // kv_heads
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
