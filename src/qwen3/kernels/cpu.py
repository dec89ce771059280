"""The engine's operations on a CPU: few operators each, half the bytes for the weights, no copy of a contiguous cache.

A decode step waits for weights and for the start of each operator (1 to 15 µs). So weights are kept a second time, in
the layout a matrix unit reads: bfloat16 ones as oneDNN packs them, float32 ones in float16 by FBGEMM, which multiplies
them with float32 activations into float32 sums. That is done only where float16 holds them to float32's own accuracy,
as it holds every weight that came from bfloat16. Signatures and meaning are those of `reference_engine`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.kernels import fused, reference
from qwen3.kernels.plan import StepPlan
from qwen3.kernels.reference_engine import saturated

_EXACT = 2e-7  # share of a weight's norm that float16 may lose: what summing in float32 loses anyway
_MANY = 1 << 22  # weights of this many elements are worth several threads for one row
_ROWS_SERIAL = 64  # rows × threads up to which one thread with float16 weights beats all of them with float32
_ROWS_PACKED = 32  # rows from which oneDNN repacks bfloat16 weights at no cost worth a second copy
_TILE = 8  # rows at a time in bfloat16, batch-invariant: oneDNN's order of summation depends on their number
_ZERO = torch.zeros(1, device="cpu")

pack_limit = 256 << 20
"""Bytes that packed copies of weights may take in all; the engine raises it by what the machine has to spare."""
_packed_bytes = 0
_generation = 0


class _Packed:
    """A weight's second copy, hung on the tensor so that both go together. `run` is None where there is none."""

    __slots__ = ("bytes", "key", "run")

    def __init__(self, key: tuple[int, int, int], run: Callable[[Tensor], Tensor] | None, size: int) -> None:
        global _packed_bytes
        self.key, self.run, self.bytes = key, run, size
        _packed_bytes += size

    def __del__(self) -> None:
        global _packed_bytes
        _packed_bytes -= self.bytes


def pack(weights: list[Tensor], limit: int | None = None) -> int:
    """Makes the packed copies now (else each is made at its first use), on all threads. Returns the bytes they take.

    limit: the new `pack_limit`; weights beyond it are multiplied as they are.
    """
    global pack_limit
    if limit is not None:
        pack_limit = limit
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(_packed, weights))
    return _packed_bytes


def forget() -> None:
    """Weights were changed in place: packed copies are made anew at their next use."""
    global _generation
    _generation += 1


def has_float16_weights() -> bool:
    """Whether this PyTorch multiplies float32 rows with packed float16 weights (FBGEMM: x86 with AVX2)."""
    global _fbgemm
    if _fbgemm is None:
        with warnings.catch_warnings():  # two of them say they will go; then `_fbgemm` is False and oneDNN does it
            warnings.simplefilter("ignore")
            try:
                weight = torch.fbgemm_pack_gemm_matrix_fp16(torch.ones(1, 1))
                _fbgemm = torch.fbgemm_linear_fp16_weight_fp32_activation(torch.ones(1, 1), weight, None).item() == 1
            except (AttributeError, RuntimeError):
                _fbgemm = False
    return _fbgemm


_fbgemm: bool | None = None


def _packed(weight: Tensor) -> _Packed:
    """The packed copy of a weight as it is now."""
    key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, _generation)
    held: _Packed | None = getattr(weight, "_qwen3_packed", None)
    if held is None or held.key != key:
        weight._qwen3_packed = None  # type: ignore[attr-defined]  # the old one's bytes are free before the new one's count
        run = _pack(weight.detach()) if _packed_bytes + 2 * weight.numel() <= pack_limit else None
        held = _Packed(key, run, 2 * weight.numel() if run is not None else 0)
        weight._qwen3_packed = held  # type: ignore[attr-defined]
    return held


def _pack(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    if weight.dtype == torch.bfloat16 and fused.has_onednn():
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        multiply = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: multiply(x, blocked, None, "none", [], "")
    if weight.dtype != torch.float32 or not has_float16_weights():
        return None
    lost = torch.linalg.vector_norm(weight.half().float().sub_(weight))
    if not lost <= _EXACT * torch.linalg.vector_norm(weight):
        return None
    # Both give the same bits; the second is on all threads and takes 8 µs more to start.
    if weight.numel() < _MANY:
        own, serial = torch.fbgemm_pack_gemm_matrix_fp16(weight), torch.fbgemm_linear_fp16_weight_fp32_activation
        return lambda x: serial(x, own, None)
    shared = torch.ops.quantized.linear_prepack_fp16(weight, None)
    threaded = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda x: threaded(x, shared)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    invariant: bool = False,
) -> Tensor:
    """See `reference_engine.fused_linear`."""
    if norm is not None:
        if x.shape[0] == 1 and x.dtype == torch.float32 and eps > 0 and not invariant:
            row = x[0]
            scale = (torch.dot(row, row).item() / x.shape[1] + eps) ** -0.5
            x = torch.addcmul(_ZERO, x, norm, value=scale)
        else:
            x = F.rms_norm(x, (x.shape[1],), norm, eps)
    y = _linear(x, weight, invariant)
    if silu:
        half = y.shape[1] // 2
        y = F.silu(y[:, :half]).mul_(y[:, half:])
    if residual is not None:
        y = y.add_(residual) if residual.dtype == y.dtype else residual + y
    return y if out_dtype is None else y.to(out_dtype)


