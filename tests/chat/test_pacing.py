"""Paragraph and sentence ends per token, against the same questions asked of the bytes of the whole text."""

from __future__ import annotations

import gc
import random
import re
import time
import weakref

import numpy as np
import pytest

from qwen3.chat.pacing import AFTER_NEWLINE, IN_BREAK, IN_LINE, SENTENCE_END, next_pace, pace_table
from qwen3.checkpoint.resolved import embedded_folder
from qwen3.tokenizer import Tokenizer
from tests.tokenizer.random_text import random_text

BLANK = b" \t\r\v\f"
PARAGRAPH_END = re.compile(rb"[^ \t\r\v\f\n][ \t\r\v\f]*\n[ \t\r\v\f]*\n")
CLOSERS = " \t\r\v\f\"'`*_)]}>”’»）】］》〉」』"
PIECES = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "\r\n",
    ".\n\n",
    "text",
    "A word.",
    "  \n \n",
    "}\n\n",
    "。",
    "…",
    "é",
    "👩",
    "1.",
    "\x0c",
    "\n\n\n\n",
]


@pytest.fixture(scope="module", params=["packaged", "prefix", "embedded"])
def tokenizer(request, tok) -> Tokenizer:
    if request.param == "packaged":
        return tok
    return tok.prefix(300) if request.param == "prefix" else Tokenizer.from_pretrained(embedded_folder())


def state_of(text: bytes) -> int:
    """The line state after `text`, read off its end."""
    body = text.rstrip(BLANK + b"\n")
    newlines = text[len(body) :].count(b"\n")
    return IN_BREAK if not body or newlines > 1 else AFTER_NEWLINE if newlines else IN_LINE


def test_random_texts(tokenizer):
    rng = random.Random(11)
    table = pace_table(tokenizer)
    tokens = paragraphs = 0
    for _ in range(400):
        text = "".join(
            rng.choice(PIECES) if rng.random() < 0.8 else random_text(rng) for _ in range(rng.randrange(1, 40))
        )
        ids = tokenizer.encode_plain(text)
        if rng.random() < 0.3:  # not the canonical encoding
            ids = [id for piece in re.findall(r"(?s).{1,3}", text) for id in tokenizer.encode_plain(piece)]
        state, seen, before = IN_BREAK, b"", 0
        for id in ids:
            seen += tokenizer.token_bytes(id)
            state, ended = next_pace(table[id], state)
            count = len(PARAGRAPH_END.findall(seen))
            assert (state, ended) == (state_of(seen), min(count - before, 3)), (text, seen)
            before = count
            tokens += 1
        paragraphs += before
    print(f"\n{tokens:,} tokens, {paragraphs:,} paragraphs")
    assert paragraphs > 500


def test_every_token(tokenizer):
    """Each token after each state; sentences by the token's own text."""
    table = pace_table(tokenizer)
    assert (table.dtype, table.shape) == (np.uint16, (tokenizer.vocab_size,))
    begin = {IN_LINE: b"x", AFTER_NEWLINE: b"x\n", IN_BREAK: b""}
    ends = 0
    for id in range(tokenizer.vocab_size):
        entry = int(table[id])
        data = tokenizer.token_bytes(id)
        if id in tokenizer.added_tokens:
            assert [next_pace(entry, state) for state in begin] == [(state, 0) for state in begin]
            assert not entry & SENTENCE_END
            continue
        text = data.decode("utf-8", "replace")
        ends += (is_end := "\n" in text or text.rstrip(CLOSERS).endswith(tuple(".!?。！？｡．")))
        assert bool(entry & SENTENCE_END) == is_end, text
        if b"\n" in data or id % 20 == 0:
            for state, before in begin.items():
                count = len(PARAGRAPH_END.findall(before + data))
                assert next_pace(entry, state) == (state_of(before + data), min(count, 3)), (text, state)
    assert ends > (5 if tokenizer.vocab_size < 1000 else 200)


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("", 0),
        ("\n\n\n", 0),
        ("a\n\nb", 1),
        ("a\n \t\nb\n\n\n\nc\n\n", 3),
        ("a\r\n\r\nb", 1),
        ("- a\n- b\n- c", 0),
        ("\n\na.\n\n\n \n\n", 1),
    ],
)
def test_paragraphs(tok, text, paragraphs):
    table, state, count = pace_table(tok), IN_BREAK, 0
    for id in tok.encode(text):
        state, ended = next_pace(table[id], state)
        count += ended
    assert count == paragraphs


def test_sentences(tok):
    table = pace_table(tok)

    def ends(text):
        return [tok.decode([id]) for id in tok.encode(text) if table[id] & SENTENCE_END]

    assert ends('It is 4. So "yes!" (or no?) - well, 1,000; maybe: e') == [".", '!"', "?)"]
    assert ends("好。是吗？是！") == ["。", "？", "！"]
    assert ends("one\ntwo\n\n") == ["\n", "\n\n"]
    assert ends("a, b: c; d - e") == []


def test_made_once_and_fast(tok):
    fresh = Tokenizer.from_pretrained()
    start = time.process_time()
    table = pace_table(fresh)
    spent = time.process_time() - start
    print(f"\ntable of {fresh.vocab_size:,} tokens: {spent * 1e3:.0f} ms")
    assert spent < 0.6  # 0.15 s where nothing else runs
    assert pace_table(fresh) is table
    assert np.array_equal(table, pace_table(tok))
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1
    gone = weakref.ref(fresh)
    del fresh
    gc.collect()
    assert gone() is None
