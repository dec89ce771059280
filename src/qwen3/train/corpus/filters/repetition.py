"""Gopher's repetition rules: lines, paragraphs and n-grams that come again and again.

Source: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1, table A1: shares of duplicate lines and paragraphs (by number
and by characters), of characters in the most frequent 2- to 4-gram, and in 5- to 10-grams that occur more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qwen3.tokenizer.grams import grams, hash_words, words
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.exact import paragraphs
from qwen3.train.recipe import key


@dataclass(frozen=True)
class Repetition:
    name: ClassVar[str] = "repetition"
    lines: float = key(0.3, "largest share of lines that stand in the document before")
    paragraphs: float = key(0.3, "largest share of paragraphs that stand in it before")
    line_characters: float = key(0.2, "largest share of characters in such lines")
    paragraph_characters: float = key(0.2, "largest share of characters in such paragraphs")
    top: tuple[float, ...] = key((0.2, 0.18, 0.16), "largest shares of characters in the most frequent 2-, 3-, 4-gram")
    repeated: tuple[float, ...] = key(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), "largest shares of characters in 5- … 10-grams that occur again"
    )

    def __call__(self, document: Document) -> Document | str:
        if document.is_code:
            return document
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        for parts, number, characters, what in (
            (lines, self.lines, self.line_characters, "repeated lines"),
            (paragraphs(document.text), self.paragraphs, self.paragraph_characters, "repeated paragraphs"),
        ):
            again, length = _duplicates(parts)
            if again > number * len(parts) or length > characters * sum(map(len, parts)):
                return what
        found = words(document.text)
        sizes = np.array([len(word) for word in found])
        hashes, total = hash_words(found), sizes.sum()
        for n, share in enumerate(self.top, 2):
            if _top(grams(hashes, n), sizes, n) > share * total:
                return f"frequent {n}-gram"
        for n, share in enumerate(self.repeated, 5):
            if _covered(grams(hashes, n), sizes, n) > share * total:
                return f"repeated {n}-grams"
        return document


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """(how many stand in it before, their characters)"""
    first = dict.fromkeys(parts)
    return len(parts) - len(first), sum(map(len, parts)) - sum(map(len, first))


def _top(found: NDArray[np.uint64], sizes: NDArray[np.int64], n: int) -> int:
    """Characters in all occurrences of the n-gram that occurs most, 0 where none occurs twice."""
    values, at, counts = np.unique(found, return_index=True, return_counts=True)
    if not len(values) or counts.max() < 2:
        return 0
    return max(int(sizes[i : i + n].sum()) for i in at[counts == counts.max()]) * int(counts.max())


def _covered(found: NDArray[np.uint64], sizes: NDArray[np.int64], n: int) -> int:
    """Characters of the words in n-grams that stood before; each word once."""
    again = np.ones(len(found), dtype=bool)
    again[np.unique(found, return_index=True)[1]] = False
    inside = np.convolve(again, np.ones(n, dtype=np.int64)) > 0 if len(found) else np.zeros(len(sizes), dtype=bool)
    return int(sizes[inside].sum())
