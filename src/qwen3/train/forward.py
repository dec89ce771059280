"""The network's own modules over packed batches: attention within documents, fast on a GPU, exact on a CPU.

Four ways to attend, one meaning (causal within each document):

* equal: documents that all fill a row are a batch like any other: cuDNN's attention on CUDA (on an H100 faster than
  PyTorch's FlashAttention, above all backward), SDPA elsewhere.
* flex: FlexAttention with a block mask of the documents (CUDA).
* varlen: FlashAttention over the bounds of the documents (CUDA, torch.nn.attention.varlen); on other devices one
  document after the other.
* dense: a mask of every pair of places in a row. The reference of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from qwen3 import kernels
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.model.network import Layer, RouterOutput, SparseMLP
from qwen3.train.fp8 import Fp8, use_fp8
from qwen3.train.packing import IGNORED, PackedBatch

AttentionKind = Literal["equal", "flex", "varlen", "dense"]
Checkpointing = Literal["none", "layers", "attention"]
Compiling = Literal["none", "layers", "whole"]
# Tokens. There and back, an H100 takes 2.4 ms with varlen and 3.1 with flex for documents of 300 tokens, 12.7 and 10.2
# for those of 8,192.
_LONG = 2048


@dataclass(frozen=True, eq=False)
class BatchTensors:
    """A PackedBatch on a device. ids, labels, positions, documents: int64 [rows, length]. streams as there, float32.
    routes: int16 [layers, rows, length, k]. places: int64, where the flattened labels count. bounds: int32, where the
    documents begin in the flattened batch, and its end. longest: tokens of the longest document. typical: tokens of the
    document that a token is in, on average. whole: every row is one document."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Tensor
    streams: dict[str, Tensor]
    routes: Tensor | None
    places: Tensor
    bounds: Tensor
    longest: int
    typical: float
    whole: bool


def to_tensors(batch: PackedBatch, device: torch.device) -> BatchTensors:
    """The batch on the device; the copies do not wait."""

    def put(array: Any) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    ids, labels, positions, documents = put(
        np.stack([batch.ids, batch.labels, batch.positions, batch.documents])
    ).long()
    bounds = batch.bounds()
    lengths = np.diff(bounds)
    return BatchTensors(
        ids, labels, positions, documents,
        {name: put(values) for name, values in batch.streams.items()},
        None if batch.routes is None else put(batch.routes),
        put(np.flatnonzero(batch.labels != IGNORED)),
        put(bounds),
        int(lengths.max()),
        float((lengths.astype(np.float64) ** 2).sum() / lengths.sum()),
        bool((lengths == batch.ids.shape[1]).all()),
    )  # fmt: skip


class AttentionPlan(NamedTuple):
    """How one batch attends, made once for all layers. kind: an AttentionKind, or "cudnn" for "equal" where that runs.
    mask: a BlockMask (flex) or what is added to the scores (dense). bounds, longest: varlen."""

    kind: str
    mask: Any = None
    bounds: Tensor | None = None
    longest: int = 0


def choose_attention(tensors: BatchTensors, asked: AttentionKind | None = None) -> AttentionKind:
    """What this batch gets when nothing is asked for. Raises UsageError for an unknown kind, or "equal" for rows with
    several documents."""
    if asked is None:
        long = tensors.ids.is_cuda and tensors.typical > _LONG
        return "equal" if tensors.whole else "flex" if long else "varlen"
    if asked not in get_args(AttentionKind):
        raise UsageError(f"attention={asked!r} must be one of {', '.join(get_args(AttentionKind))}")
    if asked == "equal" and not tensors.whole:
        raise UsageError("attention='equal' needs rows of one document each")
    return asked


