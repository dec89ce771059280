"""The engine's operations on a CPU: few operators each, half the bytes for the weights, no copy of a contiguous cache.

A decode step waits for weights and for the start of each operator (1 to 15 µs). So weights are kept a second time, in
the layout a matrix unit reads: bfloat16 ones as oneDNN packs them, float32 ones in float16 by FBGEMM, which multiplies
them with float32 activations into float32 sums. That is done only where float16 holds them to float32's own accuracy,
as it holds every weight that came from bfloat16. Signatures and meaning are those of `reference_engine`.
"""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.kernels import cpu_attend, fused, native
from qwen3.kernels.plan import StepPlan
from qwen3.kernels.reference_engine import saturated

_EXACT = 2e-7  # share of a weight's norm that float16 may lose: what summing in float32 loses anyway
_MANY = 1 << 22  # weights of this many elements are worth several threads for one row
_ROWS_SERIAL = 64  # rows × threads up to which one thread with float16 weights beats all of them with float32
_ROWS_PACKED = 32  # rows above which oneDNN rearranges bfloat16 weights at no cost worth a second copy
_TILE = 8  # rows at a time in bfloat16, batch-invariant: oneDNN's order of summation depends on their number
_ZERO = torch.zeros(1, device="cpu")

pack_limit = 256 << 20
"""Bytes that packed copies of weights may take in all; a model's loader raises it by what the machine has to spare."""
packed_bytes = 0
"""Bytes that they take."""


class _Packed:
    """A weight's second copy, hung on the tensor so that both go together. `run` is None where there is none."""

    def __init__(self, key: tuple[int, int], run: Callable[[Tensor], Tensor] | None, size: int) -> None:
        global packed_bytes
        self.key, self.run, self.size = key, run, size
        packed_bytes += size

    def __del__(self) -> None:
        global packed_bytes
        if packed_bytes is not None:  # the interpreter takes names away before it ends
            packed_bytes -= self.size


