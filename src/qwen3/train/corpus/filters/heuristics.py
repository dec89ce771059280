"""Quality without a model: how varied the words are, how much it shouts, how well it compresses.

Source: the quality signals of RedPajama-V2 (Weber et al. 2024, arXiv 2411.12372): entropy of the distribution
of words, share of words in capitals, share of different words; compression as in Delétang et al. 2024 ("Language
Modeling Is Compression", arXiv 2309.10668): text that zlib makes very small says one thing over and over, text that it
cannot make smaller is noise. The bounds are this project's, wide on purpose.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from qwen3.tokenizer.grams import words
from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key


@dataclass(frozen=True)
class Heuristics:
    name: ClassVar[str] = "heuristics"
    entropy: float = key(3.0, "least entropy of the words in nats, of documents of 50 words or more")
    capitals: float = key(0.4, "largest share of words in capitals, of prose")
    smallest: float = key(0.1, "least size by zlib, as a share of the bytes, of documents of 1,000 bytes or more")
    largest: float = key(0.8, "greatest size by zlib, of the same")
    sample: int = key(65_536, "characters at the front that are judged")

    def __call__(self, document: Document) -> Document | str:
        text = document.text[: self.sample]
        data = text.encode()
        if len(data) >= 1000:
            size = len(zlib.compress(data, 1)) / len(data)
            if size < self.smallest:
                return "says one thing over and over"
            if size > self.largest:
                return "noise"
        found = words(text)
        counts = Counter(found)
        entropy = -sum(count / len(found) * math.log(count / len(found)) for count in counts.values())
        if len(found) >= 50 and entropy < self.entropy:
            return "few different words"
        plain = [word for word in text.split() if len(word) > 1 and any(map(str.isalpha, word))]
        if not document.is_code and len(plain) >= 20 and sum(map(str.isupper, plain)) > self.capitals * len(plain):
            return "capitals"
        return document
