"""The first kernel of a decode step: from the samples' state to what the layers read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels.gpu.launch import PDL, launch
from qwen3.kernels.plan import BLOCK


@triton.jit
def _inputs(
    rows, last_token, position, tables, embedding, x, ids, positions, slots, lengths, own, width, hidden,
    BLOCK: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(rows + row)
    token = tl.load(last_token + slot)
    here = tl.load(position + slot)
    span = tl.arange(0, TILE)
    for start in range(0, hidden, TILE):
        at = start + span
        part = tl.load(embedding + token.to(tl.int64) * hidden + at, mask=at < hidden)
        tl.store(x + row.to(tl.int64) * hidden + at, part, mask=at < hidden)
    for start in range(0, here // BLOCK + 1, TILE):
        at = start + span
        part = tl.load(tables + slot.to(tl.int64) * width + at, mask=at < width, other=0)
        tl.store(own + row.to(tl.int64) * width + at, part, mask=at < width)
    block = tl.load(tables + slot.to(tl.int64) * width + here // BLOCK)
    tl.store(ids + row, token)
    tl.store(positions + row, here)
    tl.store(slots + row, block * BLOCK + here % BLOCK)
    tl.store(lengths + row, here + 1)


def decode_inputs(
    rows: Tensor, last_token: Tensor, position: Tensor, tables: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference_engine.decode_inputs`; of the tables only the entries that a row's length covers are copied."""
    count, width, hidden = len(rows), tables.shape[1], embedding.shape[1]
    x = embedding.new_empty(count, hidden)
    small = torch.empty(4, count, dtype=torch.int32, device=rows.device)
    own = torch.empty(count, width, dtype=torch.int32, device=rows.device)
    args = (rows, last_token, position, tables, embedding, x, *small, own, width, hidden)
    launch(_inputs, (count,), *args, BLOCK=BLOCK, TILE=1024, PDL=PDL, num_warps=4, launch_pdl=PDL)
    ids, positions, slots, lengths = small
    return x, ids, positions, slots, lengths, own
