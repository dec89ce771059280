"""Matrices as initializers of a graph, and the operators that multiply by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3.quantize.onnx.graph import MICROSOFT, Graph
from qwen3.quantize.onnx.weights import KINDS, Layout, Weights, pack

_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType


@dataclass(frozen=True)
class Operands:
    """Adds weights, and products by them, to `graph`.

    fused: by onnxruntime's own operators (MatMulNBits, GatherBlockQuantized), which take matrices [N, K] as checkpoints
    have them; else by standard ones (DequantizeLinear, MatMul) [K, N]. level: the accuracy_level of the former.
    """

    graph: Graph
    weights: Weights
    fused: bool
    level: int

    @property
    def kind(self) -> str:
        """ONNX' type of floats."""
        return KINDS[self.weights.dtype]

    def floats(self, name: str) -> str:
        """A tensor as it is: a norm, an embedding."""
        return self.graph.weight(name, self.kind, self.weights.shape(name), self.weights.floats(name))

    def wide(self, x: str) -> str:
        """In float32."""
        return x if self.kind == "FLOAT" else self.graph("Cast", x, to=_FLOAT)

    def narrow(self, x: str) -> str:
        """A float32 value as the activations are."""
        return x if self.kind == "FLOAT" else self.graph("Cast", x, to=_FLOAT16)

    def swiglu(self, gate: str, up: str) -> str:
        """silu(gate) · up."""
        g = self.graph
        return g("Mul", g("Mul", gate, g("Sigmoid", gate)), up)

    def linear(self, x: str, name: str) -> str:
        """x [..., K] times the official matrix [N, K] -> [..., N]."""
        rows, columns = self.weights.shape(name)
        layout = self.weights.layout(name)
        if layout is None:
            turned = self.graph.weight(name, self.kind, (columns, rows), [self.weights.tensor(name).T])
            return self.graph("MatMul", x, turned)
        if not self.fused:
            return self.graph("MatMul", x, self.dequantized(name, (columns, rows), layout, [name]))
        return self.matmul_nbits(x, self.blocks(name, (rows,), columns, layout, [name]), rows, columns, layout)

    def matmul_nbits(self, x: str, weight: list[str], rows: int, columns: int, layout: Layout) -> str:
        """x [..., K] times what `blocks` made of a matrix [N, K]."""
        return self.graph(
            "MatMulNBits", x, *weight, domain=MICROSOFT, N=rows, K=columns, bits=layout.bits, block_size=layout.group,
            accuracy_level=self.level,
        )  # fmt: skip

    def blocks(
        self, name: str, rows: tuple[int, ...], columns: int, layout: Layout, names: Iterable[str | tuple[str, str]],
        flat: bool = False,
    ) -> list[str]:  # fmt: skip
        """Numbers uint8 [*rows, K/group, bytes] (if flat [*rows, bytes]), scales [*rows, K/group] and, where
        groups have them, zeros [*rows, bytes], as com.microsoft's operators take them. Rows of a pair of names take
        turns: gate and up, as its MoE operators want them."""
        bits, groups = layout.bits, columns // layout.group
        shape = (*rows, columns * bits // 8) if flat else (*rows, groups, layout.group * bits // 8)
        marks: list[list[Tensor]] = []

        def numbers() -> Iterator[Tensor]:
            for each in names:
                parts = [self.weights.grouped(one) for one in ((each,) if isinstance(each, str) else each)]
                fields = zip(*((p.q, p.scale, p.zero) for p in parts), strict=True)
                q, *own = [_take_turns(list(field)) for field in fields if field[0] is not None]
                marks.append(own)
                yield pack(q, bits)

        found = [self.graph.weight(name, "UINT8", shape, numbers())]
        found.append(self._scales(name, (*rows, groups), (own[0] for own in marks)))
        if layout.zeros:
            zeros = (pack(own[1], bits) for own in marks)
            found.append(self.graph.weight(f"{name}.zeros", "UINT8", (*rows, -(-groups * bits // 8)), zeros))
        return found

    def table(self, name: str) -> list[str]:
        """Embedding or head [V, h] as it lies: floats; or 8-bit numbers and scales [V, h/group], the numbers uint8
        around 128 if fused, else int8."""
        layout, shape = self.weights.layout(name), self.weights.shape(name)
        if layout is None:
            return [self.floats(name)]
        if self.fused:
            return self.blocks(name, shape[:1], shape[1], layout, [name], flat=True)
        found = self.weights.grouped(name)
        q = self.graph.weight(name, "INT8", shape, [found.q ^ 128])
        return [q, self._scales(name, (shape[0], shape[1] // layout.group), [found.scale])]

    def dequantized(self, name: str, shape: tuple[int, ...], layout: Layout, names: Iterable[str]) -> str:
        """Matrices [N, K] as one value [..., K, N] of floats, by DequantizeLinear; signed if without zeros."""
        bits, half = layout.bits, 0 if layout.zeros else 1 << (layout.bits - 1)
        kind, groups = f"{'U' if layout.zeros else ''}INT{bits}", (*shape[:-2], shape[-2] // layout.group, shape[-1])
        marks: list[tuple[Tensor, Tensor | None]] = []

        def numbers() -> Iterator[Tensor]:
            for each in names:
                found = self.weights.grouped(each)
                marks.append((found.scale, found.zero))
                yield pack((found.q ^ half).T.reshape(-1), bits)  # two's complement: half less flips the highest bit

        inputs = [self.graph.weight(name, kind, shape, numbers())]
        inputs.append(self._scales(name, groups, (scale.T for scale, _ in marks)))
        if layout.zeros:
            zeros = (pack(zero.T.reshape(-1), bits) for _, zero in marks if zero is not None)
            inputs.append(self.graph.weight(f"{name}.zeros", kind, groups, zeros))
        return self.graph("DequantizeLinear", *inputs, axis=len(shape) - 2, block_size=layout.group)

    def _scales(self, name: str, shape: tuple[int, ...], scales: Iterable[Tensor]) -> str:
        return self.graph.weight(f"{name}.scales", self.kind, shape, (each.to(self.weights.dtype) for each in scales))


def _take_turns(parts: list[Tensor]) -> Tensor:
    """Rows of the first, of the second, of the first, …"""
    return parts[0] if len(parts) == 1 else torch.stack(parts, 1).flatten(0, 1)
