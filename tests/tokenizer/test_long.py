"""Long texts are encoded by another call of the library, to the same ids, while other threads run."""

from __future__ import annotations

import threading
import time

from qwen3.tokenizer import Tokenizer

TEXT = "The quick brown fox 狐狸 jumps 27 times <think> over\n\n the lazy dog's <|im_end|> back. " * 4000


def test_ids_are_the_same(tok: Tokenizer) -> None:
    whole = tok._tok.encode(TEXT[:40_000], add_special_tokens=False).ids
    assert tok.encode(TEXT[:40_000]) == whole
    plain = tok._plain.encode(TEXT[:40_000], add_special_tokens=False).ids
    assert tok.encode_plain(TEXT[:40_000]) == plain
    assert set(plain).isdisjoint(tok.added_tokens)


def test_other_threads_go_on(tok: Tokenizer) -> None:
    tok.encode_plain(TEXT[:10_000])
    worker = threading.Thread(target=tok.encode_plain, args=(TEXT * 3,))
    turns = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20
