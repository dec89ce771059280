"""Numbers of 4 and 8 bits in 32-bit words (`kernels.grouped`) as 16-bit floats, few instructions each."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from qwen3.kernels.gpu.launch import PDL

_ASM = tl.constexpr(PDL)  # the interpreter has no assembler


@triton.constexpr_function
def excess(bits: int, dtype: Any, crossing: bool = False) -> int:
    """What `numbers`, or `crossed`, has them too great by."""
    if bits == 8 and not crossing:
        return 0
    if dtype == tl.bfloat16:
        return 128 if bits == 4 else -128
    return 1024


@triton.jit
def minus(a, b):
    """Both bfloat16 or both float16, two at a time; Triton would take two registers for them."""
    if _ASM:
        name: tl.constexpr = "sub.rn.bf16x2 $0, $1, $2;" if a.dtype == tl.bfloat16 else "sub.rn.f16x2 $0, $1, $2;"
        a = tl.inline_asm_elementwise(name, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)
    else:
        a = (a.to(tl.float32) - b.to(tl.float32)).to(a.dtype)
    return a


@triton.jit
def _and_or(a, b, c):
    """(a & b) | c in one instruction, which the assembler does not find by itself."""
    if _ASM:
        a = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        a = (a & b) | c
    return a


@triton.jit
def _low(words, high: tl.constexpr, dtype: tl.constexpr):
    """Of each word the 16 bits from bit 0 or 16."""
    return ((words >> high) & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _masked(words, mask: tl.constexpr, dtype: tl.constexpr):
    """Some bits of each 16 as the last ones of a mantissa: one register, two numbers."""
    one: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
    return _and_or(words, tl.full(words.shape, mask, tl.int32), tl.full(words.shape, one, tl.int32))


@triton.jit
def _half(words, at: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Of each word the number at bit `at`, as `numbers` has it."""
    if BITS == 4:
        number = _low(_masked(words >> (at % 16), 0x000F000F, dtype), at // 16 * 16, dtype)
    else:
        number = (((words >> at) & 255) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        number = number.to(dtype)
    return number


@triton.jit
def _four(words, at: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Those at bits `at`, and BITS, 2 · BITS, 3 · BITS above, in order […, 2, 2]."""
    even = tl.join(_half(words, at, BITS, dtype), _half(words, at + 2 * BITS, BITS, dtype))
    return tl.join(even, tl.join(_half(words, at + BITS, BITS, dtype), _half(words, at + 3 * BITS, BITS, dtype)))


@triton.jit
def numbers(words, BITS: tl.constexpr, dtype: tl.constexpr):
    """int32 words […] -> their numbers in order […, 2, 2(, 2)], 16-bit, each plus `excess`."""
    q = _four(words, 0, BITS, dtype)
    if BITS == 4:
        q = tl.join(q, _four(words, 16, BITS, dtype))
    return q


@triton.jit
def _crossed(words, MASK: tl.constexpr, dtype: tl.constexpr):
    even, odd = _masked(words, MASK, dtype), _masked(words >> 8, MASK, dtype)
    low = tl.join(_low(even, 0, dtype), _low(odd, 0, dtype))
    return tl.join(low, tl.join(_low(even, 16, dtype), _low(odd, 16, dtype)))


@triton.jit
def crossed(words, dtype: tl.constexpr):
    """int32 words […] of 8 bits each -> numbers 0, 2, 1, 3 of each word as […, 2, 2], plus `excess`.

    A register's two halves hold what the word's two halves have at one place, so that nothing is moved."""
    if dtype == tl.bfloat16:
        # A mantissa has 7 bits: the eighth says whether 128 or 256 is too much.
        q = minus(_crossed(words, 0x007F007F, dtype), _crossed(~words, 0x00800080, dtype))
    else:
        q = _crossed(words, 0x00FF00FF, dtype)
    return q
