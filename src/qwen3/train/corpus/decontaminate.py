"""Documents that hold problems of an evaluation set are found, and which problem it is.

An item of 13 words or more is found by any 13 of its words in a row (Brown et al. 2020, arXiv 2005.14165, appendix C).
A shorter one, and one in a script without spaces, is compared by its runs of 8 letters and digits: it is found where a
stretch of the document, at most half as long again as the item, holds four fifths of them. Runs that more than `common`
items of a set share are its wording, not its problems, and do not count. An item with too little text of its own cannot
be looked for: such items are counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.tasks import FAMILIES
from qwen3.tokenizer.grams import grams, hash_chars, hash_words, is_unspaced, words
from qwen3.train.corpus.readers import read

WORDS, CHARS = 13, 8
_SHARE, _STRETCH = 0.8, 1.5
_BITS = 20
_LAST = np.uint64((1 << _BITS) - 1)
_LEAST = 9  # runs of an item that is compared by letters: 16 letters and digits


@dataclass(frozen=True)
class Item:
    """One problem. set: what it belongs to. id: names it there."""

    set: str
    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """item: that was found. overlap: share of its runs that the document holds. by: "words" or "letters"."""

    item: Item
    overlap: float
    by: str


class _Runs:
    """Which items have a run: sorted runs, and the item of each."""

    def __init__(self, found: Sequence[NDArray[np.uint64]], items: Sequence[int]) -> None:
        sizes = [len(own) for own in found]
        runs = np.concatenate([*found, np.zeros(0, np.uint64)])
        owners = np.repeat(np.array(items, dtype=np.int64), sizes)
        order = np.argsort(runs, kind="stable")
        self.runs, self.owners = runs[order], owners[order]
        self.sizes = dict(zip(items, sizes, strict=True))
        self.present = np.zeros(1 << _BITS, dtype=bool)  # by the last bits of a run: most are not, and need no search
        self.present[runs & _LAST] = True

    def places(self, runs: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of a document's runs: (place in the document, number of the run, its item) of each that an item has."""
        at = np.flatnonzero(self.present[runs & _LAST])
        left = np.searchsorted(self.runs, runs[at])
        counts = np.searchsorted(self.runs, runs[at], side="right") - left
        places = np.repeat(at, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(left, counts) + within
        return places, numbers, self.owners[numbers]


class Decontaminator:
    """items: of all sets. common: of a set, the most items that may share a run which counts.

    unchecked: items by set that have too little text of their own to be looked for."""

    def __init__(self, items: Iterable[Item], common: int = 10) -> None:
        self.items = list(items)
        self.unchecked: dict[str, int] = dict.fromkeys((item.set for item in self.items), 0)
        by_words: dict[int, NDArray[np.uint64]] = {}
        by_chars: dict[int, NDArray[np.uint64]] = {}
        for number, item in enumerate(self.items):
            found = words(item.text)
            if len(found) >= WORDS and not is_unspaced(item.text):
                by_words[number] = np.unique(grams(hash_words(found), WORDS))
            else:
                by_chars[number] = np.unique(grams(hash_chars("".join(found)), CHARS))
        self._words, self._chars = self._runs(by_words, common, 1), self._runs(by_chars, common, _LEAST)

    def _runs(self, found: dict[int, NDArray[np.uint64]], common: int, least: int) -> _Runs:
        for name in self.unchecked:
            own = [number for number in found if self.items[number].set == name]
            runs, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *map(found.get, own)]), return_counts=True)
            for number in own:
                found[number] = found[number][~np.isin(found[number], runs[counts > common])]
                if len(found[number]) < least:
                    self.unchecked[name] += 1
                    del found[number]
        return _Runs(list(found.values()), list(found))

    def find(self, text: str) -> Hit | None:
        """The item that the text holds most of, None where it holds none."""
        found = words(text)
        _, numbers, owners = self._words.places(grams(hash_words(found), WORDS))
        if len(owners):
            shares = self._shares(self._words, numbers, owners)
            best = max(shares, key=lambda owner: (shares[owner], -owner))
            return Hit(self.items[best], shares[best], "words")
        places, numbers, owners = self._chars.places(grams(hash_chars("".join(found)), CHARS))
        for owner, share in self._shares(self._chars, numbers, owners).items():
            if share >= _SHARE:
                own = owners == owner
                together = self._densest(places[own], numbers[own], self._chars.sizes[owner])
                if together >= _SHARE:
                    return Hit(self.items[owner], together, "letters")
        return None

    @staticmethod
    def _shares(runs: _Runs, numbers: NDArray[np.int64], owners: NDArray[np.int64]) -> dict[int, float]:
        """Of each item, the share of its runs that occur anywhere."""
        _, first = np.unique(numbers, return_index=True)
        found, counts = np.unique(owners[first], return_counts=True)
        return {o: c / runs.sizes[o] for o, c in zip(found.tolist(), counts.tolist(), strict=True)}

    @staticmethod
    def _densest(places: NDArray[np.int64], numbers: NDArray[np.int64], size: int) -> float:
        """The greatest share of an item's runs in one stretch of the document. places ascend."""
        inside: dict[int, int] = {}
        best, start = 0, 0
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            inside[number] = inside.get(number, 0) + 1
            while place - places[start] > _STRETCH * size:
                first = int(numbers[start])
                inside[first] -= 1
                if not inside[first]:
                    del inside[first]
                start += 1
            best = max(best, len(inside))
        return best / size


def load_items(spec: str, problems: int = 200) -> Iterator[Item]:
    """The items of an evaluation set: `tasks` or `tasks:FAMILY`, so many held-out problems of each of our own families;
    else what `readers.read` reads, FILE#FIELD where the text of a row is in another field than text."""
    kind, _, family = spec.partition(":")
    if kind == "tasks":
        if family and family not in FAMILIES:
            raise UsageError(f"{spec}: there is no family {family}; there are {', '.join(FAMILIES)}")
        for name in [family] if family else FAMILIES:
            rng = random.Random(f"held out/{name}")
            found = (FAMILIES[name].sample(rng, split="eval") for _ in range(problems))
            different = {problem.key: problem for problem in found}
            yield from (Item(f"tasks:{name}", key, problem.prompt) for key, problem in different.items())
        return
    path, _, field = spec.partition("#")
    try:
        yield from (Item(spec, document.id, document.text) for document in read(path, field=field or "text"))
    except UsageError as error:
        reason = str(error).partition(" (bad_rows=")[0].partition("; field=")[0]
        raise UsageError(
            f"{reason}: an evaluation set is named FILE#FIELD, after the field with its questions"
        ) from None
