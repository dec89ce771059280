"""Ids to text one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`: the texts returned, joined, equal decoding all ids at once.

    Bytes of an unfinished UTF-8 character are held back (at most 3) until it is complete or found invalid; each
    invalid sequence becomes U+FFFD. The cost of a push depends on that token's length alone.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._bytes_of = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that `id` completes; may be empty."""
        return self._decoder.decode(self._bytes_of(id))

    def push_all(self, ids: Iterable[int]) -> str:
        """What pushing them one by one returns, joined."""
        return self._decoder.decode(b"".join(map(self._bytes_of, ids)))

    def flush(self) -> str:
        """End of the text: what was held back, as U+FFFD, or nothing. The detokenizer can then be used afresh."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished character are held back."""
        return bool(self._decoder.getstate()[0])
