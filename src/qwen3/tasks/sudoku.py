"""4×4 sudoku, solved by looking at one cell after the other."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations

from qwen3.tasks.base import Problem, Task, paragraphs

Grid = list[list[int]]


@cache
def solutions() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All 288 filled 4×4 grids."""
    rows = list(permutations((1, 2, 3, 4)))
    found: list[tuple[tuple[int, ...], ...]] = []

    def fits(grid: tuple[tuple[int, ...], ...], row: tuple[int, ...]) -> bool:
        if any(row[c] == above[c] for above in grid for c in range(4)):
            return False
        if len(grid) % 2:
            above = grid[-1]
            return not ({row[0], row[1]} & {above[0], above[1]}) and not ({row[2], row[3]} & {above[2], above[3]})
        return True

    def extend(grid: tuple[tuple[int, ...], ...]) -> None:
        if len(grid) == 4:
            found.append(grid)
            return
        for row in rows:
            if fits(grid, row):
                extend((*grid, row))

    extend(())
    return tuple(found)


def _shown(row: list[int]) -> str:
    return " ".join(str(v) if v else "." for v in row)


def _look(grid: Grid, r: int, c: int) -> tuple[list[int], list[int], list[int]]:
    row = [v for v in grid[r] if v]
    column = [grid[i][c] for i in range(4) if grid[i][c]]
    box = [grid[i][j] for i in (r - r % 2, r - r % 2 + 1) for j in (c - c % 2, c - c % 2 + 1) if grid[i][j]]
    return row, column, box


def _seen(values: list[int]) -> str:
    return " ".join(map(str, values)) if values else "-"


def solve(grid: Grid) -> tuple[list[str], bool]:
    """Fill single-candidate cells pass by pass, in place. Returns the steps and whether the grid got full."""
    steps = []
    while any(0 in row for row in grid):
        moved = False
        for r in range(4):
            for c in range(4):
                if grid[r][c]:
                    continue
                row, column, box = _look(grid, r, c)
                free = [v for v in (1, 2, 3, 4) if v not in row and v not in column and v not in box]
                head = (
                    f"r{r + 1}c{c + 1}: row {_seen(row)}, column {_seen(column)}, box {_seen(box)}, free {_seen(free)}."
                )
                if len(free) == 1:
                    grid[r][c] = free[0]
                    moved = True
                    head += f" Row {r + 1}: {_shown(grid[r])}"
                steps.append(head)
        if not moved:
            return steps, False
    return steps, True


class Sudoku(Task):
    """4×4 grids with 5 to 11 empty cells that yield to single candidates."""

    name = "sudoku"
    levels = 3
    phrasings = (
        "Solve this 4x4 sudoku:\n{g}",
        "Fill in the 4x4 sudoku:\n{g}",
        "Complete this small sudoku:\n{g}",
        "Here is a 4x4 sudoku. Solve it.\n{g}",
        "Can you solve this sudoku?\n{g}",
        "Sudoku 4x4:\n{g}",
        "Please solve:\n{g}",
        "Find the missing numbers (1 to 4):\n{g}",
        "Each row, column and 2x2 box holds 1 to 4. Complete:\n{g}",
        "Solve the grid:\n{g}",
        "What is the solution of this sudoku?\n{g}",
    )
    _BLANKS = ((5, 6), (7, 9), (10, 11))

    def make(self, rng: random.Random, level: int) -> Problem:
        while True:
            full = rng.choice(solutions())
            blanks = rng.sample(range(16), rng.randint(*self._BLANKS[level - 1]))
            grid = [list(row) for row in full]
            for cell in blanks:
                grid[cell // 4][cell % 4] = 0
            puzzle = "\n".join(_shown(row) for row in grid)
            start = " ".join(f"Row {r + 1}: {_shown(row)}" for r, row in enumerate(grid))
            steps, done = solve(grid)
            if done and len(steps) <= 24:
                break
        answer = "\n".join(_shown(row) for row in grid)
        prompt = rng.choice(self.phrasings).format(g=puzzle)
        return Problem(self.name, level, f"sudoku {puzzle}", prompt, paragraphs(start, *steps), answer, answer)

    def check(self, problem: Problem, text: str) -> bool:
        digits = [ch for ch in text if ch.isdigit()]
        return digits[-16:] == [ch for ch in problem.answer if ch.isdigit()] and len(digits) == 16
