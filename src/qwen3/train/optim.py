"""AdamW and Muon on fp32 masters, one logical matrix at a time.

The network keeps its weights fused and in bf16; an optimiser must still see q, k, v, gate, up and each expert as the
matrices they are, since orthogonalising a fused matrix mixes them. The official tensor names are exactly these
matrices, and they are views, so masters and moments are kept fused and updated through views.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3.checkpoint.names import official_views
from qwen3.config import ModelConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly (singular values end in about [0.7, 1.2]).

    matrices: [N, rows, cols], any float dtype; returned in bf16 on CUDA, fp32 elsewhere.
    Quintic Newton–Schulz iteration with the coefficients of Jordan et al. 2024, "Muon".
    """
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    transposed = x.size(-2) > x.size(-1)
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


@dataclass(frozen=True)
class OptimConfig:
    """Peak values; the schedule multiplies the learning rates."""

    matrix_lr: float = 0.02  # Muon, hidden matrices
    vector_lr: float = 0.003  # AdamW: embedding, head, norms, routers
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.01  # matrices only, decoupled
    clip: float = 1.0  # global gradient norm, AdamW tensors only (Muon is scale-free)


class Optimizer:
    """Muon on hidden matrices, AdamW on the rest. `params` are the network's own tensors, updated in place."""

    def __init__(self, params: Mapping[str, Tensor], model_config: ModelConfig, config: OptimConfig) -> None:
        self.config = config
        self.params = dict(params)
        self.model_config = model_config
        self.step_count = 0
        self.master = {name: p.detach().to(torch.float32, copy=True) for name, p in self.params.items()}
        self.first = {name: torch.zeros_like(m) for name, m in self.master.items()}
        self.second = {name: torch.zeros_like(m) for name, m in self.master.items() if not self._is_matrix(name, m)}
        self._groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        self._master_views = self._views(self.master)
        self._first_views = self._views(self.first)
        for name, view in self._master_views.items():
            self._groups[tuple(view.shape)].append(name)

    @staticmethod
    def _is_matrix(name: str, tensor: Tensor) -> bool:
        return tensor.dim() >= 2 and "embed_tokens" not in name and "lm_head" not in name and "mlp.gate." not in name

    def _views(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logical matrices among these tensors, by official name."""
        views = official_views(self.model_config, tensors)
        return {name: view for name, view in views.items() if self._is_matrix(name, view)}

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """One update from the parameters' `.grad`, learning rates times `scale`. Returns the global gradient norm."""
        self.step_count += 1
        grads = {n: p.grad for n, p in self.params.items() if p.grad is not None}
        missing = sorted(set(self.params) - set(grads))
        if missing:
            raise RuntimeError(f"no gradient for {', '.join(missing)}")
        norms = torch._foreach_norm(list(grads.values()))
        norm = torch.linalg.vector_norm(torch.stack([n.float() for n in norms]))
        self._muon(self._views(grads), scale)
        self._adamw(grads, scale, (self.config.clip / (norm + 1e-6)).clamp(max=1.0))
        names = list(self.params)
        torch._foreach_copy_([self.params[n] for n in names], [self.master[n] for n in names])
        return float(norm)

    def _muon(self, grads: Mapping[str, Tensor], scale: float) -> None:
        c = self.config
        for shape, names in self._groups.items():
            gradient = torch.stack([grads[n] for n in names]).float()
            momenta = [self._first_views[n] for n in names]
            torch._foreach_lerp_(momenta, list(gradient.unbind()), 1 - c.momentum)
            nesterov = gradient.lerp(torch.stack(momenta), c.momentum)
            update = orthogonalize(nesterov).float()
            lr = c.matrix_lr * scale * math.sqrt(max(1.0, shape[0] / shape[1]))
            masters = [self._master_views[n] for n in names]
            torch._foreach_mul_(masters, 1 - lr * c.weight_decay)
            torch._foreach_add_(masters, list(update.unbind()), alpha=-lr)

    def _adamw(self, grads: Mapping[str, Tensor], scale: float, clip: Tensor) -> None:
        c, lr = self.config, self.config.vector_lr * scale
        beta1, beta2 = c.betas
        for name, second in self.second.items():
            gradient = grads[name].float() * clip
            first = self.first[name]
            first.lerp_(gradient, 1 - beta1)
            second.lerp_(gradient.square(), 1 - beta2)
            corrected = (second / (1 - beta2**self.step_count)).sqrt_().add_(c.eps)
            self.master[name].addcdiv_(first, corrected, value=-lr / (1 - beta1**self.step_count))

    def state(self) -> dict[str, Tensor]:
        """All state as flat named tensors (masters and moments), for `train.state`."""
        parts = {"master": self.master, "first": self.first, "second": self.second}
        return {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Copy a saved state in, and the masters into the network. Raises ValueError if it is another model's."""
        mine = self.state()
        if mine.keys() != state.keys():
            raise ValueError(f"optimiser state differs in {sorted(mine.keys() ^ state.keys())[:5]}")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} has shape {list(state[name].shape)} instead of {list(tensor.shape)}")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        for name, p in self.params.items():
            p.data.copy_(self.master[name])
        self.step_count = step_count
