"""Qwen3 as an ONNX graph, node by node: the network of `model/network.py` in ONNX' operators.

Inputs: input_ids and attention_mask int64 [batch, sequence] and [batch, past + sequence], past_key_values.N.key and
.value [batch, kv_heads, past, head_dim]. Outputs: logits [batch, sequence, vocabulary], present.N.key and .value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qwen3.checkpoint.names import EMBED, HEAD
from qwen3.config import ModelConfig
from qwen3.model.rope import Rotary
from qwen3.quantize.onnx.experts import Experts
from qwen3.quantize.onnx.graph import MICROSOFT, Graph
from qwen3.quantize.onnx.operands import Operands

Attend = Callable[[int, str, str, str], str]
"""(layer, q and k normed [batch, sequence, heads, head_dim], v [batch, sequence, kv_heads · head_dim]) -> [batch,
sequence, heads · head_dim]."""
_INT32, _BOOL = 6, 9  # TensorProto.DataType
_BLOCKED = {torch.float32: -1e30, torch.float16: -3e4}  # added to scores; far from the end, where sums become infinite


@dataclass(frozen=True)
class Network:
    """context: positions that RoPE has angles for. last_only: logits of the last column alone. progress: called with
    how many steps are done, of so many."""

    config: ModelConfig
    ops: Operands
    context: int
    last_only: bool
    progress: Callable[[int, int], None]

    @property
    def g(self) -> Graph:
        return self.ops.graph

    def build(self) -> None:
        """Everything, inputs to outputs."""
        g, config = self.g, self.config
        batch, heads, dim = "batch_size", config.num_key_value_heads, config.head_dim
        g.inputs.append(g.value("input_ids", "INT64", [batch, "sequence_length"]))
        g.inputs.append(g.value("attention_mask", "INT64", [batch, "total_sequence_length"]))
        length = 1 if self.last_only else "sequence_length"
        g.outputs.append(g.value("logits", self.ops.kind, [batch, length, config.vocab_size]))
        past, total = ([batch, heads, f"{which}_sequence_length", dim] for which in ("past", "total"))
        for name in (f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")):
            g.inputs.append(g.value(f"past_key_values.{name}", self.ops.kind, past))
            g.outputs.append(g.value(f"present.{name}", self.ops.kind, total))
        attend = self._fused_attention() if self.ops.fused else self._plain_attention()
        g.scope = "model/embed_tokens"
        x, shared = self._embed()
        steps = config.num_hidden_layers + 1
        for i in range(config.num_hidden_layers):
            self.progress(i, steps)
            x = self._layer(i, x, attend)
        self.progress(steps - 1, steps)
        g.scope = "model"
        x = self._norm(x, "model.norm.weight")
        if self.last_only:
            x = g("Slice", x, g.constant([-1]), g.constant([np.iinfo(np.int64).max]), g.constant([1]))
        self._head(x, shared)
        self.progress(steps, steps)

    def _embed(self) -> tuple[str, list[str]]:
        """(states [batch, sequence, h], the table, for a head that shares it)."""
        g, layout = self.g, self.ops.weights.layout(EMBED)
        table = self.ops.table(EMBED)
        if layout is None:
            return g("Gather", table[0], "input_ids"), table
        if self.ops.fused:
            inputs = (table[0], "input_ids", table[1])
            return g("GatherBlockQuantized", *inputs, domain=MICROSOFT, bits=8, block_size=layout.group), table
        rows = [g("Gather", each, "input_ids") for each in table]
        return g("DequantizeLinear", *rows, axis=2, block_size=layout.group), table

    def _head(self, x: str, shared: list[str]) -> None:
        """Logits; a tied head multiplies by the embedding's own bytes."""
        g, ops, tied = self.g, self.ops, self.config.tie_word_embeddings
        g.scope, name = "lm_head", EMBED if tied else HEAD
        table, layout = shared if tied else ops.table(HEAD), ops.weights.layout(name)
        rows, columns = ops.weights.shape(name)
        if layout is not None and ops.fused:
            blocks = g.alias(f"{name}.blocks", "UINT8", (rows, columns // layout.group, layout.group), table[0])
            logits = ops.matmul_nbits(x, [blocks, table[1]], rows, columns, layout)
        else:
            matrix = table[0]
            if layout is not None:
                matrix = g("DequantizeLinear", *table, axis=1, block_size=layout.group)
            flat = g("Gemm", g("Reshape", x, g.constant([-1, columns])), matrix, transB=1)
            logits = g("Reshape", flat, g("Concat", g("Shape", x, end=2), g.constant([rows]), axis=0))
        g("Identity", logits, outputs=("logits",))

    def _layer(self, i: int, x: str, attend: Attend) -> str:
        g, config, ops, path = self.g, self.config, self.ops, f"model.layers.{i}"
        g.scope = path
        normed = self._norm(x, f"{path}.input_layernorm.weight")
        g.scope = f"{path}.self_attn"
        q, k, v = (ops.linear(normed, f"{path}.self_attn.{part}_proj.weight") for part in "qkv")
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        q = self._norm(self._split_heads(q, heads), f"{path}.self_attn.q_norm.weight")
        k = self._norm(self._split_heads(k, kv), f"{path}.self_attn.k_norm.weight")
        x = g("Add", x, ops.linear(attend(i, q, k, v), f"{path}.self_attn.o_proj.weight"))
        g.scope = path
        normed = self._norm(x, f"{path}.post_attention_layernorm.weight")
        g.scope = f"{path}.mlp"
        if config.is_sparse_layer(i):
            return g("Add", x, Experts(config, ops, f"{path}.mlp").build(normed))
        gate, up = (ops.linear(normed, f"{path}.mlp.{part}_proj.weight") for part in ("gate", "up"))
        return g("Add", x, ops.linear(ops.swiglu(gate, up), f"{path}.mlp.down_proj.weight"))

    def _norm(self, x: str, name: str) -> str:
        """RMSNorm over the last dimension in float32, rounded, times the weight; onnxruntime fuses these nodes."""
        g, wide = self.g, self.ops.wide(x)
        mean = g("ReduceMean", g("Pow", wide, g.constant(2.0, np.float32)), g.constant([-1]))
        root = g("Sqrt", g("Add", mean, g.constant(self.config.rms_norm_eps, np.float32)))
        return g("Mul", self.ops.narrow(g("Div", wide, root)), self.ops.floats(name))

    def _split_heads(self, x: str, heads: int) -> str:
        return self.g("Reshape", x, self.g.constant([0, 0, heads, self.config.head_dim]))

    def _angles(self) -> tuple[str, str]:
        """Tables of cos and sin [context, head_dim/2]."""
        dtype = self.ops.weights.dtype
        tables = Rotary(self.config)(torch.arange(self.context).unsqueeze(0), dtype)
        names = ("rotary.cos", "rotary.sin")
        shape = (self.context, self.config.head_dim // 2)
        cos, sin = (self.g.weight(n, self.ops.kind, shape, [t]) for n, t in zip(names, tables, strict=True))
        return cos, sin

    def _fused_attention(self) -> Attend:
        """GroupQueryAttention: turns q and k, writes the cache where it lies, attends."""
        g, config = self.g, self.config
        g.scope = "model/attention"
        cos, sin = self._angles()
        summed = g("ReduceSum", "attention_mask", g.constant([1]), keepdims=0)
        last = g("Cast", g("Sub", summed, g.constant([1])), to=_INT32)
        total = g("Cast", g("Squeeze", g("Shape", "attention_mask", start=1)), to=_INT32)
        heads, kv, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def attend(i: int, q: str, k: str, v: str) -> str:
            q, k = (g("Reshape", x, g.constant([0, 0, n * dim])) for x, n in ((q, heads), (k, kv)))
            past = (f"past_key_values.{i}.key", f"past_key_values.{i}.value")
            out = (f"{g.scope}/attention", f"present.{i}.key", f"present.{i}.value")
            return g(
                "GroupQueryAttention", q, k, v, *past, last, total, cos, sin, outputs=out, domain=MICROSOFT,
                num_heads=heads, kv_num_heads=kv, do_rotary=1, scale=dim**-0.5,
            )  # fmt: skip

        return attend

    def _plain_attention(self) -> Attend:
        """The same from standard operators; the cache grows by Concat. Keys are not repeated: the query heads that
        share one are rows of one product. Columns whose mask is 0 are seen by none, wherever they stand, and are not
        counted in positions."""
        g, config, ops = self.g, self.config, self.ops
        g.scope = "model/attention"
        past = g("Shape", "past_key_values.0.key", start=2, end=3)
        end, axis = g.constant([np.iinfo(np.int64).max]), g.constant([1])
        seen = g("CumSum", "attention_mask", g.constant(1))
        positions = g("Slice", g("Max", g("Sub", seen, axis), g.constant([0])), past, end, axis)
        tables = self._angles()
        # [batch, 1, sequence, head_dim/2], for q and k [batch, heads, sequence, head_dim]
        cos, sin = (g("Unsqueeze", g("Gather", table, positions), axis) for table in tables)
        total = g("Squeeze", g("Shape", "attention_mask", start=1))
        columns = g("Range", g.constant(0), total, g.constant(1))
        rows = g("Unsqueeze", g("Slice", columns, past, end), axis)
        shown = g("Unsqueeze", g("Cast", "attention_mask", to=_BOOL), g.constant([1, 2]))
        allowed = g("And", g("LessOrEqual", columns, rows), shown)
        dtype = torch.zeros(0, dtype=ops.weights.dtype).numpy().dtype
        blocked = (g.constant(value, dtype) for value in (0, _BLOCKED[ops.weights.dtype]))
        mask = g("Where", allowed, *blocked)
        heads, kv, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def turn(x: str) -> str:
            first, second = g.split(g("Transpose", x, perm=[0, 2, 1, 3]), 2, axis=3)
            left = g("Sub", g("Mul", first, cos), g("Mul", second, sin))
            return g("Concat", left, g("Add", g("Mul", second, cos), g("Mul", first, sin)), axis=3)

        def attend(i: int, q: str, k: str, v: str) -> str:
            q, k, v = turn(q), turn(k), g("Transpose", self._split_heads(v, kv), perm=[0, 2, 1, 3])
            k, v = (
                g("Concat", f"past_key_values.{i}.{part}", x, axis=2, outputs=(f"present.{i}.{part}",))
                for part, x in (("key", k), ("value", v))
            )
            q = g("Reshape", q, g.constant([0, kv, -1, dim]))
            scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
            scores = g("Mul", scores, g.constant(dim**-0.5, dtype))
            # [batch, kv, heads/kv · sequence, total] -> [batch, heads, sequence, total] and back
            by_head = g("Concat", g.constant([0, heads]), g("Shape", mask, start=2), axis=0)
            weights = g("Softmax", ops.wide(g("Add", g("Reshape", scores, by_head), mask)), axis=-1)
            by_group = g("Concat", g.constant([0, kv, -1]), g("Unsqueeze", total, g.constant([0])), axis=0)
            out = g("MatMul", g("Reshape", ops.narrow(weights), by_group), v)
            out = g("Transpose", g("Reshape", out, g.constant([0, heads, -1, dim])), perm=[0, 2, 1, 3])
            return g("Reshape", out, g.constant([0, 0, heads * dim]))

        return attend
