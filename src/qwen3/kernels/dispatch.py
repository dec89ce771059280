"""One table: operation -> backend -> function, and which backend a device gets.

Every operation has a "reference" (plain PyTorch). A faster backend registers the operations it wins; the network calls
`rms_norm`, `attention`, … of this module and gets the best one for the tensor's device. `use("reference")` forces one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from qwen3.errors import UsageError
from qwen3.kernels import fused, reference

Kernel = Callable[..., Any]

_table: dict[str, dict[str, Kernel]] = {}
_devices: dict[tuple[str, str], tuple[str, ...]] = {}
_forced: str | None = None
_picked: dict[tuple[str, str], tuple[str, Kernel]] = {}


def register(name: str, backend: str, function: Kernel, devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Adds a backend for operation `name` on `devices`; the last one registered for a device is preferred."""
    _table.setdefault(name, {})[backend] = function
    _devices[name, backend] = devices
    _picked.clear()


def available() -> dict[str, list[str]]:
    """Operation -> its backends, the least preferred (the reference) first."""
    return {name: list(backends) for name, backends in _table.items()}


def chosen(device: str = "cpu") -> dict[str, str]:
    """Operation -> the backend that runs it on this kind of device now (for `qwen3 doctor` and for reports)."""
    return {name: _pick(name, device)[0] for name in _table}


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
    found = _picked.get((name, device))
    if found is None:
        backends = _table[name]
        best = "reference"
        if _forced is None:
            best = [backend for backend in backends if device in _devices[name, backend]][-1]
        elif _forced in backends:
            best = _forced
        found = _picked[name, device] = (best, backends[best])
    return found


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `reference.linear`."""
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


def route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    return _pick("route", logits.device.type)[1](logits, top_k, normalise)


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """See `reference.experts`."""
    return _pick("experts", x.device.type)[1](x, gate_up, down, weights, chosen)


_ANYWHERE = ("cpu", "cuda", "mps", "xpu", "meta")
for _name in ("linear", "rms_norm", "qk_norm_rope", "silu_mul", "attention", "route", "experts"):
    register(_name, "reference", getattr(reference, _name), _ANYWHERE)
if fused.has_onednn():
    register("linear", "torch", fused.linear, ("cpu",))
register("qk_norm_rope", "torch", fused.qk_norm_rope)
register("attention", "torch", fused.attention, ("cpu", "cuda", "mps", "xpu"))
