"""How matrices of few bits are held in memory (`kernels.packed`), as numbers: no torch here."""

from __future__ import annotations

from typing import NamedTuple

_LANES = 16  # as kernels.packed.LANES


class Form(NamedTuple):
    """Numbers of `bits` in groups of so many columns, each with a scale and perhaps a minimum. fine: columns to an
    integer scale beside that, if there is one; table: the numbers count in `kernels.packed.TABLE`."""

    bits: int
    group: int
    mins: bool
    fine: int = 0
    table: bool = False

    def nbytes(self, rows: int, columns: int) -> int:
        """Of a matrix that a `PackedWeight` holds so."""
        count, levels = -(-rows // _LANES) * _LANES * columns, 2 if self.mins else 1
        marks = count // self.fine if self.fine else 0
        return count * self.bits // 8 + levels * (2 * (count // self.group) + marks)


FORMS = {
    "Q4_0": Form(4, 32, False), "Q4_1": Form(4, 32, True), "Q5_0": Form(5, 32, False), "Q5_1": Form(5, 32, True),
    "Q8_0": Form(8, 32, False), "Q2_K": Form(2, 256, True, 16), "Q3_K": Form(3, 256, False, 16),
    "Q4_K": Form(4, 256, True, 32), "Q5_K": Form(5, 256, True, 32), "Q6_K": Form(6, 256, False, 16),
    "IQ4_NL": Form(4, 32, False, table=True), "IQ4_XS": Form(4, 256, False, 32, table=True),
}  # fmt: skip
"""GGUF's types that `kernels.packed` multiplies as they are."""
