"""Near duplicates by MinHash signatures and locality-sensitive hashing, in NumPy. The first of a group stays.

Two documents are alike by the Jaccard similarity of their sets of shingles (n words in a row). A signature holds, for
each of `permutations` hash functions, the least value over the set; two signatures agree in a share of their places
that estimates the similarity (Broder, 1997), with a standard error of √(s (1 − s) / permutations). Cut into bands,
signatures that agree in a whole band are candidates (Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, 3.4);
those whose estimate reaches the threshold are joined, and groups are what is joined, directly or through others.

Memory: 4 · permutations bytes a document (512 by default: 51 MB for 100,000, 5 GB for ten million), and 24 while a band
is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.tokenizer.grams import grams, hash_words, mix, words

_CHUNK = 256  # shingles at once: the products of a chunk stay in the cache
_PAIRS = 1 << 16  # pairs of signatures compared at once


@dataclass(frozen=True)
class MinHash:
    """threshold: similarity from which documents count as duplicates. permutations: length of a signature. words: of a
    shingle; of scripts without spaces, letters. seed: of the hash functions."""

    threshold: float = 0.8
    permutations: int = 128
    words: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold is a similarity between 0 and 1, not {self.threshold!r}")
        for name in ("permutations", "words"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be a whole number from 1, not {getattr(self, name)!r}")

    @cached_property
    def bands(self) -> tuple[int, int]:
        """(bands, rows of each) that lose the least: of pairs spread evenly over all similarities, those above the
        threshold that are never candidates count nine times as much as those below it that are, for a candidate is
        checked, and a pair that is missed is lost."""
        grid = np.linspace(0, 1, 201)
        above = grid >= self.threshold
        options = []
        for rows in range(1, self.permutations + 1):
            bands = self.permutations // rows
            found = 1 - (1 - grid**rows) ** bands
            options.append((0.9 * (1 - found)[above].sum() + 0.1 * found[~above].sum(), rows, bands))
        _, rows, bands = min(options)
        return bands, rows

    @cached_property
    def _functions(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        rng = np.random.default_rng(self.seed)
        factors, offsets = rng.integers(0, 1 << 63, (2, self.permutations), dtype=np.uint64)
        return factors * np.uint64(2) + np.uint64(1), offsets

    def shingles(self, text: str) -> NDArray[np.uint64]:
        """The set of the text's shingles as hashes, sorted; of a text with fewer words than a shingle, all of it."""
        return np.unique(self._grams(text))

    def _grams(self, text: str) -> NDArray[np.uint64]:
        hashes = hash_words(words(text))
        return grams(hashes, min(self.words, max(1, len(hashes))))

    def signature(self, text: str) -> NDArray[np.uint32]:
        """uint32 [permutations]. Of a text without words: all ones."""
        shingles = self._grams(text)
        factors, offsets = self._functions
        least = np.full(self.permutations, (1 << 64) - 1, dtype=np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            part = shingles[start : start + _CHUNK, None]
            np.minimum(least, (part * factors + offsets).min(axis=0), out=least)
        return (least >> np.uint64(32)).astype(np.uint32)

    def groups(self, signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
        """signatures: [documents, permutations] -> int64 [documents], the number of the first document of its group."""
        parents = np.arange(len(signatures))
        bands, rows = self.bands
        for band in range(bands if len(signatures) else 0):
            _join_band(signatures, signatures[:, band * rows : (band + 1) * rows], self.threshold, parents)
        for i in range(len(parents)):  # a parent comes before its children
            parents[i] = parents[parents[i]]
        return parents


def similarity(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Jaccard's, of two sets of shingles; of two empty sets 1."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both) if len(one) or len(other) else 1.0


def _join_band(
    signatures: NDArray[np.uint32], band: NDArray[np.uint32], threshold: float, parents: NDArray[np.int64]
) -> None:
    """Join the documents that agree in this band and are alike. In each bucket all are compared with the first; those
    that are not alike make a bucket of their own, until none is left."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + column)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    inside = np.append(same, False) | np.append(False, same)
    members, buckets = order[inside], np.cumsum(~np.append(False, same))[inside]
    while len(members):
        starts = np.append(True, buckets[1:] != buckets[:-1])
        leaders = members[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
        left, right = leaders[~starts], members[~starts]
        alike = _alike(signatures, left, right, threshold)
        for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
            a, b = _root(parents, one), _root(parents, other)
            parents[max(a, b)] = min(a, b)
        rest = np.flatnonzero(~starts)[~alike]
        members, buckets = members[rest], buckets[rest]


def _alike(
    signatures: NDArray[np.uint32], left: NDArray[np.int64], right: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    found = np.zeros(len(left), dtype=bool)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1) >= threshold
    return found


def _root(parents: NDArray[np.int64], number: int) -> int:
    while (above := int(parents[number])) != number:
        parents[number] = parents[above]
        number = above
    return number