def plan_attention(tensors: BatchTensors, dtype: torch.dtype, asked: AttentionKind | None = None) -> AttentionPlan:
    """dtype: of the queries."""
    kind = choose_attention(tensors, asked)
    if kind == "flex":
        return AttentionPlan(kind, _block_mask(tensors.documents))
    if kind == "varlen":
        return AttentionPlan(kind, None, *_rounded(tensors))
    if kind == "dense":
        return AttentionPlan(kind, _dense_mask(tensors.documents, dtype))
    return AttentionPlan("cudnn" if _cudnn_runs(tensors.ids.device, dtype) else kind)


def attend(plan: AttentionPlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, H, T, D], k, v [B, KV, T, D] -> [B, H, T, D]."""
    if plan.kind == "flex":
        out = _flex(q, k, v, block_mask=plan.mask, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(out, Tensor)
        return out
    if plan.kind == "dense":
        return kernels.attention(q, k, v, plan.mask)
    if plan.kind == "varlen":
        return _varlen(plan, q, k, v)
    if plan.kind == "cudnn":
        return _cudnn(q, k, v)
    return kernels.attention(q, k, v, None, True)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The operator itself: a context manager would be one more thing that compilation has to see through.
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)[0]
    return out


@lru_cache
def _cudnn_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device's cuDNN has attention for heads of 128, both ways, with fewer heads of keys."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    q = torch.zeros(1, 2, 64, 128, dtype=dtype, device=device, requires_grad=True)
    k = torch.zeros(1, 1, 64, 128, dtype=dtype, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            _cudnn(q, k, k).sum().backward()
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _document_block_mask(documents: Tensor) -> BlockMask:
    rows, length = documents.shape

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    return create_block_mask(visible, rows, None, length, length, device=documents.device)


def _dense_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T]: 0 where a place may look, else -inf."""
    order = torch.arange(documents.shape[1], device=documents.device)
    seen = (documents[:, :, None] == documents[:, None, :]) & (order[:, None] >= order)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]


def _rounded(tensors: BatchTensors) -> tuple[Tensor, int]:
    """Bounds padded with empty documents, and the longest rounded up: few shapes, few compilations."""
    if not tensors.ids.is_cuda:
        return tensors.bounds, tensors.longest
    room = 1 << max(4, len(tensors.bounds).bit_length())
    bounds = F.pad(tensors.bounds, (0, room - len(tensors.bounds)), value=tensors.ids.numel())
    return bounds, max(512, 1 << (tensors.longest - 1).bit_length())


def _varlen(plan: AttentionPlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, heads, length, width = q.shape
    q, k, v = (t.transpose(1, 2).reshape(rows * length, -1, width) for t in (q, k, v))
    assert plan.bounds is not None
    if q.is_cuda:
        out = _flash_varlen(q, k, v, plan.bounds, plan.longest)
    else:
        out = _one_by_one(q, k, v, torch.diff(plan.bounds).tolist())
    return out.view(rows, length, heads, width).transpose(1, 2)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """A document after the other; all [tokens, heads, D]."""
    parts = []
    for document in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
        a, b, c = (t.transpose(0, 1)[None] for t in document)
        parts.append(kernels.attention(a, b, c, None, True)[0].transpose(0, 1))
    return torch.cat(parts)


def _flash_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    if "enable_gqa" not in _CAUSAL and q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **_CAUSAL)
    assert isinstance(out, Tensor)
    return out


_KNOWN = inspect.signature(varlen_attn).parameters  # torch 2.10 says is_causal, later ones window_size
_CAUSAL: dict[str, Any] = {"is_causal": True} if "is_causal" in _KNOWN else {"window_size": (-1, 0)}
if "enable_gqa" in _KNOWN:
    _CAUSAL["enable_gqa"] = True

if torch.cuda.is_available():  # uncompiled, FlexAttention would write out every score
    _flex: Callable[..., Any] = torch.compile(flex_attention)
    _block_mask: Callable[[Tensor], BlockMask] = torch.compile(_document_block_mask)
else:
    _flex, _block_mask = flex_attention, _document_block_mask

