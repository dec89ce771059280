"""Did the questions stand in a corpus? Runs of words that a suite's items share with documents, and dated items.

An item is looked up by runs of 13 of its words, as GPT-3's authors did (Brown et al. 2020, arXiv 2005.14165, appendix
C), or of 8 where it has fewer than 13; in scripts without spaces, where a letter counts as a word, by 26 or 16 letters.
What is reported is finer than a hit: the longest run in common, and the share of the item's words that lie in common
runs of one document (as Llama 2's authors grade it, arXiv 2307.09288, appendix A.6). Wording that many items of a suite
share (its instructions) is no part of an item. A reworded or translated copy is not found: `evaluate.variants` and
dates ask the model instead of the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.evaluate.paired import bootstrap
from qwen3.evaluate.types import Item
from qwen3.tokenizer.grams import grams, hash_words, is_unspaced, words

SIZES, UNSPACED_SIZES = (13, 8), (26, 16)
COMMON = 10  # items that may share a run of WORDING words before it is the suite's wording
WORDING = 8
DIRTY = 0.8  # share of an item's words from which on it is dirty, as Llama 2's authors have it
PIECE = 1 << 20  # characters of a document that are looked through at once
Hashes = NDArray[np.uint64]


@dataclass
class Overlap:
    """What was found of one item. own: its words without the suite's wording, 0 where it has too few to be looked for.
    longest: the longest run in common with a document, in words. share: of its words, in common runs of one document.
    where: that document. documents: in how many a run was found."""

    id: str
    own: int
    longest: int = 0
    share: float = 0.0
    where: str = ""
    documents: int = 0

    @property
    def grade(self) -> str:
        """unchecked, clean (no common run), touched, or dirty (at least DIRTY of its words)."""
        if not self.own:
            return "unchecked"
        return "clean" if not self.longest else "dirty" if self.share >= DIRTY else "touched"


class Lookup:
    """The runs of a suite's items. Memory: about 60 bytes for each word of the suite."""

    def __init__(self, items: Sequence[Item]) -> None:
        texts = [item_text(item) for item in items]
        hashed = [hash_words(words(text)) for text in texts]
        wording = _wording(hashed)
        own = [_own(found, wording) for found in hashed]
        self.found = [Overlap(item.id, 0) for item in items]
        self._longest = 2 * max(map(len, texts), default=0)  # characters: pieces of a document overlap by so many
        self._runs: dict[int, tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]] = {}
        parts: dict[int, list[tuple[Hashes, int, NDArray[np.int64]]]] = {}
        for number, (text, segments) in enumerate(zip(texts, own, strict=True)):
            most = max((len(segment) for _, segment in segments), default=0)
            size = next((n for n in (UNSPACED_SIZES if is_unspaced(text) else SIZES) if most >= n), None)
            if size is None:
                continue
            kept = [(start, segment) for start, segment in segments if len(segment) >= size]
            self.found[number].own = sum(len(segment) for _, segment in kept)
            for start, segment in kept:
                runs = grams(segment, size)
                parts.setdefault(size, []).append((runs, number, start + np.arange(len(runs))))
        for size, rows in parts.items():
            runs = np.concatenate([row[0] for row in rows])
            owners = np.concatenate([np.full(len(row[0]), row[1]) for row in rows])
            places = np.concatenate([row[2] for row in rows])
            order = np.argsort(runs, kind="stable")
            self._runs[size] = runs[order], owners[order], places[order]

    def add(self, name: str, text: str) -> None:
        """Looks through one document."""
        best: dict[int, tuple[int, float]] = {}
        for start in range(0, max(1, len(text)), PIECE):
            piece = hash_words(words(text[start : start + PIECE + self._longest]))
            for size in self._runs:
                for number, longest, share in self._matches(piece, size):
                    old = best.get(number, (0, 0.0))
                    best[number] = max(old[0], longest), max(old[1], share)
        for number, (longest, share) in best.items():
            entry = self.found[number]
            entry.documents += 1
            if (share, longest) > (entry.share, entry.longest):
                entry.where = name
            entry.longest, entry.share = max(entry.longest, longest), max(entry.share, share)

    def _matches(self, document: Hashes, size: int) -> Iterator[tuple[int, int, float]]:
        """(item, longest common run, share of its words in common runs) of each item that the words hold a run of."""
        runs, owners, places = self._runs[size]
        found = grams(document, size)
        left = np.searchsorted(runs, found)
        counts = np.searchsorted(runs, found, side="right") - left
        at = np.repeat(np.arange(len(found)), counts)
        within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        hit = np.repeat(left, counts) + within
        for owner in np.unique(owners[hit]):
            own = owners[hit] == owner
            here, there = at[own], places[hit[own]]
            # Along one diagonal (place in the document less place in the item) consecutive hits are one longer run.
            order = np.lexsort((here, here - there))
            line, along = (here - there)[order], here[order]
            breaks = np.flatnonzero((np.diff(line) != 0) | (np.diff(along) != 1)) + 1
            longest = max(len(run) for run in np.split(along, breaks)) + size - 1
            covered = np.unique(np.unique(there)[:, None] + np.arange(size))
            yield int(owner), longest, len(covered) / self.found[owner].own


