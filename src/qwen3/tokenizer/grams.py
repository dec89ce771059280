"""Words and n-grams of texts as 64-bit hashes in arrays: near duplicates, decontamination, overlap with a suite.

The same on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

# Scripts without spaces: Thai to Lao, Myanmar, Khmer, kana, Han. Each of their letters is a word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_STEP = np.uint64(0x9E3779B97F4A7C15)
_known: dict[str, int] = {}
_KNOWN = 1 << 20  # words remembered, about 150 MB


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, compatibility forms folded; of scripts without spaces, each letter."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).lower())


def is_unspaced(text: str) -> bool:
    """Whether at least half of its letters belong to scripts that are written without spaces."""
    letters = sum(map(str.isalpha, text))
    return letters > 0 and 2 * len(_UNSPACED.findall(text)) >= letters


def hash_words(found: list[str]) -> NDArray[np.uint64]:
    """A hash of each word, uint64 [words]."""
    if len(_known) > _KNOWN:
        _known.clear()
    for word in found:
        if word not in _known:
            _known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.fromiter(map(_known.__getitem__, found), np.uint64, len(found))


def hash_chars(text: str) -> NDArray[np.uint64]:
    """A number for each character, uint64 [characters]."""
    return mix(np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64))


def grams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of each run of n, uint64 [max(0, len - n + 1)]."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total = total * _STEP + hashes[i : i + count]
    return mix(total)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the input changes half of the output's (Steele et al., OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
