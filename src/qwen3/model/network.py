"""The Qwen3 network, dense and mixture of experts, in plain PyTorch. Weights live once, in the fused layout.

Source: Qwen3 Technical Report (arXiv 2505.09388, section 2) and transformers' `modeling_qwen3.py` and
`modeling_qwen3_moe.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qwen3 import kernels
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.model.cache import Attend, KVCache
from qwen3.model.lora import Lora, adapted_experts
from qwen3.model.rope import Rotary
from qwen3.model.step import Stepper

# q [B, H, T, D], k [B, KV, T, D], v [B, KV, T, D] -> [B, H, T, D]
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


class RouterOutput(NamedTuple):
    """What one sparse layer's router did: logits [tokens, E] in the model's dtype, experts [tokens, k] int64."""

    layer: int
    logits: Tensor
    experts: Tensor


class Linear(nn.Linear):
    """Without bias and left uninitialised: weights come from a checkpoint or from the trainer."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias=False, device=device, dtype=dtype)
        self.lora: Lora | None = None  # what is trained beside it: see `lora.py`

    def reset_parameters(self) -> None:
        """Nothing: see the class."""

    @property
    def engine_weight(self) -> Any:
        """What the engine's `fused_linear` takes."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        y = kernels.linear(x, self.weight)
        return y if self.lora is None else self.lora(x, y)


class Embedding(nn.Embedding):
    """Left uninitialised, as Linear."""

    def reset_parameters(self) -> None:
        """Nothing: see the class."""


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = self.heads * self.head_dim
        fused = width + 2 * self.kv_heads * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, fused, device, dtype)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps, device, dtype)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps, device, dtype)
        self.o_proj = Linear(width, config.hidden_size, device, dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, length, self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = qkv[:, :, : self.heads + self.kv_heads], qkv[:, :, self.heads + self.kv_heads :]
        q, k = kernels.qk_norm_rope(qk, self.heads, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, cos, sin)
        out = attend(self, q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class DenseMLP(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up in one matrix."""

    def __init__(self, config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, device, dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(kernels.silu_mul(self.gate_up_proj(x)))


class Experts(nn.Module):
    """All experts of a layer: gate_up_proj [E, 2m, h] (gate first), down_proj [E, h, m]."""

    def __init__(self, config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        count, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width, device=device, dtype=dtype))
        self.loras = nn.ModuleDict()  # what is trained beside the two, by name

    @property
    def engine_weights(self) -> tuple[Any, Any]:
        """What the engine's `experts` takes."""
        return self.gate_up_proj, self.down_proj

    @property
    def plain(self) -> bool:
        """Whether there are no adapters beside the weights, and these are tensors, not compressed."""
        return len(self.loras) == 0 and isinstance(self.gate_up_proj, Tensor)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [N, h], weights and chosen [N, k] as `kernels.route` gives them -> [N, h]."""
        if self.plain or not (self.loras or torch.is_grad_enabled()):
            return kernels.experts(x, self.gate_up_proj, self.down_proj, weights, chosen)
        return adapted_experts(x, self.gate_up_proj, self.down_proj, weights, chosen, *self.pairs(x.dtype))

    def pairs(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor] | None]:
        """Adapters' matrices A, B beside gate_up_proj and beside down_proj; None: there are none."""
        loras: Any = self.loras
        return [loras[n].pair(dtype) if n in loras else None for n in ("gate_up_proj", "down_proj")]


class SparseMLP(nn.Module):
    """A router that sends each token to its best `num_experts_per_tok` of `num_experts`; no shared expert."""

    def __init__(self, config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, device, dtype)
        self.experts = Experts(config, device, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, h] -> (out [B, T, h], router logits [B·T, E], chosen experts [B·T, k])."""
        flat = x.reshape(-1, x.shape[-1])
        logits = self.gate(flat)
        weights, chosen = kernels.route(logits, self.top_k, self.normalise)
        out = self.experts(flat, weights, chosen)
        return out.view_as(x), logits, chosen


# the block, x [B, T, h] -> as `SparseMLP.forward`
SparseFunction = Callable[[SparseMLP, Tensor], tuple[Tensor, Tensor, Tensor]]


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.index = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.self_attn = Attention(config, layer, device, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.sparse = config.is_sparse_layer(layer)
        self.mlp = (SparseMLP if self.sparse else DenseMLP)(config, device, dtype)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        aux: list[RouterOutput] | None = None,
        sparse: SparseFunction | None = None,
    ) -> Tensor:
        """x [B, T, h] -> [B, T, h]. `sparse`: used instead of the sparse block's own forward (by the trainer)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        normed = self.post_attention_layernorm(x)
        mlp: Any = self.mlp
        out: Any = mlp(normed) if sparse is None or not self.sparse else sparse(mlp, normed)
        if self.sparse:
            out, logits, chosen = out
            if aux is not None:
                aux.append(RouterOutput(self.index, logits, chosen))
        return x + out


