"""Every kind of source gives its documents in order with ids that stay; what is wrong is named by file and line."""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.train.corpus.readers import expand, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"text": "one", "id": "a", "url": "u"}, {"text": "two", "language": "de"}]
    lines = "\n\n".join(json.dumps(row) for row in rows).encode()
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "a.txt").write_bytes("Grüße\r\n".encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md.gz").write_bytes(gzip.compress(b"# Title"))
    (tmp_path / "sub" / "d.jsonl.xz").write_bytes(lzma.compress(lines))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.txt").write_text("hidden")
    return tmp_path


def test_a_folder_is_read_in_order(folder: Path) -> None:
    found = list(read(str(folder)))
    assert [document.id for document in found] == ["a.txt", "a", "b.jsonl:3", "sub/c.md.gz", "a", "sub/d.jsonl.xz:3"]
    assert [document.text for document in found] == ["Grüße\r\n", "one", "two", "# Title", "one", "two"]
    assert found[1].meta == {"url": "u"}
    assert found[2].language == "de"
    assert found[0].source == str(folder)
    assert expand(str(folder)).skipped == {".png": 1, "hidden": 1}


def test_patterns_and_single_files(folder: Path) -> None:
    assert [document.text for document in read(f"{folder}/**/*.md.gz")] == ["# Title"]
    assert [document.id for document in read(f"{folder}/a.txt")] == ["a.txt"]
    assert [document.text for document in read(f"{folder}/.git/*.txt")] == ["hidden"]
    assert len(expand(f"{folder}/**/*.txt").files) == 1
    with pytest.raises(UsageError, match=r"\.png is none of"):
        expand(f"{folder}/image.png")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        expand(f"{folder}/nothing.txt")
    with pytest.raises(ModelNotFoundError, match="suffixes"):
        expand(f"{folder}/*.png")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "JSON object"),
        (b'{"body": "x"}', "no text in the field 'text' .it has body"),
        (b'{"text": 3}', "of type int"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (rb'{"text": "\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_row_is_named_by_its_line(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good, too"}\n')
    with pytest.raises(UsageError, match=rf"x\.jsonl:2: .*{reason}"):
        list(read(str(path)))
    told: list[tuple[str, str]] = []
    found = list(read(str(path), bad=lambda *item: told.append(item)))
    assert [document.text for document in found] == ["good", "good, too"]
    assert [where for where, _ in told] == ["x.jsonl:2"]


def test_a_field_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "x", "text": null}')
    assert [document.text for document in read(str(tmp_path / "x.jsonl"), field="body")] == ["x"]


def test_files_that_are_no_text_or_cut_off(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt: not UTF-8 at byte 3"):
        list(read(str(tmp_path / "latin.txt")))
    for name, data in (("x.txt.gz", gzip.compress(b"text" * 99)), ("x.txt.xz", lzma.compress(b"text" * 99))):
        (tmp_path / name).write_bytes(data[:-12])
        with pytest.raises(CorruptFileError, match=rf"{name}: cut off"):
            list(read(str(tmp_path / name)))


def test_packages_are_sources() -> None:
    found = expand("package:python/json/*.py")
    assert "python/json/decoder.py" in [name for _, name in found.files]
    assert "Decoder" in next(d.text for d in read("package:python/json/decoder.py"))
    assert {name.split("/")[0] for _, name in expand("package:pytest*/*.py").files} >= {"pytest"}
    with pytest.raises(ModelNotFoundError, match="no package nosuchthing"):
        expand("package:nosuchthing")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "three"], "other": [1, 2, 3]}), path)
    told: list[tuple[str, str]] = []
    found = list(read(str(path), bad=lambda *item: told.append(item)))
    assert [(document.text, document.id) for document in found] == [("one", "x.parquet:1"), ("three", "x.parquet:3")]
    assert told[0][0] == "x.parquet:2"
    with pytest.raises(UsageError, match="no column 'body', only text, other"):
        list(read(str(path), field="body"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFileError, match="cut off"):
        list(read(str(path)))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"qwen3\[data\]"):
        list(read(str(tmp_path / "x.parquet")))
