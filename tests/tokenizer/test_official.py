"""The packaged tokenizer is the official one, in its ids and in its files."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3.tokenizer import CONTROL_TOKENS, Detokenizer, Tokenizer
from tests.tokenizer.random_text import random_text

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "tokenizer_cases.jsonl").open()]
HASHES = {
    "tokenizer.json": (11_422_654, "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),
    "tokenizer_config.json": (9_732, "d5d09f07b48c3086c508b30d1c9114bd1189145b74e982a265350c923acd8101"),
    "vocab.json": (2_776_833, "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"),
    "merges.txt": (1_671_853, "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5"),
}
GOLDEN = {
    "hello world": [14990, 1879],
    "12345": [16, 17, 18, 19, 20],
    "\n": [198],
    "\n\n": [271],
    "\r\n": [319],
    "  leading": [220, 6388],
    "don't DON'T": [15007, 944, 44273, 17323],
    "e\u0301": [963],
    "\U0001f3f3\ufe0f\u200d\U0001f308": [147233, 30543, 378, 235, 145354],
    "\u00a0nbsp": [4102, 5674],
    "/no_think": [33100, 5854, 766],
    " /think": [608, 26865],
    "<think>\n\n</think>\n\n": [151667, 271, 151668, 271],
    "<tool_response>\n": [151665, 198],
}


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_case(tok, case):
    assert tok.encode(case["text"]) == case["ids"]
    assert tok.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize(("text", "ids"), GOLDEN.items())
def test_golden_vectors(tok, text, ids):
    assert tok.encode(text) == ids


def test_sizes_and_control_ids(tok):
    assert tok.vocab_size == len(tok) == 151_669
    assert tok.control.as_tuple() == tuple(range(151_643, 151_669))
    assert (tok.control.think, tok.control.end_think, tok.control.tool_call) == (151_667, 151_668, 151_657)
    assert tok.eos_ids == (151_645, 151_643)
    assert list(tok.added_tokens.values()) == [text for text, _ in CONTROL_TOKENS.values()]


def test_saved_files_are_the_official_ones(saved):
    for name, (size, digest) in HASHES.items():
        data = (saved / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest), name


def test_random_unicode_equals_transformers(tok, oracle, capsys):
    rng = random.Random(20_250_514)
    texts = [random_text(rng) for _ in range(10_000)]
    begin = time.perf_counter()
    ours = tok.encode_batch(texts)
    seconds = time.perf_counter() - begin
    theirs = oracle(texts, add_special_tokens=False)["input_ids"]
    assert ours == theirs
    for text, ids in zip(texts, ours, strict=True):
        assert tok.decode(ids) == oracle.decode(ids, clean_up_tokenization_spaces=False), text
    for text, ids in zip(texts[:500], ours, strict=False):
        assert tok.encode(text) == ids
    with capsys.disabled():
        total = sum(map(len, ours))
        print(f"\n10,000 random texts, {total:,} tokens: all equal; {total / seconds / 1e6:.2f} M tokens/s")


def test_random_ids_decode_as_in_transformers(tok, oracle):
    rng = random.Random(5)
    for _ in range(2_000):
        ids = [rng.randrange(tok.vocab_size if rng.random() < 0.3 else 1_000) for _ in range(rng.randrange(1, 12))]
        for skip in (False, True):
            assert tok.decode(ids, skip) == oracle.decode(ids, skip, clean_up_tokenization_spaces=False), ids


def test_plain_encoding_has_no_control_ids(tok, oracle):
    rng = random.Random(7)
    controls = [text for text, _ in CONTROL_TOKENS.values()]
    for _ in range(1_000):
        text = random_text(rng) + rng.choice(controls) + random_text(rng) + rng.choice(controls)
        ids = tok.encode_plain(text)
        assert max(ids) < 151_643
        assert max(tok.encode(text)) >= 151_643
        if all(control not in (plain := random_text(rng)) for control in controls):
            assert tok.encode_plain(plain) == tok.encode(plain)


def test_token_bytes(tok):
    assert tok.token_bytes(198) == b"\n"
    assert tok.token_bytes(tok.control.think) == b"<think>"
    assert b"".join(map(tok.token_bytes, tok.encode("Grüße, 世界 🙂"))).decode() == "Grüße, 世界 🙂"
    assert sorted(tok.token_bytes(id) for id in range(256)) == [bytes([byte]) for byte in range(256)]


def test_detokenizer_equals_decode(tok):
    rng = random.Random(11)
    for i in range(2_000):
        ids = tok.encode(random_text(rng)) if i % 2 else [rng.randrange(256) for _ in range(rng.randrange(1, 20))]
        parts = [(detokenizer := Detokenizer(tok)).push(ids[0])] + [detokenizer.push(id) for id in ids[1:]]
        assert "".join(parts) + detokenizer.flush() == tok.decode(ids)
        assert detokenizer.flush() == ""


def test_detokenizer_never_shows_half_a_character(tok):
    detokenizer = Detokenizer(tok)
    ids = tok.encode("🏳️‍🌈")
    parts = [detokenizer.push(id) for id in ids]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) == "🏳️‍🌈"
    assert detokenizer.push(ids[3]) == "\ufffd"  # a lone continuation byte is no beginning
    assert detokenizer.push(tok.encode("🙂")[0]) == "🙂"
    assert detokenizer.push(ids[2]) == ""
    assert detokenizer.pending


def test_load_time():
    """In a fresh process. 0.45 s was measured; the bound leaves room for a busy machine."""
    code = (
        "import time; t = time.perf_counter(); from qwen3.tokenizer import Tokenizer; Tokenizer.from_pretrained();"
        "print(time.perf_counter() - t); import sys; assert 'torch' not in sys.modules"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]
    assert min(times) < 3, times


def test_repeated_load_is_equal(tok, saved):
    again = Tokenizer.from_pretrained(saved)
    assert again.encode("a <think> b") == tok.encode("a <think> b")
    assert again.vocab_size == tok.vocab_size
