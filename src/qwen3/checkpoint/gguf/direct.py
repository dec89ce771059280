"""Matrices of Q4_0 and Q8_0 from the file into the layout they are multiplied in, in one call of compiled code.

What `Packing.build` makes, bit for bit, which copies a matrix six times on the way, a few operators each: then half of
the time from a file to the first token is that. Here every byte is read once and written once, and Python's lock is
free meanwhile, so that another thread can read the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qwen3.checkpoint.packed import Packing
from qwen3.kernels import native
from qwen3.kernels.native.calling import call
from qwen3.kernels.packed import LANES, SPAN, PackedWeight

_BITS = {"Q4_0": 4, "Q8_0": 8}
_AT_ONCE = 1 << 20  # numbers in one piece of a thread's work


def prepare(packings: Mapping[str, Packing]) -> tuple[dict[str, PackedWeight], Tensor]:
    """By name, those of `packings` that can be read so, still empty, and what `read` takes to fill them, int64 [n, 7]:
    `Stretch` of gguf.c. None where there are no compiled kernels."""
    library = native.library()
    if library is None:
        return {}, torch.empty(0, 7, dtype=torch.int64)
    made: dict[str, PackedWeight] = {}
    stretches: list[list[int]] = []
    for name, packing in packings.items():
        kinds = {part.kind for row in packing.parts for part in row}
        whole = all(part.location is not None and part.shape[0] % LANES == 0 for row in packing.parts for part in row)
        if packing.form is not None or packing.place is not None or not whole or len(kinds) > 1 or kinds - {*_BITS}:
            continue
        *experts, rows, columns = packing.shape
        bits = _BITS[kinds.pop()]
        data = torch.empty(*experts, rows // LANES, LANES * columns * bits // 8, dtype=torch.uint8)
        scale = torch.empty(*experts, rows // LANES, columns // SPAN, LANES, dtype=torch.float16)
        for tensor in (data, scale):
            call(library.qwen3_large_pages, tensor, tensor.nbytes)
        made[name] = PackedWeight(data, scale, None, rows=rows, columns=columns, bits=bits, group=SPAN)
        first, step = 0, max(LANES, _AT_ONCE // columns // LANES * LANES)
        for part in (part for row in packing.parts for part in row):
            assert part.location is not None
            (file, begin), count = part.location, part.shape[0]
            for at in range(0, count, step):
                own = min(step, count - at)
                stretches.append([
                    file, begin + part.nbytes // count * at, own, columns, bits,
                    data.data_ptr() + (first + at) * columns * bits // 8,
                    scale.data_ptr() + (first + at) * columns // SPAN * 2,
                ])  # fmt: skip
            first += count
        assert first == math.prod(packing.shape[:-1])
    return made, torch.tensor(stretches, dtype=torch.int64).view(-1, 7)


def read(stretches: Tensor) -> bool:
    """Whether all was read. If a file ends or cannot be read, it is False: reading it otherwise then says why."""
    library, done = native.library(), torch.zeros(1, dtype=torch.int64)
    assert library is not None
    call(library.qwen3_read_blocks, stretches, len(stretches), torch.get_num_threads(), done)
    return int(done) == len(stretches)