def item_text(item: Item) -> str:
    """What is looked for: the words of its users, those of later turns included."""
    asked = [str(message.get("content", "")) for message in item.messages if message.get("role") == "user"]
    return "\n".join([*asked, *item.later])


def _wording(hashed: Sequence[Hashes]) -> Hashes:
    """Runs of WORDING words that more than COMMON items share."""
    runs = [np.unique(grams(found, WORDING)) for found in hashed]
    every, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_counts=True)
    return every[counts > COMMON]


def _own(found: Hashes, wording: Hashes) -> list[tuple[int, Hashes]]:
    """(place, words) of each stretch of an item that is not the suite's wording."""
    mine = np.ones(len(found), dtype=bool)
    for start in np.flatnonzero(np.isin(grams(found, WORDING), wording)):
        mine[start : start + WORDING] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mine, [False]]).astype(np.int8)))
    return [(int(a), found[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def overlap(items: Sequence[Item], documents: Iterable[tuple[str, str]]) -> list[Overlap]:
    """How much of each item stands in a corpus. documents: (name, text), read one at a time."""
    lookup = Lookup(items)
    for name, text in documents:
        lookup.add(name, text)
    return lookup.found


def by_item(samples: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean score of each item's samples, of lines as a run's samples.jsonl has them."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        values.setdefault(sample["item"], []).append(sample["score"]["value"])
    return {item: sum(found) / len(found) for item, found in values.items()}


@dataclass(frozen=True)
class Part:
    """Some items of a run: what they have in common, how many, percent right with a 95 % interval over items (None for
    a single item or none)."""

    name: str
    items: int
    percent: float | None
    interval: tuple[float, float] | None


def _part(name: str, values: Sequence[float]) -> Part:
    if not values:
        return Part(name, 0, None, None)
    found = bootstrap(lambda drawn: 100 * drawn.mean(-1), values) if len(values) > 1 else None
    return Part(name, len(values), 100 * sum(values) / len(values), found)


def by_grade(found: Sequence[Overlap], samples: Iterable[Mapping[str, Any]]) -> list[Part]:
    """A run's accuracy on items of each grade: what a contaminated suite would have been worth without them."""
    values = by_item(samples)
    return [
        _part(grade, [values[entry.id] for entry in found if entry.grade == grade and entry.id in values])
        for grade in ("clean", "touched", "dirty", "unchecked")
    ]


def by_date(samples: Sequence[Mapping[str, Any]], cuts: Sequence[str]) -> list[Part]:
    """A run's accuracy in windows of the items' dates (about.date, ISO 8601), cut before each of `cuts`.

    A model cannot have seen what is newer than its training data; a fall from one window to the next is a sign of
    memory, or of harder questions. Raises UsageError where items have no date."""
    values = by_item(samples)
    dates = {sample["item"]: str(sample.get("about", {}).get("date", ""))[:10] for sample in samples}
    if missing := sum(not date for date in dates.values()):
        raise UsageError(f"{missing} of {len(dates)} items of this run have no about.date: it cannot be cut by dates")
    edges = ["", *sorted(cuts), "9999"]
    return [
        _part(
            f"{low or '…'} to {'…' if high == '9999' else high}",
            [values[item] for item, date in dates.items() if low <= date < high],
        )
        for low, high in pairwise(edges)
    ]


def grades(found: Iterable[Overlap]) -> dict[str, int]:
    """How many items are of each grade."""
    counts = Counter(entry.grade for entry in found)
    return {grade: counts[grade] for grade in ("clean", "touched", "dirty", "unchecked")}
