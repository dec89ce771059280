"""An ONNX graph in the making, whose weights go straight to a file beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from qwen3.errors import Qwen3Error

MODEL, DATA = "model.onnx", "model.onnx.data"
LEVEL = "session.qdq_matmulnbits_accuracy_level"  # of onnxruntime's SessionOptions
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
_ALIGN = 4096  # so that a runtime can map a weight
_IR = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
"""Operator set → version of the file format that came with it (Versioning.md of onnx/onnx)."""
OPSETS = tuple(_IR)


def onnx_library() -> Any:
    """The `onnx` package. Raises Qwen3Error saying how to get it."""
    try:
        return import_module("onnx")
    except ImportError:
        raise Qwen3Error("writing ONNX needs the onnx package: pip install 'qwen3[onnx]'") from None


class Graph:
    """`graph("Add", a, b)` adds a node and gives the name of its output. Values are known by their names.

    data: the file that weights are appended to. scope: what the names of new nodes begin with.
    """

    def __init__(self, data: BinaryIO, opset: int) -> None:
        self.onnx = onnx_library()
        self.data, self.opset = data, opset
        self.scope = ""
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def __call__(
        self, op: str, *inputs: str, outputs: tuple[str, ...] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Adds a node; "" is an input that is left out. outputs: its names, if they are to be known by them."""
        name = f"{self.scope}/{op}_{len(self._nodes)}"
        outputs = outputs or (name,)
        self._nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name, domain=domain, **attributes))
        return outputs[0]

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts of a value."""
        names = tuple(f"{self.scope}/Split_{len(self._nodes)}_{i}" for i in range(parts))
        self("Split", value, outputs=names, axis=axis, num_outputs=parts)
        return list(names)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small array inside the graph; equal ones are one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._initializers[name] = self.onnx.numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def weight(self, name: str, kind: str, shape: Iterable[int], chunks: Iterable[Tensor]) -> str:
        """A tensor of a type of ONNX ("FLOAT", "UINT4") whose bytes are those of the chunks, one after the other."""
        start = -(-self.data.tell() // _ALIGN) * _ALIGN
        self.data.write(bytes(start - self.data.tell()))
        for chunk in chunks:
            flat: Any = chunk.contiguous().numpy()
            self.data.write(flat.data)
        self._declare(name, kind, shape, {"location": DATA, "offset": start, "length": self.data.tell() - start})
        return name

    def alias(self, name: str, kind: str, shape: Iterable[int], of: str) -> str:
        """The bytes of another weight once more, as another tensor."""
        entries = {entry.key: entry.value for entry in self._initializers[of].external_data}
        self._declare(name, kind, shape, entries)
        return name

    def _declare(self, name: str, kind: str, shape: Iterable[int], place: dict[str, Any]) -> None:
        types = self.onnx.TensorProto
        tensor = types(name=name, data_type=types.DataType.Value(kind), dims=shape, data_location=types.EXTERNAL)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor

    def value(self, name: str, kind: str, shape: Sequence[object]) -> Any:
        """An input or output; strings are sizes that the caller chooses."""
        return self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.DataType.Value(kind), shape)

    def model(self, name: str, producer: str) -> Any:
        """The ModelProto."""
        helper = self.onnx.helper
        domains = {"": self.opset} | {node.domain: 1 for node in self._nodes if node.domain}
        graph = helper.make_graph(self._nodes, name, self.inputs, self.outputs, list(self._initializers.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*item) for item in domains.items()],
            ir_version=_IR[self.opset],
            producer_name="qwen3",
            producer_version=producer,
        )
