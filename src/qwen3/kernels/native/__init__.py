"""Kernels in C, compiled on the machine that runs them: see `build`."""

from qwen3.kernels.native.build import library, state

__all__ = ["library", "state"]
