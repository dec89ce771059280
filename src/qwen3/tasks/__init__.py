"""Tasks: problems, worked traces and verifiers. One object feeds training and evaluation."""

from __future__ import annotations

from qwen3.tasks.arithmetic import Chain, Divide, Multiply
from qwen3.tasks.base import Problem, Task, is_eval
from qwen3.tasks.controls import Count, Sort, Spell
from qwen3.tasks.countdown import Countdown
from qwen3.tasks.logic import Boolean, Reach
from qwen3.tasks.numbers import BaseConversion, Gcd
from qwen3.tasks.sudoku import Sudoku

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
    )
}
STEP_FAMILIES = tuple(name for name, task in FAMILIES.items() if task.needs_steps)
CONTROL_FAMILIES = tuple(name for name, task in FAMILIES.items() if not task.needs_steps)

__all__ = ["CONTROL_FAMILIES", "FAMILIES", "STEP_FAMILIES", "Problem", "Task", "is_eval"]
