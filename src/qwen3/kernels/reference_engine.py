"""What an engine step is made of, in plain PyTorch over a flat batch and a paged cache. Slow, obviously right.

Shapes: N tokens, R rows, h hidden, H query heads, KV key heads, D head size. Caches of one layer: [blocks, 16, KV, D]
in the model's dtype or float8_e4m3fn (scale 1, clamped to its range on the way in). `plan.StepPlan` has the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.kernels import reference
from qwen3.kernels.plan import BLOCK, StepPlan


def fused_linear(
    x: Tensor, weight: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """x [M, K], weight [N, K] -> rms_norm(x; norm) @ weightᵀ (+ residual) [M, N].

    silu: weight holds gate rows, then up rows; the result is silu(gate) · up [M, N/2]. invariant: each row's numbers
    are those it would have alone. overwrite: the residual is not needed any more, its memory may become the result's.
    """
    if norm is not None:
        x = reference.rms_norm(x, norm, eps)
    y = torch.cat([F.linear(row, weight) for row in x.split(1)]) if invariant and len(x) else F.linear(x, weight)
    if silu:
        y = reference.silu_mul(y)
    return y if residual is None else residual + y


def rope_cache(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """QK-norm and RoPE on qkv [N, (H + 2·KV)·D]; keys and values go to `plan.slots`. Returns queries [N, H, D]."""
    dim = k_cache.shape[-1]
    parts = qkv.reshape(1, len(qkv), heads + 2 * kv_heads, dim)
    cos, sin = plan.cos_sin[plan.positions.long()].to(qkv.dtype).unsqueeze(0).chunk(2, dim=-1)
    q, k = reference.qk_norm_rope(parts[:, :, : heads + kv_heads], heads, q_weight, k_weight, eps, cos, sin)
    slots = plan.slots.long()
    for cache, new in ((k_cache, k[0]), (v_cache, parts[0, :, heads + kv_heads :])):
        cache.view(-1, kv_heads, dim)[slots] = saturated(new, cache.dtype)
    return q[0]


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`; into float8 clamped, where a plain cast would give NaN."""
    if dtype == torch.float8_e4m3fn:
        x = x.float().clamp(-448, 448)
    return x.to(dtype)


def paged_attention(q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """q [N, H, D] -> [N, H, D]: a row with n queries and `length` keys lets query i see length - n + 1 + i."""
    out = torch.empty_like(q)
    kv_heads, dim = k_cache.shape[-2:]
    starts, lengths = plan.starts.tolist(), plan.lengths.tolist()
    for row, length in enumerate(lengths):
        first, last = starts[row], starts[row + 1]
        blocks = plan.tables[row, : -(-length // k_cache.shape[1])].long()
        k, v = (
            cache[blocks].view(-1, kv_heads, dim)[:length].to(q.dtype).transpose(0, 1).unsqueeze(0)
            for cache in (k_cache, v_cache)
        )
        own = torch.arange(length - (last - first), length, device=q.device).unsqueeze(1)
        later = torch.arange(length, device=q.device) > own
        mask = torch.zeros(later.shape, dtype=q.dtype, device=q.device).masked_fill_(later, float("-inf"))
        found = reference.attention(q[first:last].transpose(0, 1).unsqueeze(0), k, v, mask)
        out[first:last] = found[0].transpose(0, 1)
    return out


def attend(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """`rope_cache`, then `paged_attention`: [N, (H + 2·KV)·D] -> [N, H·D]."""
    q = rope_cache(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    return paged_attention(q, plan, k_cache, v_cache).flatten(1)


def decode_inputs(
    rows: Tensor, last_token: Tensor, position: Tensor, tables: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a step over one token of each row reads from the samples' state.

    rows int32 [R]: samples' slots; last_token, position int32 [slots + 1], tables int32 [slots + 1, MB]: their state;
    embedding [V, h]. Returns the step's embeddings [R, h], ids [R], positions [R], cache slots [R], lengths [R] and
    tables [R, MB].
    """
    ids, positions, own = last_token[rows], position[rows], tables[rows]
    block = own.gather(1, (positions // BLOCK).long().unsqueeze(1))[:, 0]
    return F.embedding(ids, embedding), ids, positions, block * BLOCK + positions % BLOCK, positions + 1, own


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
