"""The network's second forward: one engine step over a flat batch and a paged cache, out of fused operations.

It reads the parameters of `Qwen3` in place (an optimiser may write them between steps) and keeps no gradient. Its slow
twin is `Qwen3.hidden`; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import kernels
from qwen3.kernels import StepPlan
from qwen3.kernels.packed import PackedWeight
from qwen3.kernels.packed_layers import PackedLayers

if TYPE_CHECKING:
    from qwen3.model.network import Qwen3


@dataclass(frozen=True)
class _Weights:
    """One layer's parameters, looked up once: attribute access through modules costs more than a small kernel."""

    norm1: Tensor
    qkv: Any
    q_norm: Tensor
    k_norm: Tensor
    out: Any
    norm2: Tensor
    up: Any  # gate and up, of the MLP or of all experts
    down: Any
    router: Tensor | None


class Stepper:
    """uniform_routing: the router's choice is replaced by a seeded uniform one (for speed on random weights)."""

    def __init__(self, model: Qwen3, *, uniform_routing: bool = False) -> None:
        config = self.config = model.config
        self.eps = config.rms_norm_eps
        self.uniform_routing = uniform_routing
        self.rotary = model.rotary
        self.embedding = model.embed_tokens.weight
        self.norm = model.norm.weight
        self.head = self.embedding if model.lm_head is None else model.lm_head.engine_weight
        self.layers = []
        layer: Any
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            if layer.sparse:
                (up, down), router = mlp.experts.engine_weights, mlp.gate.weight
            else:
                up, down, router = mlp.gate_up_proj.engine_weight, mlp.down_proj.engine_weight, None
            weights = _Weights(
                layer.input_layernorm.weight,
                attention.qkv_proj.engine_weight,
                attention.q_norm.weight,
                attention.k_norm.weight,
                attention.o_proj.engine_weight,
                layer.post_attention_layernorm.weight,
                up,
                down,
                router,
            )
            self.layers.append(weights)
        # Weights of few bits have had the kernels compiled; others are not to wait for a compiler at their first step.
        self.compiled = any(isinstance(weights.qkv, PackedWeight) for weights in self.layers)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.at_once = PackedLayers.of(self.layers, heads, kv_heads, self.eps)

    def hidden(
        self,
        ids: Tensor,
        plan: StepPlan,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        embedded: Tensor | None = None,
        routes: Tensor | None = None,
        operations: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """ids [N] -> states [N, h] before the last norm; writes keys and values at `plan.slots`.

        k_cache, v_cache: [L, blocks, 16, KV, D]. embedded [N, h]: the ids' embeddings where they are at hand (they may
        be overwritten). routes [L, N, k]: filled with the experts that each token took in each sparse layer.
        operations: what runs instead of `kernels.fused_linear` and `kernels.experts`.
        """
        config, invariant = self.config, plan.invariant
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        linear, experts = operations or (kernels.fused_linear, kernels.experts)
        x = F.embedding(ids, self.embedding) if embedded is None else embedded
        if self.at_once is not None and operations is None:
            states = kernels.packed_layers(self.at_once, x, plan, k_cache, v_cache)
            if states is not None:
                return states
        for i, w in enumerate(self.layers):
            qkv = linear(x, w.qkv, norm=w.norm1, eps=self.eps, invariant=invariant)
            seen = kernels.attend(
                qkv, heads, kv_heads, w.q_norm, w.k_norm, self.eps, plan, k_cache[i], v_cache[i], compiled=self.compiled
            )
            x = linear(seen, w.out, residual=x, invariant=invariant, overwrite=True)
            if w.router is None:
                h = linear(x, w.up, norm=w.norm2, eps=self.eps, silu=True, invariant=invariant)
                x = linear(h, w.down, residual=x, invariant=invariant, overwrite=True)
                continue
            h = kernels.rms_norm(x, w.norm2, self.eps)
            if self.uniform_routing:
                logits = kernels.uniform_logits(ids, plan.positions, i, config.num_experts)
            else:
                logits = linear(h, w.router, invariant=invariant)
            scales, chosen = kernels.route(
                logits, config.num_experts_per_tok, config.norm_topk_prob, counts=plan.experts
            )
            if routes is not None:
                routes[i] = chosen
            x = experts(h, w.up, w.down, scales, chosen, residual=x, invariant=invariant)
        return x

    def logits(self, hidden: Tensor, *, invariant: bool = False) -> Tensor:
        """States [R, h] before the last norm -> logits [R, rows of the head] in the model's dtype."""
        return kernels.fused_linear(hidden, self.head, norm=self.norm, eps=self.eps, invariant=invariant)

    def cos_sin(self, length: int) -> Tensor:
        """[length, D] float32: cosines, then sines, of positions 0 …, rounded to the model's dtype."""
        positions = torch.arange(length, device=self.embedding.device).unsqueeze(0)
        return torch.cat(self.rotary(positions, self.embedding.dtype), dim=-1)[0].float().contiguous()
