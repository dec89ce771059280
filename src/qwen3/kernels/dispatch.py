"""One table: operation -> backend -> function, and which backend a device gets.

Every operation has a "reference" (plain PyTorch). A faster backend registers the operations it wins; the network calls
`rms_norm`, `attention`, … of this module and gets the best one for the tensor's device. `use("reference")` forces one.
Backends without derivatives ("gpu", "cpu") serve inference only: where gradients are on, the next best one runs.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.kernels import cpu, fp8, fused, grouped, packed, reference, reference_engine
from qwen3.kernels.packed_layers import PackedLayers
from qwen3.kernels.plan import StepPlan

Kernel = Callable[..., Any]

_table: dict[str, dict[str, Kernel]] = {}
_devices: dict[tuple[str, str], tuple[str, ...]] = {}
_inference_only = {"gpu", "cpu"}
_forced: str | None = None
_picked: dict[tuple[str, str, bool], tuple[str, Kernel]] = {}
_gpu_loaded = False


def register(name: str, backend: str, function: Kernel, devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Adds a backend for operation `name` on `devices`; the last one registered for a device is preferred."""
    _table.setdefault(name, {})[backend] = function
    _devices[name, backend] = devices
    _picked.clear()


def available() -> dict[str, list[str]]:
    """Operation -> its backends, the least preferred (the reference) first."""
    return {name: list(backends) for name, backends in _table.items()}


def chosen(device: str = "cpu", training: bool = False) -> dict[str, str]:
    """Operation -> the backend that runs it on this kind of device (for `qwen3 doctor` and reports)."""
    with torch.set_grad_enabled(training):
        return {name: _pick(name, device)[0] for name in _table}


def load_gpu() -> None:
    """Registers the Triton kernels, once; called when the first CUDA tensor comes. Without Triton a warning says so."""
    global _gpu_loaded
    if _gpu_loaded:
        return
    _gpu_loaded = True
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        warnings.warn("no Triton for this GPU: the plain PyTorch operations run, which are slow", stacklevel=3)
        return
    from qwen3.kernels import gpu

    for name, function in gpu.OPERATIONS.items():
        register(name, "gpu", function, ("cuda",))


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Within the block every operation that has `backend` runs on it, the others on the reference. Not thread-safe.

    Raises UsageError if no operation has such a backend.
    """
    global _forced
    known = sorted({name for backends in _table.values() for name in backends})
    if backend not in known:
        raise UsageError(f"kernel backend {backend!r} does not exist (there are: {', '.join(known)})")
    before, _forced = _forced, backend
    _picked.clear()
    try:
        yield
    finally:
        _forced = before
        _picked.clear()


def _pick(name: str, device: str) -> tuple[str, Kernel]:
    key = (name, device, torch.is_grad_enabled())
    found = _picked.get(key)
    if found is None:
        if device == "cuda":
            load_gpu()
        backends = _table[name]
        best = "reference"
        if _forced is None:
            barred = _inference_only if key[2] else ()
            fit = [b for b in backends if device in _devices[name, b] and b not in barred]
            best = fit[-1] if fit else best
        elif _forced in backends:
            best = _forced
        found = _picked[key] = (best, backends[best])
    return found


# The network's operations: differentiable where gradients are on.


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `reference.linear`."""
    if not isinstance(weight, Tensor):
        return F.linear(x, weight)  # as it sees fit
    return _pick("linear", x.device.type)[1](x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    return _pick("rms_norm", x.device.type)[1](x, weight, eps)


def qk_norm_rope(
    qk: Tensor, heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.qk_norm_rope`."""
    return _pick("qk_norm_rope", qk.device.type)[1](qk, heads, q_weight, k_weight, eps, cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    return _pick("silu_mul", gate_up.device.type)[1](gate_up)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """See `reference.attention`."""
    return _pick("attention", q.device.type)[1](q, k, v, mask, causal)


def route(logits: Tensor, top_k: int, normalise: bool, *, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    return _pick("route", logits.device.type)[1](logits, top_k, normalise, counts=counts)


def experts(x: Tensor, gate_up: Any, down: Any, weights: Tensor, chosen: Tensor, **how: Any) -> Tensor:
    """See `reference.experts`."""
    return _pick("experts", x.device.type)[1](x, gate_up, down, weights, chosen, **how)


# The engine's: inference over a flat batch.


def fused_linear(x: Tensor, weight: Any, *, overwrite: bool = False, **how: Any) -> Tensor:
    """See `reference_engine.fused_linear`; weight may be an Fp8Weight, a PackedWeight or a GroupWeight."""
    if isinstance(weight, Tensor):
        return _pick("fused_linear", x.device.type)[1](x, weight, overwrite=overwrite, **how)
    return _pick(weight.operation, x.device.type)[1](x, weight, **how)


def group_rows(weight: Any, ids: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """See `grouped.group_rows`."""
    return _pick("group_rows", weight.device.type)[1](weight, ids, dtype)


def attend(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float,
    plan: StepPlan, k_cache: Tensor, v_cache: Tensor, *, compiled: bool = False,
) -> Tensor:  # fmt: skip
    """See `reference_engine.attend`. compiled: by kernels that are compiled on this machine at their first use."""
    run = _pick("compiled_attend" if compiled else "attend", qkv.device.type)[1]
    return run(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)


def packed_layers(layers: PackedLayers, x: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor | None:
    """See `PackedLayers.run`. None, too, where the compiled kernels are not what runs."""
    if _pick("packed_linear", x.device.type)[0] == _pick("compiled_attend", x.device.type)[0] == "cpu":
        return layers.run(x, plan, k_cache, v_cache)
    return None


def decode_inputs(
    rows: Tensor, last_token: Tensor, position: Tensor, tables: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference_engine.decode_inputs`."""
    return _pick("decode_inputs", rows.device.type)[1](rows, last_token, position, tables, embedding)


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """See `reference_engine.uniform_logits`."""
    return _pick("uniform_logits", ids.device.type)[1](ids, positions, layer, experts)


_ANYWHERE = ("cpu", "cuda", "mps", "xpu", "meta", "privateuseone")
for _name in ("linear", "rms_norm", "qk_norm_rope", "silu_mul", "attention", "route", "experts"):
    register(_name, "reference", getattr(reference, _name), _ANYWHERE)
for _name in ("fused_linear", "attend", "decode_inputs", "uniform_logits"):
    register(_name, "reference", getattr(reference_engine, _name), _ANYWHERE)
register("compiled_attend", "reference", reference_engine.attend, _ANYWHERE)
register("fp8_linear", "reference", fp8.fp8_linear, _ANYWHERE)
register("group_linear", "reference", grouped.group_linear, _ANYWHERE)
register("group_rows", "reference", grouped.group_rows, _ANYWHERE)
register("packed_linear", "reference", packed.linear, _ANYWHERE)
register("packed_linear", "cpu", packed.compiled_linear, ("cpu",))
for _name, _function in cpu.OPERATIONS.items():
    register(_name, "cpu", _function, ("cpu",))
if fused.has_onednn():
    register("linear", "torch", fused.linear, ("cpu",))
register("attention", "torch", fused.attention, ("cpu", "cuda", "mps", "xpu"))
