"""Finding NaN and infinite values in weights."""

from __future__ import annotations

import torch
from torch import Tensor


def count_nan_inf(values: Tensor) -> tuple[int, int]:
    """(NaN, infinite) elements of a floating-point tensor."""
    if values.itemsize == 1:
        values = values.float()  # float8 has no arithmetic
    # one cheap pass settles the usual case: both survive a sum (which may itself overflow: then look closer)
    if torch.isfinite(values.sum(dtype=torch.float32)):
        return 0, 0
    return int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