class Qwen3(nn.Module):
    """The network. Its parameters are uninitialised; their names and shapes are listed in `docs/design.md`.

    device None: torch's default; dtype None: the config's. `rotary` holds no weights and stays float32.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dtype = getattr(torch, config.dtype) if dtype is None else dtype
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        self.layers = nn.ModuleList(Layer(config, i, device, dtype) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, device, dtype)
        self.rotary = Rotary(config, device)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def stepper(self, *, uniform_routing: bool = False) -> Stepper:
        """The engine's forward over these parameters."""
        return Stepper(self, uniform_routing=uniform_routing)

    def new_cache(self, rows: int, max_len: int) -> KVCache:
        """An empty cache on the model's device, in its dtype."""
        return KVCache(self.config, rows, max_len, self.device, self.dtype)

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        doc_ids: Tensor | None = None,
        attention: AttentionFunction | None = None,
        aux: list[RouterOutput] | None = None,
    ) -> Tensor:
        """ids int64 [B, T] -> logits [B, T, V] in the model's dtype; see `hidden` for the arguments.

        `last_only`: [B, 1, V], for each row's last token that is not padding.
        """
        x = self.hidden(ids, positions, cache, doc_ids=doc_ids, attention=attention, aux=aux)
        if last_only and x.shape[1] > 1:
            if positions is None:
                x = x[:, -1:]
            else:
                steps = torch.arange(x.shape[1], device=x.device)
                last = torch.where(positions >= 0, steps, 0).amax(-1)
                x = x[torch.arange(x.shape[0], device=x.device), last].unsqueeze(1)
        return self.head(x)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        doc_ids: Tensor | None = None,
        attention: AttentionFunction | None = None,
        aux: list[RouterOutput] | None = None,
    ) -> Tensor:
        """ids int64 [B, T] -> states [B, T, h] before the head (after the last norm).

        With `cache`, `positions` [B, T] say where each token is written and what it sees (see KVCache), -1 is padding,
        and no gradient is kept. Without, attention is causal in the order of the columns, `positions` (default 0..T-1)
        only turn RoPE, and tokens at -1 are seen by no other; in a compiled graph say padding with `doc_ids`.

        `doc_ids` int [B, T]: a token sees only those with its own number (packed documents). `attention`: used instead
        of ours, causal masking included (called with q [B, H, T, D], k and v [B, KV, T, D]). Both only without cache.
        `aux`: each sparse layer appends its RouterOutput. Raises UsageError on shapes that do not fit.
        """
        if ids.dim() != 2:
            raise UsageError(f"ids must be [batch, tokens], not of shape {list(ids.shape)}")
        if positions is not None and positions.shape != ids.shape:
            raise UsageError(f"positions are {list(positions.shape)}, ids {list(ids.shape)}: they must be the same")
        if cache is not None:
            if positions is None:
                raise UsageError("positions must be given with a cache: they say where each token is written")
            if doc_ids is not None or attention is not None:
                raise UsageError("doc_ids and attention are for forwards without a cache")
            with torch.no_grad():
                return self._layers(ids, positions, cache.begin(positions), aux)
        attend = self._attend_uncached(ids, positions, doc_ids, attention)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        return self._layers(ids, positions, attend, aux)

    def head(self, hidden: Tensor) -> Tensor:
        """[..., h] -> logits [..., V]; a tied head is the embedding itself."""
        return kernels.linear(hidden, (self.embed_tokens if self.lm_head is None else self.lm_head).weight)

    def _layers(self, ids: Tensor, positions: Tensor, attend: Attend, aux: list[RouterOutput] | None) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.rotary(positions, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, attend, aux)
        return self.norm(x)

    def _attend_uncached(
        self, ids: Tensor, positions: Tensor | None, doc_ids: Tensor | None, attention: AttentionFunction | None
    ) -> Attend:
        if attention is not None:
            if doc_ids is not None:
                raise UsageError("doc_ids and attention exclude each other: the given attention does the masking")
            return lambda layer, q, k, v: attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        if doc_ids is None and positions is not None and not torch.compiler.is_compiling():
            padding = positions < 0
            doc_ids = padding.long() if bool(padding.any()) else None
        mask = None if doc_ids is None else self._document_mask(doc_ids)
        causal = mask is None
        return lambda layer, q, k, v: kernels.attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, causal
        )

    def _document_mask(self, doc_ids: Tensor) -> Tensor:
        """doc_ids [B, T] -> [B, 1, T, T] to add: 0 where a token may look (same document, not later), else -inf."""
        order = torch.arange(doc_ids.shape[1], device=doc_ids.device)
        allowed = (doc_ids.unsqueeze(-1) == doc_ids.unsqueeze(-2)) & (order.unsqueeze(-1) >= order)
        blank = torch.zeros(allowed.shape, dtype=self.dtype, device=doc_ids.device)
        return blank.masked_fill(~allowed, float("-inf")).unsqueeze(1)
