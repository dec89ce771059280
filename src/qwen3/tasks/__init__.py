"""Tasks: problems, worked traces and verifiers. One object feeds training and evaluation."""

from __future__ import annotations

from qwen3.tasks.arithmetic import Chain, Divide, Multiply
from qwen3.tasks.base import Labelled, Problem, Task, is_eval
from qwen3.tasks.controls import Count, Sort, Spell
from qwen3.tasks.countdown import Countdown
from qwen3.tasks.cups import Cups
from qwen3.tasks.logic import Boolean, Reach
from qwen3.tasks.numbers import BaseConversion, Gcd
from qwen3.tasks.sudoku import Sudoku
from qwen3.tasks.sums import Sums
from qwen3.tasks.track import Track

FAMILIES: dict[str, Task] = {
    task.name: task
    for task in (
        Chain(),
        Multiply(),
        Divide(),
        Gcd(),
        BaseConversion(),
        Countdown(),
        Reach(),
        Boolean(),
        Sudoku(),
        Sort(),
        Spell(),
        Count(),
        Sums(),
        Track(),
        Cups(),
    )
}
NEXT_FAMILIES = ("sums", "track", "cups")
"""What the packaged model's next version learns; until it is there, no suite measures them."""
STEP_FAMILIES = tuple(n for n, task in FAMILIES.items() if task.needs_steps and n not in NEXT_FAMILIES)
CONTROL_FAMILIES = tuple(n for n, task in FAMILIES.items() if not task.needs_steps and n not in NEXT_FAMILIES)

__all__ = ["CONTROL_FAMILIES", "FAMILIES", "NEXT_FAMILIES", "STEP_FAMILIES", "Labelled", "Problem", "Task", "is_eval"]
