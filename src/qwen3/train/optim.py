"""AdamW and Muon on fp32 masters, one logical matrix at a time, in few launches.

The network keeps its weights fused and in bf16; an optimiser must still see q, k, v, gate, up and each expert as the
matrices they are, since orthogonalising a fused matrix mixes them. Masters, moments and gradients lie in one flat
buffer each, in which the parameters of one role follow each other through the layers: the logical matrices of a role
are then strided views [count, rows, columns] of the buffer, which a batched product takes as they are, and AdamW is
one pointwise kernel over the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from qwen3.checkpoint.names import fused_shapes
from qwen3.config import ModelConfig
from qwen3.errors import UsageError

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_BATCH = 1 << 28  # weights that are orthogonalised at once, or a layer's: 0.5 GB in bf16, and three times that beside


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly (singular values end in about [0.7, 1.2]).

    matrices: [N, rows, cols], any float dtype; returned in bf16 on CUDA, else at least in fp32.
    Quintic Newton–Schulz iteration with the coefficients of Jordan et al. 2024, "Muon".
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    transposed = x.size(-2) > x.size(-1)
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x


@dataclass(frozen=True)
class OptimConfig:
    """Peak values; the schedule multiplies the learning rates. Raises UsageError for a kind that does not exist."""

    kind: Literal["muon", "adamw"] = "muon"  # of the hidden matrices; the other tensors always get AdamW
    matrix_lr: float = 0.02  # hidden matrices
    vector_lr: float = 0.003  # embedding, head, norms, routers, adapters
    momentum: float = 0.95  # Muon's
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.01  # hidden matrices only, decoupled
    clip: float = 1.0  # global gradient norm, AdamW tensors only (Muon is scale-free)

    def __post_init__(self) -> None:
        if self.kind not in ("muon", "adamw"):
            raise UsageError(f"optim.kind={self.kind!r} must be muon or adamw")


@dataclass(frozen=True)
class _Role:
    """The parameters that play one part in the layers: `[start : start + count · size]` of the flat buffers."""

    names: tuple[str, ...]
    shape: torch.Size
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + len(self.names) * self.size

    def of(self, flat: Tensor) -> Tensor:
        """[count, *shape], a view."""
        return flat[self.start : self.stop].view(len(self.names), *self.shape)


class Optimizer:
    """Muon (or AdamW) on hidden matrices, AdamW on the rest. `params` are the network's own tensors, those that are to
    be trained, updated in place. Masters are float32, or float64 for parameters that are.

    Among several processes, parameters that are DTensors keep masters and moments of their own shard, and Muon fetches
    the whole of a direction; parameters that every process has whole get the sum of all gradients.
    """

    def __init__(self, params: Mapping[str, Tensor], model_config: ModelConfig, config: OptimConfig) -> None:
        if not params:
            raise UsageError("there is nothing to train: every parameter is frozen")
        self.config = config
        self.params = dict(params)
        self.model_config = model_config
        self.step_count = 0
        self._shapes = fused_shapes(model_config)
        self._roles = self._lay_out()
        end = self._roles[-1].stop
        some = local(next(iter(self.params.values())))
        dtype = torch.promote_types(some.dtype, torch.float32)
        matrices = [r for r in self._roles if is_matrix(r.names[0], self._shapes)]
        self._decayed = max((r.stop for r in matrices), default=0)
        self._muon = [r for r in matrices if config.kind == "muon"]
        self._adam = max((r.stop for r in self._muon), default=0)  # AdamW's part of the buffers begins here
        self._master, self._first, self._grad = (torch.zeros(end, dtype=dtype, device=some.device) for _ in range(3))
        self._second = torch.zeros(end - self._adam, dtype=dtype, device=some.device)
        self.master, self.first, self._gradients = (self._views(t, 0) for t in (self._master, self._first, self._grad))
        self.second = self._views(self._second, self._adam)
        self._fresh = True  # nothing is in `_grad` yet
        for name, p in self.params.items():
            self.master[name].copy_(local(p.detach()))

    def _lay_out(self) -> list[_Role]:
        """Hidden matrices first, then the rest."""
        alike: dict[tuple[bool, str, torch.Size], list[str]] = {}
        for name, p in self.params.items():
            role = re.sub(r"\.\d+\.", ".*.", name)
            alike.setdefault((not is_matrix(name, self._shapes), role, local(p).shape), []).append(name)
        roles: list[_Role] = []
        for key in sorted(alike):
            roles.append(_Role(tuple(alike[key]), key[2], roles[-1].stop if roles else 0))
        return roles

    def _views(self, flat: Tensor, offset: int) -> dict[str, Tensor]:
        """Parameter name → its part of a buffer that begins at `offset` of the whole; those before it are left out."""
        views: dict[str, Tensor] = {}
        for role in self._roles:
            if role.start >= offset:
                part = flat[role.start - offset : role.stop - offset].view(len(role.names), *role.shape)
                views |= dict(zip(role.names, part.unbind(), strict=True))
        return views

    @torch.no_grad()
    def collect(self) -> None:
        """Add the parameters' `.grad` to what is collected for the next step, in float32, and clear them.

        In float32 because the sum of many micro-batches in bf16 loses whatever is smaller than 1/256 of it. Raises
        RuntimeError naming parameters without a gradient.
        """
        missing = sorted(name for name, p in self.params.items() if p.grad is None)
        if missing:
            raise RuntimeError(f"no gradient for {', '.join(missing)}")
        grads = [local(p.grad) for p in self.params.values() if p.grad is not None]
        sums = [self._gradients[name] for name in self.params]
        if self._fresh:
            torch._foreach_copy_(sums, grads)
        else:
            torch._foreach_add_(sums, grads)
        self._fresh = False
        for p in self.params.values():
            p.grad = None

    @torch.no_grad()
    def step(self, scale: float, gradient_scale: float = 1.0) -> Tensor:
        """One update from what is collected (and the `.grad`s that are not yet), learning rates times `scale`,
        gradients times `gradient_scale`. Returns the norm of the gradient, a scalar on the device: nothing waits here.

        A gradient that is not finite changes neither masters nor moments.
        """
        self.step_count += 1
        if self._fresh or any(p.grad is not None for p in self.params.values()):
            self.collect()
        self._fresh = True
        norm = self._norm() * gradient_scale
        finite = norm.isfinite()
        if self._muon:
            self._orthogonal(scale, gradient_scale, finite)
        self._adamw(scale, gradient_scale * (self.config.clip / (norm + 1e-6)).clamp(max=1.0), finite)
        self._write_back()
        return norm

    def _norm(self) -> Tensor:
        """Of the whole gradient; where each process has all parameters, what they collected is added up first."""
        if processes() == 1:
            return torch.linalg.vector_norm(self._grad)
        if not is_sharded(next(iter(self.params.values()))):
            dist.all_reduce(self._grad)
            return torch.linalg.vector_norm(self._grad)
        square = torch.linalg.vector_norm(self._grad).square()
        dist.all_reduce(square)
        return square.sqrt()

    def _write_back(self) -> None:
        places = [local(p.detach()) for p in self.params.values()]
        torch._foreach_copy_(places, [self.master[name] for name in self.params])

    def _orthogonal(self, scale: float, gradient_scale: float, finite: Tensor) -> None:
        c = self.config
        part = slice(0, self._adam)
        direction = _nesterov(self._first[part], self._grad[part], self._scalar(gradient_scale), finite, c.momentum)
        lr = self._scalar(c.matrix_lr * scale)
        for role in self._muon:
            name, at_once = role.names[0], max(1, _BATCH // max(1, role.size))
            layers = zip(role.of(self._master).split(at_once), role.of(direction).split(at_once), strict=True)
            for master, own in layers:
                update = gathered(own, self.params[name])
                for matrices in logical_matrices(name, update, self.model_config):
                    rows, columns = matrices.shape[-2:]
                    matrices.copy_(orthogonalize(matrices) * math.sqrt(max(1.0, rows / columns)))
                _descend(master, own_part(update, self.params[name]), lr, finite, c.weight_decay)

    def _adamw(self, scale: float, clip: Tensor, finite: Tensor) -> None:
        c = self.config
        ends = (self._adam, max(self._adam, self._decayed), len(self._master))
        rates = (c.matrix_lr, c.vector_lr)
        correct1, correct2 = (self._scalar(1 - beta**self.step_count) for beta in c.betas)
        for start, stop, rate, decay in zip(ends, ends[1:], rates, (c.weight_decay, 0.0), strict=False):
            if start < stop:
                part, second = slice(start, stop), self._second[start - self._adam : stop - self._adam]
                _adam(
                    self._master[part], self._first[part], second, self._grad[part],
                    clip, self._scalar(rate * scale), correct1, correct2, finite, *c.betas, c.eps, decay,
                )  # fmt: skip

    def _scalar(self, value: float) -> Tensor:
        """On the device, made there: a compiled kernel takes it without being compiled again for another value."""
        return torch.full((), value, dtype=self._master.dtype, device=self._master.device)

    def state(self) -> dict[str, Tensor]:
        """All state by name (masters and moments), for a checkpoint: views, or whole tensors on the CPU where they are
        sharded (all processes must ask)."""
        return {name: gathered(t[None], like)[0].cpu() if is_sharded(like) else t for name, t, like in self._state()}

    def _state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, this process's part, the parameter) of everything that a checkpoint holds."""
        for part, tensors in (("master", self.master), ("first", self.first), ("second", self.second)):
            for name, tensor in tensors.items():
                yield f"{part}/{name}", tensor, self.params[name]

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Copy a saved state in, and the masters into the network. Raises ValueError if it is another model's."""
        shapes = {name: like.shape for name, _, like in self._state()}
        if shapes.keys() != state.keys():
            raise ValueError(f"optimiser state differs in {sorted(shapes.keys() ^ state.keys())[:5]}")
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise ValueError(f"{name} has shape {list(state[name].shape)} instead of {list(shape)}")
        for name, tensor, like in self._state():
            tensor.copy_(own_part(state[name][None].to(tensor.device), like)[0])
        self._write_back()
        self.step_count = step_count
        self._fresh = True


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Asked by its method: importing the class takes more than a second."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, the same memory; another tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def gathered(own: Tensor, like: Any) -> Tensor:
    """own [count, *shard], of parameters sharded as `like` → [count, *shape], whole. Unsharded ones stay themselves."""
    if not is_sharded(like):
        return own
    from torch.distributed.tensor import DTensor

    shape, stride = torch.Size((len(own), *like.shape)), (like.numel(), *like.stride())
    return DTensor.from_local(own, like.device_mesh, _deeper(like), shape=shape, stride=stride).full_tensor()


