"""Training with products of 8 bits: the layers' linear maps multiply FP8 numbers, scaled as they are found.

Micikevicius et al. 2022, "FP8 formats for deep learning" (arXiv 2209.05433): activations and weights in e4m3 (3 bits of
mantissa, up to 448), gradients in e5m2 (2 bits, up to 57,344). The scale of an operand is its own largest value, taken
anew for each product: of the whole tensor, or ("rowwise") of each row along which is summed. Weights, their masters,
what is between the products, and the sums stay as they were; embedding, head, router, experts and norms are left alone.

On CUDA from compute capability 8.9 (Ada, Hopper, later) `torch._scaled_mm` multiplies; elsewhere its twin does, which
rounds the same numbers the same way and multiplies them in float32: slow, for tests and for a look at the numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.model.network import Linear

Fp8 = bool | Literal["rowwise"]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_LEAVES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_GRAIN = 16  # sizes must be multiples of it, as the tensor cores' loads want it


def quantize(x: Tensor, dtype: torch.dtype, rowwise: bool) -> tuple[Tensor, Tensor]:
    """x [rows, n] -> (FP8 numbers [rows, n], float32 scales, [] or [rows, 1]) whose product is about x. What is not
    finite makes all that has its scale not finite."""
    wide = x.float()
    most = wide.abs().amax(1, keepdim=True) if rowwise else wide.abs().amax()
    limit = torch.finfo(dtype).max
    scale = most.clamp(min=1e-30) / limit
    return (wide / scale).clamp(-limit, limit).to(dtype), scale


def twin(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out: torch.dtype) -> Tensor:
    """a FP8 [m, n] times the transpose of b FP8 [k, n], with their scales -> [m, k]: what `native` computes."""
    return ((a.float() * scale_a) @ (b.float() * scale_b).T).to(out)


def native(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out: torch.dtype) -> Tensor:
    """As `twin`. a and b lie row by row; sizes are multiples of 16."""
    # Sums of gradients are kept in float32 throughout; for activations the tensor cores' faster sums are exact enough.
    product: Tensor = torch._scaled_mm(
        a, b.t(), scale_a, scale_b.t(), out_dtype=out, use_fast_accum=a.dtype == b.dtype == E4M3
    )
    return product


def multiply(a: Tensor, b: Tensor, dtypes: tuple[torch.dtype, torch.dtype], rowwise: bool) -> Tensor:
    """a [m, n] times the transpose of b [k, n], both rounded to FP8 first -> [m, k] in a's dtype."""
    (a8, scale_a), (b8, scale_b) = quantize(a, dtypes[0], rowwise), quantize(b, dtypes[1], rowwise)
    return (native if a.is_cuda else twin)(a8.contiguous(), b8.contiguous(), scale_a, scale_b, a.dtype)


class _Linear(torch.autograd.Function):
    """x [tokens, in], weight [out, in] -> [tokens, out]. Three products: forward, and two for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rowwise: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rowwise = rowwise
        return multiply(x, weight, (E4M3, E4M3), rowwise)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x = multiply(grad, weight.t(), (E5M2, E4M3), ctx.rowwise) if ctx.needs_input_grad[0] else None
        of_weight = multiply(grad.t(), x.t(), (E5M2, E4M3), ctx.rowwise) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def fp8_linear(x: Tensor, weight: Tensor, rowwise: bool = False) -> Tensor:
    """x [..., in] times weight [out, in] -> [..., out]. in and out are multiples of 16."""
    flat = x.flatten(0, -2)
    odd = -len(flat) % _GRAIN
    out: Tensor = _Linear.apply(F.pad(flat, (0, 0, 0, odd)) if odd else flat, weight, rowwise)
    return out[: len(flat)].view(*x.shape[:-1], len(weight))


class Fp8Linear(Linear):
    """The network's own Linear with another product. The engine, which reads the weights, does not see it."""

    rowwise = False

    def forward(self, x: Tensor) -> Tensor:
        y = fp8_linear(x, self.weight, self.rowwise)
        return y if self.lora is None else self.lora(x, y)


class RowwiseFp8Linear(Fp8Linear):
    rowwise = True


def use_fp8(model: Qwen3, fp8: Fp8) -> int:
    """Give the layers' linear maps this product, or (False) their own again; the parameters stay where they are.
    Returns how many have it. Raises UsageError for a GPU that has no FP8, weights that are compressed, and sizes that
    are no multiples of 16."""
    if fp8 not in (True, False, "rowwise"):
        raise UsageError(f"fp8={fp8!r} must be true, false or rowwise")
    kind = RowwiseFp8Linear if fp8 == "rowwise" else Fp8Linear if fp8 else Linear
    if fp8 and model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) < (8, 9):
        name = torch.cuda.get_device_name(model.device)
        raise UsageError(f"fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper), which {name} is not")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _LEAVES and isinstance(module, Linear)
    ]
    for name, module in found if fp8 else ():
        if not isinstance(module.weight, nn.Parameter):
            raise UsageError(f"fp8: {name} is kept compressed: train it without fp8")
        if any(size % _GRAIN for size in module.weight.shape):
            raise UsageError(f"fp8: {name} is {list(module.weight.shape)}; sizes must be multiples of {_GRAIN}")
    for _, module in found:
        module.__class__ = kind  # same parameters, same names; a hook or wrapper would change one of the two
    return len(found) if fp8 else 0
