"""C4's line rules: sentences stay, menus and notices go.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv
1910.10683, section 2.2: lines must end in a terminal mark and have so many words; lines with "javascript" and policy
notices go; pages with "lorem ipsum", with a curly bracket, or with too few sentences are dropped. The list of bad words
is left out. Meant for web pages: technical prose has headings, lists and code that these rules destroy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

_ENDS = (".", "!", "?", '"', "”", "’", "。", "！", "？", "」", "』", "؟", "۔", "।", "॥", "።", "։")
_CLOSING = ")]»'*"
_ELLIPSES = ("...", "…")
_POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.IGNORECASE
)
_SENTENCE = re.compile(r"[.!?。！？؟۔।॥።։]+(?=\s|[\"'”’»)\]」』]|$)|[。！？]")


@dataclass(frozen=True)
class C4:
    name: ClassVar[str] = "c4"
    words: int = key(5, "least words of a line; of a line without spaces three times as many characters")
    sentences: int = key(3, "least sentences of a document")
    brackets: bool = key(True, "whether a { drops the document")

    def __call__(self, document: Document) -> Document | str:
        if document.is_code:
            return document
        if "lorem ipsum" in document.text.lower():
            return "lorem ipsum"
        if self.brackets and "{" in document.text:
            return "curly bracket"
        lines = document.text.split("\n")
        kept = [line for line in lines if not line.strip() or self._stays(line.strip())]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
        if not text:
            return "no line left"
        if len(_SENTENCE.findall(text)) < self.sentences:
            return "too few sentences"
        return document if len(kept) == len(lines) else replace(document, text=text)

    def _stays(self, line: str) -> bool:
        end = line.rstrip(_CLOSING)
        if not end.endswith(_ENDS) or end.endswith(_ELLIPSES):
            return False
        if len(line.split()) < self.words and not (" " not in line and len(line) >= 3 * self.words):
            return False
        return "javascript" not in line.lower() and not _POLICY.search(line)
