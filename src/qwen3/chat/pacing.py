"""Where paragraphs and sentences end, judged on bytes, as one table entry per token.

A step of the reasoning is a paragraph: text and then a blank line. `.\\n\\n` is one token and a blank line may be two,
so a token alone decides nothing; what its bytes do to the state of the line does. As integers the table serves the
Python state machine and the one on the device alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from qwen3.tokenizer import Tokenizer, byte_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IN_LINE, AFTER_NEWLINE, IN_BREAK = 0, 1, 2
"""States: the line has text; one newline came after text; a blank line came, or nothing yet (where a text begins).
White space other than newlines changes none of them: a line of it is blank."""

SENTENCE_END = 1 << 12
"""Set in the entry of a token that ends a sentence."""

# Vocabularies are written in the byte alphabet, and so are these: no token has to be turned into bytes.
_CHAR = {byte_level.to_bytes(char)[0]: char for char in byte_level.ALPHABET}


def _spell(text: str) -> str:
    return "".join(_CHAR[byte] for byte in text.encode())


def _any_of(chars: str) -> str:
    return "(?:" + "|".join(re.escape(_spell(char)) for char in chars) + ")"


_NEWLINE = _spell("\n")
_BLANK = _spell(" \t\r\v\f")
_SENTENCE = re.compile(
    _NEWLINE + "|" + _any_of(".!?。！？｡．") + _any_of(" \t\r\v\f\"'`*_)]}>”’»）】］》〉」』") + r"*\Z"
)
_NO_CHANGE = IN_LINE | AFTER_NEWLINE << 4 | IN_BREAK << 8

_tables: WeakKeyDictionary[Tokenizer, NDArray[np.uint16]] = WeakKeyDictionary()


def pace_table(tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """What each token does, uint16 [vocab_size], read-only; made once per tokenizer object.

    For each state s (0 … 2), bits 4s and 4s+1 are the state after the token, bits 4s+2 and 4s+3 the paragraphs that end
    in it (3: three or more). A paragraph ends at the second newline after text. SENTENCE_END: the token has a newline,
    or ends in `.`, `!`, `?` or a CJK form of these, white space and closing quotes or brackets apart; one whose bytes
    are spread over several tokens is missed. Added tokens, and ids that are no token, change nothing.
    """
    table = _tables.get(tokenizer)
    if table is None:
        token_of, added = tokenizer._tok.id_to_token, tokenizer.added_tokens
        tokens = (None if id in added else token_of(id) for id in range(tokenizer.vocab_size))
        import numpy as np  # a tenth of a second that a client which only renders should not pay

        table = np.array([_NO_CHANGE if token is None else _entry(token) for token in tokens], np.uint16)
        table.setflags(write=False)
        _tables[tokenizer] = table
    return table


def next_pace(entry: int, state: int) -> tuple[int, int]:
    """(state after the token, paragraphs that ended in it) for its table entry and the state before it."""
    bits = int(entry) >> 4 * state
    return bits & 3, bits >> 2 & 3


def _entry(token: str) -> int:
    entry = SENTENCE_END if _SENTENCE.search(token) else 0
    if _NEWLINE not in token:
        return entry if token.strip(_BLANK) else entry | _NO_CHANGE
    for state in (IN_LINE, AFTER_NEWLINE, IN_BREAK):
        after, ended = state, 0
        for char in token:
            if char == _NEWLINE:
                ended += after == AFTER_NEWLINE
                after = min(after + 1, IN_BREAK)
            elif char not in _BLANK:
                after = IN_LINE
        entry |= (after | min(ended, 3) << 2) << 4 * state
    return entry
