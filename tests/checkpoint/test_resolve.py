"""From what was typed to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3.checkpoint import list_cached, looks_like_model, resolve
from qwen3.errors import CorruptFileError, ModelNotFoundError, UnsafeFileError, UsageError


@pytest.mark.parametrize(
    "text",
    ["embedded", "qwen3:8b", "Qwen3:30B-A3B", "qwen3:7b", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B@c1899de",
     "a/b@refs/pr/1:Q4_K_M", "Qwen/Qwen3-8B-GGUF:Q8_0",
     "/no/such/folder", "./model", "../model", "~/model", "m.gguf", "some model.GGUF", "/"],
)  # fmt: skip
def test_these_are_models(text: str) -> None:
    assert looks_like_model(text)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "What is 27 * 14?", "and/or what?", "qwen3", "Qwen3-8B", "a/b/c", "3 / 4", "/think hard about this",
     "/no_think", "/think", "https://example.com/x",
     "x\n./y", "Embedded", "qwen3: what is it?", "é/x", "a" * 5000, "nul\0byte"],
)  # fmt: skip
def test_these_are_prompts(text: str) -> None:
    assert not looks_like_model(text)


def test_an_existing_path_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not looks_like_model("tiny")
    (tmp_path / "tiny").mkdir()
    assert looks_like_model("tiny")


def test_folder(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(made["dense"])
    assert (found.kind, found.source, found.name, found.path) == ("folder", "path", "dense", made["dense"])
    assert len(found.sha256 or "") == 64
    assert len(resolve(made["sharded"]).sha256 or "") == 64
    monkeypatch.chdir(made["dense"].parent)
    assert resolve("dense").sha256 == resolve("./dense/").sha256 == found.sha256
    assert str(made["dense"]) in found.describe()


def test_folder_without_manifest_has_no_hash(dense: Path) -> None:
    assert resolve(dense).sha256 is None


def test_files(tmp_path: Path, dense: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert resolve(tmp_path / "m.gguf").kind == "gguf"
    (tmp_path / "fake.gguf").write_bytes(b"nope")
    with pytest.raises(CorruptFileError, match="not a GGUF file"):
        resolve(tmp_path / "fake.gguf")
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(UnsafeFileError, match="never opened"):
        resolve(tmp_path / "m.bin")
    with pytest.raises(ModelNotFoundError, match=f"give its folder, {dense}"):
        resolve(dense / "model.safetensors")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ModelNotFoundError, match="is not a model"):
        resolve(tmp_path / "a.txt")
    (dense.parent / "m.gguf").unlink()
    (dense.parent / "fake.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=rf"no config.json; did you mean {dense}\?"):
        resolve(dense.parent)


def test_missing_path_names_a_near_one(dense: Path) -> None:
    wrong = str(dense.with_name("dence"))
    with pytest.raises(ModelNotFoundError, match=rf"{wrong}: no such file or folder; did you mean {dense}\?") as caught:
        resolve(wrong)
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError, match=r"no such file or folder$"):
        resolve("missing.gguf")


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("Qwen3-8B", "did you mean qwen3:8b or Qwen/Qwen3-8B?"),
        ("qwen3-8b", "did you mean qwen3:8b or Qwen/Qwen3-8B?"),
        ("qwen3-30b", "did you mean qwen3:30b-a3b or Qwen/Qwen3-30B-A3B?"),
        ("qwen3:7b", "did you mean qwen3:"),
        ("qwen3:06b", "qwen3:0.6b"),
        ("Qwen3-4B-Instruct-2508", "qwen3:4b-instruct-2507"),
        ("gpt", "the published models are"),
    ],
)
def test_suggestions(cache: Path, typed: str, suggestion: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(typed, offline=True)
    assert suggestion in str(caught.value)
    assert str(caught.value).startswith(f"{typed}: no such")


def test_nonsense(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "a\0b"):
        with pytest.raises(UsageError, match="is not a model name"):
            resolve(text)
    monkeypatch.setenv("QWEN3_HUB", "nowhere")
    with pytest.raises(UsageError, match="QWEN3_HUB is 'nowhere'"):
        resolve("a/b")


def test_embedded(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(ModelNotFoundError, match="no embedded model"):
        resolve()
    assert list_cached() == []
    (tmp_path / "data" / "embedded").symlink_to(made["dense"])
    for name in (None, "embedded"):
        found = resolve(name)
        assert (found.kind, found.name, found.source) == ("embedded", "embedded", "embedded")
        assert found.sha256 == resolve(made["dense"]).sha256
    [model] = list_cached()
    assert (model.name, model.complete) == ("embedded", True)
    assert model.bytes == sum(path.stat().st_size for path in made["dense"].iterdir())