_KEPT = {  # what "attention" checkpointing keeps: each costs more to compute again than it takes room
    name: getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_flash_attention_forward",
    )
    if hasattr(torch.ops.aten, name)
}


def _keep_attention(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in _KEPT.values() or str(operation) in ("flex_attention", "torch_attn._varlen_attn.default")
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def run_layer(
    layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, routes: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """One layer over x [B, T, h] -> (x, the router's logits [B·T, E] and experts [B·T, k] where it is sparse). routes:
    int16 [B·T, k], experts to be taken (-1: the router's own choice)."""
    from qwen3.train.moe import sparse_forward

    found: list[Tensor] = []

    def sparse(mlp: SparseMLP, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, logits, chosen = sparse_forward(mlp, normed, routes)
        found.extend((logits, chosen))
        return out, logits, chosen

    # The layer's number is read nowhere: it would be a reason to compile each layer on its own.
    x = layer(
        x, cos, sin, lambda _, q, k, v: attend(plan, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
        sparse=sparse,
    )  # fmt: skip
    return x, (found[0], found[1]) if found else None


def run_layers(
    model: Qwen3, tensors: BatchTensors, plan: AttentionPlan, run: Callable[..., Any] = run_layer
) -> tuple[Tensor, list[RouterOutput]]:
    """(states [B, T, h] after the last norm, what the routers of sparse layers did). run: `run_layer`, wrapped."""
    x = model.embed_tokens(tensors.ids)
    cos, sin = model.rotary(tensors.positions, x.dtype)
    routers = []
    for i, layer in enumerate(model.layers):
        routes = None if tensors.routes is None else tensors.routes[i].flatten(0, 1)
        x, router = run(layer, x, cos, sin, plan, routes)
        if router is not None:
            routers.append(RouterOutput(i, *router))
    return model.norm(x), routers


class Forward:
    """`run_layers` with its options. attention: None chooses by batch. checkpointing: "layers" computes each layer
    again on the way back, "attention" all of it but the attention. compiling: "layers" compiles one layer and uses it
    for all, "whole" the network (more seconds, a little faster). fp8: products of the layers in 8 bits, see
    `use_fp8`, which the model has from then on; None: as it is.

    Raises UsageError for an option that does not exist.
    """

    def __init__(
        self,
        model: Qwen3,
        *,
        attention: AttentionKind | None = None,
        checkpointing: Checkpointing = "none",
        compiling: Compiling = "none",
        fp8: Fp8 | None = None,
    ) -> None:
        for name, value, allowed in (
            ("checkpointing", checkpointing, get_args(Checkpointing)), ("compiling", compiling, get_args(Compiling)),
        ):  # fmt: skip
            if value not in allowed:
                raise UsageError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        self.model = model
        self.attention = attention
        if fp8 is not None:
            use_fp8(model, fp8)
        kernels.chosen(model.device.type, training=True)  # now: compiled code may not meet a table that changes
        run: Callable[..., Any] = torch.compile(run_layer) if compiling == "layers" else run_layer
        if checkpointing != "none":
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)  # there is nothing random
        if checkpointing == "attention":
            run = partial(run, context_fn=partial(create_selective_checkpoint_contexts, _keep_attention))
        whole: Callable[..., Any] = partial(run_layers, run=run)
        self._run = torch.compile(whole) if compiling == "whole" else whole

    def __call__(self, tensors: BatchTensors) -> tuple[Tensor, list[RouterOutput]]:
        """See `run_layers`."""
        plan = plan_attention(tensors, self.model.dtype, self.attention)
        hidden, routers = self._run(self.model, tensors, plan)
        return hidden, routers


def packed_hidden(model: Qwen3, tensors: BatchTensors, attention: AttentionKind | None = None) -> Tensor:
    """Hidden states [B, T, h] of a packed batch, without options."""
    return Forward(model, attention=attention)(tensors)[0]
