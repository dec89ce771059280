"""Calibration data: the same for the same seed, shown as it is, and conversations that do not see each other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.quantize.calibration import Calibration, conversations, load_calibration, pack
from qwen3.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parents[2] / "src/qwen3/data/embedded"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(EMBEDDED)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_built_in_data_is_both_modes_and_tools_and_the_same_again(tokenizer: Tokenizer) -> None:
    first, again, other = (load_calibration(EMBEDDED, "qwen3", samples=24, length=256, seed=s) for s in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.ids.shape == (24, 256)
    shown = first.to_dict()
    assert (shown["tokens"], shown["sequences"], shown["name"]) == (24 * 256, 24, "qwen3")
    assert f"{24 * 256:,} tokens" in str(first)
    text = tokenizer.decode(first.ids.flatten().tolist())
    assert "<think>\n\n</think>" in text
    assert text.count("<think>\n\n</think>") < text.count("<think>")
    assert "<tools>" in text


def test_positions_begin_anew_with_each_document() -> None:
    documents = iter([[1] * 5, [2] * 9, [3] * 4, [], [4] * 20])
    found = pack("x", ({"ids": ids} for ids in documents), lambda document: document["ids"], 9, 10)
    assert found.ids.tolist() == [[1] * 5 + [2] * 5, [3] * 4 + [4] * 6]
    assert found.positions.tolist() == [[0, 1, 2, 3, 4] * 2, [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]
    assert found.documents.tolist() == [[0] * 5 + [1] * 5, [0] * 4 + [1] * 6]
    assert found.count == 4


def test_a_mode_that_the_model_has_not_is_not_shown() -> None:
    for mode, thinks in (("thinking", True), ("instruct", False)):
        stream = conversations(random.Random(3), mode)
        problems = [d for d in (next(stream) for _ in range(60)) if len(d["messages"]) == 2 and "tools" not in d]
        own = [d for d in problems if "reasoning_content" in d["messages"][1]]
        assert len(own) >= len(problems) * 0.7 if thinks else len(own) <= len(problems) * 0.3


def test_text_and_conversations_from_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [f"Line {i}: the quick brown fox jumps over the lazy dog." for i in range(400)]
    text = load_calibration(EMBEDDED, str(write(tmp_path / "a.txt", *lines)), samples=8, length=64, seed=3)
    assert text.ids.shape == (8, 64)
    assert "the quick brown fox" in tokenizer.decode(text.ids[0].tolist())
    chats = [
        {"text": "plain text, and then some more of it"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    ]
    found = load_calibration(EMBEDDED, str(write(tmp_path / "b.jsonl", *chats, "")), samples=8, length=4000)
    assert found.count == 2
    assert found.ids.shape[0] == 1  # shorter than a sequence
    assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.decode(found.ids[0].tolist())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": 3}', r'line 1 must be an object with "text"'),
        ("a.jsonl", '[{"role": "user"}]', r'line 1 must be an object with "text"'),
        ("a.jsonl", '{"text": "fine"}\n{"messages": ["hello"]}', "line 2: "),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1: "),
        ("a.txt", " \n", "is empty"),
        ("a.parquet", "x", "must be 'qwen3'"),
        ("a.txt", "x", "fewer than two tokens"),
    ],
)
def test_files_that_will_not_do_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        load_calibration(EMBEDDED, str(tmp_path / name))


def test_missing_files_and_lengths_beyond_the_context(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such calibration file"):
        load_calibration(EMBEDDED, str(tmp_path / "no.txt"))
    with pytest.raises(UsageError, match="must be 'qwen3'"):
        load_calibration(EMBEDDED, "wikitext")
    with pytest.raises(UsageError, match="beyond the model's 4096"):
        load_calibration(EMBEDDED, "qwen3", length=5000)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_calibration(EMBEDDED, str(tmp_path / "bytes.txt"))


def test_the_hash_is_of_ids_and_where_documents_begin() -> None:
    def of(positions: list[list[int]]) -> str:
        ids = torch.tensor([[1, 2, 3]])
        return Calibration("x", ids, torch.tensor(positions), torch.zeros_like(ids), 1).sha256

    assert of([[0, 1, 2]]) != of([[0, 1, 0]])
