"""Factors of columns, folded into what comes before a matrix, so that a checkpoint stays a plain Qwen3.

    input_layernorm            → q, k, v          its weight is divided, their columns are multiplied
    post_attention_layernorm   → gate, up         of all experts; the router's columns are multiplied, too
    v_proj                     → o_proj           rows of v; query heads that share a key head share its factors
    up_proj                    → down_proj        rows of up, since silu(gate) · up is linear in it

Norms and a router are stored in the checkpoint's dtype: a norm's divided weight is rounded first, and the columns are
multiplied by what it was truly divided by, so nothing is lost there; only a router's own weights are rounded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qwen3.config import ModelConfig
from qwen3.quantize.awq import Part, find_scales
from qwen3.quantize.collect import Moments, moments
from qwen3.quantize.layers import OpenLayer, Stage
from qwen3.quantize.smooth import smoothing
from qwen3.quantize.spec import Spec


def fold(
    opened: OpenLayer, stages: Sequence[Stage], plan: Mapping[str, Spec], config: ModelConfig, dtype: torch.dtype
) -> None:
    """Finds and folds the factors of one layer wherever all matrices behind them are to be AWQ, or all W8A8.

    stages: those of the layer, none of which has run on. Later ones first: a stage's inputs are made from the weights
    before it. dtype: of the norms in the file."""
    sites: dict[str, list[Stage]] = {}
    for stage in stages:
        sites.setdefault(_before(opened, stage), []).append(stage)
    for before, own in reversed(sites.items()):
        modules = [module for stage in own for module in stage.modules]
        methods = {plan[module].method if module in plan else None for module in modules}
        if methods not in ({"awq"}, {"w8a8"}):
            continue
        whole = methods == {"awq"} and len(own) == 1  # the Hessians of many experts are made one by one
        seen = [found for stage in own if stage.inputs and (found := moments(stage.inputs(), hessian=whole))]
        if seen:
            _fold_site(opened, before, own, seen, plan, config, dtype)


def _before(opened: OpenLayer, stage: Stage) -> str:
    """The tensor that takes the inverse factors of a stage's inputs."""
    first = stage.modules[0]
    if first.endswith("q_proj"):
        return f"{opened.prefix}input_layernorm.weight"
    if first.endswith("gate_proj"):
        return f"{opened.prefix}post_attention_layernorm.weight"
    return first.replace("o_proj", "v_proj").replace("down_proj", "up_proj") + ".weight"


def _fold_site(
    opened: OpenLayer,
    before: str,
    stages: Sequence[Stage],
    seen: Sequence[Moments],
    plan: Mapping[str, Spec],
    config: ModelConfig,
    dtype: torch.dtype,
) -> None:
    source = opened.views[before]
    modules = [module for stage in stages for module in stage.modules]
    tokens = sum(each.tokens for each in seen)
    mean = torch.stack([each.mean * (each.tokens / tokens) for each in seen]).sum(0)
    peak = torch.stack([each.peak for each in seen]).amax(0)
    heads = config.num_attention_heads // config.num_key_value_heads if before.endswith("v_proj.weight") else 1

    def shared(values: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the query heads that share a key head, one value."""
        if heads == 1:
            return values
        each = values.view(config.num_key_value_heads, heads, config.head_dim)
        return over(each).unsqueeze(1).expand_as(each).flatten()

    def settle(s: Tensor) -> Tensor:
        if source.dim() == 2:
            return s
        divided = (source / s).to(dtype).float()
        return torch.where(divided == 0, 1.0, source / divided)

    def parts() -> Iterator[Part]:
        for stage in stages:
            found = seen[0] if seen[0].hessian is not None else moments(stage.inputs()) if stage.inputs else None
            if found is not None and found.hessian is not None:
                weighted = found.hessian * (found.tokens / tokens)
                yield from (Part(opened.weight(module), weighted, plan[module]) for module in stage.modules)

    if plan[modules[0]].method == "awq":
        s = find_scales(parts, shared(mean, lambda t: t.mean(1)), settle)
    else:
        columns = torch.stack([opened.weight(module).abs().amax(0) for module in modules]).amax(0)
        spread = shared(peak, lambda t: t.amax(1)), shared(columns, lambda t: t.amax(1))
        s = settle(smoothing(*spread, plan[modules[0]].alpha))
    if source.dim() == 1:
        # as `settle` rounded it: the factor is the quotient of the two
        source.copy_(torch.where(s == 1, source, (source / s).to(dtype).float()))
        router = f"{opened.prefix}mlp.gate.weight"
        if before.endswith("post_attention_layernorm.weight") and router in opened.views:
            opened.views[router].mul_(s)
    else:
        rows = s.view(-1, heads, config.head_dim)[:, 0].flatten() if heads > 1 else s
        source.div_(rows.unsqueeze(1))
    for module in modules:
        opened.weight(module).mul_(s)
