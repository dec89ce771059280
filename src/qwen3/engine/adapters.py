"""Adapters beside one model in the engine: requests with different ones, or none, in one batch.

All loaded adapters share one pair of matrices for each fused weight: A [parts · C, in] and B [out, parts · C]. Of the C
columns each adapter owns as many as its rank. A step multiplies all its tokens by A, keeps of each token's row what its
own adapter's columns say, and multiplies by B: two products whatever the batch is made of, nothing sorted or gathered,
the same for prompts, for decoding rows and in a captured graph, which finds new adapters in the same memory. The cost
grows with the sum of the ranks that are loaded. A step in which no request has an adapter knows nothing of all this.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.checkpoint.adapter import Adapter, Site, module_shapes, sites
from qwen3.engine.request import Request
from qwen3.engine.steering import Steering
from qwen3.errors import OutOfMemoryError, UsageError
from qwen3.model import Qwen3
from qwen3.model.lora import adapted_experts, base_weight, loras, masked

_GRAIN = 16  # columns come in such numbers: what the kernels' products want
Pair = tuple[Tensor, Tensor]
Operations = tuple[Callable[..., Tensor], Callable[..., Tensor]]


@dataclass(frozen=True)
class Loaded:
    """An adapter as it is used. number: never that of another; columns: where it is; modules: how many matrices it
    adapts; base, source, stamp: as of the `Adapter`."""

    number: int
    columns: tuple[int, ...]
    modules: int
    base: str
    source: str
    stamp: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.columns)


class Adapters:
    """layout: changes when the matrices move, which graphs that were captured before do not follow. training: the
    network has an adapter in it, which steps do not see."""

    def __init__(self, model: Qwen3, given: Mapping[str, Adapter] | None = None) -> None:
        self.model = model
        self.loaded: dict[str, Loaded] = {}
        self.layout = 0
        self.training = bool(loras(model))
        self._numbers = itertools.count(1)
        self._sites = {site.name: site for site in sites(model.config)}
        self._clear()
        for name, adapter in (given or {}).items():
            self.load(name, adapter)

    def _clear(self) -> None:
        self._owners: list[int] = []  # number of each column's adapter, -1: nobody's
        self._owner = torch.empty(0, dtype=torch.int32)
        self._pairs: dict[str, Pair] = {}  # by name of the site
        self._by_weight: dict[int, Pair] = {}  # by id of what the engine multiplies by
        self.layout += 1

    def load(self, name: str, adapter: Adapter) -> None:
        """Into free columns, or into more; where one of that name is there, in its place. Raises UsageError for an
        adapter of another model, OutOfMemoryError, and then all is as before."""
        self._check(name, adapter)
        with torch.inference_mode(False), torch.no_grad():
            old = self.loaded.get(name)
            free = [i for i, owner in enumerate(self._owners) if owner == -1 or (old and owner == old.number)]
            places = {site.name for site in self._sites.values() if any(m in adapter.parts for m in site.modules)}
            lacking = max(0, adapter.rank - len(free))
            if lacking or not places <= self._pairs.keys():
                self._grow(len(self._owners) + -(-lacking // _GRAIN) * _GRAIN, places)
                free += range(len(self._owners) - lacking, len(self._owners))
            number, columns = next(self._numbers), sorted(free)[: adapter.rank]
            for site, pair in self._pairs.items():
                self._fill(self._sites[site], pair, columns, adapter)
            if old is not None:
                self._owners = [-1 if owner == old.number else owner for owner in self._owners]
            for i in columns:
                self._owners[i] = number
            self._owner.copy_(torch.tensor(self._owners, dtype=torch.int32))
        told = adapter.base, adapter.source, adapter.stamp
        self.loaded[name] = Loaded(number, tuple(columns), len(adapter.parts), *told)

    def unload(self, name: str) -> None:
        """Its columns are free for others; with the last one all memory is."""
        gone = self.loaded.pop(name)
        self._owners = [-1 if owner == gone.number else owner for owner in self._owners]
        if not self.loaded:
            self._clear()

    def _check(self, name: str, adapter: Adapter) -> None:
        if not isinstance(name, str) or not name:
            raise UsageError(f"an adapter's name must be a text, not {name!r}")
        shapes, model = module_shapes(self.model.config), self.model
        for module, part in adapter.parts.items():
            found = (*part.b.shape[:-1], part.a.shape[-1])
            if shapes.get(module) != found:
                there = f"{list(shapes[module])} here" if module in shapes else "not here"
                raise UsageError(f"adapter {name!r} is of another model: {module} is {list(found)} there and {there}")
            if not all(bool(t.to(model.dtype).isfinite().all()) for t in (part.a, part.b.float() * part.scale)):
                raise UsageError(f"adapter {name!r}: {module} is not finite in {model.dtype}")
        fast = model.device.type != "cuda" or (
            model.dtype == torch.bfloat16 and torch.cuda.get_device_capability(model.device) >= (9, 0)
        )
        if not fast and any(part.a.dim() == 3 for part in adapter.parts.values()):
            raise UsageError(f"adapter {name!r} adapts experts: on a GPU that takes bfloat16 and a Hopper or later")

    def _grow(self, count: int, places: set[str]) -> None:
        """Room for `count` columns, beside the weights of these sites, too."""
        model, held = self.model, len(self._owners)
        fresh: dict[str, Pair] = {}
        try:
            for name, site in self._sites.items():
                if name not in places and name not in self._pairs:
                    continue
                parts, experts = len(site.modules), (site.experts,) if site.experts else ()
                a = torch.zeros(*experts, parts, count, site.inputs, dtype=model.dtype, device=model.device)
                b = torch.zeros(*experts, sum(site.rows), parts, count, dtype=model.dtype, device=model.device)
                if name in self._pairs:
                    old_a, old_b = self._pairs[name]
                    a[..., :held, :] = old_a.unflatten(-2, (parts, held))
                    b[..., :held] = old_b.unflatten(-1, (parts, held))
                fresh[name] = a.flatten(-3, -2), b.flatten(-2)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"no room on {model.device} for adapters of rank {count} in all: {str(error).splitlines()[0]}; name "
                "them when the model is loaded (adapters=), so that the KV cache leaves room"
            ) from None
        self._pairs = fresh
        self._owners += [-1] * (count - held)
        self._owner = torch.tensor(self._owners, dtype=torch.int32, device=model.device)
        self._by_weight = {id(base_weight(model, self._sites[name])): pair for name, pair in fresh.items()}
        self.layout += 1

    def _fill(self, site: Site, pair: Pair, columns: list[int], adapter: Adapter) -> None:
        """Zero where the adapter has nothing: whose the columns were before is not known."""
        parts = len(site.modules)
        a, b = pair[0].unflatten(-2, (parts, -1)), pair[1].unflatten(-1, (parts, -1))
        where = torch.tensor(columns, device=a.device)
        a[..., where, :] = 0
        b[..., where] = 0
        top = 0
        for i, (module, rows) in enumerate(zip(site.modules, site.rows, strict=True)):
            if (part := adapter.parts.get(module)) is not None:
                own = where[: part.a.shape[-2]]
                a[..., i, own, :] = part.a.to(a)
                b[..., top : top + rows, i, own] = (part.b.float() * part.scale).to(b)
            top += rows

    def operations(self, numbers: Tensor) -> Operations:
        """What stands for `kernels.fused_linear` and `kernels.experts` in a step whose tokens use the adapters of these
        numbers, int32 [N]; 0: none."""
        keep = numbers.unsqueeze(1) == self._owner

        def linear(
            x: Tensor, weight: Any, *, norm: Tensor | None = None, eps: float = 0.0, silu: bool = False,
            invariant: bool = False, **how: Any,
        ) -> Tensor:  # fmt: skip
            pair = self._by_weight.get(id(weight))
            if pair is None:
                return kernels.fused_linear(x, weight, norm=norm, eps=eps, silu=silu, invariant=invariant, **how)
            if norm is not None:
                x = kernels.rms_norm(x, norm, eps)
            y = kernels.fused_linear(x, weight, invariant=invariant, **how)
            h = masked(kernels.fused_linear(x, pair[0], invariant=invariant), keep)
            y = kernels.fused_linear(h, pair[1], residual=y, invariant=invariant, overwrite=True)
            return kernels.silu_mul(y) if silu else y

        def experts(x: Tensor, gate_up: Any, down: Any, weights: Tensor, chosen: Tensor, **how: Any) -> Tensor:
            up, low = self._by_weight.get(id(gate_up)), self._by_weight.get(id(down))
            if up is None and low is None:
                return kernels.experts(x, gate_up, down, weights, chosen, **how)
            return adapted_experts(x, gate_up, down, weights, chosen, up, low, keep=keep, **how)

        return linear, experts


class Adapting(Steering):
    """The part of the engine that knows adapters by name."""

    _adapters: Adapters

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Requests may name it from now on. One of that name is replaced: requests that run with it go on from their
        tokens with the new one, and nothing that was cached with the old one is used again.

        Raises UsageError for an adapter of another model, OutOfMemoryError; then nothing has changed.
        """
        self._drain()
        self._adapters.load(name, adapter)
        if any(item.request.adapter == name for item in self._live.values()):
            self._renew()

    def unload_adapter(self, name: str) -> None:
        """Raises UsageError for one that is not loaded, or that a request is using."""
        self._known(name)
        users = sum(item.request.adapter == name and not item.request.done for item in self._live.values())
        if users:
            raise UsageError(f"adapter {name!r} is in use by {users} requests: wait for them, or cancel them")
        self._drain()
        self._adapters.unload(name)

    @property
    def adapters(self) -> dict[str, Loaded]:
        """Those that are loaded, by name."""
        return dict(self._adapters.loaded)

    def _adapter(self, request: Request) -> int:
        if request.adapter is not None:
            return self._known(request.adapter).number
        if self._adapters.training and not self._adapters.loaded:
            raise UsageError(
                "the network has an adapter in it, which is trained and which the engine does not see: merge or detach "
                "it, or load it (load_adapter, adapter_of of qwen3.train.adapters) and name it in requests"
            )
        return 0

    def _known(self, name: str) -> Loaded:
        found = self._adapters.loaded.get(name)
        if found is None:
            there = ", ".join(self._adapters.loaded)
            raise UsageError(f"adapter {name!r} is not loaded; {f'there is: {there}' if there else 'none is'}")
        return found

    def _renew(self) -> None:
        """What keys and values depend on has changed: those of requests that run are computed again."""
        self._adapters.training = bool(loras(self._adapters.model))
        requests = {item.row: item.request for item in self._live.values()}
        self.scheduler.renew(lambda row: self._identity(requests[row]))

    def _variants(self) -> Iterator[None]:
        """Steps that run meanwhile are those without adapters, then, where there are any, those with."""
        yield
        if self._adapters.loaded:
            self.runner.custom[0] = 0, 1
            yield
            del self.runner.custom[0]

    @abstractmethod
    def _identity(self, request: Request) -> tuple[object, ...]:
        """See the engine."""
