"""Text that is text: characters that could not be read, encoded blobs, and too few letters.

Source: the rules for questionable sentences of MADLAD-400 (Kudugunta et al. 2023, arXiv 2309.04662), here as shares of
a document; encoded data as in StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173). The bounds are this project's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

# Characters that could not be read, private use, non-characters.
_ODD = re.compile("[\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]")
_BLOB = re.compile(
    r"[A-Za-z0-9+/=_-]{200,}|(?:[0-9a-fA-F]{2}[\s,]{0,2}){100,}|(?:\\x[0-9a-fA-F]{2}|0x[0-9a-fA-F]+,\s*){50,}"
)


@dataclass(frozen=True)
class Sanity:
    name: ClassVar[str] = "sanity"
    odd: float = key(0.001, "largest share of characters that are U+FFFD, for private use, or none")
    letters: float = key(0.4, "least share of letters, marks and digits among characters that are no white space")
    blobs: float = key(0.3, "largest share of the text in runs of base64 or hexadecimal digits")

    def __call__(self, document: Document) -> Document | str:
        text = document.text
        solid = "".join(text.split())
        if not solid:
            return "empty"
        if len(_ODD.findall(text)) > self.odd * len(text):
            return "unreadable characters"
        # Vowel signs of Indic scripts are neither letters nor digits, and stand above ASCII as those do.
        if sum(char.isalnum() or char > "\u02ff" for char in solid) < self.letters * len(solid):
            return "few letters"
        if sum(len(found.group()) for found in _BLOB.finditer(text)) > self.blobs * len(text):
            return "encoded data"
        return document
