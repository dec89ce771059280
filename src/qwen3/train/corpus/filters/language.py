"""Keeps documents in the languages asked for, and notes the language of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from qwen3.errors import UsageError
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.language import CODES, LETTERS, UND, LanguageId
from qwen3.train.recipe import key


@dataclass(frozen=True)
class Language:
    """Notes the language in `Document.language` (replacing what the source said) and drops what is not wanted.

    keep: codes of `qwen3.train.corpus.language.LANGUAGES`, and "und" to keep what has none; empty: everything is kept
    and only noted. threshold, letters: below them a text is "und" (`LanguageId.label`). The reason of a drop names the
    language found ("language de"), so that the statistics of drops are also those of languages.
    Raises UsageError for a code that is not in the list.
    """

    keep: tuple[str, ...] = key((), "codes that stay, und: of no language; empty: all, and the language is noted")
    threshold: float = key(0.5, "least probability of a language, else und")
    letters: float = key(LETTERS, "letters that a text needs, else und")
    name: str = "language"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if unknown := sorted(set(self.keep) - CODES - {UND}):
            raise UsageError(
                f"keep: {', '.join(unknown)}: not a code of the 119 languages (docs/languages.md lists them)"
            )
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold: {self.threshold} is not a probability")

    def __call__(self, document: Document) -> Document | str:
        code = _model().label(document.text, threshold=self.threshold, letters=self.letters)
        if self.keep and code not in self.keep:
            return f"language {code}"
        return replace(document, language=code)


@cache
def _model() -> LanguageId:
    return LanguageId.load()
