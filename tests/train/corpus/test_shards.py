"""Shards give back what was written, in the same bytes however often the writer was killed; damage has a name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import Shards, write_shards

TEXTS = [f"Document {i}: Grüße, 数学 and 🙂 number {i * i}." * (1 + i % 4) for i in range(40)]


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return Tokenizer.from_pretrained()


@pytest.fixture(scope="module")
def small(official: Tokenizer) -> Tokenizer:
    return official.prefix(2048)


def encoded(tokenizer: Tokenizer) -> list[list[int]]:
    return [[*tokenizer.encode_plain(text), tokenizer.control.endoftext] for text in TEXTS]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["small", "official"])
def test_documents_come_back_with_the_bytes_of_their_texts(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = request.getfixturevalue(name)
    documents = encoded(tokenizer)
    shards = write_shards(tmp_path / "s", documents, tokenizer, sources={"texts": 40}, shard_tokens=300)
    assert len(shards.about["shards"]) > 3
    assert shards.about["dtype"] == ("uint16" if name == "small" else "uint32")
    assert [ids.tolist() for ids in shards] == documents
    assert shards[-1].tolist() == documents[-1]
    assert shards[3].dtype == np.int32
    assert shards.byte_counts.tolist() == [len(text.encode()) for text in TEXTS]
    assert (shards.tokens, shards.bytes) == (sum(map(len, documents)), sum(len(text.encode()) for text in TEXTS))
    assert shards.lengths.tolist() == [len(ids) for ids in documents]
    shards.verify()
    again = pickle.loads(pickle.dumps(shards))
    assert again[7].tolist() == documents[7]
    assert again.fingerprint == shards.fingerprint
    with pytest.raises(IndexError):
        shards[40]


@pytest.mark.parametrize("killed_at", [0, 1, 13, 20, 39])
@pytest.mark.parametrize("as_function", [False, True])
def test_a_killed_writer_goes_on_to_the_same_bytes(
    killed_at: int, as_function: bool, small: Tokenizer, tmp_path: Path
) -> None:
    documents, asked = encoded(small), []

    def from_number(first: int) -> Iterator[list[int]]:
        asked.append(first)
        return iter(documents[first:])

    def dying() -> Iterator[list[int]]:
        yield from documents[:killed_at]
        raise KeyboardInterrupt

    write_shards(tmp_path / "whole", documents, small, shard_tokens=300)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "s", dying(), small, shard_tokens=300)
    (tmp_path / "s" / ".0123456789abcdef.partial").write_bytes(b"of a process that was killed")
    if killed_at:
        with pytest.raises((CorruptFileError, ModelNotFoundError)):
            Shards(tmp_path / "s")
    write_shards(tmp_path / "s", from_number if as_function else documents, small, shard_tokens=300)
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    if as_function and killed_at > 20:
        assert asked[0] > 0
    write_shards(tmp_path / "s", from_number, small, shard_tokens=300)  # finished: nothing is asked for
    assert len(asked) == as_function


def test_another_call_does_not_go_on_in_the_folder(small: Tokenizer, official: Tokenizer, tmp_path: Path) -> None:
    write_shards(tmp_path, encoded(small), small, sources={"seed": 1})
    with pytest.raises(UsageError, match="sources"):
        write_shards(tmp_path, encoded(small), small, sources={"seed": 2})
    with pytest.raises(UsageError, match="made with dtype"):
        write_shards(tmp_path, encoded(official), official, sources={"seed": 1})


def test_shards_of_a_foreign_tokenizer_are_refused(small: Tokenizer, official: Tokenizer, tmp_path: Path) -> None:
    write_shards(tmp_path, encoded(small), small)
    Shards(tmp_path, small)
    with pytest.raises(UsageError, match="another tokenizer"):
        Shards(tmp_path, official.prefix(1024))


def test_bad_documents_are_named(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="document 1 has no ids"):
        write_shards(tmp_path / "a", [[1], []], small)
    with pytest.raises(UsageError, match="document 2 has an id outside"):
        write_shards(tmp_path / "b", [[1], [2], [len(small)]], small)
    with pytest.raises(UsageError, match="no document"):
        write_shards(tmp_path / "c", [], small)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="no shards here"):
        Shards(tmp_path / "c")


def test_damage_is_named(small: Tokenizer, tmp_path: Path) -> None:
    write_shards(tmp_path, encoded(small), small, shard_tokens=300)
    tokens, index, manifest = tmp_path / "00001.tokens", tmp_path / "00001.index", tmp_path / "manifest.json"
    whole = {path: path.read_bytes() for path in (tokens, index, manifest)}

    def damaged(path: Path, data: bytes) -> Shards:
        for name, old in whole.items():
            name.write_bytes(old)
        path.write_bytes(data)
        return Shards(tmp_path)

    for path in (tokens, index):
        with pytest.raises(CorruptFileError, match=rf"{path.name}: .* truncated"):
            damaged(path, whole[path][:-2])
    with pytest.raises(CorruptFileError, match=r"00001.index: altered"):
        damaged(index, whole[index][:-1] + b"\x7f")
    with pytest.raises(CorruptFileError, match="not JSON"):
        damaged(manifest, whole[manifest][:-9])
    with pytest.raises(CorruptFileError, match="sums"):
        damaged(manifest, json.dumps(json.loads(whole[manifest]) | {"tokens": 1}).encode())
    one_id = bytearray(whole[tokens])
    one_id[0] ^= 1
    with pytest.raises(CorruptFileError, match=r"00001.tokens: altered"):
        damaged(tokens, bytes(one_id)).verify()
    with pytest.raises(CorruptFileError, match="outside the vocabulary"):
        damaged(tokens, whole[tokens][:-2] + b"\xff\xff").verify()
    tokens.unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        Shards(tmp_path)
