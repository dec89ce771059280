"""LoRA in the network: low-rank parts beside frozen weights (arXiv 2106.09685).

Weights are fused and live once; an adapter's matrices belong to the logical ones (q, k, v, gate, up, each expert). Of a
fused weight they are one pair all the same: A [R, in], the parts' rows one above the other, and B [out, R], whose rows
of a part are zero but in that part's columns. So what is added is two small products, whatever is adapted.

Here is the forward that is trained; `engine/adapters.py` has the one that serves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3 import kernels
from qwen3.checkpoint.adapter import Adapter, LowRank, Site, module_shapes, sites
from qwen3.config import ModelConfig
from qwen3.errors import UsageError

if TYPE_CHECKING:
    from qwen3.model.network import Qwen3

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_REFUSED = {
    "embed_tokens": "the embedding stays as it is: it would have to be saved and served whole",
    "lm_head": "the head stays as it is: where it is the embedding too, both would change",
    "gate": "the router stays as it is: experts are adapted, not who gets which token",
}


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 16
    """Rank r of each matrix's adapter: A [r, in], B [out, r]."""
    alpha: float = 32.0
    """What is added is alpha / rank · B A x."""
    targets: tuple[str, ...] = _PROJECTIONS
    """Modules by official names or their ends (q_proj, layers.0.mlp.up_proj), `*` and `?` allowed."""
    rslora: bool = False
    """Scale by alpha / √rank instead (arXiv 2312.03732): for high ranks."""
    dropout: float = 0.0
    """Must be 0: a model that forgets at random in training is not the one that samples."""

    def __post_init__(self) -> None:
        """Raises UsageError for the first field that is wrong."""
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UsageError(f"lora.rank is {self.rank!r}; it must be a whole number from 1")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not self.alpha > 0:
            raise UsageError(f"lora.alpha is {self.alpha!r}; it must be a number above 0")
        if isinstance(self.targets, str) or not self.targets or not all(isinstance(t, str) for t in self.targets):
            raise UsageError(
                f"lora.targets is {self.targets!r}; it must be a list of names, such as ('q_proj', 'v_proj')"
            )
        if self.dropout != 0:
            raise UsageError(
                f"lora.dropout is {self.dropout!r}, but only 0 is supported: with dropout the trained model is not the "
                "one that samples; use weight decay or fewer steps against overfitting"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def matching(targets: Iterable[str], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Official modules that the targets name → shapes. Raises UsageError for one that names nothing, saying what there
    is, and for what cannot be adapted, saying why."""
    shapes = module_shapes(config)
    found: set[str] = set()
    for target in targets:
        hits = {module for module in shapes if fnmatchcase(f".{module}", f"*.{target}")}
        found |= hits
        if hits:
            continue
        if reason := _REFUSED.get(target.removesuffix(".weight").rpartition(".")[2]):
            raise UsageError(f"lora.targets: {target!r} cannot be adapted: {reason}")
        leaves = list(dict.fromkeys(module.rpartition(".")[2] for module in shapes))
        close = difflib.get_close_matches(target, leaves, 1)
        raise UsageError(
            f"lora.targets: {target!r} matches nothing{f'; did you mean {close[0]!r}?' if close else ''} There is "
            f"{', '.join(leaves)} in layers 0 to {config.num_hidden_layers - 1}, as in {next(iter(shapes))!r}; "
            "an end of a name will do, and * stands for any part"
        )
    return {module: shape for module, shape in shapes.items() if module in found}


class Lora(nn.Module):
    """The trainable part of one fused weight: for each adapted matrix `{leaf}_A` and `{leaf}_B`, float32."""

    def __init__(self, site: Site, parts: Mapping[str, LowRank], device: torch.device) -> None:
        super().__init__()
        self.site = site
        # (leaf, rows, scale; None: it is not adapted) of each matrix. The forward reads nothing that differs between
        # layers, so that a compiled one serves all.
        leaves: list[tuple[str, int, float | None]] = []
        for module, rows in zip(site.modules, site.rows, strict=True):
            leaf, part = module.rpartition(".")[2], parts.get(module)
            leaves.append((leaf, rows, None if part is None else part.scale))
            for name, value in () if part is None else (("A", part.a), ("B", part.b)):
                value = value.detach().to(device, torch.float32, copy=True)
                self.register_parameter(f"{leaf}_{name}", nn.Parameter(value))
        self.leaves = tuple(leaves)

    def parts(self) -> dict[str, LowRank]:
        """By official module name, the parameters themselves."""
        named = zip(self.site.modules, self.leaves, strict=True)
        return {
            module: LowRank(getattr(self, f"{leaf}_A"), getattr(self, f"{leaf}_B"), scale)
            for module, (leaf, _, scale) in named
            if scale is not None
        }

    def pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [R, in] and B [out, R] (experts first) of the fused weight, scaled, with gradients to the parts. R is a
        multiple of 8, as grouped products want it."""
        a = [getattr(self, f"{leaf}_A") for leaf, _, scale in self.leaves if scale is not None]
        total, left, b = sum(part.shape[-2] for part in a), 0, []
        for leaf, rows, scale in self.leaves:
            if scale is None:
                b.append(a[0].new_zeros(*a[0].shape[:-2], rows, total, dtype=dtype))
                continue
            own = getattr(self, f"{leaf}_B")
            b.append(F.pad((own * scale).to(dtype), (left, total - left - own.shape[-1])))
            left += own.shape[-1]
        odd = -total % 8
        return F.pad(torch.cat(a, -2).to(dtype), (0, 0, 0, odd)), F.pad(torch.cat(b, -2), (0, odd))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [..., in], y [..., out] -> y + what is added."""
        a, b = self.pair(x.dtype)
        return torch.addmm(y.flatten(0, -2), F.linear(x.flatten(0, -2), a), b.mT).view_as(y)


def masked(h: Tensor, keep: Tensor) -> Tensor:
    """h [N, n · C] where keep, bool [N, C], says so for each of its n parts, else 0."""
    return torch.where(keep.unsqueeze(1), h.unflatten(1, (-1, keep.shape[1])), 0.0).flatten(1)


def adapted_experts(
    x: Tensor, gate_up: Any, down: Any, weights: Tensor, chosen: Tensor, low_up: tuple[Tensor, Tensor] | None,
    low_down: tuple[Tensor, Tensor] | None, *, keep: Tensor | None = None, residual: Tensor | None = None,
    invariant: bool = False,
) -> Tensor:  # fmt: skip
    """`kernels.experts` with a low-rank pair (A [E, R, in], B [E, out, R]) beside gate_up, down, or both;
    differentiable. keep bool [N, C]: which columns of A x count for a token (see `masked`); None: all.
    """
    if invariant and len(x) > 1:
        given = (x, weights, chosen, *(() if keep is None else (keep,)))
        out = torch.cat([
            adapted_experts(row, gate_up, down, scale, own, low_up, low_down, keep=kept[0] if kept else None)
            for row, scale, own, *kept in zip(*(t.split(1) for t in given), strict=True)
        ])  # fmt: skip
        return out if residual is None else residual + out
    top_k = chosen.shape[1]
    flat = chosen.flatten().long().clamp(min=0)  # those without an expert have weight 0
    order = flat.argsort(stable=True)
    tokens = order // top_k
    numbers = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(flat[order], numbers, right=True).to(torch.int32)

    def product(rows: Tensor, weight: Any, low: tuple[Tensor, Tensor] | None) -> Tensor:
        y = kernels.grouped_linear(rows, weight, ends)
        if low is None:
            return y
        h = kernels.grouped_linear(rows, low[0], ends)
        return y + kernels.grouped_linear(h if keep is None else masked(h, keep[tokens]), low[1], ends)

    out = product(kernels.silu_mul(product(x[tokens], gate_up, low_up)), down, low_down)
    out = out * weights.to(x.dtype).flatten()[order].unsqueeze(-1)
    out = out[order.argsort()].view(-1, top_k, x.shape[1]).sum(1)
    return out if residual is None else residual + out


# In and out of a model


def attach(model: Qwen3, adapter: Adapter) -> dict[str, nn.Parameter]:
    """Put an adapter into a model, to be trained: the base's parameters are frozen, those of the adapter are returned
    by their names in `model.named_parameters()`. Raises UsageError if there is one in it already."""
    if loras(model):
        raise UsageError("this model has an adapter in it already: merge it, or detach it first")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for site in sites(model.config):
        if any(module in adapter.parts for module in site.modules):
            home, leaf = _home(model, site)
            lora = Lora(site, adapter.parts, model.device)
            if site.experts:
                home.loras[leaf] = lora
            else:
                home.lora = lora
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def detach(model: Qwen3) -> None:
    """Take the adapter out of a model; its base may be trained again."""
    for lora in loras(model):
        home, leaf = _home(model, lora.site)
        if lora.site.experts:
            del home.loras[leaf]
        else:
            home.lora = None
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def loras(model: nn.Module) -> list[Lora]:
    """What of an adapter is in a model, in the order of the forward pass."""
    return [module for module in model.modules() if isinstance(module, Lora)]


def _home(model: nn.Module, site: Site) -> tuple[Any, str]:
    """Of experts (their module, the weight's name in it), else (the Linear, "weight")."""
    if not site.experts:
        return model.get_submodule(site.name), "weight"
    path, _, leaf = site.name.rpartition(".")
    return model.get_submodule(path), leaf


def base_weight(model: nn.Module, site: Site) -> Any:
    """The fused weight, as the model holds it: a parameter, or what stands in its place."""
    home, leaf = _home(model, site)
    return getattr(home, leaf)


def replace_weight(model: nn.Module, site: Site, weight: Any) -> None:
    """Put something that stands for a fused weight in its place."""
    home, leaf = _home(model, site)
    delattr(home, leaf)
    setattr(home, leaf, weight)
