"""The tokenizer of the first n ranks."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from tests.tokenizer.random_text import random_text

SIZES = (256, 257, 1_000, 8_192, 151_643)
ENGLISH = (
    "What is 27 * 14? First, the model thinks about the question; then it writes a short answer. "
    "The quick brown fox jumps over 13 lazy dogs, and don't they know it!\n\nStep 1: 27 * 10 = 270.\n"
)


@pytest.fixture(scope="module", params=SIZES)
def prefix(tok, request):
    return tok.prefix(request.param)


def slow_bpe(parts: list[bytes], rank: dict[bytes, int], merges: set[tuple[bytes, bytes]]) -> list[bytes]:
    """BPE as it is defined: while any neighbours can merge, merge the pair of the lowest rank, leftmost first."""
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if (a, b) in merges]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def test_ids_of_the_prefix(tok, prefix):
    n = prefix.vocab_size - 26
    assert n in SIZES
    assert prefix.control.as_tuple() == tuple(range(n, n + 26))
    rng = random.Random(n)
    for id in [rng.randrange(n) for _ in range(200)]:
        assert prefix.token_bytes(id) == tok.token_bytes(id)


def test_round_trip_and_range(tok, prefix):
    rng = random.Random(1)
    for _ in range(1_000):
        text = random_text(rng)
        ids = prefix.encode(text)
        assert prefix.decode(ids) == tok.decode(tok.encode(text))
        assert all(id < prefix.vocab_size for id in ids)
        official = tok.encode(text)
        if all(id < prefix.vocab_size - 26 for id in official):
            assert ids == official


def test_common_english_keeps_its_official_ids(tok):
    prefix, words = tok.prefix(8_192), ENGLISH.split(" ")
    same = 0
    for word in words:
        official = tok.encode(" " + word)
        if max(official) < 8_192:
            assert prefix.encode(" " + word) == official
            same += 1
    assert same > 0.7 * len(words)


def test_equals_bpe_restricted_to_the_first_ranks(tok):
    """Against a slow BPE on bytes, for words of one pre-token."""
    n = 2_000
    prefix = tok.prefix(n)
    rank = {tok.token_bytes(id): id for id in range(n)}
    data = json.loads(tok._tok.to_str())["model"]["merges"][: n - 256]
    to_bytes = {tok._tok.id_to_token(id): tok.token_bytes(id) for id in range(n)}
    merges = {(to_bytes[a], to_bytes[b]) for a, b in data}
    rng = random.Random(3)
    for _ in range(500):
        word = "".join(rng.choice("etaoinshrdlucmfé世") for _ in range(rng.randrange(1, 25)))
        expected = [rank[part] for part in slow_bpe([bytes([byte]) for byte in word.encode()], rank, merges)]
        assert prefix.encode(word) == expected, word


def test_full_prefix_is_the_official_tokenizer(tok):
    full = tok.prefix(151_643)
    assert full.encode(ENGLISH + "<think>") == tok.encode(ENGLISH + "<think>")
    assert full.control == tok.control


def test_a_prefix_of_a_prefix(tok):
    assert tok.prefix(8_192).prefix(1_000).encode(ENGLISH) == tok.prefix(1_000).encode(ENGLISH)


def test_saved_prefix_loads_here_and_in_transformers(tok, tmp_path):
    from transformers import AutoTokenizer

    prefix = tok.prefix(8_192)
    prefix.save(tmp_path)
    here, there = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (there.eos_token_id, there.pad_token_id, len(there)) == (8_194, 8_192, 8_218)
    rng = random.Random(9)
    for _ in range(1_000):
        text = random_text(rng) + rng.choice(["<think>", "<|im_end|>", ""]) + random_text(rng)
        assert prefix.encode(text) == here.encode(text) == there(text, add_special_tokens=False)["input_ids"]
    chat = [{"role": "user", "content": "Hi"}]
    assert there.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("n", [255, 0, -1, 151_644, 1.5, True, "8192", None])
def test_bad_n(tok, n):
    with pytest.raises(UsageError, match=r"prefix: n must be a whole number from 256 to 151643"):
        tok.prefix(n)
