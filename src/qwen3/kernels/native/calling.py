"""Calls into the compiled kernels: tensors go by address, integers as 64 bits, which all of them take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from torch import Tensor


def call(function: Callable[..., Any], *arguments: Any) -> None:
    function(
        *(
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
            for a in arguments
        )
    )
