"""Exact duplicates: documents, and paragraphs, that stand in the corpus once already. The first one stays.

Memory: 16 bytes a document, 8 a paragraph, and as much again while they are sorted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")


def document_hash(text: str) -> bytes:
    """16 bytes, the same for texts that differ in white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def first_documents(hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """hashes: of documents in order, [documents, 16] by `document_hash` -> bool [documents], whether it is the first of
    its kind."""
    parts = np.ascontiguousarray(hashes).view("<u8")
    order = np.lexsort((parts[:, 1], parts[:, 0]))  # stable: the first of equals comes first
    ordered = parts[order]
    new = np.ones(len(parts), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    keep = np.zeros(len(parts), dtype=bool)
    keep[order[new]] = True
    return keep


def paragraphs(text: str) -> list[str]:
    """What empty lines part."""
    return [part for part in _PARAGRAPHS.split(text.strip("\n")) if part.strip()]


def paragraph_hashes(text: str, minimum: int = 40) -> NDArray[np.uint64]:
    """Of each paragraph, uint64 [paragraphs]; 0 for those of fewer characters than `minimum`, which may come again."""
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(squeezed.encode(), digest_size=8).digest(), "little") or 1
            if len(squeezed := " ".join(part.split())) >= minimum
            else 0
            for part in paragraphs(text)
        ],
        dtype=np.uint64,
    )


def first_paragraphs(hashes: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.bool_]]:
    """Of documents in order, by `paragraph_hashes`: bool [paragraphs] of each, whether the paragraph stays."""
    if not hashes:
        return []
    flat = np.concatenate(hashes)
    keep = flat == 0
    keep[np.unique(flat, return_index=True)[1]] = True
    return np.split(keep, np.cumsum([len(own) for own in hashes])[:-1])


def without_paragraphs(text: str, keep: Iterable[bool]) -> str:
    """The text with only the paragraphs that stay."""
    keep = list(keep)
    if all(keep):
        return text
    return "\n\n".join(part for part, stays in zip(paragraphs(text), keep, strict=True) if stays)
