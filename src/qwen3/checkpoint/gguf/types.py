"""The tensor types that GGUF files number: elements and bytes of a block (ggml-common.h of ggml-org/ggml)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """`size` bytes hold `block` elements that follow each other in a row."""

    name: str
    block: int
    size: int

    @property
    def plain(self) -> bool:
        """One number after the other, no blocks."""
        return self.block == 1


_TABLE = """
0 F32 1 4 | 1 F16 1 2 | 2 Q4_0 32 18 | 3 Q4_1 32 20 | 6 Q5_0 32 22 | 7 Q5_1 32 24 | 8 Q8_0 32 34 | 10 Q2_K 256 84
11 Q3_K 256 110 | 12 Q4_K 256 144 | 13 Q5_K 256 176 | 14 Q6_K 256 210 | 15 Q8_K 256 292 | 16 IQ2_XXS 256 66
17 IQ2_XS 256 74 | 18 IQ3_XXS 256 98 | 19 IQ1_S 256 50 | 20 IQ4_NL 32 18 | 21 IQ3_S 256 110 | 22 IQ2_S 256 82
23 IQ4_XS 256 136 | 24 I8 1 1 | 25 I16 1 2 | 26 I32 1 4 | 27 I64 1 8 | 28 F64 1 8 | 29 IQ1_M 256 56 | 30 BF16 1 2
34 TQ1_0 256 54 | 35 TQ2_0 256 66 | 39 MXFP4 32 17
"""
TYPES = {
    int(number): TensorType(name, int(block), int(size))
    for entry in _TABLE.replace("\n", "|").split("|")
    if entry.strip()
    for number, name, block, size in [entry.split()]
}
"""By the number in the file."""

# numbers that stand for something we do not read; others stand for nothing
NOT_READ = {
    **dict.fromkeys((4, 5), "a 4-bit type that was withdrawn in 2023"),
    9: "Q8_1, which is for activations",
    **dict.fromkeys((31, 32, 33), "a rearranged Q4_0 that was withdrawn in 2024"),
    **dict.fromkeys((36, 37, 38), "a rearranged IQ4_NL that was withdrawn in 2024"),
    40: "NVFP4",
    41: "Q1_0",
}
