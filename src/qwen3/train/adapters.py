"""Adapters as they are trained: put into a network, saved in PEFT's format, merged into the weights below.

    trained = add_lora(model, LoraConfig(rank=16))      # the base is frozen; these are what an optimiser gets
    ...
    save_adapter("out", model, base="embedded")         # `qwen3 run embedded --adapter out`, PEFT, `LLM.load_adapter`
    merge(model)                                        # or one checkpoint without any adapter: `save_checkpoint`

Masters are the parameters themselves: they are float32, and cast where they are used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qwen3.checkpoint.adapter import Adapter, LowRank, read_adapter, sites, write_adapter
from qwen3.engine.engine import Engine
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.model.lora import LoraConfig, attach, base_weight, detach, loras, matching

__all__ = [
    "Adapter",
    "LoraConfig",
    "Policy",
    "adapter_of",
    "add_lora",
    "detach",
    "load_adapter",
    "merge",
    "read_adapter",
    "save_adapter",
    "table",
]  # fmt: skip


def add_lora(model: Qwen3, config: LoraConfig, seed: int = 0) -> dict[str, nn.Parameter]:
    """Put a fresh adapter into a model: B is 0, so that nothing changes yet; A is uniform in ±1/√in, by `seed`, the
    same on every device. Freezes the base. Returns the trainable parameters, float32, by their names in
    `model.named_parameters()`.

    Raises UsageError for a target that matches nothing (listing what there is) or cannot be adapted (saying why).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = {}
    for module, (*experts, rows, inputs) in matching(config.targets, model.config).items():
        rank = min(config.rank, rows, inputs)
        if rank < config.rank:
            raise UsageError(
                f"lora.rank is {config.rank}, but {module} is [{rows}, {inputs}]: {rank} is the most it can be"
            )
        a = (torch.rand(*experts, rank, inputs, generator=generator) * 2 - 1) * inputs**-0.5
        parts[module] = LowRank(a, torch.zeros(*experts, rows, rank), config.scale)
    return attach(model, Adapter(parts))


def adapter_of(model: Qwen3, base: str = "") -> Adapter:
    """A copy of the adapter that is in a model, as `Engine.load_adapter` and `save_adapter` take it. Raises UsageError
    if there is none."""
    found = {module: part for lora in loras(model) for module, part in lora.parts().items()}
    if not found:
        raise UsageError("there is no adapter in this model: add_lora puts one in")
    return Adapter({m: LowRank(p.a.detach().clone(), p.b.detach().clone(), p.scale) for m, p in found.items()}, base)


def save_adapter(folder: str | Path, model: Qwen3, base: str = "") -> None:
    """Write the adapter that is in a model. base: name of the model below it, for whoever loads it. See `write_adapter`
    for what it raises."""
    write_adapter(folder, adapter_of(model, base), model.config)


def load_adapter(model: Qwen3, folder: str | Path) -> dict[str, nn.Parameter]:
    """Put a saved adapter into a model, to be trained on: as `add_lora`. Raises what `read_adapter` raises."""
    return attach(model, read_adapter(folder, model.config))


class Policy:
    """Stands for an engine among a Trainer's `engines`: after each update the engine's adapter `name`, which rollouts
    ask for, is the one in the model; without it, the same engine is the reference policy."""

    def __init__(self, engine: Engine, name: str, model: Qwen3) -> None:
        self.engine, self.name, self.model = engine, name, model
        self.update_weights({})

    def update_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """tensors: none, the base does not change."""
        self.engine.load_adapter(self.name, adapter_of(self.model))


@torch.no_grad()
def merge(model: Qwen3, adapter: Adapter | None = None) -> Qwen3:
    """Add an adapter to the weights, in place, each product in float32 and rounded once. None: the one that is in the
    model, which is taken out. No engine may run on the model meanwhile (`Engine.update_weights` is for that).

    Raises UsageError if the weights are kept compressed: what a merge adds would be lost in rounding.
    """
    own = adapter is None
    adapter = adapter_of(model) if adapter is None else adapter
    held = [site for site in sites(model.config) if any(module in adapter.parts for module in site.modules)]
    for site in held:
        if not isinstance(base_weight(model, site), Tensor):
            raise UsageError(f"{site.name} is kept compressed: load the model without quantization and merge there")
    for site in held:
        for module, rows in zip(site.modules, base_weight(model, site).split(site.rows, -2), strict=True):
            if (part := adapter.parts.get(module)) is not None:
                a, b = (t.to(rows.device, torch.float32) for t in (part.a, part.b))
                rows.copy_(rows.float() + part.scale * (b @ a))
    if own:
        detach(model)
    return model


def table(model: Qwen3) -> str:
    """What of a model is trained: each kind of matrix with its shapes, and the share of all parameters."""
    kinds: dict[tuple[str, ...], int] = defaultdict(int)
    for lora in loras(model):
        for module, part in lora.parts().items():
            shapes = (" × ".join(map(str, t.shape)) for t in (part.a, part.b))
            kinds[module.rpartition(".")[2], *shapes, f"{part.scale:g}", str(part.a.numel() + part.b.numel())] += 1
    lines = [f"{'':12}{'count':>6}  {'A':20}{'B':20}{'scale':>7}{'parameters':>16}"]
    for (leaf, a, b, scale, size), count in kinds.items():
        lines.append(f"{leaf:12}{count:>6}  {a:20}{b:20}{scale:>7}{count * int(size):>16,}")
    trained, base = sum(count * int(kind[-1]) for kind, count in kinds.items()), model.config.num_parameters()
    lines.append(f"trainable {trained:,} beside {base:,} frozen parameters ({trained / base:.2%})")
    return "\n".join(lines)
