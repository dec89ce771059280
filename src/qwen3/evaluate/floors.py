"""What no engine can beat: bytes over measured bandwidth, operations over measured rates.

A floor counts what the arithmetic needs and nothing else: each weight once a step, each cached key and value once, no
activations, no launches. Work of a step overlaps perfectly, so a step costs the larger of its two times. The choice of
experts costs what its distinct experts weigh.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwen3.config import ModelConfig
from qwen3.evaluate.machine import Ceilings


def distinct_experts(experts: int, top_k: int, rows: int) -> float:
    """Expected number of different experts that `rows` tokens choose, each `top_k` of `experts` uniformly."""
    return experts * (1.0 - (1.0 - top_k / experts) ** rows) if experts else 0.0


@dataclass(frozen=True)
class Roofline:
    """Floors of one model on one device, in seconds.

    weight_bytes: of one value of the layers' matrices (1 for FP8); head, embeddings and norms have `head_bytes`.
    kv_bytes: of one cached value. distinct: rows of a decode step -> mean distinct experts a layer, where it was
    counted; else the expectation.
    """

    config: ModelConfig
    ceilings: Ceilings
    weight_bytes: float = 2
    head_bytes: float = 2
    kv_bytes: float = 2
    distinct: dict[int, float] | None = None

    @property
    def possible(self) -> bool:
        """Whether the ceilings that the floors need were measured."""
        return bool(self.ceilings.read and self._matmul)

    @property
    def _matmul(self) -> float | None:
        """FLOP/s at which the layers' matrices multiply: in FP8 if they are, else in the width of the head."""
        if self.weight_bytes == 1 and self.ceilings.fp8:
            return self.ceilings.fp8
        return self.ceilings.float32 if self.head_bytes == 4 else self.ceilings.bf16

    def _layer_weights(self, experts: float | None = None) -> float:
        """Values of all layers' matrices; of each sparse layer, `experts` experts (None: all)."""
        c = self.config
        heads, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        attention = c.hidden_size * (2 * heads + 2 * kv)
        sparse = sum(c.is_sparse_layer(i) for i in range(c.num_hidden_layers))
        count = c.num_experts if experts is None else experts
        return (
            c.num_hidden_layers * attention
            + (c.num_hidden_layers - sparse) * 3 * c.hidden_size * c.intermediate_size
            + sparse * (count * 3 * c.hidden_size * c.moe_intermediate_size + c.num_experts * c.hidden_size)
        )

    @property
    def _head_weights(self) -> float:
        return self.config.vocab_size * self.config.hidden_size

    def _distinct(self, rows: int) -> float:
        known = (self.distinct or {}).get(rows)
        if known is not None:
            return known
        return distinct_experts(self.config.num_experts, self.config.num_experts_per_tok, rows)

    def decode_step(self, rows: int, context: float) -> float:
        """One token for each of `rows` sequences whose caches hold `context` tokens together."""
        assert self.ceilings.read
        c = self.config
        weights = self._layer_weights(self._distinct(rows)) * self.weight_bytes + self._head_weights * self.head_bytes
        cached = context * c.kv_bytes_per_token(1) * self.kv_bytes
        return max((weights + cached) / self.ceilings.read, self._flop_seconds(rows, rows, context))

    def prefill(self, lengths: Sequence[int]) -> float:
        """Prompts of these lengths and the first token of each, computed together."""
        assert self.ceilings.read
        tokens = sum(lengths)
        seen = sum(n * (n + 1) / 2 for n in lengths)
        experts = self._distinct(tokens)
        weights = self._layer_weights(experts) * self.weight_bytes + self._head_weights * self.head_bytes
        return max(weights / self.ceilings.read, self._flop_seconds(tokens, len(lengths), seen))

    def _flop_seconds(self, tokens: int, sampled: int, seen: float) -> float:
        """`tokens` through the layers, `sampled` of them through the head, `seen` (query, key) pairs in each head."""
        c, rate = self.config, self._matmul
        assert rate
        head_rate = (self.ceilings.float32 if self.head_bytes == 4 else self.ceilings.bf16) or rate
        layers = 2.0 * tokens * self._layer_weights(c.num_experts_per_tok if c.is_moe else None)
        attention = 4.0 * seen * c.num_attention_heads * c.head_dim * c.num_hidden_layers
        head = 2.0 * sampled * self._head_weights
        return layers / rate + head / head_rate + attention / (self.ceilings.attention or head_rate)

    def decode(self, prompts: Iterable[int], first: int, last: int) -> float:
        """The steps in which every sequence gets its output tokens number `first` (from 0) to `last` (excluded)."""
        lengths = list(prompts)
        total = sum(lengths)
        return sum(self.decode_step(len(lengths), total + len(lengths) * step) for step in range(first, last))

    def batch(self, prompts: Sequence[int], outputs: Sequence[int]) -> float:
        """All of it at once: prefill, then as few decode steps as the longest output needs."""
        time = self.prefill(prompts)
        for step in range(1, max(outputs)):
            left = [prompt + step for prompt, output in zip(prompts, outputs, strict=True) if output > step]
            time += self.decode_step(len(left), sum(left))
        return time
