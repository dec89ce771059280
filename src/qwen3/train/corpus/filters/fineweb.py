"""FineWeb's line rules: documents that are lists, menus or tables.

Source: Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale", arXiv
2406.17557: the three heuristics that were chosen from more than fifty, with the paper's bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

_ENDS = (
    ".",
    "!",
    "?",
    '"',
    "'",
    "”",
    "’",
    "…",
    ":",
    ";",
    ",",
    ")",
    "。",
    "！",
    "？",
    "」",
    "؟",
    "۔",
    "।",
    "॥",
    "።",
    "։",
)


@dataclass(frozen=True)
class FineWeb:
    name: ClassVar[str] = "fineweb"
    punctuated: float = key(0.12, "share of lines that end in punctuation, from which a document stays (0.12 drops)")
    duplicated: float = key(0.1, "share of characters in lines that stand in it before, from which it is dropped")
    short: float = key(0.67, "share of lines shorter than short_length, from which it is dropped")
    short_length: int = key(30, "characters of a line that is not short")

    def __call__(self, document: Document) -> Document | str:
        if document.is_code:
            return document
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        if not lines:
            return "empty"
        if sum(line.endswith(_ENDS) for line in lines) <= self.punctuated * len(lines):
            return "few lines end in punctuation"
        total, different = sum(map(len, lines)), sum(map(len, dict.fromkeys(lines)))
        if len(lines) > 1 and total - different >= self.duplicated * total:
            return "duplicated lines"
        if sum(len(line) < self.short_length for line in lines) >= self.short * len(lines):
            return "short lines"
        return document