def packed(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """x -> x @ weightᵀ by the packed copy, made at the first call and after the weight was written (though not through
    `.data`). None: there is no room, or no layout that keeps the weight's accuracy."""
    held: _Packed | None = getattr(weight, "_qwen3_packed", None)
    key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    if held is None or held.key != key:
        held = weight._qwen3_packed = None  # type: ignore[attr-defined]  # an old copy makes room for the new one
        size = 2 * weight.numel()
        run = _pack(weight.detach()) if packed_bytes + size <= pack_limit else None
        held = weight._qwen3_packed = _Packed(key, run, 0 if run is None else size)  # type: ignore[attr-defined]
    return held.run


def _pack(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    if weight.dtype == torch.bfloat16 and fused.has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        multiply = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: multiply(x, blocked, None, "none", [], "")
    if weight.dtype != torch.float32 or not has_fbgemm():
        return None
    lost = torch.linalg.vector_norm(weight.half().float().sub_(weight))
    if not lost <= _EXACT * torch.linalg.vector_norm(weight):
        return None
    # Both give the same bits; the second is on all threads and takes 8 µs more to start.
    if weight.numel() < _MANY:
        own, serial = torch.fbgemm_pack_gemm_matrix_fp16(weight), torch.fbgemm_linear_fp16_weight_fp32_activation
        return lambda x: serial(x, own, None)
    shared, threaded = torch.ops.quantized.linear_prepack_fp16(weight), torch.ops.quantized.linear_dynamic_fp16.default
    return lambda x: threaded(x, shared)


@functools.cache
def has_fbgemm() -> bool:
    """Whether this PyTorch multiplies float32 rows with packed float16 weights (x86 builds with AVX2 do)."""
    with warnings.catch_warnings():  # they say that they will go; then oneDNN does it
        warnings.simplefilter("ignore")
        try:
            one = torch.ones(1, 1, device="cpu")
            own = torch.fbgemm_pack_gemm_matrix_fp16(one)
            return torch.fbgemm_linear_fp16_weight_fp32_activation(one, own, None).item() == 1
        except (AttributeError, RuntimeError):
            return False


def fused_linear(
    x: Tensor, weight: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """See `reference_engine.fused_linear`."""
    if norm is not None:
        if x.shape[0] == 1 and x.dtype == torch.float32 and eps > 0 and not invariant:
            scale = (torch.dot(x[0], x[0]).item() / x.shape[1] + eps) ** -0.5
            x = torch.addcmul(_ZERO, x, norm, value=scale)
        else:
            x = F.rms_norm(x, (x.shape[1],), norm, eps)
    y = _linear(x, weight, invariant)
    if silu:
        half = y.shape[1] // 2
        y = F.silu(y[:, :half]).mul_(y[:, half:])
    return y if residual is None else y.add_(residual)


def _linear(x: Tensor, weight: Tensor, invariant: bool) -> Tensor:
    """x [M, K] @ weight [N, K]ᵀ, a fresh tensor."""
    rows = x.shape[0]
    if rows == 0 or x.dtype != weight.dtype:
        return F.linear(x, weight)
    if x.dtype == torch.float32:
        run, threads = packed(weight), torch.get_num_threads()
        if run is not None and (invariant or threads == 1 or rows * threads <= _ROWS_SERIAL):
            return run(x)  # whose sums do not depend on the number of rows
        if invariant and rows > 1:
            return torch.cat([fused.linear(row, weight) for row in x.split(1)])
        return fused.linear(x, weight)
    if invariant:
        tiles = F.pad(x, (0, 0, 0, -rows % _TILE)).split(_TILE)
        return torch.cat([_few(tile, weight) for tile in tiles])[:rows]
    return _few(x, weight) if rows <= _ROWS_PACKED else F.linear(x, weight)


def _few(x: Tensor, weight: Tensor) -> Tensor:
    """Some rows in 16 bits. Without a packed copy a single row goes past oneDNN, which would make one: 1.6 × faster."""
    run = packed(weight)
    if run is not None:
        return run(x)
    if x.shape[0] > 1 or not torch._C._get_mkldnn_enabled():
        return F.linear(x, weight)
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
    """What every layer needs of a plan: int64 slots, (cos, cos) and (-sin, sin) · √D [N, 1, D], its rows."""

    plan: weakref.ref[StepPlan]
    slots: Tensor
    cos: Tensor
    sin: Tensor
    rows: list[_Row]


_last: _Step | None = None


def _step(plan: StepPlan, block: int, dim: int) -> _Step:
    """Worked out by a step's first layer. The plan's tensors may not change while it is in use."""
    global _last
    step = _last
    if step is not None and step.plan() is plan:
        return step
    cos, sin = (plan.cos_sin.index_select(0, plan.positions) * dim**0.5).unsqueeze(1).chunk(2, dim=-1)
    rows, starts = [], plan.starts.tolist()
    for row, length in enumerate(plan.lengths.tolist()):
        if starts[row] < starts[row + 1]:
            own = plan.tables[row, : -(-length // block)]
            blocks = own.tolist()
            if blocks == list(range(blocks[0], blocks[0] + len(blocks))):
                rows.append(_Row(starts[row], starts[row + 1], length, blocks[0] * block, None))
            else:
                rows.append(_Row(starts[row], starts[row + 1], length, 0, own))
    turns = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    _last = step = _Step(weakref.ref(plan), plan.slots.long(), *turns, rows)
    return step


@functools.cache
def _floor(value: float) -> Tensor:
    return torch.tensor(value, device="cpu")


def rope_cache(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """See `reference_engine.rope_cache`; in float32 throughout, rounded once."""
    dim, both = k_cache.shape[-1], heads + kv_heads
    step = _step(plan, k_cache.shape[1], dim)
    parts = qkv.view(qkv.shape[0], both + kv_heads, dim)
    qk = parts[:, :both].float()
    length = torch.linalg.vector_norm(qk, dim=-1, keepdim=True)
    qk = qk / torch.hypot(length, _floor(math.sqrt(dim * eps)))  # · √D is the RMS norm; √D is in cos and sin
    qk[:, :heads].mul_(q_weight)
    qk[:, heads:].mul_(k_weight)
    turned = (qk * step.cos).addcmul_(qk.roll(dim // 2, -1), step.sin).to(qkv.dtype)
    for cache, new in ((k_cache, turned[:, heads:]), (v_cache, parts[:, both:])):
        cache.view(-1, kv_heads, dim)[step.slots] = saturated(new, cache.dtype)
    return turned[:, :heads]


def paged_attention(q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """See `reference_engine.paged_attention`. Batch-invariant: every query alone, over its own keys."""
    found = []
    for first, last, length, at, blocks in _step(plan, *k_cache.shape[1::2]).rows:
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
    if blocks is not None:
        cache = cache.index_select(0, blocks)
    start = cache.storage_offset() + at * kv_heads * dim
    return cache.as_strided((1, kv_heads, length, dim), (0, dim, kv_heads * dim, 1), start).to(dtype)


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query [1, H, D]: the heads that share keys become rows of one small matrix, and nothing is copied."""
    rows = q.reshape(1, k.shape[1], -1, q.shape[2])
    return F.scaled_dot_product_attention(rows, k, v).view_as(q)


def _chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """n queries [n, H, D]: the last n keys are their own and seen causally, those before by all; the two are merged."""
    before = k.shape[2] - q.shape[0]
    rows = q.transpose(0, 1).unsqueeze(0)
    flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    out, weight = flash(rows, k[:, :, before:], v[:, :, before:], 0.0, True)
    if before:
        past, past_weight = flash(rows, k[:, :, :before], v[:, :, :before], 0.0, False)
        share = torch.sigmoid(weight - past_weight).unsqueeze(-1)
        out = torch.lerp(past.float(), out.float(), share).to(q.dtype)
    merged: Tensor = out[0].transpose(0, 1)
    return merged


def attend(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """See `reference_engine.attend`."""
    q = rope_cache(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    return paged_attention(q, plan, k_cache, v_cache).reshape(q.shape[0], -1)


def compiled_attend(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """`attend` by the compiled kernels, where there are any that take this."""
    library = native.library() if cpu_attend.fits(qkv, heads, kv_heads, k_cache) else None
    if library is None:
        return attend(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    q = cpu_attend.rope_cache(library, qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    return cpu_attend.attention(library, q, plan, k_cache, v_cache)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "fused_linear": fused_linear,
    "attend": attend,
    "compiled_attend": compiled_attend,
}
"""What `dispatch` registers as "cpu"."""