def own_part(whole: Tensor, like: Any) -> Tensor:
    """The inverse of `gathered`; nothing is sent."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, _deeper(like), src_data_rank=None).to_local()


def _deeper(like: Any) -> list[Any]:
    """The placements of a parameter, for several of its kind one above the other."""
    from torch.distributed.tensor import Shard

    return [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in like.placements]


def is_matrix(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this is a hidden matrix of the network: none of embedding, head, router, norm or adapter."""
    return len(shapes.get(name, ())) >= 2 and not re.search(r"embed_tokens|lm_head|mlp\.gate\.", name)


def logical_matrices(name: str, stacked: Tensor, config: ModelConfig) -> Iterator[Tensor]:
    """stacked [count, *shape], the same hidden matrix of `count` layers → its parts under the official names, each a
    view [count', rows, columns]."""
    if name.endswith("qkv_proj.weight"):
        q, k = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        yield from stacked.split((q, k, k), dim=1)
    elif name.endswith(("gate_up_proj", "gate_up_proj.weight")):  # the gate above, the up projection below
        yield stacked.view(-1, stacked.shape[-2] // 2, stacked.shape[-1])
    else:
        yield stacked.view(-1, *stacked.shape[-2:])


def _nesterov(first: Tensor, grad: Tensor, scale: Tensor, finite: Tensor, momentum: float) -> Tensor:
    """Updates the momentum; returns the direction, in the dtype that `orthogonalize` works in."""
    grad = torch.where(finite, grad * scale, 0.0)
    new = torch.where(finite, first.lerp(grad, 1 - momentum), first)
    first.copy_(new)
    out = grad.lerp(new, momentum)
    return out.bfloat16() if out.is_cuda else out


def _descend(master: Tensor, update: Tensor, lr: Tensor, finite: Tensor, decay: float) -> None:
    master.copy_(torch.where(finite, master * (1 - lr * decay) - lr * update.to(master.dtype), master))


def _adam(
    master: Tensor, first: Tensor, second: Tensor, grad: Tensor, clip: Tensor, lr: Tensor, correct1: Tensor,
    correct2: Tensor, finite: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2, over flat tensors."""
    grad = torch.where(finite, grad * clip, 0.0)
    mean = first.lerp(grad, 1 - beta1)
    square = second.lerp(grad * grad, 1 - beta2)
    new = master * (1 - lr * decay) - lr / correct1 * mean / ((square / correct2).sqrt() + eps)
    first.copy_(torch.where(finite, mean, first))
    second.copy_(torch.where(finite, square, second))
    master.copy_(torch.where(finite, new, master))


if torch.cuda.is_available():  # one pass over the buffers each
    _nesterov = torch.compile(_nesterov)
    _descend = torch.compile(_descend, dynamic=True)  # one for all shapes
    _adam = torch.compile(_adam)
