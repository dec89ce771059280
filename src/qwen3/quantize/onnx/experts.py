"""A layer's experts: onnxruntime's own operator, or all experts for all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwen3.config import ModelConfig
from qwen3.quantize.onnx.graph import MICROSOFT
from qwen3.quantize.onnx.operands import Operands


@dataclass(frozen=True)
class Experts:
    """path: `model.layers.N.mlp`.

    Fused: MoE (floats) or QMoE, which compute the chosen experts only. The best k are found among the router's logits
    and weighed by a softmax over those k: a softmax over all, divided by the sum of the best k, as `norm_topk_prob`
    says. Where that is false, and where not fused: every expert computes every token, and the others' weights are zero;
    that is E/k times the arithmetic, in shapes that do not depend on the routing.
    """

    config: ModelConfig
    ops: Operands
    path: str

    def build(self, x: str) -> str:
        """x [batch, sequence, h] -> the same shape."""
        g, config = self.ops.graph, self.config
        flat = g("Reshape", x, g.constant([-1, config.hidden_size]))
        logits = self.ops.linear(flat, f"{self.path}.gate.weight")
        layouts = [self.ops.weights.layout(self._names(part)[0]) for part in ("gate", "down")]
        alike = len({layout and layout.group for layout in layouts}) == 1  # QMoE has one block size
        fused = self.ops.fused and config.norm_topk_prob and alike
        out = self._fused(flat, logits) if fused else self._all(flat, logits)
        return g("Reshape", out, g("Shape", x))

    def _names(self, part: str) -> list[str]:
        return [f"{self.path}.experts.{e}.{part}_proj.weight" for e in range(self.config.num_experts)]

    def _fused(self, x: str, logits: str) -> str:
        ops, g, config = self.ops, self.ops.graph, self.config
        count, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        gates, downs = list(zip(self._names("gate"), self._names("up"), strict=True)), self._names("down")
        names = (f"{self.path}.experts.gate_up", f"{self.path}.experts.down")
        options: dict[str, Any] = {
            "k": config.num_experts_per_tok, "normalize_routing_weights": 1, "activation_type": "swiglu",
            "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
        }  # fmt: skip
        layouts = [ops.weights.layout(name) for name in (gates[0][0], downs[0])]
        if layouts[0] is None or layouts[1] is None:
            both = (torch.stack([ops.weights.tensor(name) for name in pair], 1) for pair in gates)
            first = g.weight(names[0], ops.kind, (count, 2 * width, hidden), both)
            second = g.weight(names[1], ops.kind, (count, hidden, width), map(ops.weights.tensor, downs))
            return g("MoE", x, logits, first, "", second, domain=MICROSOFT, **options)
        q1, s1, *z1 = ops.blocks(names[0], (count, 2 * width), hidden, layouts[0], gates, flat=True)
        q2, s2, *z2 = ops.blocks(names[1], (count, hidden), width, layouts[1], downs, flat=True)
        zeros = ("", "", "", *(z1 or [""]), *(z2 or [""])) if z1 or z2 else ()
        options |= {"expert_weight_bits": layouts[0].bits, "block_size": layouts[0].group, "weights_prepacked": 0}
        options["accuracy_level"] = ops.level
        return g("QMoE", x, logits, q1, s1, "", q2, s2, "", *zeros, domain=MICROSOFT, **options)

    def _all(self, x: str, logits: str) -> str:
        ops, g, config = self.ops, self.ops.graph, self.config
        count, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        probabilities = g("Softmax", ops.wide(logits), axis=-1)
        best, chosen = f"{g.scope}/best", f"{g.scope}/chosen"
        g("TopK", probabilities, g.constant([config.num_experts_per_tok]), outputs=(best, chosen), axis=-1)
        if config.norm_topk_prob:
            best = g("Div", best, g("ReduceSum", best, g.constant([-1])))
        zeros = g("Expand", g.constant(0, np.float32), g("Shape", probabilities))
        weights = ops.narrow(g("ScatterElements", zeros, chosen, best, axis=1))
        gate, up = (
            g("MatMul", x, self._matrices(part, (count, hidden, width))) for part in ("gate", "up")
        )  # [E, N, m]: x is the same for all experts
        states = g("Transpose", ops.swiglu(gate, up), perm=[1, 0, 2])
        states = g("Mul", states, g("Unsqueeze", weights, g.constant([2])))
        states = g("Reshape", states, g.constant([-1, count * width]))
        return g("MatMul", states, self._matrices("down", (count * width, hidden)))  # and the sum over the experts

    def _matrices(self, part: str, shape: tuple[int, ...]) -> str:
        """All experts' below each other, transposed."""
        ops, names, name = self.ops, self._names(part), f"{self.path}.experts.{part}"
        layout = ops.weights.layout(names[0])
        if layout is None:
            return ops.graph.weight(name, ops.kind, shape, (ops.weights.tensor(each).T for each in names))
        return ops.dequantized(name, shape, layout, names)
