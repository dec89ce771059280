"""Gopher's quality rules: length, words, symbols, bullets, stop words.

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446,
appendix A.1.1 (MassiveWeb). Written for English: the length of words and the stop words are only asked of texts whose
language is English or unknown and whose letters are mostly Latin. Of scripts without spaces, each letter is a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qwen3.tokenizer.grams import is_unspaced, words
from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

_BULLETS = ("-", "*", "•", "‣", "▪", "●", "◦")
_ELLIPSES = ("…", "...")


@dataclass(frozen=True)
class Gopher:
    name: ClassVar[str] = "gopher"
    min_words: int = key(50, "least words of a document")
    max_words: int = key(100_000, "most words of a document")
    min_length: float = key(3.0, "least mean length of a word (English)")
    max_length: float = key(10.0, "greatest mean length of a word (English)")
    symbols: float = key(0.1, "most # or … for each word")
    bullets: float = key(0.9, "largest share of lines that begin with a bullet")
    ellipses: float = key(0.3, "largest share of lines that end with an ellipsis")
    alphabetic: float = key(0.8, "least share of words with a letter in them")
    stop_words: tuple[str, ...] = key(("the", "be", "to", "of", "and", "that", "have", "with"), "of which some occur")
    min_stop_words: int = key(2, "how many different ones of stop_words must occur (English)")

    def __call__(self, document: Document) -> Document | str:
        if document.is_code:
            return document
        text = document.text
        unspaced = is_unspaced(text)
        found = words(text) if unspaced else text.split()
        if len(found) < max(1, self.min_words):
            return "too few words"
        if len(found) > self.max_words:
            return "too many words"
        symbols = max(text.count("#"), sum(map(text.count, _ELLIPSES)))
        if symbols > self.symbols * len(found):
            return "too many symbols"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if sum(line.startswith(_BULLETS) for line in lines) > self.bullets * len(lines):
            return "bullet list"
        if sum(line.endswith(_ELLIPSES) for line in lines) > self.ellipses * len(lines):
            return "lines end in ellipses"
        if sum(any(map(str.isalpha, word)) for word in found) < self.alphabetic * len(found):
            return "few words with letters"
        return document if unspaced or document.language not in ("", "en") else self._english(document, found)

    def _english(self, document: Document, found: list[str]) -> Document | str:
        letters = [char for char in document.text if char.isalpha()]
        if sum(char < "\u0250" for char in letters) < 0.5 * len(letters):
            return document
        if not self.min_length <= sum(map(len, found)) / len(found) <= self.max_length:
            return "mean length of words"
        if len({word.lower() for word in found} & set(self.stop_words)) < self.min_stop_words:
            return "few stop words"
        return document
