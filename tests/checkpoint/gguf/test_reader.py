"""The header: what is read, and that whatever is wrong is refused in our words, by name."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.gguf.reader import Strings, read_gguf
from qwen3.errors import CorruptFileError, ModelNotFoundError
from tests.checkpoint.gguf.build import ARRAY, BOOL, U64, build, metadata, tensors, text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def refused(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(CorruptFileError, match=message) as caught:
        read_gguf(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_everything_is_read(file: Path, version: int) -> None:
    extra = {"a.list": [1, 2, 3], "a.strings": ["x", "Ġü"], "a.yes": True, "a.wide": (U64, struct.pack("<Q", 2**60))}
    file.write_bytes(build(metadata() | extra, tensors(), version=version))
    header = read_gguf(file)
    assert header.version == version
    assert header.metadata["general.architecture"] == "qwen3"
    assert header.metadata["a.list"].tolist() == [1, 2, 3]
    assert isinstance(header.metadata["a.strings"], Strings)
    assert list(header.metadata["a.strings"]) == ["x", "Ġü"]
    assert header.metadata["a.yes"] is True
    assert header.metadata["a.wide"] == 2**60
    embedding = header.tensors["token_embd.weight"]
    assert (embedding.shape, embedding.type.name, embedding.end - embedding.begin) == ((320, 32), "Q4_0", 320 * 18)
    assert embedding.begin % 32 == 0


def test_other_alignment(file: Path) -> None:
    file.write_bytes(build({"general.alignment": 32}, {"a": ((3,), 0)}))
    assert read_gguf(file).tensors["a"].end == file.stat().st_size - 20
    refused(file, build({"general.alignment": 48}, {"a": ((3,), 0)}), "general.alignment is 48; it must be a power")


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"GG", "the magic number ends at byte 4, but the file has 2"),
        (b"FUGG" + bytes(60), "big-endian"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian GGUF file; only little-endian"),
        (b"PK\3\4" + bytes(60), "not a GGUF file, it does not begin with GGUF"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "GGUF version 1 is not supported"),
        (b"GGUF" + struct.pack("<I", 77) + bytes(60), "GGUF version 77 is not supported"),
        (
            HEAD + struct.pack("<QQ", 2**60, 0),
            r"number of tensors is 1152921504606846976, more than \d+ bytes can hold",
        ),
        (HEAD + struct.pack("<QQ", 0, 2**60), "number of metadata pairs is 1152921504606846976"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62) + bytes(40), "a metadata key claims 4611686"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<I", 99) + bytes(9), "k has the unknown type 99"),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", ARRAY, 8, 2**60) + bytes(40),
            "the length of the array k is 1152921504606846976, more than",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQQ", ARRAY, 8, 2, 2**40) + bytes(40),
            r"the array k ends at byte \d+, but the file has",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", ARRAY, 9, 1) + bytes(40),
            "array k holds values of the unsupported type 9",
        ),
        (HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IB", BOOL, 7) + bytes(9), "k is 7, neither true"),
        (HEAD + struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + bytes(40), "a metadata key is not UTF-8"),
    ],
)
def test_header_is_refused(file: Path, data: bytes, message: str) -> None:
    refused(file, data, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": ((32,), 5)}, r"tensor a has type 5, a 4-bit type that was withdrawn in 2023, and cannot be read"),
        ({"a": ((32,), 1234)}, r"tensor a has type 1234 \(unknown\)"),
        ({"a": ((33, 2), 2)}, "tensor a is Q4_0 with rows of 33, no multiple of its block of 32"),
        ({"a": ((), 0)}, "tensor a has 0 dimensions"),
        ({"a": ((1, 1, 1, 1, 1), 0)}, "tensor a has 5 dimensions"),
        ({"a": ((0,), 0)}, r"tensor a has the impossible shape \[0\]"),
        ({"a": ((2**32, 2**40), 0)}, "tensor a has the impossible shape"),
        ({"a\n": ((4,), 0)}, r"unusable name 'a\\n'"),
    ],
)
def test_tensor_is_refused(file: Path, changed: dict[str, Any], message: str) -> None:
    data = build(
        {}, {name: (shape, 0) for name, (shape, _) in changed.items() if 0 < len(shape) < 3 and max(shape) < 99}
    )
    infos = b""
    for name, (shape, kind) in changed.items():
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    refused(file, HEAD + struct.pack("<QQ", 1, 0) + infos + bytes(len(data) + 64), message)


def test_layout_is_refused(file: Path) -> None:
    two = {"a": ((32,), 0), "b": ((32,), 0)}
    refused(file, build({}, two, offset=lambda at: 0), "tensor b overlaps tensor a")
    refused(file, build({}, two, offset=lambda at: at + 7), "tensor a starts at byte 7 of the data, no multiple")
    refused(file, build({}, two, offset=lambda at: at + 64, extra=64), "64 bytes between the header and tensor a")
    refused(file, build({}, two, extra=512), "512 bytes after tensor b belong to no tensor")
    refused(file, build({}, two)[:-1], r"tensor b lies at bytes \d+ to \d+, but the file has \d+: truncated")
    refused(file, build({}, two, offset=lambda at: at + 2**63), "tensor a lies at bytes")
    refused(file, build({"k": 1}, two).replace(text("b") + b"\1", text("a") + b"\1"), "tensor a stands there twice")
    refused(file, build({"k": 1, "l": 2}, two).replace(text("l"), text("k")), "metadata key k stands there twice")


def test_every_cut_is_refused(file: Path) -> None:
    data = build(metadata(), tensors())
    header = data.index(b"output_norm.weight") + 40
    for length in [*range(0, header, 5), len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(CorruptFileError):
            read_gguf(file)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_gguf(tmp_path / "absent.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CorruptFileError, match="not a regular file"):
        read_gguf(tmp_path / "pipe.gguf")


def part(number: int, count: int, infos: dict[str, Any], **more: Any) -> bytes:
    u16, i32 = (2, struct.pack("<H", number)), (5, struct.pack("<i", 2))
    return build(
        {"split.no": u16, "split.count": (2, struct.pack("<H", count)), "split.tensors.count": i32} | more, infos
    )


def test_split_files(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    first.write_bytes(part(0, 2, {"a": ((4,), 0)}))
    with pytest.raises(ModelNotFoundError, match=r"of 2 parts of the model m-00002-of-00002.gguf is not there"):
        open_gguf(first)
    second.write_bytes(part(1, 2, {"b": ((4,), 0)}))
    model = open_gguf(second)
    assert (model.path, sorted(model.tensors), len(model.headers)) == (first, ["a", "b"], 2)
    for data, message in (
        (part(0, 2, {"b": ((4,), 0)}), r"by its name it is part 2 of 2, but split.no is 0"),
        (part(1, 3, {"b": ((4,), 0)}), r"split.count 3; a part of another model"),
        (part(1, 2, {"a": ((4,), 0)}), "tensor a is in both"),
        (part(1, 2, {"b": ((4,), 0), "c": ((4,), 0)}), "split.tensors.count is 2, but its parts hold 3"),
        (part(1, 2, {"b": ((4,), 0)}, **{"split.tensors.count": 9}), "split.tensors.count is another one"),
    ):
        second.write_bytes(data)
        with pytest.raises(CorruptFileError, match=message):
            open_gguf(first)
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(part(1, 2, {"b": ((4,), 0)}))
    with pytest.raises(CorruptFileError, match="it is part 2 of 2, but its name does not end in"):
        open_gguf(alone)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_damaged_headers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of `tools/mutate_headers.py`."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "tools"))
    campaign = pytest.importorskip("mutate_headers")
    with tempfile.TemporaryDirectory() as folder:
        outcome = campaign.campaign(kind, 1500, 7, Path(folder))
    assert outcome["refused"] > 700
    assert outcome["read"] + outcome["refused"] == 1500
