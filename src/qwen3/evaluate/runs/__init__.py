"""Runs: a suite asked of a model, one line per sample, resumed where it was cut off."""

from qwen3.evaluate.runs.record import Run, read_run

__all__ = ["Run", "read_run"]
