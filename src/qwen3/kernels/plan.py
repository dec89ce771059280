"""What one engine step looks like to the kernels: a flat batch of tokens over a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BLOCK = 16
"""Tokens in a block of the KV cache. A token's cache slot is block · BLOCK + offset; block 0 is scratch for padding."""


@dataclass(frozen=True)
class StepPlan:
    """N tokens of R rows, without padding between them: first `decode` rows of one token each, then chunks of others.

    Tensors are int32 on the device. positions [N]; slots [N]: where each token's key and value go; tables [R, MB]: the
    rows' blocks; starts [R + 1]: each row's first token; lengths [R]: keys of a row, this step's included; cos_sin
    [P, D] float32: cosines, then sines, of each position, rounded to the model's dtype. max_query: tokens of the
    longest chunk (0: there is none); max_length: no length is above it; chunks: (tokens, length) of each row behind the
    decode rows, on the host. experts [N]: experts per token where it is not the model's number. invariant: results may
    not depend on what else is in the batch, bit for bit.
    """

    positions: Tensor
    slots: Tensor
    tables: Tensor
    starts: Tensor
    lengths: Tensor
    cos_sin: Tensor
    decode: int
    max_query: int
    max_length: int
    chunks: tuple[tuple[int, int], ...] = ()
    invariant: bool = False
    experts: Tensor | None = None
