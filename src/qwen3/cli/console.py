"""What the verbs print with. The answer and JSON go to stdout; progress, thinking, notes and errors to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

DIM, RESET = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def colours(stream: TextIO) -> bool:
    """Whether escape codes belong on `stream`: a terminal, unless NO_COLOR or TERM=dumb says otherwise."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    return f"{DIM}{text}{RESET}" if colours(stream) else text


def shown(text: str, stream: TextIO) -> str:
    """A model's words as `stream` may have them: a terminal gets no control codes, a file or pipe every character."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if stream.isatty() else text


def note(text: str) -> None:
    """One line for the person at the keyboard."""
    print(dim(text, sys.stderr), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def complain(error: object) -> None:
    """An error, as one line whatever it says."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def out(text: str, end: str = "\n") -> None:
    """Part of the answer, visible at once."""
    print(text, end=end, flush=True)


def out_json(value: Any) -> None:
    """The one JSON object of a `--json` run."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str), flush=True)


def table(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Left-aligned columns, two spaces apart, no trailing blanks: reads well and cuts well."""
    lines = [list(row) for row in rows]
    if header is not None:
        lines.insert(0, list(header))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def size(count: int) -> str:
    """Bytes for people, decimal as hubs and disk makers print them: 37.0 MB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def exact_parameters(count: int) -> str:
    """18.4M (18,389,504)."""
    return f"{parameters(count)} ({count:,})" if count >= 1_000_000 else f"{count:,}"


def parameters(count: int) -> str:
    """18.4M, 0.75B, 30.5B: the way model sizes are said."""
    if count < 1_000_000:
        return f"{count:,}"
    return f"{count / 1e6:.1f}M" if count < 500_000_000 else f"{count / 1e9:.2f}B"