def _linear(x: Tensor, weight: Tensor, invariant: bool) -> Tensor:
    """x [M, K] @ weight [N, K]ᵀ, a fresh tensor."""
    rows = x.shape[0]
    if rows == 0 or x.dtype != weight.dtype:
        return F.linear(x, weight)
    if x.dtype == torch.float32:
        run = _packed(weight).run
        if run is not None:
            threads = torch.get_num_threads()
            if invariant or threads == 1 or rows * threads <= _ROWS_SERIAL:
                return run(x)
        elif invariant and rows > 1:
            return torch.cat([fused.linear(row, weight) for row in x.split(1)])
        return fused.linear(x, weight)
    if invariant:
        padded = F.pad(x, (0, 0, 0, -rows % _TILE))
        return torch.cat([_few(tile, weight) for tile in padded.split(_TILE)])[:rows]
    return _few(x, weight) if rows <= _ROWS_PACKED else F.linear(x, weight)


def _few(x: Tensor, weight: Tensor) -> Tensor:
    run = _packed(weight).run
    return _unpacked(x, weight) if run is None else run(x)


def _unpacked(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear, but one bfloat16 row past oneDNN, which would copy the weights into its layout: 1.6 times as fast."""
    if x.shape[0] > 1 or x.dtype != torch.bfloat16 or not torch._C._get_mkldnn_enabled():
        return fused.linear(x, weight)
    torch._C._set_mkldnn_enabled(False)
    try:
        return F.linear(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(True)


class _Row(NamedTuple):
    """Queries first..last of the batch, and where their `length` keys are: from token `at` on, or in `blocks`."""

    first: int
    last: int
    length: int
    at: int
    blocks: Tensor | None


class _Step(NamedTuple):
    """What every layer of a step needs of its plan: int64 slots, cos and (-sin, sin) [N, 1, D] float32, the rows."""

    plan: StepPlan
    slots: Tensor
    cos: Tensor
    sin: Tensor
    rows: list[_Row]


_last: _Step | None = None


def _step(plan: StepPlan, block: int) -> _Step:
    """Worked out by a step's first layer. The plan's tensors may not change while it is in use."""
    global _last
    step = _last
    if step is not None and step.plan is plan:
        return step
    cos, sin = plan.cos_sin.index_select(0, plan.positions).unsqueeze(1).chunk(2, dim=-1)
    rows = []
    starts, lengths = plan.starts.tolist(), plan.lengths.tolist()
    for row, length in enumerate(lengths):
        if starts[row] == starts[row + 1]:
            continue
        own = plan.tables[row, : -(-length // block)]
        blocks = own.tolist()
        run = not blocks or blocks == list(range(blocks[0], blocks[0] + len(blocks)))
        rows.append(
            _Row(starts[row], starts[row + 1], length, blocks[0] * block if run and blocks else 0, None if run else own)
        )
    _last = step = _Step(plan, plan.slots.long(), torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), rows)
    return step


class _Heads(NamedTuple):
    """QK-norm's constants: weights of all query and key heads · √D [H + KV, D], √(D · eps)."""

    key: tuple[int, ...]
    weight: Tensor
    floor: Tensor


def _heads(q_weight: Tensor, k_weight: Tensor, heads: int, kv_heads: int, eps: float) -> _Heads:
    versions = (0, 0) if q_weight.is_inference() else (q_weight._version, k_weight._version)
    key = (heads, k_weight.data_ptr(), *versions, _generation)
    held: _Heads | None = getattr(q_weight, "_qwen3_heads", None)
    if held is None or held.key != key:
        dim = q_weight.shape[0]
        weight = torch.cat((q_weight.detach().expand(heads, dim), k_weight.detach().expand(kv_heads, dim)))
        held = _Heads(key, weight.float() * dim**0.5, torch.tensor(math.sqrt(dim * eps), device="cpu"))
        q_weight._qwen3_heads = held  # type: ignore[attr-defined]
    return held


def rope_cache(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    plan: StepPlan,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """See `reference_engine.rope_cache`; in float32 throughout, rounded once."""
    dim, both = k_cache.shape[-1], heads + kv_heads
    step = _step(plan, k_cache.shape[1])
    norm = _heads(q_weight, k_weight, heads, kv_heads, eps)
    parts = qkv.view(qkv.shape[0], both + kv_heads, dim)
    qk = parts[:, :both].float()
    length = torch.hypot(torch.linalg.vector_norm(qk, dim=-1, keepdim=True), norm.floor)
    qk = (qk * norm.weight).div_(length)
    turned = (qk * step.cos).addcmul_(qk.roll(dim // 2, -1), step.sin).to(qkv.dtype)
    for cache, new in ((k_cache, turned[:, heads:]), (v_cache, parts[:, both:])):
        if cache.dtype != new.dtype:
            new = saturated(new, cache.dtype)
            if new.element_size() == 1:
                cache, new = cache.view(torch.uint8), new.view(torch.uint8)
        cache.view(-1, kv_heads, dim).index_copy_(0, step.slots, new)
    return turned[:, :heads]


def paged_attention(q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """See `reference_engine.paged_attention`. Batch-invariant: every query alone, over its own keys."""
    rows = _step(plan, k_cache.shape[1]).rows
    found = []
    for first, last, length, at, blocks in rows:
        k, v = _keys(k_cache, length, at, blocks, q.dtype), _keys(v_cache, length, at, blocks, q.dtype)
        if last - first == 1:
            found.append(_one(q[first:last], k, v))
        elif plan.invariant:
            seen = range(length - (last - first) + 1, length + 1)
            found += [_one(q[first + i : first + i + 1], k[:, :, :n], v[:, :, :n]) for i, n in enumerate(seen)]
        else:
            found.append(_chunk(q[first:last], k, v))
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if found else torch.empty_like(q)


def _keys(cache: Tensor, length: int, at: int, blocks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A row's first `length` keys or values [1, KV, length, D], a view of the cache where they lie in one piece."""
    _, _, kv_heads, dim = cache.shape
    start = cache.storage_offset() + at * kv_heads * dim
    if blocks is not None:
        if cache.element_size() == 1:
            cache = cache.view(torch.uint8).index_select(0, blocks).view(cache.dtype)
        else:
            cache = cache.index_select(0, blocks)
        start = 0
    keys = cache.as_strided((1, kv_heads, length, dim), (0, dim, kv_heads * dim, 1), start)
    return keys if keys.dtype == dtype else keys.to(dtype)


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query [1, H, D]: the heads that share keys become rows of one small matrix, and nothing is copied."""
    _, heads, dim = q.shape
    rows = q.reshape(1, k.shape[1], heads // k.shape[1], dim)
    return F.scaled_dot_product_attention(rows, k, v).view(1, heads, dim)


def _chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """n queries [n, H, D]: the last n keys are their own and seen causally, those before by all; the two are merged."""
    before = k.shape[2] - q.shape[0]
    rows = q.transpose(0, 1).unsqueeze(0)
    flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    own, own_weight = flash(rows, k[:, :, before:], v[:, :, before:], 0.0, True)
    if before:
        past, past_weight = flash(rows, k[:, :, :before], v[:, :, :before], 0.0, False)
        share = torch.sigmoid(own_weight - past_weight).unsqueeze(-1)
        own = torch.lerp(past.float(), own.float(), share).to(q.dtype)
    merged: Tensor = own[0].transpose(0, 1)
    return merged


def attend(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    plan: StepPlan,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """See `reference_engine.attend`."""
    q = rope_cache(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    return paged_attention(q, plan, k_cache, v_cache).reshape(q.shape[0], -1)


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
    """See `reference.experts`; experts are multiplied as they are, since a second copy would rarely fit."""
    if invariant and x.shape[0] > 1:
        rows = zip(*(t.split(1) for t in (x, weights, chosen)), strict=True)
        out = torch.cat([experts(one, gate_up, down, scale, own) for one, scale, own in rows])
        return out if residual is None else residual + out
    flat = chosen.flatten()
    out = torch.zeros_like(x) if residual is None else residual.clone()
    scale = weights.flatten().unsqueeze(-1)
    for expert in sorted(set(flat.tolist()) - {-1}):
        places = (flat == expert).nonzero().squeeze(1)
        tokens = places // chosen.shape[1]
        hidden = reference.silu_mul(_unpacked(x[tokens], gate_up[expert]))
        out.index_add_(0, tokens, _unpacked(hidden, down[expert]) * scale[places])
    return out


OPERATIONS = {
    "fused_linear": fused_linear,
    "rope_cache": rope_cache,
    "paged_attention": paged_attention,
    "attend": attend,
    "experts": experts,
}
"""What `dispatch` registers as "cpu"."""
