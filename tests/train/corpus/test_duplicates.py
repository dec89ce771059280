"""Exact duplicates and near ones: the first stays; estimates are those of the exact Jaccard similarity."""

from __future__ import annotations

import random

import numpy as np
import pytest

from qwen3.errors import UsageError
from qwen3.tokenizer.grams import grams, hash_chars, hash_words, is_unspaced, words
from qwen3.train.corpus.exact import (
    document_hash,
    first_documents,
    first_paragraphs,
    paragraph_hashes,
    without_paragraphs,
)
from qwen3.train.corpus.minhash import MinHash, similarity

VOCABULARY = [f"w{i}" for i in range(3000)]


def edited(rng: random.Random, text: list[str], share: float) -> list[str]:
    return [rng.choice(VOCABULARY) if rng.random() < share else word for word in text]


def test_words_of_any_script() -> None:
    assert words("Hello, WORLD! ﬁn x_1") == ["hello", "world", "fin", "x_1"]
    assert words("数学 and かな") == ["数", "学", "and", "か", "な"]
    assert is_unspaced("数学です。") is True
    assert is_unspaced("maths 数学") is False


def test_grams_are_alike_where_words_are() -> None:
    hashes = hash_words(words("a b c a b c a b"))
    found = grams(hashes, 3)
    assert len(found) == 6
    assert len(set(found.tolist())) == 3
    assert len(grams(hashes, 9)) == 0
    assert grams(hash_chars("abcab"), 2)[0] == grams(hash_chars("abcab"), 2)[3]


def test_the_first_document_stays() -> None:
    texts = ["a b", "c", "a  b\n", "d", "c", "a b"]
    hashes = np.frombuffer(b"".join(map(document_hash, texts)), np.uint8).reshape(-1, 16)
    assert first_documents(hashes).tolist() == [True, True, False, True, False, False]
    assert first_documents(hashes[:0]).tolist() == []


def test_paragraphs_that_come_again_go() -> None:
    licence = "Permission is hereby granted, free of charge, to any person."
    texts = [f"{licence}\n\nfirst text\n\nshort", f"second text\n\n{licence}\n \nshort", "third"]
    keep = first_paragraphs([paragraph_hashes(text) for text in texts])
    found = [without_paragraphs(text, stays) for text, stays in zip(texts, keep, strict=True)]
    assert found == [texts[0], "second text\n\nshort", "third"]


def test_signatures_estimate_the_exact_similarity() -> None:
    rng = random.Random(3)
    minhash = MinHash(permutations=256, words=3)
    errors, truth = [], []
    for i in range(60):
        one = rng.choices(VOCABULARY, k=300)
        other = edited(rng, one, i / 100)
        a, b = " ".join(one), " ".join(other)
        truth.append(similarity(minhash.shingles(a), minhash.shingles(b)))
        errors.append((minhash.signature(a) == minhash.signature(b)).mean() - truth[-1])
    assert min(truth) < 0.2
    assert max(truth) == 1
    assert abs(np.mean(errors)) < 0.015  # unbiased: the standard error of this mean is 0.004
    assert np.sqrt(np.mean(np.square(errors))) < 0.04  # √(s (1 − s) / 256) is at most 0.031


def test_groups_are_those_of_the_exact_similarity() -> None:
    rng, minhash = random.Random(5), MinHash(threshold=0.7)
    texts = []
    for _ in range(60):
        base = rng.choices(VOCABULARY, k=200)
        texts += [" ".join(edited(rng, base, share)) for share in (0, 0.01, 0.3)]  # about 1, 0.9 and 0.1 alike
    rng.shuffle(texts)
    shingles = [minhash.shingles(text) for text in texts]
    exact = np.arange(len(texts))
    for j in range(len(texts)):
        for i in range(j):
            if similarity(shingles[i], shingles[j]) >= 0.7:
                exact[j] = exact[i]
                break
    groups = minhash.groups(np.array([minhash.signature(text) for text in texts]))
    assert (groups != np.arange(len(texts))).sum() >= 55
    assert (groups == exact).mean() >= 0.97
    assert (groups <= np.arange(len(texts))).all()
    assert (groups[groups] == groups).all()


def test_a_bucket_of_different_documents_is_taken_apart() -> None:
    # All agree in the first band; only 0, 2 and 1, 3 are alike as a whole.
    minhash = MinHash(threshold=0.9, permutations=64)
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 1 << 32, (4, 64)).astype(np.uint32)
    signatures[2:] = signatures[:2]
    signatures[:, : minhash.bands[1]] = signatures[0, : minhash.bands[1]]
    assert minhash.groups(signatures).tolist() == [0, 1, 0, 1]


def test_short_texts_and_texts_without_words() -> None:
    minhash = MinHash()
    signatures = np.array([minhash.signature(text) for text in ("two words", "...", "Two words!", "other")])
    assert minhash.groups(signatures).tolist() == [0, 1, 0, 3]
    assert minhash.groups(signatures[:0]).tolist() == []
    assert similarity(minhash.shingles(""), minhash.shingles("?")) == 1


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_what_is_wanted(threshold: float) -> None:
    bands, rows = MinHash(threshold=threshold).bands
    assert bands * rows <= 128
    assert 1 - (1 - (threshold + 0.1) ** rows) ** bands > 0.95
    assert 1 - (1 - (threshold - 0.35) ** rows) ** bands < 0.25


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="threshold"):
        MinHash(threshold=1.0)
    with pytest.raises(UsageError, match="words"):
        MinHash(words=0)


def test_estimates_and_groups_are_as_good_as_datasketch_s() -> None:
    """The same shingles, threshold and length of signatures; what is right is the exact similarity."""
    datasketch = pytest.importorskip("datasketch")
    rng, ours = random.Random(1), MinHash(threshold=0.8)
    texts = []
    for _ in range(400):
        base = rng.choices(VOCABULARY, k=rng.randint(60, 400))
        texts += [" ".join(edited(rng, base, share)) for share in (0, 0.005, 0.02, 0.05)]
    shingles = [ours.shingles(text) for text in texts]
    signatures = np.array([ours.signature(text) for text in texts])
    theirs, index = [], datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    for own in shingles:
        theirs.append(datasketch.MinHash(num_perm=128))
        theirs[-1].update_batch([int(shingle).to_bytes(8, "little") for shingle in own])
    found = np.zeros((2, len(texts)), dtype=bool)
    exact, errors = np.zeros(len(texts), dtype=bool), []
    for j in range(len(texts)):
        for i in range(j - j % 4, j):  # others are not alike at all
            truth = similarity(shingles[i], shingles[j])
            exact[j] |= truth >= 0.8
            estimates = (signatures[i] == signatures[j]).mean(), theirs[i].jaccard(theirs[j])
            errors.append([estimate - truth for estimate in estimates])
        found[1, j] = any(theirs[j].jaccard(theirs[int(i)]) >= 0.8 for i in index.query(theirs[j]))
        index.insert(str(j), theirs[j])
    found[0] = ours.groups(signatures) != np.arange(len(texts))
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    right = (found == exact).mean(axis=1)
    print(f"{len(texts)} texts, {exact.sum()} duplicates; found {found.sum(axis=1)}, right {right}, error {rms}")
    assert rms[0] < 1.15 * rms[1]
    assert right[0] > right[1] - 0.01
