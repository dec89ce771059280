"""Triton's interpreter, held to what the kernels mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3.kernels.fp8 import FP8

TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8e4nv": FP8}


def as_torch(data: Any, source: Any) -> Tensor:
    """The values of an interpreter's array, which keeps bfloat16 and float8 as integers."""
    return torch.from_numpy(data.copy()).view(TORCH_TYPES[str(source)])


def make_faithful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter loses carries where it rounds, multiplies matrices of bfloat16 as integers, and takes
    int() of one-element arrays for a loop's bounds, which numpy 2.4 refuses. Not in this test."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        found = as_torch(data, source).to(TORCH_TYPES[str(target)])
        return found.view(torch.uint8).numpy().view(f"uint{8 * found.itemsize}").reshape(data.shape)

    def dot(builder: Any, a: Any, b: Any, c: Any, precision: Any, imprecise: Any) -> Any:
        product = as_torch(a.data, a.dtype.scalar).float() @ as_torch(b.data, b.dtype.scalar).float()
        return interpreter.TensorHandle(product.numpy() + c.data, c.dtype.scalar)

    def tensor(kind: type, scope: Any) -> None:
        patch_tensor(kind, scope)
        scope.set_attr(kind, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", tensor)
