"""Running programs that a model wrote: no network, no host files, nobody's rights, bounded in everything."""

from qwen3.sandbox.check import Verdict, check_calls, check_output
from qwen3.sandbox.process import Limits, Outcome, require, run

__all__ = ["Limits", "Outcome", "Verdict", "check_calls", "check_output", "require", "run"]
