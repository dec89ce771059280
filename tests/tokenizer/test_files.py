"""Checkpoint tokenizers in and out, and what is said about broken ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer

HEAD = b'{"version": "1.0", "added_tokens": [], '
TEXT = "What is 27 * 14?\n<think>\nnaïve 世界 🙂\n</think>\n\n378<|im_end|>"


@pytest.fixture(scope="module")
def small(tok):
    return tok.prefix(1_000)


@pytest.fixture
def folder(small, tmp_path):
    small.save(tmp_path)
    return tmp_path


def test_save_load_save_is_byte_identical(folder, tmp_path_factory):
    second = tmp_path_factory.mktemp("again")
    Tokenizer.from_pretrained(folder).save(second)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    for name in names:
        assert (folder / name).read_bytes() == (second / name).read_bytes(), name


def test_a_tokenizer_json_path_is_as_good_as_its_folder(folder, small):
    assert Tokenizer.from_pretrained(folder / "tokenizer.json").encode(TEXT) == small.encode(TEXT)


@pytest.mark.parametrize("config", [True, False], ids=["with config", "without"])
def test_vocab_and_merges_without_tokenizer_json(folder, small, config):
    (folder / "tokenizer.json").unlink()
    if not config:
        (folder / "tokenizer_config.json").unlink()
    loaded = Tokenizer.from_pretrained(str(folder))
    assert loaded.encode(TEXT) == small.encode(TEXT)
    assert loaded.control == small.control


def test_saved_without_a_config_gets_one_that_transformers_reads(folder, small, tmp_path_factory):
    from transformers import AutoTokenizer

    (folder / "tokenizer_config.json").unlink()
    out = tmp_path_factory.mktemp("out")
    Tokenizer.from_pretrained(folder).save(out)
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == small.encode(TEXT)
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())


def test_a_saved_truncation_is_not_obeyed(folder, small):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.from_pretrained(folder).encode(TEXT) == small.encode(TEXT)


def test_a_template_file_is_handed_on(folder, tmp_path_factory):
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    out = tmp_path_factory.mktemp("out")
    Tokenizer.from_pretrained(folder).save(out)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_nothing_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such tokenizer"):
        Tokenizer.from_pretrained(tmp_path / "missing")
    with pytest.raises(ModelNotFoundError, match=r"neither tokenizer\.json nor"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"version": "1.0", "model"', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b"{}", "not a tokenizer.json"),
        (HEAD + b'"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}', "not a tokenizer.json"),
        (HEAD + b'"model": {"type": "WordLevel", "vocab": {}, "unk_token": "u"}}', "byte-level"),
    ],
)
def test_corrupt_tokenizer_json(tmp_path, data, message):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(CorruptFileError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_corrupt_config_and_pair(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"tokenizer_config\.json: not valid JSON"):
        Tokenizer.from_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("x y\n")
    with pytest.raises(CorruptFileError, match="do not fit together"):
        Tokenizer.from_pretrained(folder)


def test_config_that_contradicts_the_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"5000": config["added_tokens_decoder"]["1000"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptFileError, match=r"added_tokens_decoder gives <\|endoftext\|> id 5000"):
        Tokenizer.from_pretrained(folder)


def test_missing_control_tokens_are_named(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if "think" not in token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    loaded = Tokenizer.from_pretrained(folder)
    with pytest.raises(CorruptFileError, match="no control token <think>, </think>"):
        _ = loaded.control


def test_bad_arguments(tok):
    for bad in (151_669, -1, 10**30):
        with pytest.raises(UsageError, match="not in the vocabulary"):
            tok.decode([bad])
    with pytest.raises(UsageError, match="must be a string, not bytes"):
        tok.encode(b"x")
    with pytest.raises(UsageError, match=r"U\+D800 at character 1"):
        tok.encode("a\ud800")
    with pytest.raises(UsageError, match=r"U\+DFFF"):
        tok.encode_batch(["fine", "\udfff"])
    assert tok.decode(np.array([14_990, 1_879])) == "hello world"
