"""Pages of docs/ of which a tool makes the parts between two marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def between(page: Path, text: str, begin: str, end: str, lines: Iterable[str]) -> str:
    """`text` of `page` with `lines` between its marks. Raises ValueError for a page without them."""
    head, mark, rest = text.partition(begin)
    _, other, tail = rest.partition(end)
    if not mark or not other:
        raise ValueError(f"{page} must have the lines {begin.strip()} and {end.strip()}")
    return f"{head}{begin}{''.join(f'{line}{chr(10)}' for line in lines)}{end}{tail}"


def renew(page: Path, root: Path, new: str, check: bool) -> int:
    """Writes the page, or picture, if it is not `new`; check: says so instead, and returns 1."""
    if page.exists() and new == page.read_text(encoding="utf-8"):
        return 0
    if check:
        print(f"stale: {page.relative_to(root)}")
        return 1
    page.write_text(new, encoding="utf-8")
    print(f"written: {page.relative_to(root)}")
    return 0
