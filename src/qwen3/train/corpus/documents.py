"""What the pipeline works on, and what a filter is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

CODE = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".tsx", ".sh", ".sql",
    ".rb", ".jl", ".lua", ".pl",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A text. id: names it, the same whenever the source is read (`file`, `file:line`). source: the spec it was read
    by. language: ISO code where known. meta: the other fields of its row."""

    text: str
    id: str
    source: str = ""
    language: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether its id is the name of a source file, to which the rules for prose do not apply."""
        return any(suffix in CODE for suffix in PurePosixPath(self.id).suffixes[-2:])


class Filter(Protocol):
    """Judges one document by itself: a pure function that can be pickled (a frozen dataclass with `__call__`).

    Returns the document, as it was or changed; or why it is dropped, one of a few fixed strings that are counted.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, document: Document) -> Document | str: ...
