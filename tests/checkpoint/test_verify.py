"""`verify` finds what is wrong and says where."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from qwen3.checkpoint import Report, resolve, save_checkpoint, verify
from qwen3.errors import ModelNotFoundError
from tests import fixtures
from tests.checkpoint.builders import random_model, rewrite
from tests.checkpoint.fake_hub import FakeHub


@pytest.fixture
def good(tmp_path: Path) -> Path:
    config = fixtures.tiny_config()
    model = fixtures.random_model(config, dtype=torch.bfloat16)
    tokenizer, generation = fixtures.tiny_tokenizer(config), {"eos_token_id": [608 + 2, 608], "temperature": 0.6}
    save_checkpoint(tmp_path / "good", model, tokenizer=tokenizer, generation_config=generation)
    return tmp_path / "good"


def errors(report: Report, check: str) -> str:
    return "\n".join(f.message for f in report.findings if f.severity == "error" and f.check == check)


def test_good(good: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = verify(good, progress=lambda *call: seen.append(call))
    assert report.ok
    assert (report.hashes, report.files, report.tensors) == ("manifest", 1, 24)
    assert report.parameters == fixtures.tiny_config().num_parameters()
    [finding] = report.findings
    assert finding.severity == "info"
    assert finding.message == "rows 634 to 639 of the embedding (6) are no tokens and never sampled"
    assert {call[0] for call in seen} >= {"hashing model.safetensors", "scanning model.safetensors"}
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_one_flipped_bit(good: Path, name: str) -> None:
    data = bytearray((good / name).read_bytes())
    data[-7] ^= 1
    (good / name).write_bytes(data)
    report = verify(good)
    assert not report.ok
    assert f"{good / name} has hash" in errors(report, "hashes")


@pytest.mark.parametrize(
    ("text", "severity", "said"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "info", "it is rendered in a sandbox"),
        ("{% for m in messages %", "error", "line 1: "),
        ("{{ ''.__class__.__mro__ }}", "error", "unsafe"),
        ("{{ messages[0].contnet.strip() }}", "error", "has no attribute 'contnet'"),
    ],
)
def test_a_template_of_its_own_is_tried(good: Path, text: str, severity: str, said: str) -> None:
    (good / "chat_template.jinja").write_text(text)
    [finding] = [f for f in verify(good).findings if f.check == "template"]
    assert finding.severity == severity
    assert str(good / "chat_template.jinja") in finding.message
    assert said in finding.message


def test_missing_and_short_files(good: Path) -> None:
    (good / "merges.txt").unlink()
    with (good / "model.safetensors").open("r+b") as file:
        file.truncate(70_000)
    (good / "stray.json").write_text("{}")
    (good / "old.safetensors").write_bytes(b"")
    (good / "pytorch_model.bin").write_bytes(b"")
    report = verify(good)
    assert "merges.txt is in qwen3.manifest.json but missing" in errors(report, "hashes")
    assert "model.safetensors has 70000 bytes, qwen3.manifest.json says" in errors(report, "hashes")
    assert "truncated" in errors(report, "headers")
    warnings = "\n".join(f.message for f in report.findings if f.severity == "warning")
    assert "does not vouch for stray.json" in warnings
    assert "old.safetensors belongs to no index" in warnings
    assert "pytorch_model.bin is a pickle" in warnings


def test_nan_is_found_and_counted(good: Path) -> None:
    bad = torch.ones(64, dtype=torch.bfloat16)
    bad[3] = bad[7] = float("nan")
    bad[9] = float("-inf")
    zeros = torch.zeros(128, 64, dtype=torch.bfloat16)
    rewrite(good / "model.safetensors", model__norm__weight=bad, model__layers__0__mlp__up_proj__weight=zeros)
    report = verify(good)
    assert "model.norm.weight has 2 NaN and 1 infinite values" in errors(report, "values")
    assert any("layers.0.mlp.up_proj.weight is all zeros" in f.message for f in report.findings)


def test_names_and_shapes(good: Path) -> None:
    rewrite(good / "model.safetensors", model__norm__weight=None, extra=torch.ones(2))
    message = errors(verify(good), "tensors")
    assert "missing model.norm.weight [64]" in message
    assert "unexpected extra [2]" in message


def test_shards_report_every_bad_file(sharded: Path) -> None:
    for i in (2, 4):
        (sharded / f"model-0000{i}-of-00005.safetensors").write_bytes(b"")
    message = errors(verify(sharded), "headers")
    assert "model-00002-of-00005.safetensors: empty file" in message
    assert "model-00004-of-00005.safetensors: empty file" in message


def test_tokenizer_and_generation(good: Path) -> None:
    (good / "qwen3.manifest.json").unlink()
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    (good / "generation_config.json").write_text('{"eos_token_id": [151645, "x"]}')
    report = verify(good)
    assert "eos_token_id 3" in errors(report, "tokenizer")
    assert "eos_token_id 151645 is outside" in errors(report, "generation")
    assert report.hashes == "none"
    (good / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in errors(verify(good), "tokenizer")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (good / name).unlink()
    assert "vocab_size 640, below the packaged" in errors(verify(good), "tokenizer")


def test_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    big = fixtures.tiny_tokenizer(fixtures.tiny_config(vocab_size=700))
    config = fixtures.tiny_config()
    save_checkpoint(tmp_path / "m", fixtures.random_model(config), tokenizer=big)
    assert "the tokenizer has 694 ids but the embedding only 640 rows" in errors(verify(tmp_path / "m"), "tokenizer")


def test_broken_in_every_way(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such model folder"):
        verify(tmp_path / "absent")
    report = verify(tmp_path)
    assert {f.check for f in report.findings if f.severity == "error"} >= {"config", "files"}
    (tmp_path / "config.json").write_text("[")
    (tmp_path / "qwen3.manifest.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    report = verify(tmp_path)
    assert {f.check for f in report.findings if f.severity == "error"} >= {"config", "hashes", "headers"}
    assert all("\n" not in f.message for f in report.findings)


def test_hub_cache_vouches_by_its_blob_names(hub: FakeHub, dense: Path) -> None:
    hub.add("someone/tiny", {path.name: path.read_bytes() for path in dense.iterdir()})
    found = resolve("someone/tiny", progress=lambda *call: None)
    assert verify(found.path).hashes == "hub cache"
    assert not errors(verify(found.path), "hashes")
    for name in ("config.json", "model.safetensors"):
        blob = (found.path / name).resolve()
        data = bytearray(blob.read_bytes())
        data[-3] ^= 1
        blob.write_bytes(data)
        assert name in errors(verify(found.path), "hashes")


def test_official_file_is_known_by_its_hash(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (dense / "model.safetensors").read_bytes()
    known = {(len(data), hashlib.sha256(data).hexdigest()): "the tiny one"}
    monkeypatch.setattr(sys.modules["qwen3.checkpoint.verify"], "OFFICIAL_FILES", known)
    report = verify(dense)
    assert report.hashes == "official"
    assert any("is the tiny one, byte for byte" in f.message for f in report.findings)
    shutil.rmtree(dense)
    save_checkpoint(dense, random_model(seed=9))
    (dense / "qwen3.manifest.json").unlink()
    assert any("an official file's size but not its hash" in f.message for f in verify(dense).findings)
