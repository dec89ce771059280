"""The first kernel of a decode step: from the samples' state to what the layers read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels.gpu.launch import PDL, launch
from qwen3.kernels.gpu.weight_only import group_rows
from qwen3.kernels.grouped import GroupWeight
from qwen3.kernels.plan import BLOCK


@triton.jit
def _inputs(
    rows, last_token, position, tables, embedding, x, ids, positions, slots, lengths, own,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(rows + row)
    token = tl.load(last_token + slot)
    here = tl.load(position + slot)
    span = tl.arange(0, TILE)
    if embedding is not None:
        for start in range(0, HIDDEN, TILE):
            at = start + span
            part = tl.load(embedding + token.to(tl.int64) * HIDDEN + at, mask=at < HIDDEN)
            tl.store(x + row.to(tl.int64) * HIDDEN + at, part, mask=at < HIDDEN)
    for start in range(0, WIDTH, TILE):
        at = start + span
        part = tl.load(tables + slot.to(tl.int64) * WIDTH + at, mask=at <= here // BLOCK, other=0)
        tl.store(own + row.to(tl.int64) * WIDTH + at, part, mask=at < WIDTH)
    block = tl.load(tables + slot.to(tl.int64) * WIDTH + here // BLOCK)
    tl.store(ids + row, token)
    tl.store(positions + row, here)
    tl.store(slots + row, block * BLOCK + here % BLOCK)
    tl.store(lengths + row, here + 1)


def decode_inputs(
    rows: Tensor, last_token: Tensor, position: Tensor, tables: Tensor, embedding: Tensor | GroupWeight
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference_engine.decode_inputs`; entries of the tables that a row's length does not cover become 0."""
    count, width, hidden = len(rows), tables.shape[1], embedding.shape[1]
    plain = embedding if isinstance(embedding, Tensor) else None
    x = None if plain is None else plain.new_empty(count, hidden)
    small = torch.empty(4, count, dtype=torch.int32, device=rows.device)
    own = torch.empty(count, width, dtype=torch.int32, device=rows.device)
    args = (rows, last_token, position, tables, plain, x, *small, own)
    shape = {"WIDTH": width, "HIDDEN": hidden, "BLOCK": BLOCK, "TILE": 1024}
    launch(_inputs, (count,), *args, **shape, PDL=PDL, num_warps=4, launch_pdl=PDL)
    ids, positions, slots, lengths = small
    if not isinstance(embedding, Tensor):
        x = group_rows(embedding, ids)
    assert x is not None
    return x, ids, positions, slots, lengths, own
