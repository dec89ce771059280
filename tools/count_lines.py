"""Counts lines of code: those with a token that is no comment and no docstring.

    python tools/count_lines.py [paths, default: the whole package]

Prints one line for each path and their sum. `tests/test_floors.py` holds the engine to its limit with it.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "qwen3"
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """How many lines of Python code `source` has, without blank lines, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):  # a string that stands alone: of a module, class, function or constant
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def count(paths: Iterable[Path]) -> dict[Path, int]:
    """The lines of code of each path: a file, or a folder with all below it."""
    files = {path: sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in paths}
    return {path: sum(code_lines(file.read_text(encoding="utf-8")) for file in found) for path, found in files.items()}


if __name__ == "__main__":
    counted = count([Path(name) for name in sys.argv[1:]] or [PACKAGE])
    for path, lines in counted.items():
        print(f"{lines:>6}  {path}")
    print(f"{sum(counted.values()):>6}  all")
